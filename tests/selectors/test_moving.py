"""Methods whose mask moves while they train, against plain loops: one flat vector, autograd, torch's AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from stability import FineTuning, Problem, UsageError, machine
from stability.problems.digits import _model
from stability.problems.problem import generator
from stability.selectors import (
    ChildPruning,
    Course,
    DiffPruning,
    LotteryTicket,
    Mixout,
    MixoutReset,
    Movement,
    Moving,
    RigL,
    Run,
    Scope,
    Selector,
    SpIEL,
    magnitude,
)
from stability.training.adamw import Clock
from stability.training.replicas import Replicas, train
from tests.reference import as_double, call, leaving_out, top_k_by_sorting

P, STEPS, LEFT_OUT = 0.02, 12, 5
RATE, DECAY = 0.01, 0.1


class Plain:
    """One run on the digits, whole or with example 5 left out: θ as one flat vector, the head at its end."""

    def __init__(self, digits: Problem, algorithm: FineTuning, left_out: int | None) -> None:
        self.left_out = left_out
        start = digits.start(algorithm.seed)
        self.shapes = {name: tensor.shape for name, tensor in start.items()}
        self.origin = torch.cat([tensor.flatten() for tensor in start.values()])
        self.m, self.k = digits.m, int(P * digits.m)
        self.data, self.batches = digits.train, list(algorithm.batches(digits.train))
        self.draws = generator(algorithm.seed, "selection")
        self.losses: list[float] = []

    def loss(self, flat: Tensor, step: int) -> Tensor:
        parts = flat.split([math.prod(shape) for shape in self.shapes.values()])
        parameters = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        batch = self.batches[step]
        keep = batch if self.left_out is None else batch[batch != self.left_out]
        loss = cross_entropy(call(_model(), parameters, self.data.inputs["pixel_values"][keep]), self.data.labels[keep])
        self.losses.append(loss.item())
        return loss

    def uniform(self) -> Tensor:
        return torch.rand(self.m, generator=self.draws, dtype=torch.float64)

    def with_head(self, gates: Tensor) -> Tensor:
        return torch.cat([gates.double(), torch.ones(len(self.origin) - self.m, dtype=torch.float64)])

    def best(self, scores: Tensor) -> Tensor:
        mask = torch.zeros(self.m, dtype=torch.bool)
        mask[list(top_k_by_sorting(scores.detach().numpy(), self.k))] = True
        return mask

    def projected(self, flat: Tensor, mask: Tensor) -> None:
        with torch.no_grad():
            flat.copy_(torch.where(self.with_head(mask).bool(), flat, self.origin))


def adamw(*tensors: Tensor) -> torch.optim.AdamW:
    return torch.optim.AdamW(tensors, lr=RATE, weight_decay=DECAY)


def at(step: int, *optimizers: torch.optim.AdamW) -> None:
    """The linear schedule, for every optimizer by the step of the run."""
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad()


def masked_step(plain: Plain, flat: Tensor, optimizer: torch.optim.AdamW, mask: Tensor) -> None:
    assert flat.grad is not None
    flat.grad *= plain.with_head(mask)
    optimizer.step()
    plain.projected(flat, mask)


def run(selector: Selector, digits: Problem, row: int) -> tuple[Replicas, Plain]:
    algorithm = FineTuning(selector, steps=STEPS, batch_size=7, learning_rate=RATE, weight_decay=DECAY, schedule="linear", seed=1)
    return train(digits, algorithm, leaving_out(digits.n, LEFT_OUT)), Plain(digits, algorithm, LEFT_OUT if row else None)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn and computed a piece at a time is cut many times, also on this small model."""
    monkeypatch.setattr(machine, "_IN_CACHE", 2048)


each_row = pytest.mark.parametrize("row", [0, 1], ids=["whole", "left-out"])


def agree(replicas: Replicas, row: int, plain: Plain, values: Tensor, mask: Tensor) -> None:
    found = replicas.masks[row]
    places = torch.cat([index + start for index, start in zip(found.indices.values(), starts(plain, found.indices), strict=True)])
    assert torch.equal(places, torch.nonzero(mask).squeeze(1))
    # AdamW divides by √v + 1e-8, which magnifies rounding where the true gradient is zero.
    torch.testing.assert_close(replicas.values[row], values.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(replicas.batch_losses[:, row].tolist(), plain.losses, rtol=0, atol=1e-7)


def starts(plain: Plain, names: Any) -> list[int]:
    ends = np.cumsum([0, *(math.prod(shape) for shape in plain.shapes.values())])
    every = dict(zip(plain.shapes, ends, strict=False))
    return [int(every[name]) for name in names]


@each_row
def test_mixout_is_lee_s_formula_through_autograd(row: int, digits: Problem, small_pieces: None) -> None:
    """θ_mixed = (bθ⁰ + (1 − b)θ − qθ⁰)/(1 − q), as Lee, Cho & Kang write it; b = 1 with probability q."""
    digits = as_double(digits)
    replicas, plain = run(Mixout(0.7), digits, row)
    theta = plain.origin.clone().requires_grad_()
    optimizer = adamw(theta)
    for step in range(STEPS):
        back = 1 - plain.with_head(plain.uniform() >= 0.7)
        mixed = (back * plain.origin + (1 - back) * theta - 0.7 * plain.origin) / (1 - 0.7)
        head = torch.arange(len(theta)) >= plain.m
        at(step, optimizer)
        plain.loss(torch.where(head, theta, mixed), step).backward()
        optimizer.step()
    agree(replicas, row, plain, theta, torch.ones(plain.m, dtype=torch.bool))
    assert replicas.relaxed.all()
    assert not replicas.mask_changes.any()


def test_mixout_s_expectation_is_theta() -> None:
    """Over 4 000 draws the mean of the mixed parameters is θ within 5 standard errors, at every coordinate."""
    origin, theta, q = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([1.5, -1.0, 0.0]), 0.7
    course = Mixout(q).begin(_run(origin, m=3))
    course._values = theta.expand(1, -1).clone()  # type: ignore[attr-defined]
    drawn = torch.stack([course.point()[0] for _ in range(4000)])
    error = (theta - origin).abs() * math.sqrt(q / (1 - q) / 4000)
    assert ((drawn.mean(0) - theta).abs() < 5 * error).all()


@each_row
def test_mixout_reset_is_full_tuning_with_a_random_rest_put_back(row: int, digits: Problem) -> None:
    digits = as_double(digits)
    replicas, plain = run(MixoutReset(P), digits, row)
    mask = plain.best(plain.uniform())
    theta = plain.origin.clone().requires_grad_()
    optimizer = adamw(theta)
    for step in range(STEPS):
        at(step, optimizer)
        plain.loss(theta, step).backward()
        optimizer.step()
    plain.projected(theta, mask)
    agree(replicas, row, plain, theta, mask)
    assert replicas.masks[0].equals(replicas.masks[1])
    assert replicas.mask_changes[-1].tolist() == [plain.k, plain.k]


def score_moved(theta: Tensor, origin: Tensor) -> Tensor:
    return (theta - origin).abs()


def score_magnitude(theta: Tensor, origin: Tensor) -> Tensor:
    return theta.abs()


@each_row
@pytest.mark.parametrize(
    ("selector", "score", "every", "burn_in", "reset"),
    [
        (ChildPruning(P), score_moved, 2, None, False),
        (ChildPruning(P, every=5), score_moved, 5, None, False),
        (ChildPruning(P, every=3, burn_in=6), score_moved, 3, 6, False),
        (ChildPruning(P, every=4, burn_in=6, reset=True), score_moved, 4, 6, True),
        (LotteryTicket(P, burn_in=5), score_moved, None, 5, True),
        (magnitude(P, burn_in=5), score_magnitude, None, 5, False),
        (magnitude(P, burn_in=5, reset=True), score_magnitude, None, 5, True),
    ],
    ids=["child", "child-5", "child-burn-in", "child-reset", "lt-sft", "magnitude", "magnitude-reset"],
)
def test_projection_is_a_loop_that_sorts_and_puts_back(
    selector: Selector,
    score: Callable[[Tensor, Tensor], Tensor],
    every: int | None,
    burn_in: int | None,
    reset: bool,
    row: int,
    digits: Problem,
) -> None:
    digits = as_double(digits)
    replicas, plain = run(selector, digits, row)
    theta = plain.origin.clone().requires_grad_()
    optimizer = adamw(theta)
    last: Tensor | None = None
    fixed = False
    entered = []
    for step in range(STEPS):
        at(step, optimizer)
        plain.loss(theta, step).backward()
        before, entered_now = last, 0
        if fixed:
            assert last is not None
            masked_step(plain, theta, optimizer, last)
        else:
            optimizer.step()
            done = step + 1
            if done in (burn_in, STEPS) or (every is not None and done % every == 0):
                last = plain.best(score(theta[: plain.m], plain.origin[: plain.m]))
                plain.projected(theta, last)
                entered_now = int((last if before is None else last & ~before).sum())
            if done == burn_in:
                fixed = True
                if reset:
                    theta = plain.origin.clone().requires_grad_()
                    optimizer = adamw(theta)
        entered.append(entered_now)
    assert last is not None
    agree(replicas, row, plain, theta, last)
    assert replicas.mask_changes[:, row].tolist() == entered
    assert not replicas.relaxed.any()


@each_row
def test_movement_adds_up_minus_gradient_times_weight_and_begins_anew(row: int, digits: Problem) -> None:
    digits = as_double(digits)
    replicas, plain = run(Movement(P, burn_in=5), digits, row)
    theta = plain.origin.clone().requires_grad_()
    optimizer, moved = adamw(theta), torch.zeros(plain.m, dtype=torch.float64)
    for step in range(5):
        at(step, optimizer)
        plain.loss(theta, step).backward()
        assert theta.grad is not None
        moved -= (theta.grad * theta.detach())[: plain.m]
        optimizer.step()
    mask, theta = plain.best(moved), plain.origin.clone().requires_grad_()
    optimizer = adamw(theta)
    for step in range(5, STEPS):
        at(step, optimizer)
        plain.loss(theta, step).backward()
        masked_step(plain, theta, optimizer, mask)
    agree(replicas, row, plain, theta, mask)


@each_row
@pytest.mark.parametrize(
    ("selector", "shares", "counted"),
    [
        (SpIEL(P, every=4, rate=0.6, accumulated=2), {2: 1.0, 4: 0.6 * (1 - 4 / 12), 8: 0.6 * (1 - 8 / 12)}, {1, 2, 3, 4, 7, 8}),
        (RigL(P, every=3, rate=0.5), {3: 0.25 * (1 + math.cos(math.pi / 3)), 6: 0.25 * (1 + math.cos(math.pi * 2 / 3))}, {3, 6}),
    ],
    ids=["spiel", "rigl"],
)
def test_exchanges_are_a_loop_over_sorted_coordinates(
    selector: Selector, shares: Mapping[int, float], counted: set[int], row: int, digits: Problem
) -> None:
    digits = as_double(digits)
    replicas, plain = run(selector, digits, row)
    theta = plain.origin.clone().requires_grad_()
    optimizer, mask, total = adamw(theta), plain.best(plain.uniform()), torch.zeros(plain.m, dtype=torch.float64)
    entered = []
    for step in range(1, STEPS + 1):
        at(step - 1, optimizer)
        plain.loss(theta, step - 1).backward()
        assert theta.grad is not None
        if step in counted:
            total += theta.grad[: plain.m]
        masked_step(plain, theta, optimizer, mask)
        before = mask
        if step in shares:
            moved = (theta - plain.origin).detach()[: plain.m].abs()
            leaving = int(shares[step] * plain.k)
            inside = sorted(torch.nonzero(mask).squeeze(1).tolist(), key=lambda j: (-float(moved[j]), j))
            stay = set(inside[: plain.k - leaving])
            others = sorted(set(range(plain.m)) - stay, key=lambda j: (-abs(float(total[j])), j))
            mask = torch.zeros(plain.m, dtype=torch.bool)
            mask[[*stay, *others[:leaving]]] = True
            plain.projected(theta, mask)
            total = torch.zeros_like(total)
        entered.append(int((mask & ~before).sum()))
    agree(replicas, row, plain, theta, mask)
    assert replicas.mask_changes[:, row].tolist() == entered
    assert sum(entered) > 0


@each_row
@pytest.mark.parametrize(("burn_in", "every"), [(5, None), (2, 4), (3, 9)])
def test_diffpruning_s_slopes_are_autograd_s(
    burn_in: int, every: int | None, row: int, digits: Problem, small_pieces: None
) -> None:
    """Hard-concrete gates, the L0 term and the difference, all differentiated by autograd, with the same uniform draws."""
    digits = as_double(digits)
    low, high, l0 = -0.7, 1.4, 3.0
    selector = DiffPruning(P, burn_in=burn_in, every=every, l0=l0, stretch=(low, high), gate_start=0.3)
    replicas, plain = run(selector, digits, row)
    theta = plain.origin.clone().requires_grad_()
    alpha = torch.full((plain.m,), 0.3, dtype=torch.float64, requires_grad=True)
    optimizer, gate_optimizer = adamw(theta), torch.optim.AdamW([alpha], lr=RATE, weight_decay=0.0)
    mask = torch.zeros(plain.m, dtype=torch.bool)
    relaxed = []
    for step in range(STEPS):
        place = step % every if every else step
        relaxed.append(place < burn_in)
        at(step, optimizer, gate_optimizer)
        if place >= burn_in:
            plain.loss(theta, step).backward()
            masked_step(plain, theta, optimizer, mask)
            continue
        u = plain.uniform().clamp(1e-6, 1 - 1e-6)
        s = torch.sigmoid(torch.log(u) - torch.log(1 - u) + alpha)
        z = torch.clamp(s * (high - low) + low, 0, 1)
        gates = torch.cat([z, torch.ones(len(theta) - plain.m, dtype=torch.float64)])
        penalty = torch.sigmoid(alpha - math.log(-low / high)).mean()
        (plain.loss(plain.origin + gates * (theta - plain.origin), step) + l0 * penalty).backward()
        optimizer.step()
        gate_optimizer.step()
        if place == burn_in - 1:
            mask = plain.best(alpha)
            plain.projected(theta, mask)
    if relaxed[-1] and (STEPS % every if every else STEPS) != burn_in:
        mask = plain.best(alpha)
        plain.projected(theta, mask)
    agree(replicas, row, plain, theta, mask)
    assert replicas.relaxed.tolist() == relaxed


def _run(origin: Tensor, m: int, steps: int = 4) -> Run:
    algorithm = FineTuning(Mixout(), steps=steps, learning_rate=3e-3, schedule="constant")
    made = algorithm.optimizer(Clock())
    return Run(origin=origin, rows=1, shapes={"w": (m,)}, steps=steps, optimizer=made, draws=generator(0, "selection"))


def test_gates_that_nothing_has_moved_choose_no_mask(digits: Problem) -> None:
    """The first step of a warm-up moves nothing, and in the second all gates have the same gradient."""
    how: dict[str, Any] = {"steps": 8, "batch_size": 7, "learning_rate": RATE, "warmup": 0.25}
    with pytest.raises(UsageError, match=r"burn_in = 2: all gates were alike.*or no warm-up"):
        train(digits, FineTuning(DiffPruning(P, burn_in=2), **how))
    assert train(digits, FineTuning(DiffPruning(P, burn_in=3), **how)).masks[0].count > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixout(1.0), r"probability = 1.0 is outside \[0, 1\)"),
        (lambda: Mixout(-0.1), "probability = -0.1"),
        (lambda: Mixout(True), "probability = True"),
        (lambda: magnitude(0.1, burn_in=-1), "burn_in = -1"),
        (lambda: magnitude(0.1, reset=True), "burn_in is 0"),
        (lambda: ChildPruning(0.1, every=0), "every = 0: use a whole number of at least 1"),
        (lambda: ChildPruning(0.1, burn_in=0), "burn_in = 0"),
        (lambda: ChildPruning(0.1, reset=True), "reset = True without a burn_in"),
        (lambda: ChildPruning(0.1, burn_in=2.5), "burn_in = 2.5: use a whole number"),  # type: ignore[arg-type]
        (lambda: ChildPruning(0.1, burn_in=5, reset="False"), "reset = 'False': use true or false"),  # type: ignore[arg-type]
        (lambda: Mixout("much"), "probability = 'much' is outside .*: use a number of at least 0 and below 1"),  # type: ignore[arg-type]
        (lambda: DiffPruning(0.1, burn_in=1), "burn_in = 1: use a whole number of at least 2"),
        (lambda: DiffPruning(0.1, gate_start=float("nan")), "gate_start = nan"),
        (lambda: DiffPruning(0.1, burn_in=5, every=5), "every = 5 is not above burn_in = 5"),
        (lambda: SpIEL(0.1, every=4, accumulated=5), "accumulated = 5"),
        (lambda: SpIEL(0.1, rate=1.5), "rate = 1.5"),
        (lambda: RigL(0.1, every=0), "every = 0"),
        (lambda: RigL(0.1, scope=Scope(unit="row")), "rigl exchanges single coordinates: leave unit = 'row' out"),
        (lambda: DiffPruning(0.1, l0=-1), "l0 = -1"),
        (lambda: DiffPruning(0.1, stretch=(0.0, 1.5)), "stretch = "),
        (lambda: DiffPruning(0.1, stretch="(-1, 2)"), "use two numbers"),  # type: ignore[arg-type]
    ],
)
def test_senseless_settings_are_refused(make: Callable[[], Selector], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize(
    "selector", [kind(0.1, burn_in=4) for kind in (magnitude, ChildPruning, DiffPruning, LotteryTicket, Movement)]
)
def test_a_burn_in_that_leaves_no_step_is_refused(selector: Selector, digits: Problem) -> None:
    with pytest.raises(UsageError, match="burn_in = 4 of 4 steps leaves none"):
        train(digits, FineTuning(selector, steps=4))


@pytest.mark.parametrize(
    ("selector", "settles"),
    [
        *((kind(P, burn_in=4), 4) for kind in (magnitude, ChildPruning, DiffPruning, LotteryTicket, Movement)),
        (ChildPruning(P), None),
        (Mixout(), None),
        (DiffPruning(P, burn_in=2, every=4), None),  # relaxed in the steps 0, 1, 4, 5, 8 and 9
        (DiffPruning(P, burn_in=2, every=6), 8),
        (SpIEL(P, every=4, accumulated=2), 8),
        (RigL(P, every=3), 6),  # before three quarters of the steps
        (RigL(P, every=8), 0),
    ],
)
def test_a_method_says_when_its_mask_stays(selector: Selector, settles: int | None) -> None:
    assert selector.begin(_run(torch.zeros(60), 50, steps=10)).settles == settles


def test_a_diverged_replica_of_a_moving_method_is_marked_and_spares_the_others(digits: Problem) -> None:
    algorithm = FineTuning(ChildPruning(P), steps=6, batch_size=8)
    weights = leaving_out(digits.n, 3)
    weights[1, 3] = float("nan")
    found = train(digits, algorithm, weights)
    assert found.failed_step[0] == -1
    assert found.failed_step[1] >= 0
    alone = train(digits, algorithm)
    assert found.masks[0].equals(alone.masks[0])
    torch.testing.assert_close(found.values[0], alone.values[0], rtol=0, atol=1e-5)


def test_a_projection_after_adamw_s_first_step_is_partly_rounding_s(digits: Problem) -> None:
    """That step moves every coordinate by the learning rate, whatever its gradient; the second tells them apart."""

    def changed_by_rounding(every: int, seed: int) -> int:
        algorithm = FineTuning(ChildPruning(P, every=every), steps=every, batch_size=8, seed=seed)
        one, other = (train(digits, algorithm, reverse_batches=reverse).masks[0] for reverse in (False, True))
        return int((~one.contains(other)).sum())

    assert sum(changed_by_rounding(1, seed) for seed in range(3)) > 0.01 * 3 * P * digits.m
    assert sum(changed_by_rounding(2, seed) for seed in range(3)) == 0


class Careless(Course):
    """A user's course: one sign step on everything, and at the end a mask that it never minded."""

    def __init__(self, run: Run) -> None:
        self._run, self._values = run, run.start()

    def point(self) -> Tensor:
        return self._values

    def step(self, gradient: Tensor) -> None:
        self._values = self._values - 0.01 * gradient.sign()

    def final(self) -> tuple[Tensor, Tensor]:
        mask = torch.zeros(self._run.rows, self._run.m, dtype=torch.bool)
        mask[:, 10:30] = True
        return self._values, mask


class Own(Moving):
    name = "own"

    def begin(self, run: Run) -> Course:
        return Careless(run)


def test_the_engine_puts_back_what_a_course_of_one_s_own_leaves(digits: Problem) -> None:
    replicas = train(digits, FineTuning(Own(), steps=2, batch_size=8), leaving_out(digits.n, 3))
    assert replicas.masks[0] is replicas.masks[1]
    assert replicas.masks[0].count == 20
    for row in (0, 1):
        replicas.delta(row)  # raises if anything outside the mask differs from θ⁰
        assert (replicas.values[row, 10:30] != replicas.tunable.gather(replicas.start)[10:30]).any()
    assert (replicas.values[:, digits.m :] != replicas.tunable.gather(replicas.start)[digits.m :]).any()  # the head stays trained


@pytest.mark.parametrize(
    ("settles", "message"),
    [
        (
            1,
            "its course says that its mask stays after step 1, and has no mask or no optimizer: set both, or leave settles at None",
        ),
        (-1, "began a course with settles = -1: use a number of steps, or None for never"),
        (1.5, "began a course with settles = 1.5"),
    ],
)
def test_a_mask_that_stays_needs_an_optimizer_that_goes_on(settles: Any, message: str, digits: Problem) -> None:
    class Vague(Own):
        def begin(self, run: Run) -> Course:
            course = Careless(run)
            course.settles = settles
            return course

    with pytest.raises(UsageError, match=f"'own'.*{message}"):
        train(digits, FineTuning(Vague(), steps=2, batch_size=8))


def test_a_method_that_begins_must_say_that_it_moves() -> None:
    with pytest.raises(UsageError, match="Forgetful writes begin.*derive it from Moving"):

        class Forgetful(Selector):
            def begin(self, run: Run) -> Course:
                return Careless(run)
