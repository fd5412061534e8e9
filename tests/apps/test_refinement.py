"""Weights refined on whole runs: which numbers are free, the least squares they solve, and what is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from hicache_compile import (
    DMD,
    ByBand,
    Calibrated,
    FBCache,
    HiCacheError,
    Interval,
    MeanVelocity,
    Newton,
    Policy,
    Reuse,
    StepMask,
    Table,
    hicache_compile,
)
from hicache_compile.cli import app
from hicache_compile.tune import Measured, fit_forecasts, measure, refine, with_weights
from hicache_compile.tune.measured import results, tried
from hicache_compile.tune.refinement import Correction
from hicache_compile.tune.sketch import Sketches
from tests.support.models import ToyDiT

STEPS = 10
MASK = "1010010000"
TIMES = [(1 - step / STEPS) ** 2 for step in range(STEPS)]


class ByTime(nn.Module):
    """What the sampler adds depends on the time alone, so that a run's result is linear in the weights of forecasts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ToyDiT()
        self.start = nn.Buffer(torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.inner(0.0 * x + self.start, t)
        return found


def subject(model: nn.Module, returns: bool = True) -> Measured:
    denoiser = hicache_compile(model, Policy(Interval(3), Reuse(), "stack"), backend="eager")

    def run() -> Tensor | None:
        x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(7))
        with torch.no_grad(), denoiser.trajectory(STEPS, timesteps=[1000 * time for time in TIMES]):
            for time in TIMES:
                x = x - denoiser(x, torch.full((3,), time)) / STEPS
        return x if returns else None

    return measure(denoiser, [run])


def rows_of(policy: Policy) -> dict[int, tuple[Any, Any]]:
    assert isinstance(policy.forecaster, Calibrated)
    return {step: (anchors, weights) for step, anchors, weights in policy.forecaster.table.rows}


def residuals(model: ByTime) -> Tensor:
    """Of the blocks, at each step ``[T, N]``: what an anchor is."""
    inner, found = model.inner, []
    with torch.no_grad():
        for time in TIMES:
            stream = h = inner.embed(model.start)
            for layer in inner.layers:
                h = layer(h, inner.time(torch.full((3, 1), time)))
            found.append((h - stream).flatten())
    return torch.stack(found).double()


def test_a_linear_run_gets_its_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """The free numbers solved for at once, in float64, with the model's own blocks and head and no cache."""
    monkeypatch.setattr("hicache_compile.tune.refinement.DAMPINGS", (1e-9,))
    model = ByTime()
    measured = subject(model)
    found = refine(measured, Policy(StepMask(MASK), Reuse(), "stack"))
    anchors, head = residuals(model), model.inner.head
    weight = next(p for p in head.parameters() if p.dim() == 2).detach().double()

    def moved(value: Tensor) -> Tensor:
        return (value.view(3, 5, -1) @ weight.T).flatten() / STEPS

    # Reuse has one weight, so each gap between computed steps has one number, added to all of its forecasts.
    gaps = {0: [1], 2: [3, 4], 5: [6, 7, 8, 9]}
    columns = torch.stack([len(steps) * moved(anchors[anchor]) for anchor, steps in gaps.items()], 1)
    wanted = sum(moved(anchors[step] - anchors[anchor]) for anchor, steps in gaps.items() for step in steps)
    numbers = torch.linalg.lstsq(columns, wanted[:, None]).solution.flatten()  # type: ignore[index]
    each = zip(gaps.items(), numbers.tolist(), strict=True)
    expected = {step: ((anchor,), number) for (anchor, steps), number in each for step in steps}
    rows = rows_of(found.policy)
    assert rows.keys() == expected.keys()
    for step, (anchor, number) in expected.items():
        assert rows[step][0] == anchor
        assert rows[step][1] == pytest.approx([1 + number], rel=5e-3, abs=2e-3), step
    left = (columns @ numbers - wanted).norm() / measured.references[0].result.norm()  # type: ignore[union-attr]
    assert found.error == pytest.approx(float(left), rel=0.02, abs=1e-5)


def test_numbers_of_a_gap_are_added_to_its_newest_anchors() -> None:
    measured = subject(ToyDiT())
    policy = Policy(StepMask(MASK), Newton(2), "stack")
    correction = Correction.of(measured, policy)
    assert correction.gaps == ((0,), (1, 2), (3, 4, 5, 6))
    assert correction.counts == (1, 2, 2)  # after the first computed step there is one anchor
    before, after = (rows_of(correction.policy(policy, np.array(numbers))) for numbers in ([0.0] * 5, [1, 2, 3, 4, 5]))
    assert [anchors for anchors, _ in after.values()] == [(0,), *[(2, 0)] * 2, *[(5, 2, 0)] * 4]
    added = {step: np.subtract(after[step][1], before[step][1]).round(6).tolist() for step in before}
    assert added == {1: [1], 3: [2, 3], 4: [2, 3], 6: [4, 5, 0], 7: [4, 5, 0], 8: [4, 5, 0], 9: [4, 5, 0]}
    assert before[9][1] == pytest.approx(Newton(2).weights([5, 2, 0], 9))


def test_it_ends_nearer_and_keeps_steps_and_scope() -> None:
    measured = subject(ToyDiT())
    for policy, most in (
        (Policy(StepMask(MASK), Reuse(), "stack"), 0.3),
        (Policy(StepMask(MASK), Newton(1), "stack"), 1.0),
        (with_weights(measured, StepMask(MASK)).policy, 1.0),
    ):
        before, found = tried(measured, policy), refine(measured, policy)
        assert found.error < most * before.error
        assert (found.policy.schedule, found.policy.scope) == (policy.schedule, policy.scope)
        assert tried(measured, found.policy).error == pytest.approx(found.error)


def test_weights_of_each_slot_are_corrected_alike() -> None:
    measured = subject(ToyDiT())
    shared = with_weights(measured, StepMask(MASK)).policy
    own = with_weights(measured, StepMask(MASK), by_slot=True).policy
    numbers = np.arange(1.0, 6.0)
    by_slot = rows_of(Correction.of(measured, own).policy(own, numbers))
    for step, (_, weights) in rows_of(Correction.of(measured, shared).policy(shared, numbers)).items():
        assert by_slot[step][1][0] == pytest.approx(weights, abs=1e-3)  # there is one slot


def test_a_forecaster_of_the_run_starts_from_its_weights_in_it() -> None:
    measured = subject(ToyDiT())
    policy = Policy(StepMask(MASK), MeanVelocity(3), "stack")
    correction = Correction.of(measured, policy)
    same = correction.policy(policy, np.zeros(sum(correction.counts)))
    for one, other in zip(results(measured, policy), results(measured, same), strict=True):
        torch.testing.assert_close(one, other)


def test_what_cannot_get_better_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = subject(ToyDiT())
    policy = Policy(StepMask(MASK), Newton(1), "stack")
    assert refine(measured, policy, rounds=0).policy == policy
    in_full = Policy(Interval(1), Newton(1), "stack")
    assert refine(measured, in_full).policy == in_full
    monkeypatch.setattr(
        "hicache_compile.tune.refinement._steps", lambda jacobian, off: [np.full(5, 1e30), np.full(5, 9.0)]
    )
    assert refine(measured, policy).policy == policy  # results that are not finite, and worse ones


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (FBCache(0.1), r"refine\.policy = .*: must have no guards"),
        (Policy(Interval(2), DMD(2), "stack"), "a forecaster that goes by steps alone"),
        (Policy(Interval(2), ByBand(), "stack"), "a forecaster that goes by steps alone"),
    ],
)
def test_other_policies_are_refused(policy: Policy, said: str) -> None:
    with pytest.raises(HiCacheError, match=said):
        refine(subject(ToyDiT()), policy)


def test_forecasts_are_refined_where_runs_return_samples() -> None:
    plain = subject(ToyDiT())
    found = fit_forecasts(plain, "calibrated", 3, 1)
    assert found.error < fit_forecasts(plain, "calibrated", 3, 1, rounds=0).error
    mean = fit_forecasts(plain, "mean", 3, 1)
    assert isinstance(mean.policy.forecaster, MeanVelocity)
    assert fit_forecasts(plain, "mean", 3, 1, rounds=1).error < mean.error
    silent = subject(ToyDiT(), returns=False)
    assert fit_forecasts(silent, "calibrated", 3, 1).policy.schedule == found.policy.schedule
    with pytest.raises(HiCacheError, match=r"measure\.runs: must return tensors"):
        fit_forecasts(silent, "calibrated", 3, 1, rounds=1)


def test_the_command_refines_by_default(tmp_path: Path) -> None:
    errors = []
    for rounds in ([], ["--refine", "0"]):
        given = [
            "demo",
            "--fit",
            "calibrated",
            "--prompt",
            "3",
            "--steps",
            "8",
            "--computed",
            "3",
            "--evaluations",
            "1",
        ]
        out = ["--backend", "eager", "--out", str(tmp_path / "policy.json"), "--samples", "1", "--json"]
        result = CliRunner().invoke(app, ["tune", *given, *out, *rounds])
        assert result.exit_code == 0, result.output
        errors.append(json.loads(result.stdout)["error"])
    assert errors[0] < errors[1]
    refused = CliRunner().invoke(app, ["tune", "demo", "--fit", "teacache", "--refine", "1", "--prompt", "3"])
    assert refused.exit_code == 2
    assert "fit.rounds = 1: must be left out" in refused.output


def test_sketches_keep_products() -> None:
    values = torch.randn(2, 40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sketch = Sketches(8192)
    folded = torch.stack(list(map(sketch, values))).double()
    assert folded.shape == (2, 8192)
    torch.testing.assert_close(folded @ folded.T / 40_000, values @ values.T / 40_000, atol=0.05, rtol=0)
    assert torch.equal(Sketches(40_000)(values[0]), values[0].float())


def test_a_table_says_what_a_row_is() -> None:
    """Weights that are refined need not sum to 1."""
    table = Table(3, (1.0, 1.0, 1.0), ((2, (1, 0), (0.9, 0.3)),))
    assert Calibrated(table).weights([1, 0], 2) == [0.9, 0.3]
