"""Blocks that are called through a graph of their own: checkpointed ones, and regions that are compiled once."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hicache_compile import FORA, hicache_compile
from tests.support.models import ToyBlock, ToyDiT, toy_sample

STEPS = 8


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Region(ToyBlock):
    @torch.compiler.nested_compile_region
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return super().forward(x, c)


class Within(ToyDiT):
    """Each layer is called by ``around``."""

    def __init__(self, around: Callable[..., Tensor]) -> None:
        super().__init__()
        self.around = around

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = self.time(t[:, None])
        x = self.embed(x)
        for layer in self.layers:
            x = self.around(layer, x, c)
        return self.head(x)


class Regions(ToyDiT):
    block = Region


MODELS: dict[str, Callable[[], nn.Module]] = {
    "checkpoint": lambda: Within(functools.partial(checkpoint, use_reentrant=False)),
    "reentrant": lambda: Within(functools.partial(checkpoint, use_reentrant=True)),
    "region": Regions,
}


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("scope", ["module", "stack"])
@pytest.mark.parametrize("name", MODELS)
def test_they_are_cached_as_blocks_that_are_called(name: str, scope: str, backend: str) -> None:
    for interval in (1, 4):
        expected = hicache_compile(ToyDiT(), FORA(interval=interval, scope=scope), backend=backend)
        found = hicache_compile(MODELS[name](), FORA(interval=interval, scope=scope), backend=backend)
        with expected.trajectory(STEPS), found.trajectory(STEPS):
            assert torch.equal(toy_sample(found, STEPS), toy_sample(expected if interval > 1 else ToyDiT(), STEPS))
        assert found.report().decisions() == FORA(interval=interval).decisions(STEPS)
