"""TaylorSeer and HiCache as published: backward differences in a polynomial basis.

The difference rule divides every order by the newest gap (TaylorSeer's code, adopted by HiCache):

    D_0 = F_n        D_{i+1} = (D_i(n) - D_i(p)) / (n - p)        p = the anchor before n

On evenly spaced anchors these are the usual derivatives. Where the spacing changes (at the end of the warm-up, in a
mask) the second and higher orders are inexact: with gaps d1 (newest) and d2, D_2 is (d1 + d2) / (2 d1) times the true
second derivative. ``newton.py`` has the corrected forms.

All functions operate on coefficient vectors over anchors, so the result is a weight vector.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from hicache_compile.errors import real_number, whole_number
from hicache_compile.policy.forecasters.base import MAX_ORDER
from hicache_compile.policy.plain_data import plain_data

Vector = np.ndarray
FirstTerms = Callable[[int, float], list[Vector]]


def difference_table(steps: Sequence[int], order: int, first_terms: FirstTerms | None = None) -> list[Vector]:
    """``D_0 .. D_order`` at the newest of ``steps``, as vectors over ``steps``, by the published recursion.

    Args:
        steps: anchor positions, **oldest first**.
        order: the highest difference; with too few anchors fewer are returned.
        first_terms: ``(index, gap) -> [D_0, ...]`` replaces the first terms at anchor ``index`` (used by smoothing); by
            default ``D_0`` is the anchor itself.
    """
    unit = np.eye(len(steps))
    table: list[Vector] = []
    for index in range(len(steps)):
        gap = float(steps[index] - steps[index - 1]) if index else 1.0
        row = first_terms(index, gap) if first_terms else [unit[index]]
        row = row[: order + 1]
        while len(row) <= order and len(row) <= len(table):
            row.append((row[-1] - table[len(row) - 1]) / gap)
        table = row
    return table


def hermite(degree: int, x: float) -> float:
    """Physicists' Hermite polynomial ``H_degree(x)``: ``H_{k+1} = 2x H_k - 2k H_{k-1}``."""
    previous, current = 0.0, 1.0
    for k in range(degree):
        previous, current = current, 2 * x * current - 2 * k * previous
    return current


def taylor_basis(k: int, x: float) -> float:
    """``x^k / k!``"""
    return x**k / math.factorial(k)


def hermite_basis(k: int, x: float, sigma: float) -> float:
    """``sigma^k H_k(sigma x) / k!``: dual scaling (HiCache, 2508.16984, eq. 9); 1 for k = 0."""
    return sigma**k * hermite(k, sigma * x) / math.factorial(k)


def scaled_taylor_basis(k: int, x: float, sigma: float) -> float:
    """``sigma^{2k} x^k / k!``: HiCache's ablation "Taylor-Scaled"."""
    return sigma ** (2 * k) * taylor_basis(k, x)


class DifferenceForecaster(ABC):
    """``F^(n + x) = sum_k c_k(x) D_k``: a subclass defines ``order`` and the basis ``c_k``."""

    __slots__ = ()
    order: int

    @abstractmethod
    def coefficient(self, k: int, x: float) -> float:
        """``c_k(x)``"""

    def combine(self, table: Sequence[Vector], x: float) -> list[float]:
        """``sum_k c_k(x) D_k`` as weights, newest anchor first."""
        total = sum(self.coefficient(k, x) * term for k, term in enumerate(table))
        return np.asarray(total)[::-1].tolist()

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        read = list(anchors[: self.order + 1])
        return self.combine(difference_table(read[::-1], self.order), target - read[0])


@plain_data
class Taylor(DifferenceForecaster):
    """TaylorSeer (2503.06923): ``sum_k D_k x^k / k!``, **as published** (one gap for all orders).

    Exact for constants, and from order 1 for linear functions. For uneven anchors see ``Newton``.
    """

    order: int = 1

    def __post_init__(self) -> None:
        whole_number("Taylor", "order", self.order, 0, MAX_ORDER)

    def coefficient(self, k: int, x: float) -> float:
        return taylor_basis(k, x)


@plain_data
class Hermite(DifferenceForecaster):
    """HiCache (2508.16984): ``D_0 + sum_k sigma^k H_k(sigma x) / k! D_k``, **as published**.

    ``x`` > 0 is the number of steps after the newest anchor. (Argument and differences change sign together, so
    evaluation at ``-x`` would extrapolate backwards.) Exact for constants; for linear functions only at ``sigma =
    sqrt(1/2)``. ``order=1, sigma=0.5`` is Taylor order 1 with half the slope. For uneven anchors see ``NewtonHermite``.
    """

    order: int = 2
    sigma: float = 0.5

    def __post_init__(self) -> None:
        whole_number("Hermite", "order", self.order, 0, MAX_ORDER)
        real_number("Hermite", "sigma", self.sigma, 0, 2)

    def coefficient(self, k: int, x: float) -> float:
        return hermite_basis(k, x, self.sigma)


@plain_data
class ScaledTaylor(DifferenceForecaster):
    """HiCache's ablation "Taylor-Scaled": ``sum_k sigma^{2k} x^k / k! D_k``, **as published**.

    For uneven anchors see ``NewtonScaledTaylor``.
    """

    order: int = 2
    sigma: float = 0.5

    def __post_init__(self) -> None:
        whole_number("ScaledTaylor", "order", self.order, 0, MAX_ORDER)
        real_number("ScaledTaylor", "sigma", self.sigma, 0, 2)

    def coefficient(self, k: int, x: float) -> float:
        return scaled_taylor_basis(k, x, self.sigma)
