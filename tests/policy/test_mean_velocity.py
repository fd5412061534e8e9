"""MeanCache's forecast against its published rule, run as a sampler with a history of samples, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from hicache_compile import (
    HiCacheError,
    MeanCache,
    MeanVelocity,
    Policy,
    Reuse,
    StepMask,
    hicache_compile,
)
from hicache_compile.policy.forecasters import weights
from hicache_compile.policy.json_codec import from_json, to_json
from hicache_compile.policy.run import RunInfo
from tests.support.models import ToyDiT

T = 16
MASKS = ["1100001000010001", "1111110101001000", "1000000000000000", "1011011101111011"]
EVEN = [1 - step / T for step in range(T)]
SHIFTED = [3 * level / (1 + 2 * level) for level in EVEN]
SPANS = [1, 2, 3, 5, (2,) * 4 + (1,) * 4 + (4,) * 4 + (3,) * 4]
Velocity = Callable[[np.ndarray, float], np.ndarray]


def span_of(span: int | Sequence[int], step: int) -> int:
    return span if isinstance(span, int) else span[step]


def published(
    velocity: Velocity, x: np.ndarray, sigmas: Sequence[float], mask: str, span: int | Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The last sample, and the velocity of every step: by the samples and velocities that a run has kept."""
    levels = [*sigmas, 0.0]
    samples, velocities = [x], list[np.ndarray]()
    for step, letter in enumerate(mask):
        if letter == "1":
            v = velocity(samples[-1], levels[step])
        else:
            start = max(0, step - span_of(span, step))
            width = levels[step] - levels[start]
            average = (samples[-1] - samples[start]) / width
            jvp = (average - velocities[start]) / width
            v = velocities[-1] + (levels[step + 1] - levels[step]) * jvp
        velocities.append(v)
        samples.append(samples[-1] + (levels[step + 1] - levels[step]) * v)
    return samples[-1], velocities


def forecast(forecaster: Any, step: int, computed: dict[int, np.ndarray]) -> np.ndarray:
    anchors = sorted(computed, reverse=True)
    rows = zip(weights(forecaster, anchors, step), anchors, strict=False)
    return np.asarray(sum(weight * computed[anchor] for weight, anchor in rows))


def branch(number: int) -> Velocity:
    matrix = np.random.default_rng(number).normal(size=(6, 6)) / 3
    return lambda x, sigma: np.tanh(matrix @ x + number) * (1 + np.sin(5 * sigma)) + sigma


@pytest.mark.parametrize(("mask", "sigmas", "span"), list(itertools.product(MASKS, [EVEN, SHIFTED], SPANS)))
def test_guided_runs_are_those_of_the_published_rule(mask: str, sigmas: list[float], span: Any) -> None:
    """The rule is for what guidance makes of two branches; the weights are used in each of them."""
    branches, scale = (branch(1), branch(2)), 3.0
    noise = np.random.default_rng(0).normal(size=6)

    def guided(plain: np.ndarray, prompt: np.ndarray) -> np.ndarray:
        return plain + scale * (prompt - plain)

    wanted, _ = published(lambda x, s: guided(*(one(x, s) for one in branches)), noise, sigmas, mask, span)
    times = [1000 * level for level in sigmas]
    bound = MeanVelocity(span, reads=16).bind(RunInfo(times=lambda: times)).bind(RunInfo(T))
    kept: tuple[dict[int, np.ndarray], ...] = ({}, {})
    x = noise
    for step, (now, then) in enumerate(itertools.pairwise([*sigmas, 0.0])):
        if mask[step] == "1":
            for computed, one in zip(kept, branches, strict=True):
                computed[step] = one(x, now)
            found = [computed[step] for computed in kept]
        else:
            found = [forecast(bound, step, computed) for computed in kept]
        x = x + (then - now) * guided(*found)
    np.testing.assert_allclose(x, wanted, rtol=1e-10)


def by_unit_vectors(mask: str, sigmas: Sequence[float], span: int | Sequence[int]) -> dict[int, np.ndarray]:
    """The weights of each forecast step, oldest step first: the velocity of a computed step is a vector of its own."""
    own = {sigma: np.eye(T)[step] for step, sigma in enumerate(sigmas)}
    _, velocities = published(lambda _, sigma: own[sigma], np.zeros(T), sigmas, mask, span)
    return {step: velocities[step] for step in range(T) if mask[step] == "0"}


class Listed:
    """A forecaster of weights that are listed by step."""

    def __init__(self, rows: dict[int, np.ndarray]) -> None:
        self.rows = rows

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        row = self.rows.get(target, np.eye(T)[0])
        return [float(row[anchor]) if anchor < T else 0.0 for anchor in anchors[:16]]


@pytest.mark.parametrize("span", [3, SPANS[-1]], ids=["one", "each"])
def test_a_compiled_run_goes_by_its_own_timesteps(span: Any) -> None:
    mask = MASKS[0]
    found = []
    for forecaster in (MeanVelocity(span), Listed(by_unit_vectors(mask, SHIFTED, span))):
        denoiser = hicache_compile(ToyDiT(), Policy(StepMask(mask), forecaster, "output"), backend="eager")
        x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), denoiser.trajectory(T, timesteps=[1000 * level for level in SHIFTED]):
            for now, then in itertools.pairwise([*SHIFTED, 0.0]):
                x = x + (then - now) * denoiser(x, torch.full((2,), now))
        found.append(x)
        assert denoiser.report().decisions() == mask.replace("1", "F").replace("0", ".")
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("span", [1, 2, 3, 6])
def test_on_a_line_the_forecast_has_half_of_its_slope(span: int) -> None:
    """``v_i = i``: the mean of ``K`` steps lies ``(K - 1) / 2`` steps after the first of them, and ``K`` before now."""
    row = weights(MeanVelocity(span), list(range(20, 10, -1)), 21)
    assert np.dot(row, range(20, 20 - len(row), -1)) == pytest.approx(20 + 0.5 * (span - 1) / span)
    assert sum(row) == pytest.approx(1.0)


def test_short_spans_and_single_anchors_are_reused() -> None:
    anchors = [9, 5, 2]
    assert weights(MeanVelocity(1), anchors, 12) == [1.0, 0.0, 0.0]
    assert weights(MeanVelocity(4), anchors[:1], 12) == weights(Reuse(), anchors[:1], 12)
    twice = MeanVelocity(2).bind(RunInfo(times=lambda: [900.0, 500.0, 500.0, 500.0, 100.0]))
    assert weights(twice, [2, 1, 0], 3) == [1.0, 0.0, 0.0]  # no time between them


def test_an_anchor_that_is_not_read_is_before_the_run() -> None:
    anchors = [13, 10, 8, 4, 1, 0]
    exact = np.array(weights(MeanVelocity(3, reads=6), anchors, 15))
    off = []
    for reads in range(2, 6):
        row = weights(MeanVelocity(3, reads=reads), anchors, 15)
        assert row == weights(MeanVelocity(3, reads=6), anchors[:reads], 15)
        off.append(float(abs(exact - np.pad(row, (0, 6 - reads))).sum()))
    assert off == sorted(off, reverse=True)
    assert off[-1] < 0.01 * off[0]


def test_numbers_by_step_hold_for_a_run_of_another_length() -> None:
    each = MeanVelocity((1, 1, 4, 4))
    assert [each.bind(RunInfo(7)).span_at(step) for step in range(7)] == [1, 1, 1, 4, 4, 4, 4]
    assert [each.span_at(step) for step in range(6)] == [1, 1, 4, 4, 4, 4]


def test_a_run_is_as_long_as_its_timesteps() -> None:
    bound = MeanVelocity().bind(RunInfo(times=lambda: [1000, 500, 250]))
    assert bound == MeanVelocity(times=(1000.0, 500.0, 250.0), num_steps=3)
    assert bound.bind(RunInfo(3)) is bound
    assert MeanVelocity().bind(RunInfo()) == MeanVelocity()
    with pytest.raises(HiCacheError, match=r"MeanVelocity\.times = \(1000.0, 500.0, 250.0\): must be 4 numbers"):
        bound.bind(RunInfo(4))


def test_the_preset_computes_the_budget_of_the_paper() -> None:
    policy = MeanCache()
    letters = policy.decisions(50)
    assert letters.count("F") == 10
    assert (letters[:2], letters[-1]) == ("FF", "F")
    assert policy.schedule.first_anchor == 0
    each = MeanCache(span=[1, 2, 3])
    assert each.forecaster == MeanVelocity((1, 2, 3))
    assert from_json(to_json(each)) == each
    assert MeanCache(forecaster=Reuse()).forecaster == Reuse()
