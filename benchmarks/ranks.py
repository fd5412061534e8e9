"""What each rank computes, sends and keeps as one sampling is spread over more of them, read off the graphs.

Full-size denoisers on ``meta``, and process groups of which one rank exists: nothing is run, and no time is measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from hicache_compile.benchmarks.memory import in_own_process

RANKS = {"flux.1-dev": (1, 2, 4, 8), "wan2.1-14b": (1, 2, 4)}  # 18,900 tokens do not divide by 8


def measure() -> Iterator[Callable[[], dict[str, Any]]]:
    """A line for each denoiser and number of ranks."""
    for model, counts in RANKS.items():
        for ranks in counts:
            yield partial(_line, model, ranks)


def _line(model: str, ranks: int) -> dict[str, Any]:
    return {"measured": "ranks", "denoiser": model, **in_own_process(__name__, model, str(ranks))}


def _once(model: str, ranks: str) -> dict[str, Any]:
    import torch

    from hicache_compile import HiCache, hicache_compile
    from hicache_compile.architectures.inputs import Request, example_inputs
    from hicache_compile.architectures.resolve import resolve

    denoiser: Any = resolve(model).without_weights()
    inputs = example_inputs(denoiser, Request())
    if ranks != "1":
        _spread(denoiser, int(ranks))
    line: dict[str, Any] = {"ranks": int(ranks)}
    compiled = hicache_compile(denoiser, HiCache(interval=7), backend="eager")
    with compiled.trajectory(50), torch.no_grad():
        compiled(**inputs)
    for scope in ("module", "stack"):
        compiled.policy = HiCache(interval=7, scope=scope)
        found = compiled.explain(num_steps=50)
        line |= {
            "full_tflops": found.flops_full / 1e12,
            "full_collectives": found.collectives_full,
            "full_sent_mib": found.bytes_sent_full / 2**20,
            f"{scope}_forecast_gflops": found.flops_forecast / 1e9,
            f"{scope}_forecast_collectives": found.collectives_forecast,
            f"{scope}_forecast_sent_mib": found.bytes_sent_forecast / 2**20,
            f"{scope}_anchors_mib": found.state_bytes / 2**20,
        }
    return line


def _spread(denoiser: Any, ranks: int) -> None:
    """diffusers' Ulysses attention over ``ranks``, of which only the first exists."""
    import torch
    from diffusers import ContextParallelConfig

    from hicache_compile.internals.fake_ranks import FAKE_RANKS, FakeStore

    FAKE_RANKS.require()
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    torch.accelerator.device_count = lambda: 1  # diffusers takes a CPU for no accelerator
    denoiser.enable_parallelism(config=ContextParallelConfig(ulysses_degree=ranks))


if __name__ == "__main__":
    print(json.dumps(_once(*sys.argv[1:])))
