"""What a forecast is at each coarse scope, against ten lines written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hicache_compile import TaylorSeer, hicache_compile
from tests.support.models import ToyDiT

STEPS = 8


@torch.no_grad()
def by_hand(model: ToyDiT, inputs: list[Tensor], scope: str, decisions: str) -> list[Tensor]:
    """Linear extrapolation from the last two computed steps of what the scope caches."""
    anchors: list[tuple[int, Tensor]] = []
    outputs = []
    for step, (x, decision) in enumerate(zip(inputs, decisions, strict=True)):
        c, carried = model.time(torch.ones(2, 1, dtype=x.dtype)), model.embed(x)
        if scope == "output":
            carried = torch.zeros_like(carried)
        if decision == "F":
            hidden = model.embed(x)
            for layer in model.layers:
                hidden = layer(hidden, c)
            anchors.append((step, hidden - carried))
        else:
            (older, before), (newer, last) = anchors[-2:]
            hidden = carried + last + (last - before) / (newer - older) * (step - newer)
        outputs.append(model.head(hidden))
    return outputs


@pytest.mark.parametrize("scope", ["block", "stack", "output"])
def test_a_forecast_is_the_extrapolated_residual(scope: str) -> None:
    model = ToyDiT().double()
    inputs = [torch.randn(2, 5, 16, dtype=torch.float64) for _ in range(STEPS)]
    compiled = hicache_compile(model, TaylorSeer(interval=3, order=1, warmup=2, scope=scope), backend="aot_eager")
    with compiled.trajectory(STEPS), torch.no_grad():
        outputs = [compiled(x, torch.ones(2, dtype=torch.float64)) for x in inputs]
    decisions = compiled.report().decisions()
    assert decisions == "FF..F..F"
    for found, expected in zip(outputs, by_hand(model, inputs, scope, decisions), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # float64 rounding
