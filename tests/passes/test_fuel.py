"""Fuel stops rewriting after so many rewrites, and bisection names the guilty one."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from hicache_compile import (
    Chipmunk,
    CompiledDenoiser,
    DiTango,
    FBCache,
    HiCache,
    HiCacheError,
    Policy,
    bisect,
    hicache_compile,
)
from hicache_compile.passes import Rewrite
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
    assert ("layers.1.proj", "the fuel for 2 rewrites was spent") in compiled.report().refused


def test_without_fuel_nothing_is_cached() -> None:
    with limited(0):
        x = run(hicache_compile(ToyDiT(), POLICY, backend="aot_eager"))
        uncached = run(hicache_compile(ToyDiT(), HiCache(interval=1), backend="aot_eager"))
    assert torch.equal(x, uncached)


@pytest.mark.parametrize("text", ["some", "-1", "1.5", "9" * 5000])
def test_fuel_is_a_number(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HICACHE_FUEL", text)
    with pytest.raises(HiCacheError, match=f"HICACHE_FUEL = '{text[:20]}.*: must be a whole number of rewrites"):
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

    with pytest.raises(HiCacheError, match="must hold for the denoiser with nothing rewritten"):
        bisect(ToyDiT(), POLICY, never)


# everything else that fuel is spent on

DITANGO = DiTango(0.9, warmup=2, cooldown=0)
SPARSITY = Chipmunk(top_keys=0.4, mlp_keys=0.25, first_dense=0, group=2, mlp_block=2, full_every=3)
ATTENTIONS = [f"layers.{i}" for i in range(3)]
MLPS = [f"layers.{i}.down" for i in range(3)]


def made_of(compiled: CompiledDenoiser) -> Rewrite:
    """What the passes made of the one graph of ``compiled``."""
    (live,) = compiled._session.live.values()
    return live.programs.rewrite


def uncached() -> Tensor:
    return run(hicache_compile(ToyDiT(), HiCache(interval=1), backend="eager"))


@pytest.mark.parametrize("fuel", [0, 1, 2, 3])
def test_so_many_attentions_are_partitioned(fuel: int) -> None:
    compiled = hicache_compile(ToyDiT(), DITANGO, backend="eager")
    with limited(fuel):
        x = run(compiled)
    made = made_of(compiled)
    assert made.partitioned == ATTENTIONS[:fuel]
    declined = [entry.site for entry in made.refused if entry.reason == f"the fuel for {fuel} rewrites was spent"]
    assert declined == ATTENTIONS[fuel:]
    assert compiled.graphs["forecast"].code.count("partitioned_attention.default(") == fuel
    assert torch.equal(x, uncached()) == (fuel == 0)


@pytest.mark.parametrize("fuel", [0, 2, 4, 6, 7])
def test_so_much_is_sparse_and_what_is_left_goes_to_sites(fuel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HICACHE_FUEL", str(fuel))
    compiled = hicache_compile(ToyDiT(), HiCache(interval=1), backend="eager", sparsity=SPARSITY)
    x = run(compiled)
    made = made_of(compiled)
    marked = [*ATTENTIONS, *MLPS]
    assert made.sparse == marked[:fuel]
    assert [site.name for site in made.sites] == ["layers.0.proj"][: max(0, fuel - 6)]
    declined = [entry.site for entry in made.refused if entry.reason == f"the fuel for {fuel} rewrites was spent"]
    assert declined[: len(marked[fuel:])] == marked[fuel:]
    assert len(declined) == 6 + 6 - fuel
    monkeypatch.delenv("HICACHE_FUEL")
    assert torch.equal(x, uncached()) == (fuel == 0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "cond_eager"])
@pytest.mark.parametrize(
    "policy",
    [FBCache(0.5), FBCache(0.5, forecaster=HiCache(interval=3).forecaster), FBCache(0.5, scope="module")],
    ids=["reuse", "hicache", "module"],
)
def test_a_guard_without_fuel_computes_every_step(
    backend: str, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HICACHE_FUEL", "0")
    compiled = hicache_compile(ToyDiT(), policy, backend=backend)
    x = run(compiled)
    assert made_of(compiled).sites == []
    assert compiled.report().decisions() == "FFFFF"
    monkeypatch.delenv("HICACHE_FUEL")
    assert torch.equal(x, uncached())
    fuelled = hicache_compile(ToyDiT(), policy, backend=backend)
    run(fuelled)
    assert "." in fuelled.report().decisions()  # so that the guard would have skipped


@pytest.mark.parametrize("guilty", [1, 4])
def test_bisection_names_the_guilty_sparse_part(guilty: int, monkeypatch: pytest.MonkeyPatch) -> None:
    good = uncached()
    sparsify = importlib.import_module("hicache_compile.passes.transforms.sparsify")
    everything = Chipmunk(top_keys=1.0, mlp_keys=1.0, first_dense=0, group=2, mlp_block=2)

    def planted(name: str) -> None:
        honest = getattr(sparsify, name)

        def wrong(writer: Any, *args: Any) -> fx.Node:
            made: fx.Node = honest(writer, *args)
            return writer.value(torch.mul, made, 100.0) if writer.number == guilty else made

        monkeypatch.setattr(sparsify, name, wrong)

    planted("write_attention")
    planted("write_mlp")

    def is_good(compiled: CompiledDenoiser) -> bool:
        return bool((run(compiled) - good).norm() < 0.05 * good.norm())

    found = bisect(ToyDiT(), HiCache(interval=1), is_good, sparsity=everything)
    assert found == [*ATTENTIONS, *MLPS][guilty]
