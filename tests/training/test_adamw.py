"""AdamW for many rows, against torch's."""

from __future__ import annotations

import pytest
import torch

from stability import machine
from stability.training.adamw import AdamW, Clock

RATES = [0.01, 0.03, 0.02]


@pytest.mark.parametrize("in_cache", [7, 1 << 17])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_are_updated_as_by_torch(
    in_cache: int, weight_decay: float, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces and at once, also where the values lie column by column; after the second step only one row goes on."""
    monkeypatch.setattr(machine, "_IN_CACHE", in_cache)
    monkeypatch.setattr(machine, "_VECTOR", 1)
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(3, 50, generator=draw, dtype=torch.float64)
    values = values.T.contiguous().T if transposed else values
    rows = [torch.nn.Parameter(row.clone()) for row in values]
    theirs = [
        torch.optim.AdamW([row], lr=RATES[0], betas=(0.9, 0.99), eps=1e-6, weight_decay=weight_decay, foreach=False) for row in rows
    ]
    clock = Clock()
    ours = AdamW(
        values, clock=clock, learning_rate_at=RATES.__getitem__, betas=(0.9, 0.99), epsilon=1e-6, weight_decay=weight_decay
    )
    chosen = [0, 1, 2]
    for step, rate in enumerate(RATES):
        if step == 2:
            chosen = [1]
            values = values[1:2]
            ours.take(torch.tensor(chosen))
        gradient = torch.randn(3, 50, generator=draw, dtype=torch.float64)
        before, clock.step = values.clone(), step
        new = ours.update(values, gradient[chosen])
        assert torch.equal(values, before)
        values = new
        for i in chosen:
            rows[i].grad = gradient[i]
            theirs[i].param_groups[0]["lr"] = rate
            theirs[i].step()
        torch.testing.assert_close(values, torch.stack([rows[i].detach() for i in chosen]), rtol=0, atol=1e-14)
