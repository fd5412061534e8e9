"""Forecasters: every weight vector against a closed form, a short float64 reference or a published number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from numpy.polynomial.hermite import hermval

from hicache_compile import (
    BDF2,
    FORA,
    AdamsBashforth,
    Chebyshev,
    Forecaster,
    Hermite,
    HiCache,
    HiCacheError,
    Interval,
    Newton,
    NewtonHermite,
    NewtonScaledTaylor,
    Policy,
    Reuse,
    ScaledTaylor,
    Smoothing,
    StepMask,
    Taylor,
    TaylorSeer,
    VariableAdamsBashforth,
    VariableBDF2,
    weights,
)

Series = Callable[[float], float]
Simulated = tuple[int, list[int], float]  # step, computed steps, forecast

HALF = math.sqrt(0.5)  # the sigma at which Hermite has the true slope
EVEN = [24, 18, 12, 6, 0]
UNEVEN = [23, 17, 14, 13, 8, 6]  # gaps 6, 3, 1, 5, 2
CLASSICAL: dict[int, list[float]] = {  # Adams-Bashforth
    1: [1],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -4 / 3, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -3 / 8],
}
CLOSED: dict[int, Callable[[float, float], float]] = {  # c_k(x, sigma) of HiCache, section 1.2 of the reference
    0: lambda x, s: 1.0,
    1: lambda x, s: 2 * s**2 * x,
    2: lambda x, s: s**2 * (2 * s**2 * x**2 - 1),
    3: lambda x, s: s**4 * (4 / 3 * s**2 * x**3 - 2 * x),
}


def noise(count: int, seed: int) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).normal(size=count)]


def predict(forecaster: Forecaster, anchors: Sequence[int], target: int, values: Sequence[float]) -> float:
    """The forecast of ``target`` from ``values`` at ``anchors``, newest first."""
    row = weights(forecaster, anchors, target)
    return float(np.dot(row, values[: len(row)]))


def on_series(forecaster: Forecaster, anchors: Sequence[int], target: int, series: Series) -> float:
    return predict(forecaster, anchors, target, [series(step) for step in anchors])


def read_basis(forecaster: Forecaster, k: int, x: int) -> float:
    """``c_k(x)`` of an order-``k`` forecaster: the oldest of ``k + 1`` neighbours enters ``D_k`` alone."""
    return (-1) ** k * weights(forecaster, range(k, -1, -1), k + x)[-1]


@pytest.mark.parametrize("sigma", [0.3, 0.5, HALF, 1.0, 1.7])
@pytest.mark.parametrize("k", CLOSED)
def test_hermite_coefficients_are_the_closed_forms(k: int, sigma: float) -> None:
    for x in range(1, 10):
        expected = pytest.approx(CLOSED[k](x, sigma), rel=1e-12, abs=1e-12)  # float64 closed form
        assert read_basis(Hermite(k, sigma), k, x) == expected


@pytest.mark.parametrize(
    ("k", "published"),
    [
        (1, [0.5, 1, 1.5, 2, 3]),
        (2, [-0.125, 0.25, 0.875, 1.75, 4.25]),
        (3, [-0.104, -0.083, 0.1875, 0.833, 3.75]),
    ],
)
def test_hermite_coefficients_at_half_are_the_published_values(k: int, published: list[float]) -> None:
    found = [read_basis(Hermite(k, 0.5), k, x) for x in (1, 2, 3, 4, 6)]
    assert found == pytest.approx(published, abs=5e-4)  # printed with three decimals


@pytest.mark.parametrize("k", range(6))
def test_taylor_and_scaled_taylor_coefficients_are_monomials(k: int) -> None:
    for x in range(1, 10):
        monomial = x**k / math.factorial(k)
        assert read_basis(Taylor(k), k, x) == pytest.approx(monomial, rel=1e-12)  # float64 closed form
        assert read_basis(ScaledTaylor(k, 0.6), k, x) == pytest.approx(0.36**k * monomial, rel=1e-12)


@pytest.mark.parametrize(("d1", "d2", "x"), [(6, 1, 1), (6, 1, 5), (1, 6, 3), (4, 4, 2), (3, 7, 9)])
def test_order_2_weights_follow_the_published_formula_on_any_gaps(d1: int, d2: int, x: int) -> None:
    for forecaster, c1, c2 in [
        (Taylor(2), x, x**2 / 2),
        (Hermite(2, 0.6), CLOSED[1](x, 0.6), CLOSED[2](x, 0.6)),
        (ScaledTaylor(2, 0.6), 0.36 * x, 0.1296 * x**2 / 2),
    ]:
        w1 = -c1 / d1 - c2 * (1 / d1**2 + 1 / (d1 * d2))
        expected = [1 + c1 / d1 + c2 / d1**2, w1, c2 / (d1 * d2)]
        found = weights(forecaster, [d1 + d2, d2, 0], d1 + d2 + x)
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)  # float64 closed form


KEEP_CONSTANTS = [
    Reuse(),
    BDF2(),
    VariableBDF2(),
    *(kind(m) for kind in (Taylor, Hermite, ScaledTaylor, Newton, NewtonHermite) for m in range(5)),
    *(kind(m) for kind in (AdamsBashforth, VariableAdamsBashforth) for m in range(1, 5)),
]


@pytest.mark.parametrize("forecaster", [*KEEP_CONSTANTS, NewtonScaledTaylor(3)], ids=repr)
def test_a_constant_is_kept(forecaster: Forecaster) -> None:
    for count, x in product(range(1, 7), (1, 3, 8)):
        assert sum(weights(forecaster, UNEVEN[:count], 23 + x)) == pytest.approx(1, abs=1e-11)  # sums of weights < 100


KEEP_LINES = [
    VariableBDF2(),
    *(kind(m) for kind in (Taylor, Newton, AdamsBashforth, VariableAdamsBashforth) for m in range(1, 5)),
    *(kind(m, HALF) for kind in (Hermite, NewtonHermite) for m in range(1, 4)),
    NewtonScaledTaylor(2, 1.0),
]


@pytest.mark.parametrize("forecaster", KEEP_LINES, ids=repr)
def test_a_line_is_continued_from_two_anchors_on(forecaster: Forecaster) -> None:
    for count, x in product(range(2, 7), (1, 6, 7)):
        found = on_series(forecaster, UNEVEN[:count], 23 + x, lambda t: 0.5 * t - 3)
        assert found == pytest.approx(0.5 * (23 + x) - 3, abs=1e-10)  # weights below 1e3 times values of 10


@pytest.mark.parametrize("sigma", [0.3, 0.5, HALF, 1.0])
@pytest.mark.parametrize("kind", [Hermite, NewtonHermite])
def test_hermite_continues_a_line_with_two_sigma_squared_of_its_slope(kind: type[Hermite], sigma: float) -> None:
    for order, x in product((1, 2, 3), range(1, 8)):
        increment = on_series(kind(order, sigma), UNEVEN, 23 + x, lambda t: 4 * t) - 4 * 23
        assert increment == pytest.approx(2 * sigma**2 * 4 * x, abs=1e-10)  # at sigma = .5: half of it


@pytest.mark.parametrize("degree", range(6))
def test_newton_continues_polynomials_of_its_degree_on_uneven_anchors(degree: int) -> None:
    polynomial = np.polynomial.Polynomial([0.3, -1.0, 0.7, 0.2, -0.1, 0.05][: degree + 1])
    for x in (1, 2, 7):
        found = on_series(Newton(degree), UNEVEN, 23 + x, lambda t: float(polynomial((t - 20) / 5)))
        assert found == pytest.approx(polynomial((3 + x) / 5), rel=1e-10)  # float64, weights below 1e4


@pytest.mark.parametrize(("d1", "d2"), [(6, 1), (6, 6), (1, 6)])
def test_published_taylor_2_misses_a_quadratic_by_the_predicted_error(d1: int, d2: int) -> None:
    # D_1 = -d1 and D_2 = (d1 + d2)/d1 at the newest anchor (t = 0) of t^2
    for x in range(1, 7):
        error = on_series(Taylor(2), [0, -d1, -d1 - d2], x, lambda t: t**2) - x**2
        assert error == pytest.approx(x * (x * (d2 - d1) / (2 * d1) - d1), abs=1e-11)  # float64 closed form


def test_bdf2_misses_a_line_by_a_third_of_the_slope_times_gap_minus_distance() -> None:
    for d1, x in product((1, 4, 6), range(1, 9)):
        error = on_series(BDF2(), [d1, 0], d1 + x, lambda t: 5 * t) - 5 * (d1 + x)
        assert error == pytest.approx(5 * (d1 - x) / 3, abs=1e-11)  # zero exactly where x = d1


def worst(policy: Policy, series: Series) -> float:
    """The largest forecast error over 50 steps."""
    full = [step for step, letter in enumerate(policy.decisions(50)) if letter == "F"]
    errors = []
    for step in sorted(set(range(50)) - set(full)):
        computed = [anchor for anchor in full if anchor < step]
        row = policy.weights(computed, step)
        errors.append(abs(sum(w * series(a) for w, a in zip(row, computed[::-1], strict=False)) - series(step)))
    return max(errors)


def test_largest_errors_on_toy_series_are_the_reference_numbers() -> None:
    quadratic = [worst(p, lambda t: 0.01 * t**2) for p in (TaylorSeer(order=2), HiCache(), FORA(6, warmup=3))]
    assert quadratic == pytest.approx([0.40, 2.54, 4.65], abs=0.005)  # printed with two decimals
    line = [worst(p, lambda t: 0.5 * t) for p in (HiCache(order=1), HiCache(), FORA(6, warmup=3))]
    assert line == pytest.approx([1.25, 1.25, 2.5], abs=1e-10)  # exact in the reference


@pytest.mark.parametrize("anchors", [EVEN, UNEVEN])
@pytest.mark.parametrize("order", range(4))
def test_corrected_bases_act_on_the_derivatives_of_the_interpolant(order: int, anchors: list[int]) -> None:
    values = noise(len(anchors), order)
    nodes = np.subtract(anchors[: order + 1], anchors[0])
    fit = np.poly1d(np.polyfit(nodes, values[: order + 1], order))
    slopes = [fit.deriv(k)(0.0) for k in range(order + 1)]
    for x in (1, 2, 5, 8):
        hermite = sum(CLOSED[k](x, 0.6) * slope for k, slope in enumerate(slopes))
        scaled = sum((0.36 * x) ** k / math.factorial(k) * slope for k, slope in enumerate(slopes))
        target = anchors[0] + x
        assert predict(NewtonHermite(order, 0.6), anchors, target, values) == pytest.approx(
            hermite, abs=1e-9
        )  # polyfit
        assert predict(NewtonScaledTaylor(order, 0.6), anchors, target, values) == pytest.approx(scaled, abs=1e-9)
        assert predict(Newton(order), anchors, target, values) == pytest.approx(fit(x), abs=1e-9)


def test_corrected_forms_are_the_published_ones_up_to_order_1() -> None:
    for order, x in product((0, 1), range(1, 9)):
        pairs: list[tuple[Forecaster, Forecaster]] = [
            (NewtonHermite(order, 0.4), Hermite(order, 0.4)),
            (NewtonScaledTaylor(order, 0.4), ScaledTaylor(order, 0.4)),
            (Newton(order), Taylor(order)),
        ]
        for right, published in pairs:
            expected = pytest.approx(weights(published, UNEVEN, 23 + x), abs=1e-12)  # float64
            assert weights(right, UNEVEN, 23 + x) == expected


def test_order_2_correction_on_even_anchors_is_the_slope_at_the_node() -> None:
    # The interpolant's slope at the newest node is D_1 + d/2 D_2; D_2 itself agrees.
    for d, x in product((1, 3, 6), range(1, 9)):
        anchors = [2 * d, d, 0]
        added = np.subtract(
            weights(NewtonHermite(2, 0.6), anchors, 2 * d + x), weights(Hermite(2, 0.6), anchors, 2 * d + x)
        )
        expected = CLOSED[1](x, 0.6) / (2 * d) * np.array([1, -2, 1])
        assert added == pytest.approx(expected, abs=1e-12)  # float64 closed form


@pytest.mark.parametrize("d", [1, 4])
def test_even_steps_give_the_textbook_rules(d: int) -> None:
    anchors, target = [4 * d, 3 * d, 2 * d, d, 0], 5 * d
    for order, b in CLASSICAL.items():
        expected = np.convolve(b, [1, -1]) + np.eye(order + 1)[0]  # F_n + d sum_i b_i (F_i - F_{i+1}) / d
        for kind in (AdamsBashforth, VariableAdamsBashforth):
            assert weights(kind(order), anchors, target) == pytest.approx(expected, abs=1e-12)  # float64
    assert weights(Newton(1), anchors, target) == pytest.approx([2, -1], abs=1e-12)
    assert weights(Newton(2), anchors, target) == pytest.approx([3, -3, 1], abs=1e-12)
    for rule in (BDF2(), VariableBDF2()):
        assert weights(rule, anchors, target) == pytest.approx([2, -1], abs=1e-12)


@pytest.mark.parametrize("order", range(1, 5))
def test_adams_bashforth_integrates_its_slopes(order: int) -> None:
    values = noise(len(UNEVEN), order)
    slopes = (np.diff(values) / np.diff(UNEVEN))[:order]
    area = np.poly1d(np.polyfit(np.subtract(UNEVEN[:order], 23), slopes, order - 1)).integ()
    for x in range(1, 9):
        exact = pytest.approx(values[0] + area(x), abs=1e-9)  # polyfit
        assert predict(VariableAdamsBashforth(order), UNEVEN, 23 + x, values) == exact
        published = pytest.approx(values[0] + x * np.dot(CLASSICAL[order], slopes), abs=1e-12)  # float64
        assert predict(AdamsBashforth(order), UNEVEN, 23 + x, values) == published


def test_bdf2_is_published_and_its_correction_solves_the_implicit_rule() -> None:
    for d, x in product((1, 4, 6), range(1, 9)):
        published = [4 / 3 + 2 * x / (3 * d), -1 / 3 - 2 * x / (3 * d)]
        assert weights(BDF2(), [d, 0], d + x) == pytest.approx(published, abs=1e-12)  # float64 closed form
        new, old = 0.7, -0.4
        # p(0) = F_n, p(-d) = F_{n-1}, p'(x) = f_n; the forecast is p(x)
        rows = [[1, 0, 0], [1, -d, d**2], [0, 1, 2 * x]]
        p = np.linalg.solve(np.array(rows, dtype=float), [new, old, (new - old) / d])
        found = predict(VariableBDF2(), [d, 0], d + x, [new, old])
        assert found == pytest.approx(p[0] + p[1] * x + p[2] * x**2, abs=1e-11)  # 3 x 3 solve


@pytest.mark.parametrize(("degree", "ridge"), [(0, 0.1), (2, 1e-3), (4, 0.1), (5, 10.0)])
def test_chebyshev_is_ridge_regression(degree: int, ridge: float) -> None:
    values = noise(len(UNEVEN), degree)
    for count, x in product(range(2, len(UNEVEN) + 1), (1, 5)):
        read = np.array(UNEVEN[:count][: degree + 1])
        tau = 2 * (read - read[-1]) / (23 + x - read[-1]) - 1
        phi = np.cos(np.outer(np.arccos(tau), np.arange(degree + 1)))
        damped = np.vstack([phi, math.sqrt(ridge) * np.eye(degree + 1)])
        fit = np.linalg.lstsq(damped, np.append(values[: len(read)], np.zeros(degree + 1)), rcond=None)[0]
        expected = sum(fit) if len(read) > 1 else values[0]  # T_k(1) = 1; one anchor alone is reused
        found = predict(Chebyshev(degree, ridge), UNEVEN[:count], 23 + x, values)
        assert found == pytest.approx(expected, abs=1e-9)  # normal equations against lstsq


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
