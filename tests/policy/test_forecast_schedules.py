"""Forecasters over whole schedules: the published recursions simulated, smoothing, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from numpy.polynomial.hermite import hermval

from hicache_compile import (
    BDF2,
    AdamsBashforth,
    Chebyshev,
    Forecaster,
    Hermite,
    HiCache,
    HiCacheError,
    Interval,
    Newton,
    NewtonHermite,
    Policy,
    Reuse,
    Smoothing,
    StepMask,
    Taylor,
    VariableAdamsBashforth,
    VariableBDF2,
)
from hicache_compile.policy.forecasters import weights
from tests.policy.test_forecasters import UNEVEN, noise, predict

Series = Callable[[float], float]
Simulated = tuple[int, list[int], float]  # step, computed steps, forecast


def difference_basis(name: str, k: int, x: float) -> float:
    """``c_k(x)`` at sigma = .6, with numpy's Hermite polynomials."""
    power = x**k if name == "taylor" else 0.6**k * hermval(0.6 * x, np.eye(k + 1)[k])
    return float(power) / math.factorial(k)


def simulate(values: Sequence[float], warmup: int, interval: int, order: int, basis: str) -> Iterator[Simulated]:
    """The published code's loop (sections 1.3 and 1.5): a table of differences and a counter."""
    table: list[float] = []
    full: list[int] = []
    counter = 0
    for step, value in enumerate(values):
        if step >= warmup and counter != interval - 1:
            counter += 1
            x = step - full[-1]
            yield step, full[:], sum(difference_basis(basis, k, x) * term for k, term in enumerate(table))
            continue
        new = [value]
        while len(new) <= order and len(new) <= len(table) and step > warmup - 2:
            new.append((new[-1] - table[len(new) - 1]) / (step - full[-1]))
        table, counter = new, 0
        full.append(step)


def agrees(policy: Policy, values: Sequence[float], simulated: Iterator[Simulated]) -> int:
    """How many forecasts of ``policy`` are the simulated ones."""
    count = 0
    for step, computed, expected in simulated:
        terms = [w * values[a] for w, a in zip(policy.weights(computed, step), computed[::-1], strict=False)]
        scale = sum(map(abs, terms))
        assert sum(terms) == pytest.approx(expected, abs=1e-10 * scale)  # float64, relative to what is summed
        count += 1
    return count


@pytest.mark.parametrize("warmup", range(1, 5))
@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("basis", ["taylor", "hermite"])
def test_a_schedule_of_weights_is_the_published_difference_table(basis: str, order: int, warmup: int) -> None:
    values = noise(50, order)
    for interval in range(2, 9):
        forecaster = Taylor(order) if basis == "taylor" else Hermite(order, 0.6)
        policy = Policy(Interval(interval, warmup), forecaster)
        simulated = simulate(values, warmup, interval, order, basis)
        assert agrees(policy, values, simulated) == 50 - warmup - (50 - warmup) // interval


def smooth(raw: Sequence[float], method: str, alpha: float) -> list[float]:
    """``S_0, S_1, ...`` of a window, oldest first (section 3.2)."""
    smoothed = [raw[0]]
    for older, newer in pairwise(raw):
        last = smoothed[-1]
        smoothed.append(alpha * newer + (1 - alpha) * last if method == "exponential" else (newer + older) / 2)
    return smoothed


def simulate_smoothed(values: Sequence[float], mask: str, order: int, smoothing: Smoothing) -> Iterator[Simulated]:
    """The smoothing branch as intended (section 3.2), on the Hermite basis at sigma = .6."""
    table: list[float] = []
    full: list[int] = []
    for step, value in enumerate(values):
        if mask[step] == "0":
            x = step - full[-1]
            yield step, full[:], sum(difference_basis("hermite", k, x) * term for k, term in enumerate(table))
            continue
        h = step - full[-1] if full else 1
        full.append(step)
        raw = [values[anchor] for anchor in full[-3:]]
        s = smooth(raw, smoothing.method, smoothing.alpha)
        new = [value]
        if len(raw) == 3:
            new = [s[2], (s[2] - s[1]) / h]
            if smoothing.hybrid:
                new = [value, (value - raw[1]) / h, ((s[2] - s[1]) - (s[1] - s[0])) / h**2]
        new = new[: order + 1]
        while len(new) <= order and len(new) <= len(table):
            new.append((new[-1] - table[len(new) - 1]) / h)
        table = new


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.parametrize("method", ["exponential", "moving_average"])
@pytest.mark.parametrize("order", range(5))
def test_smoothing_is_the_intended_algorithm(order: int, method: str, hybrid: bool) -> None:
    smoothing = Smoothing(method, 0.7, hybrid)
    # one, two and three points, then uneven and even gaps; the last schedule has a warm-up
    for schedule in (StepMask("1001000101100001000100010001"), Interval(4, 1), Interval(5, 3)):
        values = noise(28, order)
        mask = "".join("1" if schedule.computes(step, 28) else "0" for step in range(28))
        policy = Policy(schedule, Hermite(order, 0.6), smoothing=smoothing)
        assert agrees(policy, values, simulate_smoothed(values, mask, order, smoothing)) == mask.count("0")


@pytest.mark.parametrize("method", ["exponential", "moving_average"])
def test_a_forecaster_without_differences_reads_smoothed_anchors(method: str) -> None:
    values = noise(len(UNEVEN), 0)
    oldest_first = values[::-1]
    smoothed = [smooth(oldest_first[max(0, i - 2) : i + 1], method, 0.7)[-1] for i in range(len(values))][::-1]
    for forecaster in (Reuse(), Newton(2), BDF2(), NewtonHermite(2), Chebyshev(3)):
        row = weights(forecaster, UNEVEN, 26, Smoothing(method, 0.7))
        expected = predict(forecaster, UNEVEN, 26, smoothed)
        assert np.dot(row, values[: len(row)]) == pytest.approx(expected, abs=1e-11)  # float64


@pytest.mark.parametrize("forecaster", [Taylor(1), Taylor(2), Hermite(1), Hermite(2), Hermite(3)], ids=repr)
@pytest.mark.parametrize("series", [lambda t: 0.01 * t**2, lambda t: math.exp(t / 40), lambda t: -math.sqrt(t + 4)])
def test_a_forecast_of_a_monotone_series_beats_reuse(forecaster: Forecaster, series: Series) -> None:
    # Fails under the sign bug of section 1.2: evaluated at -x, odd terms extrapolate backwards.
    for interval in (4, 6, 8):
        schedule = Interval(interval, 1)
        for step in (step for step in range(4 * interval, 50) if step % interval):
            computed = range(0, step, interval)
            row = Policy(schedule, forecaster).weights(computed, step)
            forecast = sum(w * series(a) for w, a in zip(row, computed[::-1], strict=False))
            reuse = series(computed[-1])
            assert abs(forecast - series(step)) < abs(reuse - series(step))


class MeanOfTwo:
    """A user's own forecaster."""

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        return [0.5, 0.5] if len(anchors) > 1 else [1]


def test_a_users_own_forecaster_is_one_class_with_weights() -> None:
    policy = Policy(Interval(4, 1), MeanOfTwo())
    assert policy.depth == 2
    assert policy.weights([0], 1) == [1.0]
    assert policy.weights([0, 4, 8], 9) == [0.5, 0.5]


def test_a_policy_shows_no_more_anchors_than_its_ring_holds() -> None:
    class ReadsAllOfAFew:
        def weights(self, anchors: Sequence[int], target: int) -> list[float]:
            return [1 / len(anchors)] * len(anchors) if len(anchors) < 9 else [0.5, 0.5]

    assert Policy(Interval(4, 1), ReadsAllOfAFew()).weights([0, 4, 8], 9) == [0.5, 0.5]


def test_depth_is_how_many_anchors_the_formula_reads() -> None:
    read: dict[Forecaster, int] = {
        Reuse(): 1,
        BDF2(): 2,
        VariableBDF2(): 2,
        Taylor(0): 1,
        Taylor(3): 4,
        Hermite(2): 3,
        Newton(4): 5,
    }
    read |= {AdamsBashforth(4): 5, VariableAdamsBashforth(3): 4, NewtonHermite(2): 3, Chebyshev(4): 5}
    assert {forecaster: Policy(Interval(6), forecaster).depth for forecaster in read} == read
    smoothed = [Policy(Interval(6), Taylor(m), smoothing=Smoothing()).depth for m in range(4)]
    assert smoothed == [3, 3, 4, 5]  # S_1 and S_2 of three points; each further order, one anchor more


class Returns:
    """A forecaster that returns what it is told to."""

    def __init__(self, row: object) -> None:
        self.row = row

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        return self.row  # type: ignore[return-value]  # what a user may get wrong


@pytest.mark.parametrize("smoothing", [None, Smoothing()])
@pytest.mark.parametrize("row", [[], [1.0] * 3, [math.nan, 1.0], [1.0, math.inf], None, ["x"]], ids=repr)
def test_unusable_weights_are_refused(row: object, smoothing: Smoothing | None) -> None:
    with pytest.raises(HiCacheError, match=r"Returns\.weights returned .*must be"):
        weights(Returns(row), [4, 1], 6, smoothing)


@pytest.mark.parametrize(
    ("anchors", "target", "message"),
    [
        ([], 3, r"anchors = \[\]: must hold at least one"),
        ([1, 4], 6, r"anchors = \[1, 4\]: must be strictly decreasing"),
        ([4, 4], 6, r"anchors = \[4, 4\]: must be strictly decreasing"),
        ([4, 1], 4, r"target = 4: must be later than .* 4"),
        ([4, 1], 2, r"target = 2: must be later than .* 4"),
    ],
)
def test_unusable_anchors_and_targets_are_refused(anchors: list[int], target: int, message: str) -> None:
    with pytest.raises(HiCacheError, match=message):
        weights(Taylor(1), anchors, target)


def test_a_forecaster_that_reads_every_anchor_is_refused_by_the_policy() -> None:
    class ReadsAll:
        def weights(self, anchors: Sequence[int], target: int) -> list[float]:
            return [1 / len(anchors)] * len(anchors)

    with pytest.raises(HiCacheError, match=r"ReadsAll\.weights reads every anchor .*at most 32"):
        Policy(Interval(6), ReadsAll())


def test_a_policy_without_anchors_says_so() -> None:
    with pytest.raises(HiCacheError, match="must hold at least one"):
        HiCache().weights([], 3)
