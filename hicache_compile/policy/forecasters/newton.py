"""The corrected forms: true derivatives of the interpolating polynomial, for any spacing."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from hicache_compile.errors import real_number, whole_number
from hicache_compile.policy.forecasters.base import MAX_ORDER
from hicache_compile.policy.forecasters.differences import hermite_basis, scaled_taylor_basis
from hicache_compile.policy.plain_data import plain_data


def lagrange(nodes: Sequence[float]) -> list[np.poly1d]:
    """The Lagrange polynomials of ``nodes``: ``L_j(nodes[i]) = (i == j)``."""
    basis = []
    for j, node in enumerate(nodes):
        others = [other for i, other in enumerate(nodes) if i != j]
        scale = math.prod(node - other for other in others)
        basis.append(np.poly1d(others, r=True) / scale)
    return basis


def offsets(anchors: Sequence[int], count: int) -> list[float]:
    """The newest ``count`` anchors relative to the newest one: ``[0, -d1, -d1-d2, ...]``."""
    return [float(step - anchors[0]) for step in anchors[:count]]


@plain_data
class Newton:
    """Newton's divided differences: the polynomial through the last ``order + 1`` anchors.

    The corrected ``Taylor``: exact for polynomials of degree ``order``, for any spacing.
    """

    order: int = 2

    def __post_init__(self) -> None:
        whole_number("Newton", "order", self.order, 0, MAX_ORDER)

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        x = float(target - anchors[0])
        return [float(basis(x)) for basis in lagrange(offsets(anchors, self.order + 1))]


class TrueDerivatives(ABC):
    """``F(n) + sum_k c_k(x) F^(k)(n)``, with the derivatives of the interpolating polynomial."""

    __slots__ = ()
    order: int

    @abstractmethod
    def coefficient(self, k: int, x: float) -> float:
        """``c_k(x)``"""

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        x = float(target - anchors[0])
        bases = lagrange(offsets(anchors, self.order + 1))
        return [float(sum(self.coefficient(k, x) * basis.deriv(k)(0.0) for k in range(len(bases)))) for basis in bases]


@plain_data
class NewtonHermite(TrueDerivatives):
    """The corrected ``Hermite``: the same basis with true derivatives, for any spacing.

    Args:
        order, sigma: see ``Hermite``.
    """

    order: int = 2
    sigma: float = 0.5

    def __post_init__(self) -> None:
        whole_number("NewtonHermite", "order", self.order, 0, MAX_ORDER)
        real_number("NewtonHermite", "sigma", self.sigma, 0, 2)

    def coefficient(self, k: int, x: float) -> float:
        return hermite_basis(k, x, self.sigma)


@plain_data
class NewtonScaledTaylor(TrueDerivatives):
    """The corrected ``ScaledTaylor``: the same basis with true derivatives, for any spacing.

    Args:
        order, sigma: see ``ScaledTaylor``.
    """

    order: int = 2
    sigma: float = 0.5

    def __post_init__(self) -> None:
        whole_number("NewtonScaledTaylor", "order", self.order, 0, MAX_ORDER)
        real_number("NewtonScaledTaylor", "sigma", self.sigma, 0, 2)

    def coefficient(self, k: int, x: float) -> float:
        return scaled_taylor_basis(k, x, self.sigma)
