from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import embedding, linear

from stability.derivatives import products
from stability.derivatives.products import Products, Sites, product, worthwhile
from tests.reference import ELSEWHERE

OUT, IN, VOCABULARY = 24, 18, 30


def sites(count: int, rows: int, columns: int, device: str = "cpu") -> Sites:
    index = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(count))[:count].sort().values
    return Sites(index.to(device), (rows, columns))


def model(weight: Tensor, bias: Tensor, table: Tensor, ids: Tensor, padding: int | None) -> Tensor:
    """The embedding is also added up as a matrix, which no layer does: what else a weight enters must reach it too."""
    hidden = linear(embedding(ids, table, padding).tanh(), weight, bias)
    return hidden.square().sum() + 0.1 * table.square().sum()


@pytest.mark.parametrize("device", ["cpu", *ELSEWHERE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [5, 200])  # sparse enough to be sampled, and not
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("padding", [None, 0])
def test_gradients_at_the_sites_are_those_of_autograd(
    device: str, dtype: torch.dtype, count: int, replicas: int, padding: int | None
) -> None:
    draw = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(replicas, *shape, generator=draw, dtype=dtype).to(device).requires_grad_()

    weight, bias, table = leaf(OUT, IN), leaf(OUT), leaf(VOCABULARY, IN)
    ids = torch.randint(VOCABULARY, (4, 7), generator=draw).to(device)
    ids[0] = 0
    by_weight, by_table = sites(count, OUT, IN, device), sites(count, VOCABULARY, IN, device)
    tuned = [torch.zeros(replicas, count, dtype=dtype, device=device, requires_grad=True) for _ in range(2)]

    def one(weight: Tensor, bias: Tensor, table: Tensor, *mine: Tensor) -> Tensor:
        with Products({id(weight): (mine[0], by_weight), id(table): (mine[1], by_table)}):
            return model(weight, bias, table, ids, padding)

    plain = vmap(lambda *each: model(each[0], each[1], each[2], ids, padding))(weight, bias, table)
    wanted = torch.autograd.grad(plain.sum(), [weight, bias, table])
    ours = vmap(one)(weight, bias, table, *tuned)
    found = torch.autograd.grad(ours.sum(), [*tuned, weight, bias, table], allow_unused=True)
    torch.testing.assert_close(ours, plain)
    assert found[2] is None
    assert found[4] is not None
    torch.testing.assert_close(found[0], wanted[0].flatten(1)[:, by_weight.index])
    torch.testing.assert_close(found[3], wanted[1])
    torch.testing.assert_close(found[1] + found[4].flatten(1)[:, by_table.index], wanted[2].flatten(1)[:, by_table.index])


SHAPES = {
    "one matrix for all": (None, None, 0),
    "one matrix, biases of their own": (None, 0, 0),
    "matrices of their own, one bias": (0, None, 0),
    "matrices of their own, one input": (0, 0, None),
    "replicas in the middle": (1, 1, 2),
}


@pytest.mark.parametrize("large", [0, 1 << 40], ids=["oneDNN", "torch"])
@pytest.mark.parametrize("in_dims", SHAPES.values(), ids=list(SHAPES))
def test_a_linear_layer_is_torchs_whatever_replicas_share(
    in_dims: tuple[int | None, ...], large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_LARGE_PRODUCT", large)
    monkeypatch.setattr(products, "_LARGE_MATRIX", 0)
    draw = torch.Generator().manual_seed(1)
    weight_dim, bias_dim, x_dim = in_dims

    def made(dim: int | None, *shape: int) -> Tensor:
        where = list(shape)
        if dim is not None:
            where.insert(dim, 3)
        return torch.randn(where, generator=draw).requires_grad_()

    operands = [made(weight_dim, OUT, IN), made(bias_dim, OUT), made(x_dim, 4, 7, IN)]

    def ours(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        with Products({}):
            return linear(x, weight, bias)

    def theirs(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        return linear(x, weight, bias)

    results = []
    for function in (ours, theirs):
        answer = vmap(function, in_dims=in_dims)(*operands)
        results.append([answer, *torch.autograd.grad(answer.square().sum(), operands)])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)


def test_products_are_matrix_products() -> None:
    """Large enough for oneDNN where there is AVX-512; a transposed matrix, too."""
    draw = torch.Generator().manual_seed(2)
    x, weight, bias = (torch.randn(shape, generator=draw) for shape in ((300, 130), (150, 130), (150,)))
    exact = (x.double() @ weight.double().T + bias.double()).float()
    torch.testing.assert_close(product(x, weight, bias), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(product(x, weight.T.contiguous().T), exact - bias, rtol=1e-4, atol=1e-4)
    both = product(torch.stack([x, 2 * x]), torch.stack([weight, weight]))
    torch.testing.assert_close(both[1], 2 * (exact - bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_of_other_kinds_are_left_to_torch(options: dict[str, object]) -> None:
    table = torch.randn(VOCABULARY, IN, generator=torch.Generator().manual_seed(3)).requires_grad_()
    tuned = torch.zeros(5, requires_grad=True)
    call: Callable[..., Tensor] = embedding
    with Products({id(table): (tuned, sites(5, VOCABULARY, IN))}):
        loss = call(torch.tensor([1, 1, 2]), table if "max_norm" not in options else table.detach(), **options).sum()
    assert loss.requires_grad == ("max_norm" not in options)


def test_only_large_matrices_with_a_part_masked_are_worthwhile() -> None:
    assert worthwhile((200, 200), 10)
    assert not worthwhile((200, 200), 200 * 200)
    assert not worthwhile((40_000,), 10)
    assert not worthwhile((20, 20), 10)


def test_tokens_that_depend_on_the_parameters_and_small_integers() -> None:
    draw = torch.Generator().manual_seed(4)
    table = torch.randn(3, VOCABULARY, IN, generator=draw).requires_grad_()
    ids = torch.randint(VOCABULARY, (3, 7), generator=draw)
    at = sites(40, VOCABULARY, IN)
    for own, dims in ((ids, 0), (ids[0].int(), None)):
        tuned = torch.zeros(3, 40, requires_grad=True)

        def one(table: Tensor, tuned: Tensor, own: Tensor) -> Tensor:
            with Products({id(table): (tuned, at)}):
                return embedding(own, table).square().sum()

        plain = vmap(lambda table, own: embedding(own, table).square().sum(), in_dims=(0, dims))(table, own)
        ours = vmap(one, in_dims=(0, 0, dims))(table, tuned, own)
        [wanted] = torch.autograd.grad(plain.sum(), [table])
        [found] = torch.autograd.grad(ours.sum(), [tuned])
        torch.testing.assert_close(found, wanted.flatten(1)[:, at.index])


def test_double_precision_stays_so_under_autocast() -> None:
    weight = torch.randn(OUT, IN, dtype=torch.float64, requires_grad=True)
    tuned = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), Products({id(weight): (tuned, sites(5, OUT, IN))}):
        assert linear(torch.ones(3, IN, dtype=torch.float64), weight).dtype == torch.float64
