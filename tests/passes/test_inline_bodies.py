"""Blocks that are called through a graph of their own: checkpointed ones, and regions that are compiled once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hicache_compile import FORA, hicache_compile
from tests.support.models import ToyBlock, ToyDiT

STEPS = 8


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


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


def sampled(model: Any) -> Tensor:
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(STEPS):
            x = x - model(x, torch.full((2,), 1 - step / STEPS)) / STEPS
    return x


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("scope", ["module", "stack"])
@pytest.mark.parametrize("name", MODELS)
def test_they_are_cached_as_blocks_that_are_called(name: str, scope: str, backend: str) -> None:
    for interval in (1, 4):
        expected = hicache_compile(ToyDiT(), FORA(interval=interval, scope=scope), backend=backend)
        found = hicache_compile(MODELS[name](), FORA(interval=interval, scope=scope), backend=backend)
        with expected.trajectory(STEPS), found.trajectory(STEPS):
            assert torch.equal(sampled(found), sampled(expected if interval > 1 else ToyDiT()))
        assert found.report().decisions() == FORA(interval=interval).decisions(STEPS)
