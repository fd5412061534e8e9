"""Fuel stops rewriting after so many sites, and bisection names the guilty one."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from hicache_compile import CompiledDenoiser, HiCache, HiCacheError, bisect, hicache_compile
from hicache_compile.passes.transforms.fuel import limited
from tests.support.models import ToyDiT

POLICY = HiCache(interval=3, warmup=2)
NOISE = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))


def run(compiled: CompiledDenoiser, steps: int = 5) -> Tensor:
    x = NOISE
    with torch.no_grad(), compiled.trajectory(steps):
        for step in range(steps):
            x = x - compiled(x, torch.full((2,), 1 - step / steps)) / steps
    return x


def sites(compiled: CompiledDenoiser) -> list[str]:
    return [row.name for row in compiled.explain(5).sites]


def test_so_many_sites_are_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HICACHE_FUEL", "2")
    compiled = hicache_compile(ToyDiT(), POLICY, backend="aot_eager")
    run(compiled)
    assert sites(compiled) == ["layers.0.proj", "layers.0.down"]
    assert ("layers.1.proj", "the fuel for 2 sites was spent") in compiled.report().refused


def test_without_fuel_nothing_is_cached() -> None:
    with limited(0):
        x = run(hicache_compile(ToyDiT(), POLICY, backend="aot_eager"))
        uncached = run(hicache_compile(ToyDiT(), HiCache(interval=1), backend="aot_eager"))
    assert torch.equal(x, uncached)


def test_fuel_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HICACHE_FUEL", "some")
    with pytest.raises(HiCacheError, match="HICACHE_FUEL = 'some': must be a whole number of sites"):
        run(hicache_compile(ToyDiT(), POLICY, backend="eager"))


@pytest.mark.parametrize("guilty", ["layers.0.proj", "layers.1.down", "layers.2.down"])
def test_bisection_names_the_guilty_site(guilty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = run(hicache_compile(ToyDiT(), POLICY, backend="eager"))
    specialise = importlib.import_module("hicache_compile.passes.transforms.specialise")
    honest = specialise._forecast_site

    def planted(graph: fx.Graph, call: fx.Node, env: dict[fx.Node, fx.Node]) -> list[fx.Node]:
        outputs = honest(graph, call, env)
        if call.meta["site"] != guilty:
            return outputs
        wrong = [graph.call_function(torch.mul, (output, 100.0)) for output in outputs]
        for new, old in zip(wrong, outputs, strict=True):
            new.meta = dict(old.meta)
        return wrong

    monkeypatch.setattr(specialise, "_forecast_site", planted)

    def is_good(compiled: CompiledDenoiser) -> bool:
        return bool((run(compiled) - good).norm() < 0.05 * good.norm())

    assert not is_good(hicache_compile(ToyDiT(), POLICY, backend="eager"))
    assert bisect(ToyDiT(), POLICY, is_good) == guilty


def test_nothing_to_blame() -> None:
    assert bisect(ToyDiT(), POLICY, lambda compiled: bool(run(compiled).isfinite().all())) is None


def test_a_fault_of_the_denoiser_is_said_to_be_one() -> None:
    def never(compiled: Any) -> bool:
        run(compiled)
        return False

    with pytest.raises(HiCacheError, match="must hold for the denoiser with no site rewritten"):
        bisect(ToyDiT(), POLICY, never)
