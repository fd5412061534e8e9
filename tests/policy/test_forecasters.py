"""Forecasters: every weight vector against a closed form, a short float64 reference or a published number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest

from hicache_compile import (
    BDF2,
    FORA,
    AdamsBashforth,
    Chebyshev,
    Forecaster,
    Hermite,
    HiCache,
    Newton,
    NewtonHermite,
    NewtonScaledTaylor,
    Policy,
    Reuse,
    ScaledTaylor,
    Taylor,
    TaylorSeer,
    VariableAdamsBashforth,
    VariableBDF2,
)
from hicache_compile.policy.forecasters import weights

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
