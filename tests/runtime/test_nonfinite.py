"""Numbers that are not finite: they are never forecast from, and a sample that has some decides for no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hicache_compile import (
    DMD,
    Chebyshev,
    DiCache,
    DiCacheGuard,
    EasyCache,
    FBCache,
    HiCache,
    Newton,
    Policy,
    ResidualGate,
    hicache_compile,
)
from hicache_compile.operators.anchors import QUANTISED, dequantised, quantised, remember, scale_of
from hicache_compile.operators.measurements import average, change, largest
from tests.support.models import ToyDiT

STEPS, BAD = 12, 4


def noise(step: int, batch: int) -> Tensor:
    return torch.randn(batch, 6, 16, generator=torch.Generator().manual_seed(step))


def run(policy: Policy, bad_rows: list[int], batch: int = 1, value: float = float("nan"), **options: Any) -> Any:
    """The outputs of a run in one step of which the samples ``bad_rows`` are no numbers, and its report."""
    compiled = hicache_compile(ToyDiT(), policy, **{"backend": "eager", **options})
    outputs = []
    with torch.no_grad(), compiled.trajectory(STEPS):
        for step in range(STEPS):
            x = noise(step // 3, batch) + 0.01 * noise(step, batch)
            if step == BAD:
                x[bad_rows] = value
            outputs.append(compiled(x, torch.full((batch,), 1 - step / STEPS)))
    return torch.stack(outputs), compiled.report()


FORECASTERS = [DMD(2, 4), ResidualGate(Newton(1)), Chebyshev(2, 4), Newton(2)]
GUARDED = [FBCache(0.9), EasyCache(0.5), DiCache(0.5)]
OPTIONS: list[dict[str, Any]] = [{}, {"backend": "cond_eager"}, {"anchors": "int8"}, {"offload": True}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("forecaster", FORECASTERS, ids=lambda one: type(one).__name__)
def test_one_bad_computed_step_spoils_no_other(forecaster: Any, value: float) -> None:
    policy = HiCache(interval=2, forecaster=forecaster, scope="stack")
    outputs, report = run(policy, [0], value=value)
    assert report.decisions() == run(policy, [])[1].decisions()
    finite = outputs.isfinite().flatten(1).all(1)
    assert finite.tolist() == [step != BAD for step in range(STEPS)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_wherever_anchors_are_kept(options: dict[str, Any]) -> None:
    outputs, _ = run(HiCache(interval=2, order=2, scope="module"), [0], **options)
    finite = outputs.isfinite().flatten(1).all(1)
    assert finite.tolist() == [step != BAD for step in range(STEPS)]


@pytest.mark.parametrize("options", [{}, {"together": True}, {"backend": "cond_eager"}], ids=str)
@pytest.mark.parametrize(
    "policy", [FBCache(0.9), EasyCache(0.5), DiCache(0.5)], ids=lambda one: type(one.guards[0]).__name__
)
def test_a_bad_sample_decides_for_no_other(policy: Policy, options: dict[str, Any]) -> None:
    (clean, alone), (beside, report) = (run(policy, rows, batch=3, **options) for rows in ([], [1]))
    others = [0, 2]
    assert alone.forecast > 2
    assert beside[:, others].isfinite().all()
    assert report.decisions() == alone.decisions()
    if options:
        assert report.nonfinite_probes == alone.nonfinite_probes
    else:  # the bad one decides for itself, and is computed
        assert report.nonfinite_probes > alone.nonfinite_probes
        assert report.decisions("default[2]") == alone.decisions("default[2]")
    if not options or not isinstance(policy.guards[0], DiCacheGuard):  # as one it goes by the mean over all samples
        torch.testing.assert_close(beside[:, others], clean[:, others])


def test_a_measurement_is_that_of_the_finite_samples() -> None:
    good, nan, inf = torch.tensor([0.2, 0.7]), torch.tensor([float("nan")]), torch.tensor([float("inf")])
    assert largest(torch.cat([good, nan, inf])) == 0.7
    assert average(torch.cat([nan, good, inf])) == good.mean()
    assert largest(nan).isnan().all()
    assert average(inf).isnan().all()
    now, before = torch.ones(2, 3), torch.full((2, 3), 2.0)
    now[0, 1] = float("nan")
    assert change(now, before) == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, *QUANTISED])
def test_the_row_before_stands_in(dtype: torch.dtype) -> None:
    ring = torch.zeros(2, 4, dtype=dtype)
    scales = torch.zeros(2)
    for step, row in enumerate(([1.0, -2.0, 3.0, 4.0], [1.0, float("nan"), float("-inf"), 4.0])):
        value, position = torch.tensor(row), torch.tensor([step % 2])
        if dtype in QUANTISED:
            scale = scale_of(value, dtype)
            remember(scales, position, scale)
            value = quantised(value, scale, dtype)
        remember(ring, position, value)
    kept = dequantised(ring, scales) if dtype in QUANTISED else ring.float()
    torch.testing.assert_close(kept[1], torch.tensor([1.0, -2.0, 3.0, 4.0]), rtol=0.05, atol=0.05)


def test_a_row_of_no_numbers_keeps_its_scale() -> None:
    ring, scales = torch.zeros(2, 2, dtype=torch.int8), torch.zeros(2)
    for step, value in enumerate((torch.tensor([3.0, 6.0]), torch.full((2,), float("nan")))):
        position, scale = torch.tensor([step]), scale_of(value, torch.int8)
        remember(scales, position, scale)
        remember(ring, position, quantised(value, scale, torch.int8))
    torch.testing.assert_close(dequantised(ring, scales)[1], torch.tensor([3.0, 6.0]), rtol=0.01, atol=0.03)
