from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stability import Problem, UsageError, problems
from stability.problems.digits import _model
from stability.problems.problem import generator, shuffled_batches
from stability.problems.solvable import quadratic
from stability.selectors import SAM, BitFit, Fisher, Random, from_scores
from stability.selectors.scope import count_for
from tests.reference import call, top_k_by_sorting
from tests.selectors.test_laws import shifted_magnitude


def test_sam_takes_the_largest_squared_gradients_of_the_whole_of_s(digits: Problem) -> None:
    start = {name: tensor.clone().requires_grad_() for name, tensor in digits.start(3).items()}
    logits = call(_model(), start, digits.train.inputs["pixel_values"])
    torch.nn.functional.cross_entropy(logits, digits.train.labels).backward()
    flat = torch.cat([start[name].grad.flatten() for name in digits.pretrained]) ** 2  # type: ignore[union-attr]
    mask = SAM(sparsity=0.01).select(digits, seed=3)
    offsets, at = {}, 0
    for name, tensor in digits.pretrained.items():
        offsets[name], at = at, at + tensor.numel()
    chosen = {offsets[n] + int(i) for n, index in mask.indices.items() for i in index}
    expected = top_k_by_sorting(flat.numpy(), mask.count)
    # The reference sums in single precision: only a coordinate at the threshold may differ.
    assert len(chosen & expected) >= mask.count - 1


def test_fisher_takes_the_largest_mean_squared_gradients_one_example_at_a_time(digits: Problem) -> None:
    start, squares = digits.start(3), None
    for i in range(digits.n):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        one = digits.train.take(slice(i, i + 1))
        torch.nn.functional.cross_entropy(call(_model(), leaves, one.inputs["pixel_values"]), one.labels).backward()
        square = torch.cat([leaves[name].grad.double().flatten() for name in digits.pretrained]) ** 2  # type: ignore[union-attr]
        squares = square if squares is None else squares + square
    assert squares is not None
    mask = Fisher(0.01).select(digits, seed=3)
    ends = itertools.accumulate((t.numel() for t in digits.pretrained.values()), initial=0)
    offsets = dict(zip(digits.pretrained, ends, strict=False))
    chosen = {offsets[name] + int(i) for name, index in mask.indices.items() for i in index}
    # The reference rounds otherwise in single precision: only coordinates at the threshold may differ.
    assert len(chosen & top_k_by_sorting(squares.numpy(), mask.count)) >= mask.count - 1
    assert not mask.equals(SAM(0.01).select(digits, seed=3))


def decrease(gradient: Tensor, hessian: Tensor, chosen: Sequence[int]) -> float:
    """−min_Δ gᵀΔ + ½ ΔᵀHΔ over Δ that is zero outside ``chosen``."""
    g, h = gradient[list(chosen)], hessian[list(chosen)][:, list(chosen)]
    return float(0.5 * g @ torch.linalg.solve(h, g))


@pytest.mark.parametrize("curvature", ["gauss_newton", "hutchinson"])
@pytest.mark.parametrize("seed", range(40))
def test_theorem_3_by_exhaustive_search(seed: int, curvature: Any) -> None:
    """Diagonal H > 0, d ≤ 12: of all masks of k coordinates, SAM's lets the quadratic approximation fall the farthest."""
    draw = np.random.default_rng(seed)
    d = int(draw.integers(2, 13))
    k = int(draw.integers(1, d + 1))
    h = draw.uniform(0.1, 5, d)
    problem = quadratic(np.diag(h), draw.standard_normal((5, d)), draw.standard_normal(d)).problem
    mask = SAM(sparsity=k / d, curvature=curvature, floor=0).select(problem, seed=0)
    assert mask.count == k
    (gradient,) = torch.autograd.grad(
        problem.losses(weight := {"weight": problem.pretrained["weight"].clone().requires_grad_()}, problem.train).mean(),
        weight["weight"],
    )
    values = {c: decrease(gradient, torch.diag(torch.tensor(h)), c) for c in itertools.combinations(range(d), k)}
    assert decrease(gradient, torch.diag(torch.tensor(h)), mask.indices["weight"].tolist()) == pytest.approx(max(values.values()))
    assert max(values, key=lambda c: values[c]) == tuple(mask.indices["weight"].tolist())


def test_sam_is_the_paper_s_rule_where_the_curvature_is_constant(digits: Problem) -> None:
    """With an endless floor every |h_j| counts the same, and |g²/h| orders as g² does."""
    paper = SAM(0.02).select(digits, 0)
    assert SAM(0.02, curvature="gauss_newton", floor=1e30).select(digits, 0).equals(paper)
    with pytest.raises(TypeError, match="sparsity"):
        SAM()  # type: ignore[call-arg]
    assert not SAM(0.02, curvature="gauss_newton").select(digits, 0).equals(paper)


def test_a_gradient_without_curvature_comes_first() -> None:
    """g = (1, 2, 0), h = (5, 0, 0) by Gauss–Newton: the letter of Theorem 3 divides by nothing."""
    base = quadratic(np.eye(3), np.ones((3, 3))).problem
    problem = dataclasses.replace(
        base,
        logits=lambda parameters, inputs: (parameters["weight"][:2]).expand(len(inputs["x"]), 2),
        loss=lambda f, y: 2.5 * f[..., 0] ** 2 + f[..., 0] + 2 * f[..., 1],
    )
    assert SAM(1 / 3, curvature="gauss_newton").select(problem, 0).indices["weight"].tolist() == [1]
    assert SAM(2 / 3, curvature="gauss_newton").select(problem, 0).indices["weight"].tolist() == [0, 1]


def test_negative_curvature_counts_by_its_size_and_little_of_it_by_the_floor() -> None:
    """g²/max(|h|, ¼ mean|h|) with h = (−4, 2, 0.001, 0), g = (2, 1, 0.5, 0): scores 1, 0.5, 0.667 and 0."""
    h, g = torch.tensor([-4.0, 2.0, 0.001, 0.0]).double(), torch.tensor([2.0, 1.0, 0.5, 0.0]).double()
    base = quadratic(np.eye(4), np.ones((3, 4))).problem

    def logits(parameters: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        w = parameters["weight"]
        return (g * w + 0.5 * h * w**2).sum().expand(len(inputs["x"]), 1)

    problem = dataclasses.replace(base, logits=logits, loss=lambda f, y: f.squeeze(-1))
    chosen = [SAM(k / 4, curvature="hutchinson", floor=0.25).select(problem, 0).indices["weight"].tolist() for k in (1, 2, 3)]
    assert chosen == [[0], [0, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAM(0.1, curvature="fisher"), "unknown curvature 'fisher'"),  # type: ignore[arg-type]
        (lambda: SAM(0.1, floor=-1), "floor = -1"),
        (lambda: SAM(0.1, floor=float("inf")), "floor = inf"),
        (lambda: SAM(0.1, curvature="hutchinson", probes=1), "probes = 1"),
        (lambda: SAM(0.1, batches=0), "batches = 0: use a whole number of at least 1"),
    ],
)
def test_senseless_settings_of_sam_are_refused(make: Callable[[], SAM], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def test_random_is_uniform(digits: Problem) -> None:
    """How often each tensor is hit over 200 seeds agrees with the hypergeometric law within 5 standard errors."""
    k, m, name = count_for(0.03, digits.m), digits.m, "vit.layers.0.mlp.fc1.weight"
    assert name in digits.pretrained
    size = digits.pretrained[name].numel()
    hits = sum(len(Random(0.03).select(digits, seed).indices[name]) for seed in range(200)) / 200
    expected = k * size / m
    error = (expected * (1 - size / m) * (m - k) / (m - 1) / 200) ** 0.5
    assert abs(hits - expected) < 5 * error


def test_bitfit_without_biases_names_what_is_missing(digits: Problem) -> None:
    unbiased = {name: tensor for name, tensor in digits.pretrained.items() if not name.endswith("bias")}
    with pytest.raises(UsageError, match="bitfit tunes biases.*has none"):
        BitFit().select(dataclasses.replace(digits, pretrained=unbiased), seed=0)


def test_a_score_function_sees_where_training_starts(digits: Problem) -> None:
    """``problem.start()`` is the start of A with its seed, the new head with it."""
    seen = []

    def scores(problem: Problem, draw: torch.Generator) -> dict[str, Tensor]:
        seen.append(problem.start()["classifier.weight"])
        return {name: tensor.abs() for name, tensor in problem.pretrained.items()}

    from_scores(scores, 0.1).select(digits, seed=7)
    assert torch.equal(seen[0], digits.start(7)["classifier.weight"])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda problem, draw: None, "returned NoneType: a dictionary of real tensors"),
        (
            lambda problem, draw: {n: t.numpy() for n, t in problem.pretrained.items()},
            "returned dict of ndarray: a dictionary of real tensors",
        ),
        (lambda problem, draw: {n: t + 1j for n, t in problem.pretrained.items()}, "a dictionary of real tensors"),
    ],
)
def test_what_is_no_scores_is_refused(scores: Any, message: str, digits: Problem) -> None:
    with pytest.raises(UsageError, match=message):
        from_scores(scores, 0.1, name="mine").select(digits, 0)


def test_a_score_function_of_other_arguments_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'<lambda>' takes .problem, generator., and this one does not"):
        from_scores(lambda problem: problem.pretrained, 0.1)  # type: ignore[arg-type, misc]


def test_a_score_function_cannot_spoil_the_pretrained_model(digits: Problem) -> None:
    def spoil(problem: Problem, draw: torch.Generator) -> dict[str, Tensor]:
        return {name: tensor.mul_(0).add_(torch.rand(tensor.shape, generator=draw)) for name, tensor in problem.pretrained.items()}

    before = {name: tensor.clone() for name, tensor in digits.pretrained.items()}
    from_scores(spoil, 0.1).select(digits, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in digits.pretrained.items())


def test_sam_over_mini_batches_is_their_summed_gradients(digits: Problem) -> None:
    """Σ_b mean gradient of batch b, by autograd; over batches that take every example equally often it is the paper's rule."""
    selector = SAM(0.02, batches=5, batch_size=7)
    start = {name: tensor.double().requires_grad_() for name, tensor in digits.start(3).items()}
    model = copy.deepcopy(_model()).to_empty(device="cpu").double()
    for batch in shuffled_batches(digits.n, 7, 5, generator(3, "selection")):
        logits = call(model, start, digits.train.inputs["pixel_values"][batch].double())
        torch.nn.functional.cross_entropy(logits, digits.train.labels[batch]).backward()
    flat = torch.cat([start[name].grad.flatten() for name in digits.pretrained]) ** 2  # type: ignore[union-attr]
    mask = selector.select(digits, seed=3)
    ends = itertools.accumulate((t.numel() for t in digits.pretrained.values()), initial=0)
    offsets = dict(zip(digits.pretrained, ends, strict=False))
    chosen = {offsets[name] + int(i) for name, index in mask.indices.items() for i in index}
    assert len(chosen & top_k_by_sorting(flat.numpy(), mask.count)) >= mask.count - 1  # in single precision one may differ
    assert not mask.equals(SAM(0.02).select(digits, seed=3))
    left_out = 4
    paired = {name: tensor.detach().double().requires_grad_() for name, tensor in digits.start(3).items()}
    for batch in shuffled_batches(digits.n, 7, 5, generator(3, "selection")):
        kept = batch[batch != left_out]
        logits = call(model, paired, digits.train.inputs["pixel_values"][kept].double())
        torch.nn.functional.cross_entropy(logits, digits.train.labels[kept]).backward()
    flat = torch.cat([paired[name].grad.flatten() for name in digits.pretrained]) ** 2  # type: ignore[union-attr]
    (without,) = selector.select_each_left_out(digits, [left_out], seed=3)
    chosen = {offsets[name] + int(i) for name, index in without.indices.items() for i in index}
    assert len(chosen & top_k_by_sorting(flat.numpy(), mask.count)) >= mask.count - 1
    assert SAM(0.02, batches=8, batch_size=6).select(digits, seed=3).equals(SAM(0.02).select(digits, seed=3))


def test_settings_identify_a_selector() -> None:
    assert SAM(0.1).settings() == {"name": "sam", "sparsity": 0.1, "scope": "global", "curvature": "constant"}
    assert SAM(0.1, curvature="hutchinson").settings().keys() >= {"probes", "floor"}
    assert SAM(0.1, curvature="gauss_newton").settings()["name"] == "sam-gauss_newton"
    mine = from_scores(shifted_magnitude, 0.03, name="mine").settings()
    assert mine["name"] == "mine"
    assert mine["scores"] == "tests.selectors.test_laws:shifted_magnitude"


def test_generators_of_different_roles_are_apart() -> None:
    draws = {role: torch.rand(4, generator=generator(0, role)) for role in ("head", "order", "selection", "plan")}
    flat = torch.stack(list(draws.values()))
    assert len(torch.unique(flat)) == flat.numel()


def test_unknown_problem_names_those_that_exist() -> None:
    with pytest.raises(UsageError, match="unknown problem 'letters', and no file or folder is there: there is digits"):
        problems.load("letters")
