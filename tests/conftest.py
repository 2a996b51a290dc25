from __future__ import annotations

import os

import matplotlib as mpl
import pytest
import torch

from stability import problems
from stability.problem import Problem

mpl.use("Agg")
torch.set_num_threads(1)  # one a worker: several workers with several threads each slow each other down many times
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


@pytest.fixture(scope="session")
def digits() -> Problem:
    return problems.load("digits", n=24, seed=0)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is left in the user's cache, nor read from it."""
    os.environ["STABILITY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
