"""Anchors with a scale each: what is kept, that every way to run agrees, and how far it is from anchors as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hicache_compile import DMD, PAB, DiTango, FBCache, HiCache, HiCacheError, Policy, Report, SpeCa, hicache_compile
from hicache_compile.operators.anchors import QUANTISED, dequantised, forecast, quantised, remember, scale_of
from hicache_compile.policy import layout
from tests.support.models import ToyDiT, flux_inputs, random_flux, trace
from tests.support.resume import assert_it_goes_on

STEPS = 12
DTYPES = {"int8": 0.5 / 127, "float8_e4m3fn": 2**-4}  # and half a step, of the largest value or of each


def run(policy: Policy, backend: str = "eager", **options: Any) -> tuple[Tensor, Report]:
    compiled = hicache_compile(random_flux(1, 2), policy, backend=backend, **options)
    with compiled.trajectory(STEPS):
        states = trace(compiled, flux_inputs(), STEPS)
    return states, compiled.report()


def test_policies_and_operators_mean_the_same_dtypes() -> None:
    assert {getattr(torch, name) for name in layout.QUANTISED} == set(QUANTISED)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_keeps_its_values_up_to_half_a_step(dtype: str) -> None:
    stored, values = getattr(torch, dtype), torch.randn(3, 4, 5) * torch.tensor([1e-6, 1.0, 1e4]).reshape(3, 1, 1)
    ring, scales = torch.zeros(3, 4, 5, dtype=stored), torch.zeros(3)
    for row, value in enumerate(values):
        scale = scale_of(value, stored)
        remember(scales, torch.tensor([row]), scale)
        remember(ring, torch.tensor([row]), quantised(value, scale, stored))
    largest = values.abs().amax((1, 2), keepdim=True)
    assert ((dequantised(ring, scales) - values).abs() <= DTYPES[dtype] * 1.001 * largest).all()
    weights = torch.tensor([0.5, 2.0, -1.0])
    expected = torch.einsum("k,kab->ab", weights, dequantised(ring, scales))
    torch.testing.assert_close(forecast(ring, weights * scales, torch.float32), expected)


@pytest.mark.parametrize("scope", ["module", "stack"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quarter_of_the_bytes_and_nearly_the_same_run(dtype: str, scope: str) -> None:
    policy = HiCache(interval=3, scope=scope)
    (whole, full), (found, report) = run(policy), run(policy, anchors=dtype)
    assert report.decisions() == full.decisions()
    rings = full.state_bytes // 4
    assert rings < report.state_bytes <= 1.02 * rings
    error = (found - whole).norm() / whole.norm()
    assert 0 < error < (2e-3 if dtype == "int8" else 5e-3)


@pytest.mark.parametrize(
    ("backend", "options"),
    [("inductor", {}), ("aot_eager", {}), ("cond_eager", {}), ("eager", {"offload": True})],
    ids=["inductor", "aot_eager", "cond_eager", "offload"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_way_to_run_keeps_the_same(dtype: str, backend: str, options: dict[str, Any]) -> None:
    policy = HiCache(interval=3)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if backend == "inductor" else {}  # one rounding may fall the other way
    found, expected = run(policy, backend, anchors=dtype, **options)[0], run(policy, anchors=dtype)[0]
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.parametrize(
    "policy",
    [PAB(2, window=None), FBCache(0.3), SpeCa(0.5, 0.5, warmup=2), HiCache(3, forecaster=DMD(1, 3), scope="stack")],
    ids=["PAB", "FBCache", "SpeCa", "DMD"],
)
def test_under_any_policy(policy: Policy) -> None:
    (whole, full), (found, report) = run(policy), run(policy, anchors="int8")
    assert report.decisions() == full.decisions()
    assert report.state_bytes < full.state_bytes
    assert (found - whole).norm() / whole.norm() < 2e-3
    if not isinstance(policy.forecaster, DMD):  # which the host fits
        torch.testing.assert_close(run(policy, "cond_eager", anchors="int8")[0], found)


def test_a_tuple_that_a_site_reads_enters_its_branch_by_its_elements() -> None:
    """FLUX's single-stream modulation, under PerKind in one program: also without quantised anchors."""
    policy = PAB(2, window=None)
    assert torch.equal(run(policy, "cond_eager")[0], run(policy)[0])


@pytest.mark.parametrize("options", [{}, {"offload": True}], ids=["device", "offloaded"])
def test_a_run_goes_on_in_another_denoiser(options: dict[str, Any], tmp_path: Path) -> None:
    assert_it_goes_on(HiCache(interval=3), "eager", tmp_path, anchors="int8", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"anchors": "int4"}, r"hicache_compile.anchors = 'int4': must be one of float32, float16, bfloat16, "),
        ({"policy": DiTango(0.5), "anchors": "int8"}, "leave anchors out"),
    ],
)
def test_what_cannot_be_kept_so_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HiCacheError, match=message):
        hicache_compile(ToyDiT(), **{"policy": HiCache(), "backend": "eager", **options})


def test_a_budget_counts_the_bytes_that_are_kept() -> None:
    report = run(HiCache(interval=3), anchors="int8", memory_budget="16KB")[1]
    assert report.memory.startswith("scope module, 3 anchors in int8: ")
    assert f"{report.state_bytes:,} of" in report.memory
