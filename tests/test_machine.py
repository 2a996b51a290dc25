"""Limits of control groups, read from a made-up tree of files; those of ``ulimit`` from a process that has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stability.machine import memory_limits, processor_limits

GIB = 1 << 30


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def process(tmp_path: Path, groups: str, *mounts: str) -> Path:
    """The folder of a process in these ``groups``; a mount is its root, its folder and what follows the dash."""
    folder = tmp_path / "proc"
    lines = [f"{30 + i} 23 0:2{i} {mount.replace(' - ', ' rw,relatime shared:9 - ', 1)}\n" for i, mount in enumerate(mounts)]
    folder.mkdir()
    (folder / "cgroup").write_text(groups)
    (folder / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/root rw\n" + "".join(lines))
    return folder


def test_each_limit_of_version_2_up_to_the_root_holds(tmp_path: Path) -> None:
    top = tmp_path / "sys"
    write(
        top / "a" / "b", memory__max="max", memory__high=3 * GIB, memory__current=2 * GIB, memory__stat=f"inactive_file {GIB // 2}"
    )
    write(top / "a", memory__max=4 * GIB, memory__high="max", memory__current=3 * GIB, memory__stat="anon 5\ninactive_file 0")
    write(top / "a" / "b", cpu__max="250000 100000")
    write(top / "a", cpu__max="max 100000")
    folder = process(tmp_path, "0::/a/b\n", f"/ {top} - cgroup2 cgroup2 rw")
    assert memory_limits(folder)[:2] == [3 * GIB - 2 * GIB + GIB // 2, GIB]
    assert processor_limits(folder) == [3]


def test_version_1_is_read_by_controller(tmp_path: Path) -> None:
    memory, cpu = tmp_path / "memory", tmp_path / "cpu"
    write(
        memory / "job", memory__limit_in_bytes=GIB, memory__usage_in_bytes=GIB // 2, memory__stat=f"total_inactive_file {GIB // 4}"
    )
    write(cpu / "job", cpu__cfs_quota_us=150000, cpu__cfs_period_us=100000)
    write(cpu, cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    groups = "5:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/job\n0::/\n"
    folder = process(
        tmp_path,
        groups,
        f"/ {memory} - cgroup cgroup rw,memory",
        f"/ {cpu} - cgroup cgroup rw,cpu,cpuacct",
        "/ /none - cgroup2 c rw",
    )
    assert memory_limits(folder)[:1] == [GIB - GIB // 4]
    assert processor_limits(folder) == [2]


@pytest.mark.parametrize("root", ["/docker/abc", "/"], ids=["the host's groups are seen", "a namespace of its own"])
def test_in_a_container_its_group_is_the_root_of_the_mount(root: str, tmp_path: Path) -> None:
    top = tmp_path / "sys"
    write(top, memory__max=GIB, memory__current=2 * GIB, memory__stat="inactive_file 0")
    folder = process(tmp_path, f"0::{root}\n", f"{root} {top} - cgroup2 cgroup2 rw")
    assert memory_limits(folder)[:1] == [0]  # more is taken than there may be: nothing is left, and no less


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert processor_limits(tmp_path) == []
    own = psutil.Process()
    unlimited = all(own.rlimit(limit)[0] == psutil.RLIM_INFINITY for limit in (psutil.RLIMIT_AS, psutil.RLIMIT_DATA))
    assert memory_limits(tmp_path) == [] or not unlimited


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere these limits are not told")
def test_what_ulimit_leaves_counts() -> None:
    code = "import torch; from stability.machine import free_memory; print(free_memory(torch.device('cpu')))"
    limited = ["bash", "-c", f'ulimit -v {3 << 20}; exec {sys.executable} -c "{code}"']
    left = int(subprocess.run(limited, capture_output=True, text=True, check=True).stdout)
    assert 0 < left < 3 * GIB


@pytest.mark.parametrize("given", [None, "0"])
def test_torch_is_asked_for_large_pages_unless_the_user_says_otherwise(given: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment |= {} if given is None else {"THP_MEM_ALLOC_ENABLE": given}
    code = "import os, sys, stability; print(os.environ['THP_MEM_ALLOC_ENABLE'], 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == [given or "1", "False"]
