"""Many threads on one denoiser, many denoisers of one class, many one after another: each as if it were alone."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from hicache_compile import CompiledDenoiser, FBCache, HiCache, Policy, TeaCache, hicache_compile
from hicache_compile.runtime.program_set import ProgramSet
from tests.stress.size import size
from tests.support.models import ToyDiT

STEPS = 6
THREADS = 8
RUNS = size(10, 200)  # of each thread
DENOISERS = size(3, 50)
CYCLES = size(6, 300)
A_CYCLE = 1.5  # MiB at most, of which Dynamo itself keeps .3 for each model it compiles, and .9 where the graph breaks
TOKENS = (4, 6, 9)  # of a run, in turns, where shapes vary

POLICIES: dict[str, tuple[Policy, dict[str, Any]]] = {
    "static": (HiCache(interval=3), {"dynamic": False}),
    "TeaCache": (TeaCache(0.2, coefficients=(1.0, 0.0)), {"dynamic": False}),
    "FBCache": (FBCache(0.4), {"dynamic": False}),
    "dynamic": (HiCache(interval=3), {"dynamic": True}),
    "dynamic, guarded": (TeaCache(0.2, coefficients=(1.0, 0.0)), {"dynamic": True}),
}


class Broken(ToyDiT):
    """The graph breaks before its last layer; what it adds has a scale, a plain attribute."""

    def __init__(self, scale: float) -> None:
        super().__init__(depth=2)
        self.scale = scale

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = super().forward(x, t)
        torch._dynamo.graph_break()
        return x * self.scale


@torch.no_grad()
def run(denoiser: CompiledDenoiser, seed: int, tokens: int = 6) -> Tensor:
    x = torch.randn(1, tokens, 16, generator=torch.Generator().manual_seed(seed))
    with denoiser.trajectory(STEPS):
        for step in range(STEPS):
            x = x - denoiser(x, torch.full((1,), 1 - step / STEPS)) / STEPS
    return x


@pytest.mark.parametrize("kind", POLICIES)
def test_threads_on_one_denoiser(kind: str) -> None:
    policy, options = POLICIES[kind]
    denoiser = hicache_compile(ToyDiT(2), policy, backend="eager", **options)

    def tokens(seed: int) -> int:
        return TOKENS[seed % len(TOKENS)] if options["dynamic"] else TOKENS[0]

    def work(thread: int) -> list[Tensor]:
        return [run(denoiser, seed, tokens(seed)) for seed in range(thread * RUNS, (thread + 1) * RUNS)]

    alone = [work(thread) for thread in range(THREADS)]
    assert "." in denoiser.report().decisions()
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(work, range(THREADS)))
    for mine, expected in zip(together, alone, strict=True):
        assert all(map(torch.equal, mine, expected))
    torch._dynamo.reset()
    fresh = hicache_compile(ToyDiT(2), policy, backend="eager", **options)
    with ThreadPoolExecutor(THREADS) as pool:  # compiled while they run
        first = list(pool.map(lambda seed: run(fresh, seed, tokens(seed)), range(THREADS)))
    assert all(torch.equal(found, alone[0][seed]) for seed, found in enumerate(first) if seed < RUNS)


def test_many_denoisers_of_a_class_whose_graph_breaks() -> None:
    scales = [1 + number / DENOISERS for number in range(DENOISERS)]
    denoisers = [hicache_compile(Broken(scale), HiCache(interval=3), backend="eager") for scale in scales]
    together = [run(denoiser, seed=0) for denoiser in denoisers]
    together = [run(denoiser, seed=0) for denoiser in denoisers]  # by turns, once all are there
    for denoiser in denoisers:
        assert denoiser.report().decisions() == HiCache(interval=3).decisions(STEPS)
        assert denoiser.report().graph_breaks == 1
    for scale, found in zip(scales, together, strict=True):
        torch._dynamo.reset()
        alone = hicache_compile(Broken(scale), HiCache(interval=3), backend="eager")
        assert torch.equal(run(alone, seed=0), found)
        assert "." in alone.report().decisions()


def _program_sets() -> list[ProgramSet]:
    return [one for one in gc.get_objects() if type(one) is ProgramSet]


@pytest.mark.parametrize("kind", [ToyDiT, Broken])
def test_one_after_another_leaves_nothing(kind: type[ToyDiT]) -> None:
    weights: list[weakref.ref[Tensor]] = []
    resident: list[int] = []
    others = weakref.WeakSet(_program_sets())  # of denoisers that other tests of this process keep

    def cycle() -> None:
        model = kind(2)
        run(hicache_compile(model, HiCache(interval=3), backend="eager"), seed=0)
        weights.extend(weakref.ref(weight) for weight in model.parameters())

    for _ in range(CYCLES):
        cycle()
        gc.collect()
        resident.append(psutil.Process().memory_info().rss)
    assert sum(weight() is not None for weight in weights) == 0
    assert not [one for one in _program_sets() if one not in others]
    early, late = resident[CYCLES // 6 - 1] / 2**20, resident[-1] / 2**20
    print(f"{kind.__name__}: {early:.1f} MiB after {CYCLES // 6} cycles, {late:.1f} MiB after {CYCLES}")
    assert late - early < A_CYCLE * (CYCLES - CYCLES // 6) + 8, resident
