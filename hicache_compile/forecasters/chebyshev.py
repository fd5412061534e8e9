"""Chebyshev ridge regression (Spectrum, CVPR 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.chebyshev import chebvander

from hicache_compile.errors import real_number, whole_number
from hicache_compile.forecasters.base import MAX_ORDER


@dataclass(frozen=True, slots=True)
class Chebyshev:
    """Ridge regression on Chebyshev polynomials ``T_0 .. T_degree`` over the last ``degree + 1`` anchors.

    ``w = phi(target) (Phi^T Phi + ridge I)^-1 Phi^T`` with time mapped so that the oldest anchor read is
    -1 and the target is +1. (Spectrum maps the whole run to [-1, 1] and regresses on every anchor; a ring
    holds the last few, so time is local here.) With ``ridge > 0`` nothing is reproduced exactly, constants
    included; that is the method. One anchor alone is reused.
    """

    degree: int = 4
    ridge: float = 0.1

    def __post_init__(self) -> None:
        whole_number("Chebyshev", "degree", self.degree, 0, MAX_ORDER)
        real_number("Chebyshev", "ridge", self.ridge, 0, 1e6)

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        read = np.asarray(anchors[: self.degree + 1], dtype=np.float64)
        if len(read) == 1:
            return [1.0]
        span = target - read[-1]
        features = chebvander(2 * (read - read[-1]) / span - 1, self.degree)
        gram = features.T @ features + self.ridge * np.eye(self.degree + 1)
        return (chebvander(1.0, self.degree) @ np.linalg.solve(gram, features.T)).ravel().tolist()
