"""Every score against a dense computation in float64 that shares no code with it, on a network of 44 parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stability import Problem, UsageError
from stability.cli.about import FAMILIES
from stability.problems.metrics import squared_errors
from stability.problems.problem import Examples, ModuleLogits
from stability.problems.solvable import linear_regression
from stability.selectors import LIFT, SAM, SNIP, Calibrated, Fisher, Gradient, GraSP, PaFi, Ranked, Scope, SynFlow, TaLoS
from stability.selectors.naming import SELECTORS, selector_named

SEED, CLASSES = 3, 3
SHAPES = {"0.weight": (4, 5), "0.bias": (4,), "2.weight": (4, 4), "2.bias": (4,)}
HEAD = {"4.weight": (CLASSES, 4), "4.bias": (CLASSES,)}


def network(bend: type[nn.Module] = nn.Tanh, n: int = 9) -> Problem:
    """Two pretrained layers and a new head, float64; a validation split of its own."""
    draw = torch.Generator().manual_seed(1)

    def some(shapes: Mapping[str, tuple[int, ...]], draw: torch.Generator) -> dict[str, Tensor]:
        return {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}

    def examples(count: int) -> Examples:
        inputs = {"input": torch.randn(count, 5, generator=draw, dtype=torch.float64)}
        return Examples(inputs, torch.randint(0, CLASSES, (count,), generator=draw))

    module = nn.Sequential(nn.Linear(5, 4), bend(), nn.Linear(4, 4), bend(), nn.Linear(4, CLASSES)).double().eval()
    return Problem(
        name="tiny",
        settings={"n": n},
        pretrained=some(SHAPES, draw),
        new_head=lambda draw: some(HEAD, draw),
        logits=ModuleLogits(module),
        loss=lambda logits, labels: cross_entropy(logits, labels, reduction="none"),
        train=examples(n),
        test=examples(4),
        validation=examples(6),
        metric=lambda logits, labels: float((logits.argmax(1) == labels).double().mean()),
        metric_name="accuracy",
    )


@dataclass
class Dense:
    """What the scores are made of, from the network written out as a function of one flat vector."""

    problem: Problem
    examples: Examples
    bend: Callable[[Tensor], Tensor] = torch.tanh

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        first, one, second, two = theta.split([20, 4, 16, 4])
        head = self.problem.head(SEED)
        hidden = self.bend(x @ first.view(4, 5).T + one)
        return self.bend(hidden @ second.view(4, 4).T + two) @ head["4.weight"].T + head["4.bias"]

    def loss(self, theta: Tensor, i: int, label: int) -> Tensor:
        return -torch.log_softmax(self.logits(theta, self.examples.inputs["input"][i]), 0)[label]

    def total(self, theta: Tensor) -> Tensor:
        likely = torch.log_softmax(self.logits(theta, self.examples.inputs["input"]), 1)
        return -likely[torch.arange(len(self.examples)), self.examples.labels].mean()

    @cached_property
    def theta(self) -> Tensor:
        return torch.cat([self.problem.pretrained[name].flatten() for name in SHAPES])

    def slope(self, i: int, label: int) -> Tensor:
        theta = self.theta.clone().requires_grad_()
        return torch.autograd.grad(self.loss(theta, i, label), theta)[0]

    @cached_property
    def each(self) -> Tensor:
        return torch.stack([self.slope(i, int(label)) for i, label in enumerate(self.examples.labels)])

    @cached_property
    def g(self) -> Tensor:
        return self.each.mean(0)

    @cached_property
    def hessian(self) -> Tensor:
        found: Tensor = torch.autograd.functional.hessian(self.total, self.theta)
        return found

    @cached_property
    def true_fisher(self) -> Tensor:
        """mean_i Σ_y p(y|x_i) (∂ log p(y|x_i))²."""
        found = torch.zeros_like(self.theta)
        for i in range(len(self.examples)):
            shares = torch.softmax(self.logits(self.theta, self.examples.inputs["input"][i]), 0)
            found += sum(shares[label] * self.slope(i, label) ** 2 for label in range(CLASSES))
        return found / len(self.examples)

    def of_rank(self, rank: int) -> Tensor:
        """The truncated singular value decomposition by numpy, as a sum of outer products; vectors are 0."""
        parts = []
        for name in SHAPES:
            values = self.problem.pretrained[name].numpy()
            kept = np.zeros_like(values)
            if values.ndim == 2:
                u, s, v = np.linalg.svd(values)
                for j in range(min(rank, len(s))):
                    kept += s[j] * np.outer(u[:, j], v[j])
            parts.append(kept.ravel())
        return torch.from_numpy(np.concatenate(parts)).abs()

    def flow(self) -> Tensor:
        """θ ∂R/∂θ of the chain |W_3| (|W_2| (|W_1| 1 + |b_1|) + |b_2|) + |b_3|, by its derivatives as products of matrices."""
        w1, b1, w2, b2 = (self.problem.pretrained[name].abs().numpy() for name in SHAPES)
        w3 = self.problem.head(SEED)["4.weight"].abs().numpy()
        ones = np.ones(5)
        h1 = w1 @ ones + b1
        up = np.ones(CLASSES) @ w3  # ∂R/∂(second layer's output)
        down = up @ w2
        parts = [np.outer(down, ones) * w1, down * b1, np.outer(up, h1) * w2, up * b2]
        return torch.from_numpy(np.concatenate([part.ravel() for part in parts]))


EXPECTED: dict[str, Callable[[Dense], Tensor]] = {
    "magnitude": lambda at: at.theta.abs(),
    "pafi": lambda at: -at.theta.abs(),
    "lift": lambda at: at.of_rank(8),
    "synflow": lambda at: at.flow(),
    "sam": lambda at: at.g**2,
    "gradient": lambda at: at.g.abs(),
    "snip": lambda at: (at.theta * at.g).abs(),
    "taylor": lambda at: (at.theta * at.g) ** 2,
    "grasp": lambda at: at.theta * (at.hessian @ at.g),
    "fisher": lambda at: (at.each**2).mean(0),
    "talos": lambda at: -(at.each**2).mean(0),
}
"""Every score, large where a coordinate is chosen. A new one gets a line here."""

SCORES = [*FAMILIES["by the pretrained model"], *FAMILIES["by gradients before training"]]


def scored(selector: Ranked, problem: Problem) -> Tensor:
    return selector.score(selector.evidence(problem, SEED)).double()


def made(name: str, **settings: Any) -> Any:
    return selector_named(name, 0.5, **settings)


def chosen(scores: Tensor, p: float = 0.5) -> list[int]:
    order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    return sorted(order[: int(p * len(scores))])


def places(mask: Any) -> list[int]:
    starts = dict(zip(SHAPES, (0, 20, 24, 40), strict=True))
    return [starts[name] + int(i) for name, index in mask.indices.items() for i in index]


def test_every_score_is_in_a_family_and_has_a_dense_answer() -> None:
    assert sorted(name for members in FAMILIES.values() for name in members) == sorted(SELECTORS)
    assert sorted(EXPECTED) == sorted(SCORES)
    ranked = [name for name, kind in SELECTORS.items() if isinstance(kind, type) and issubclass(kind, Ranked)]
    assert sorted(["magnitude", *ranked]) == sorted(["random", *SCORES])


@pytest.mark.parametrize("name", SCORES)
def test_every_score_against_a_dense_computation(name: str) -> None:
    problem = network(nn.ReLU if name == "synflow" else nn.Tanh)
    at = Dense(problem, problem.train)
    np.testing.assert_allclose(scored(made(name), problem), EXPECTED[name](at), rtol=1e-9, atol=1e-12)
    assert places(made(name).select(problem, SEED)) == chosen(EXPECTED[name](at))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_lift_by_outer_products(rank: int) -> None:
    problem = network()
    found = scored(LIFT(0.5, rank=rank), problem)
    np.testing.assert_allclose(found, Dense(problem, problem.train).of_rank(rank), atol=1e-12)


@pytest.mark.parametrize(("kind", "sign"), [(Fisher, 1), (TaLoS, -1)])
def test_the_true_fisher_matrix_is_a_mean_over_the_model_s_own_labels(kind: type[Calibrated], sign: int) -> None:
    problem = network()
    at = Dense(problem, problem.train)
    np.testing.assert_allclose(scored(kind(0.5, labels="model"), problem), sign * at.true_fisher, rtol=1e-9)


def test_sampled_labels_have_the_model_s_probabilities() -> None:
    """2000 copies of one example: each label as often as its probability, within 5 standard errors."""
    problem, n = network(), 2000
    one = problem.train.take(torch.zeros(n, dtype=torch.int64))
    copies = dataclasses.replace(problem, train=one)
    labels = Gradient(0.5, labels="sampled").evidence(copies, SEED).problem.train.labels
    shares = torch.softmax(Dense(problem, one).logits(Dense(problem, one).theta, one.inputs["input"][0]), 0)
    found = torch.bincount(labels, minlength=CLASSES) / n
    assert bool(((found - shares).abs() < 5 * (shares * (1 - shares) / n).sqrt()).all())
    assert shares.min() > 0.01


def numbers(n: int = 9) -> tuple[Problem, Tensor]:
    """The same network with a fixed weighted sum of its logits as the only one, a squared error, and the gradients of that sum."""
    problem = network(n=n)
    weights = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    labels = torch.linspace(0, 5, n, dtype=torch.float64)
    made = dataclasses.replace(
        problem,
        logits=lambda parameters, inputs: problem.logits(parameters, inputs) @ weights,
        loss=squared_errors,
        train=Examples(problem.train.inputs, labels),
    )
    at, each = Dense(problem, problem.train), []
    for x in problem.train.inputs["input"]:
        theta = at.theta.clone().requires_grad_()
        each.append(torch.autograd.grad((at.logits(theta, x) @ weights).sum(), theta)[0])
    return made, torch.stack(each)


def test_the_true_fisher_matrix_of_a_squared_error_is_that_of_a_normal_distribution() -> None:
    """ℓ = (f − y)² with y ~ N(f, ½): E (∂ℓ)² = 4 E(f − y)² (∂f)² = 2 (∂f)²."""
    problem, each = numbers()
    np.testing.assert_allclose(scored(Fisher(0.5, labels="model"), problem), 2 * (each**2).mean(0), rtol=1e-9)


def test_labels_of_a_squared_error_are_drawn_from_a_normal_distribution() -> None:
    problem, n = numbers()[0], 4000
    copies = dataclasses.replace(problem, train=problem.train.take(torch.zeros(n, dtype=torch.int64)))
    labels = Gradient(0.5, labels="sampled").evidence(copies, SEED).problem.train.labels
    (mean,) = problem.logits(problem.start(SEED), problem.train.take(slice(0, 1)).inputs).flatten().tolist()
    assert stats.kstest(labels.numpy(), stats.norm(mean, math.sqrt(0.5)).cdf).pvalue > 1e-3


@pytest.mark.parametrize("settings", [{}, {"examples": 5}, {"labels": "sampled"}, {"examples": 5, "labels": "sampled"}], ids=str)
@pytest.mark.parametrize("kind", [Gradient, Fisher, GraSP])
def test_leaving_out_takes_the_example_from_what_was_drawn_for_s(kind: type[Calibrated], settings: Any) -> None:
    problem = network()
    selector = kind(0.5, **settings)
    drawn = selector.evidence(problem, SEED).problem.train
    used = [
        next(j for j in range(problem.n) if torch.equal(problem.train.inputs["input"][j], row)) for row in drawn.inputs["input"]
    ]
    assert len(set(used)) == settings.get("examples", problem.n)
    masks = list(selector.select_each_left_out(problem, range(problem.n), SEED))
    changed = 0
    for i, mask in enumerate(masks):
        kept = torch.tensor([place for place, j in enumerate(used) if j != i])
        assert places(mask) == chosen(EXPECTED[selector.name](Dense(problem, drawn.take(kept))))
        changed += not mask.equals(selector.select(problem, SEED))
        assert i in used or mask.equals(selector.select(problem, SEED))
    assert changed > 0


def test_the_true_fisher_matrix_leaves_out_too() -> None:
    problem = network()
    masks = Fisher(0.5, labels="model").select_each_left_out(problem, range(problem.n), SEED)
    for i, mask in enumerate(masks):
        assert places(mask) == chosen(Dense(problem, problem.train.without(i)).true_fisher)


@pytest.mark.parametrize("kind", [Gradient, Fisher, SAM])
def test_a_calibration_on_held_out_examples_does_not_depend_on_s(kind: type[Calibrated]) -> None:
    problem, selector = network(), kind(0.5, split="validation")
    assert problem.validation is not None
    assert places(selector.select(problem, SEED)) == chosen(EXPECTED[selector.name](Dense(problem, problem.validation)))
    assert not selector.uses_data
    assert kind(0.5).uses_data
    for mask in selector.select_each_left_out(problem, [0, 4], SEED):
        assert mask.equals(selector.select(problem, SEED))
    with pytest.raises(UsageError, match="'tiny' has no validation split: use split = 'train'"):
        selector.select(dataclasses.replace(problem, validation=None), SEED)


def test_the_settings_of_a_calibration_count_only_where_they_are_given() -> None:
    assert Fisher(0.1).settings() == {"name": "fisher", "sparsity": 0.1, "scope": "global"}
    assert SAM(0.1).settings() == {"name": "sam", "sparsity": 0.1, "scope": "global", "curvature": "constant"}
    given = Fisher(0.1, examples=4, split="validation", labels="model").settings()
    assert given == {**Fisher(0.1).settings(), "examples": 4, "split": "validation", "labels": "model"}


def test_gps_is_the_gradient_within_rows() -> None:
    """Of each neuron the same number of weights of largest |g|, by a loop over the rows; none of norms, and no biases."""
    problem = network()
    assert isinstance(problem.logits, ModuleLogits)
    names = {"0.weight": "0.weight", "0.bias": "0.bias", "2.weight": "2.weight", "norm.weight": "2.bias"}
    tensors = {name: problem.pretrained[old] for name, old in names.items()}
    renamed = dataclasses.replace(problem, pretrained=tensors, logits=dataclasses.replace(problem.logits, names=names))
    slopes = dict(zip(SHAPES, Dense(problem, problem.train).g.abs().split([20, 4, 16, 4]), strict=True))
    wanted, each = {}, int(0.6 * 44) // 8  # three of each of 8 neurons
    for name in ("0.weight", "2.weight"):
        rows = slopes[name].view(SHAPES[name])
        top = [sorted(range(len(row)), key=lambda j: -float(row[j]))[:each] for row in rows]
        wanted[name] = sorted(i * rows.shape[1] + j for i, row in enumerate(top) for j in row)
    found = Gradient(0.6, scope=Scope("row", only="*weight", without="*norm*", budget="equal")).select(renamed, SEED)
    assert {name: index.tolist() for name, index in found.indices.items()} == wanted


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gradient(0.1, labels="model"), "the mean gradient over the model's own labels is 0, so that gradient would"),
        (lambda: SAM(0.1, labels="model"), "so that sam would have nothing"),
        (lambda: Gradient(0.1, labels=1), "unknown labels 1: use true, sampled or model"),  # type: ignore[arg-type]
        (lambda: Gradient(0.1, labels="mine"), "unknown labels 'mine': use true, sampled or model"),  # type: ignore[arg-type]
        (lambda: Gradient(0.1, split="test"), "unknown split 'test'"),  # type: ignore[arg-type]
        (lambda: Gradient(0.1, examples=0), "examples = 0: use a whole number of at least 1"),
        (lambda: SAM(0.1, batches=3, examples=4), "batches = 3 are of all of S"),
        (lambda: LIFT(0.1, rank=0), "rank = 0"),
        (lambda: made("synflow", labels="true"), "selector 'synflow' has no labels: leave it out"),
        (lambda: made("pafi", examples=3), "selector 'pafi' has no examples: leave it out"),
        (lambda: SynFlow(0.5).select(network(nn.Tanh), 0), "synflow needs layers that are linear for positive numbers.*'tiny' has"),
        *(
            (lambda bend=bend: SynFlow(0.5).select(network(bend), 0), "synflow needs layers that are linear")
            for bend in (nn.Sigmoid, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Hardswish, nn.ReLU6)
        ),
        (lambda: Fisher(0.5, labels="model").select(regression(), 0), "gives its labels no probabilities.*use labels = 'true'"),
        (lambda: SNIP(0.5, labels="sampled").select(regression(), 0), "gives its labels no probabilities"),
        (
            lambda: list(SNIP(0.5, examples=1).select_each_left_out(network(), range(9), SEED)),
            "no example but the one that is left out: use more examples",
        ),
    ],
)
def test_senseless_requests_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


def regression() -> Problem:
    return linear_regression(np.eye(4), np.arange(4.0)).problem


@pytest.mark.parametrize("name", ["digits", "pairs"])
def test_synflow_refuses_transformers(name: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(
        UsageError, match="synflow needs (layers that are linear|inputs that are numbers).*use magnitude, pafi or lift"
    ):
        SynFlow(0.1).select(request.getfixturevalue(name), 0)


def test_pafi_takes_what_magnitude_leaves() -> None:
    problem = network()
    largest, smallest = (set(places(made(name).select(problem, SEED))) for name in ("magnitude", "pafi"))
    assert largest.isdisjoint(smallest)
    assert len(largest | smallest) == 44
    assert PaFi(1.0).select(problem, SEED).count == 44
