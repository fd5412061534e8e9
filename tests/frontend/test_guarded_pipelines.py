"""Guards, broadcasts and DiTango in real pipelines, and through ``torch.compile(backend="hicache")``."""

from __future__ import annotations

import pytest
import torch

from hicache_compile import PAB, DiTango, EasyCache, FBCache, Policy, TeaCache, hicache_compile, inspect
from tests.pipelines import by_name
from tests.support.models import flux_inputs, random_flux, trace

POLICIES = {
    "teacache": (TeaCache(1.0), "FluxPipeline"),
    "first block, two branches": (FBCache(1.0, warmup=1), "QwenImagePipeline"),
    "easycache": (EasyCache(1e9, 2), "WanPipeline"),
    "pab": (PAB(2, window=(1, 999)), "HunyuanVideoPipeline"),
    "ditango": (DiTango(0.5, 1, 1), "FluxPipeline"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_pipeline_samples_with_a_guard(name: str) -> None:
    policy, kind = POLICIES[name]
    case = by_name(kind)
    compiled = hicache_compile(case.build(), policy, backend="eager")
    output = case.run(compiled)
    assert torch.isfinite(output).all()
    assert torch.equal(case.run(compiled), output)  # the second run is the first again
    report = getattr(compiled, case.denoisers[0]).report()
    assert (report.recompiles, report.graph_breaks) == (0, 0)
    letters = "".join(runs[-1] for runs in report.history.values())
    assert set(letters) & {".", "p"}
    assert report.map().rows


@pytest.mark.parametrize("policy", [FBCache(0.3), PAB(window=None), DiTango(0.5, 2, 2)])
def test_torch_compile_takes_any_policy(policy: Policy) -> None:
    model, inputs = random_flux(2, 2), flux_inputs(batch=1)
    compiled = hicache_compile(model, policy, backend="eager")
    with compiled.trajectory(12):
        expected = trace(compiled, inputs, 12)
    other = torch.compile(random_flux(2, 2), backend="hicache", options={"policy": policy, "backend": "eager"})
    with inspect(other).trajectory(12):
        found = trace(other, inputs, 12)
    assert torch.equal(found, expected)
    assert inspect(other).report().decisions() == compiled.report().decisions()
    assert set(compiled.report().decisions()) > {"F"}
