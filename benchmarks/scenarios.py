"""Declared scenarios: all settings of a measurement in one frozen record."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hicache_compile import HiCache
from hicache_compile.benchmarks.models import Demo, DiT, Flux, Qwen, Shape, Wan


@dataclass(frozen=True, slots=True)
class Scenario:
    """A model, the interval of its full steps, and the number of steps."""

    name: str
    shape: Shape
    interval: int = 7
    steps: int = 50
    warmup: int = 3
    needs_gpu: bool = False

    @property
    def decisions(self) -> str:
        """The decision of each step, the same for every contender."""
        return HiCache(interval=self.interval, warmup=self.warmup).decisions(self.steps)


FLUX_70M = Flux(layers=2, single_layers=4, heads=11, head_dim=64, image_tokens=576, text_tokens=64)


def _flux_dev(side: int) -> Flux:
    """FLUX.1-dev, 12 B parameters, for an image of ``16 side x 16 side`` pixels."""
    return Flux(19, 38, 24, 128, side**2, 512, 1, 0, 1.0, 4096, 768, True, "cuda", torch.bfloat16)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("flux-70m", FLUX_70M),
        Scenario("flux-70m-n5", FLUX_70M, interval=5),
        Scenario("dit-small", DiT(layers=12, heads=4, head_dim=32, tokens=256)),
        Scenario("wan-small", Wan(layers=4, heads=6, head_dim=64, frames=5, side=8, text_tokens=64)),
        Scenario("qwen-small", Qwen(layers=4, heads=6, head_dim=64, side=16, text_tokens=(64, 16))),
        Scenario("demo", Demo(digits=10)),
        *(
            Scenario(f"flux-dev-{16 * side}-n{interval}", _flux_dev(side), interval=interval, needs_gpu=True)
            for side in (64, 32)
            for interval in (5, 7)
        ),
    )
}
