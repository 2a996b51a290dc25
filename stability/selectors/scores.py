"""The scores of the field that look at the pretrained model, and at gradients where training starts."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stability.checks import check_whole
from stability.errors import UsageError
from stability.masks import Parameters
from stability.problems.problem import Problem
from stability.selectors.scored import Calibrated, Evidence, Ranked

__all__ = ["LIFT", "SNIP", "Fisher", "GraSP", "Gradient", "MagPruning", "PaFi", "SynFlow", "TaLoS", "Taylor"]


@dataclass(frozen=True)
class MagPruning(Ranked):
    """The ⌊pm⌋ pretrained parameters of largest |θ⁰| (Han et al. 2015; Lee et al. 2021; Fu et al. 2023, Table 1, *MagPruning*).

    Example:
        >>> from stability import load
        >>> MagPruning(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    name: ClassVar[str] = "magnitude"
    formula: ClassVar[str] = "|θ⁰|"
    source: ClassVar[str] = "Han et al. 2015"

    def score(self, at: Evidence) -> Tensor:
        return at.theta.abs()


@dataclass(frozen=True)
class PaFi(Ranked):
    """The ⌊pm⌋ pretrained parameters of smallest |θ⁰| (Liao, Meng & Monz 2023, *Parameter-Efficient Fine-Tuning without
    Introducing New Latency*).

    The mask is the same for all tasks of a model.

    Example:
        >>> from stability import load
        >>> PaFi(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    name: ClassVar[str] = "pafi"
    formula: ClassVar[str] = "−|θ⁰|"
    source: ClassVar[str] = "Liao et al. 2023"

    def score(self, at: Evidence) -> Tensor:
        return -at.theta.abs()


@dataclass(frozen=True)
class LIFT(Ranked):
    """The ⌊pm⌋ parameters that are largest in |W_r|, where W_r is the best approximation of W = θ⁰ of rank r (Liu et al. 2025).

    W_r keeps the r largest singular values of each tensor, which is a matrix with its first dimension as rows. A tensor of one
    dimension has the score 0. Liu et al. choose among the weights of linear layers only, and again every few hundred steps; here
    the mask of θ⁰ stays. In their code each matrix has its own number of places, in proportion to its rows + columns: that is
    ``Scope("tensor", budget="erk")`` on the linear layers. Here all tensors compete where no scope is given. With a rank of at
    least the number of rows or columns it is the choice of :class:`MagPruning`.

    Attributes:
        rank: r, the number of singular values that are kept.

    Raises:
        UsageError: ``rank`` is no whole number of at least 1.

    Example:
        >>> from stability import load
        >>> LIFT(0.01, rank=4).select(load("digits"), seed=0).count
        264
    """

    _: KW_ONLY
    rank: int = 8

    name: ClassVar[str] = "lift"
    formula: ClassVar[str] = "|W_r|, W_r the rank-r approximation of θ⁰"
    source: ClassVar[str] = "Liu et al. 2025 (arXiv 2506.00772)"

    def __post_init__(self) -> None:
        check_whole(1, rank=self.rank)

    def score(self, at: Evidence) -> Tensor:
        return at.flat({name: self._approximated(tensor).abs() for name, tensor in at.problem.pretrained.items()})

    def _approximated(self, tensor: Tensor) -> Tensor:
        if tensor.ndim < 2:
            return torch.zeros_like(tensor, dtype=torch.float64)
        left, values, right = torch.linalg.svd(tensor.flatten(1).double(), full_matrices=False)
        approximation: Tensor = (left[:, : self.rank] * values[: self.rank]) @ right[: self.rank]
        return approximation


@dataclass(frozen=True)
class SynFlow(Ranked):
    """The ⌊pm⌋ parameters of largest |θ⁰ ∂R/∂θ|, R = 1ᵀ |W_L| ⋯ |W_1| 1 (Tanaka et al. 2020, in one step).

    R is the sum of the outputs of the network whose parameters are all |θ⁰|, the head's among them, at an input of ones. It is
    defined where every layer is linear for positive numbers: linear layers, convolutions, ReLU and pooling. Layer norms, attention
    and other activations are not, so that models with them, such as transformers, are refused. Whether a model has them is tried:
    without biases, its outputs must rise by the same slope at inputs from 0.001 to 1000. No examples and no labels are looked at.

    Raises:
        UsageError: on selecting: the inputs are no numbers, such as tokens, or a layer is not linear for positive numbers.

    Example:
        >>> SynFlow(sparsity=0.01).name
        'synflow'
    """

    name: ClassVar[str] = "synflow"
    formula: ClassVar[str] = "|θ⁰ ∂R/∂θ|, R the sum of the outputs of |θ⁰| at ones"
    source: ClassVar[str] = "Tanaka et al. 2020"
    passes: ClassVar[str] = "1 backward of one input"

    def score(self, at: Evidence) -> Tensor:
        leaves = {name: tensor.detach().abs().requires_grad_() for name, tensor in at.start.items()}
        flow = _flow(at.problem, leaves, 1)
        if not _rises_as_a_line(at.problem, leaves):
            raise UsageError(
                f"synflow needs layers that are linear for positive numbers, such as linear layers, convolutions and ReLU, and "
                f"{at.problem.name!r} has others, such as layer norms, attention or other activations: use magnitude, pafi or "
                "lift, which look at no data either"
            )
        slopes = torch.autograd.grad(flow, [leaves[name] for name in at.problem.pretrained], materialize_grads=True)
        return at.flat(dict(zip(at.problem.pretrained, slopes, strict=True))) * at.theta.abs()


def _rises_as_a_line(problem: Problem, parameters: Parameters) -> bool:
    """Whether the slope is the same at inputs of all sizes. GELU and SiLU bend only near 0, and biases would keep them away."""
    still = {name: tensor.detach() * (not name.endswith("bias")) for name, tensor in parameters.items()}
    with torch.no_grad():  # at powers of 2, which change no rounding
        slopes = [
            float(_flow(problem, still, 2 * x) - _flow(problem, still, x)) / x for x in (4.0**power for power in range(-5, 6))
        ]
    return min(slopes) > 0 and max(slopes) - min(slopes) <= 1e-3 * max(slopes)


def _flow(problem: Problem, parameters: Parameters, value: float) -> Tensor:
    """The sum of the outputs at an input of which every number is ``value``."""
    inputs = {name: torch.full_like(tensor[:1], value) for name, tensor in problem.train.inputs.items()}
    if odd := [name for name, tensor in inputs.items() if not tensor.is_floating_point()]:
        raise UsageError(
            f"synflow needs inputs that are numbers, and {odd[0]!r} of {problem.name!r} are tokens: use magnitude, pafi or lift, "
            "which look at no data either"
        )
    return problem.logits(parameters, inputs).double().sum()


@dataclass(frozen=True)
class Gradient(Calibrated):
    """The ⌊pm⌋ parameters of largest |g|, g = ∇L(θ⁰).

    Nearest to GPS (Zhang et al. 2024) is ``Gradient(p, scope=Scope("row", only="*weight", without="*norm*", budget="equal"))``: the
    same number of inputs for each neuron. GPS also trains all biases, and takes the gradient of a supervised contrastive loss; here
    biases stay, and the gradient is that of the loss that is trained. Of the eight scores that Liu et al. 2025
    (*SPEFT*) compare, it is the one that they recommend. :class:`SAM` with its constant curvature ranks by g², and so chooses the
    same.

    Example:
        >>> from stability import load
        >>> Gradient(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    name: ClassVar[str] = "gradient"
    formula: ClassVar[str] = "|g|"
    source: ClassVar[str] = "Liu et al. 2025 (SPEFT)"

    def score(self, at: Evidence) -> Tensor:
        return at.gradient.abs()


@dataclass(frozen=True)
class SNIP(Calibrated):
    """The ⌊pm⌋ parameters of largest |θ⁰ g|: without them the loss would change most, to first order (Lee et al. 2019).

    Example:
        >>> from stability import load
        >>> SNIP(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    name: ClassVar[str] = "snip"
    formula: ClassVar[str] = "|θ⁰ g|"
    source: ClassVar[str] = "Lee et al. 2019"

    def score(self, at: Evidence) -> Tensor:
        return (at.theta * at.gradient).abs()


@dataclass(frozen=True)
class Taylor(Calibrated):
    """The ⌊pm⌋ parameters of largest (θ⁰ g)² (Molchanov et al. 2019).

    The square orders single coordinates as :class:`SNIP` does, and so chooses the same. Means over rows, heads or layers differ.

    Example:
        >>> from stability import load
        >>> Taylor(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    name: ClassVar[str] = "taylor"
    formula: ClassVar[str] = "(θ⁰ g)²"
    source: ClassVar[str] = "Molchanov et al. 2019"

    def score(self, at: Evidence) -> Tensor:
        return (at.theta * at.gradient) ** 2


@dataclass(frozen=True)
class GraSP(Calibrated):
    """The ⌊pm⌋ parameters of largest θ⁰ (Hg): without them ‖g‖² would fall most (Wang, Zhang & Grosse 2020).

    Wang et al. write S(−θ) = −θ ⊙ Hg, and remove the parameters of *highest* S. So those of largest θ ⊙ Hg are kept, with its sign.
    H is the Hessian of L over the pretrained parameters. Wang et al. divide the logits by 200 first, which is not done here.

    Example:
        >>> from stability import load
        >>> GraSP(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    name: ClassVar[str] = "grasp"
    formula: ClassVar[str] = "θ⁰ (Hg)"
    source: ClassVar[str] = "Wang et al. 2020"
    passes: ClassVar[str] = "1 backward, 1 Hessian product"

    def score(self, at: Evidence) -> Tensor:
        return at.theta * at.hessian_times(at.gradient)


@dataclass(frozen=True)
class Fisher(Calibrated):
    """The ⌊pm⌋ coordinates of largest mean_i (∂ℓ_i/∂θ_j)², by default the diagonal of the *empirical* Fisher matrix at θ⁰.

    These are FISH masks (Sung, Nair & Raffel 2021). With ``labels="sampled"`` or ``labels="model"`` it is that of the true one, as
    they define it. Xu et al. 2021 choose child networks by the same diagonal. SAM squares the mean of the gradients, and this is
    the mean of their squares: examples whose gradients oppose each other count here and cancel there. Sums over S are taken in
    float64.

    Example:
        >>> from stability.problems import load
        >>> Fisher(sparsity=0.01).select(load("digits"), seed=0).count
        264
    """

    name: ClassVar[str] = "fisher"
    formula: ClassVar[str] = "mean_i g_i²"
    source: ClassVar[str] = "Sung et al. 2021"
    passes: ClassVar[str] = "1 backward of each example; with `labels=model` C of each"
    of_squares: ClassVar[bool] = True

    def score(self, at: Evidence) -> Tensor:
        return at.squares


@dataclass(frozen=True)
class TaLoS(Calibrated):
    """The ⌊pm⌋ coordinates of *smallest* mean_i g_i², to which the pretrained model is least sensitive (Iurada et al. 2025).

    Their Fisher matrix is the true one: ``labels="sampled"``. Parameters that no example reaches, such as embeddings of tokens that
    do not occur, have the score 0 and come first. So do biases of attention keys, whose gradient is 0 but for rounding: rounding
    then decides among them. Leave both out: ``Scope(without=("*embeddings*", "*key.bias"))``.

    Example:
        >>> from stability import load
        >>> TaLoS(sparsity=0.01, labels="sampled").select(load("digits"), seed=0).count
        264
    """

    name: ClassVar[str] = "talos"
    formula: ClassVar[str] = "−mean_i g_i²"
    source: ClassVar[str] = "Iurada et al. 2025"
    passes: ClassVar[str] = "1 backward of each example; with `labels=model` C of each"
    of_squares: ClassVar[bool] = True

    def score(self, at: Evidence) -> Tensor:
        return -at.squares
