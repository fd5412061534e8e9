"""Programs cut at probes compute what they computed in one piece."""

from __future__ import annotations

import torch
from torch import Tensor

from hicache_compile import FBCache, hicache_compile
from tests.support.models import ToyDiT

STEPS = 4


class Filled(ToyDiT):
    """Each block reads two tensors that are made alike and filled in place: one with what it was made like, one with
    twice that."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = self.time(t[:, None])
        x = self.embed(x)
        for layer in self.layers:
            parts = [torch.empty_like(c) for _ in range(2)]
            for part, given in zip(parts, (c, 2 * c), strict=True):
                part.copy_(given)
            x = layer(x, torch.cat(parts).view(2, *c.shape)[1] - 0.5 * torch.cat(parts).view(2, *c.shape)[0])
        return self.head(x)


def test_values_that_are_filled_in_place_are_told_apart() -> None:
    model = Filled()
    compiled = hicache_compile(model, FBCache(0.0), backend="eager")
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0))
    with compiled.trajectory(STEPS), torch.no_grad():
        for step in range(STEPS):
            t = torch.full((1,), 1 - step / STEPS)
            assert torch.equal(compiled(x, t), model(x, t))
    assert len(compiled.graphs["probe_0"].graph.nodes) > 0
