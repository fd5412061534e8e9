"""Chebyshev ridge regression (Spectrum, CVPR 2026): over the last few anchors, or over the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.polynomial.chebyshev import chebvander

from hicache_compile.errors import real_number, whole_number
from hicache_compile.policy.compatibility import Trait
from hicache_compile.policy.forecasters.base import MAX_ORDER, MOST_ANCHORS
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.run import RunInfo


@plain_data
class Chebyshev:
    """Ridge regression on Chebyshev polynomials ``T_0 .. T_degree`` over the last ``degree + 1`` anchors.

    ``w = phi(target) (Phi^T Phi + ridge I)^-1 Phi^T`` with time mapped so that the oldest anchor read is -1 and the
    target is +1. (Spectrum maps the whole run to [-1, 1] and regresses on every anchor; see ``GlobalChebyshev``.) With
    ``ridge > 0`` nothing is reproduced exactly, not even constants, as in the published method. A single anchor is
    reused.
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
        return _regression(2 * (read - read[-1]) / span - 1, 1.0, self.degree, self.ridge)


@plain_data
class GlobalChebyshev:
    """Ridge regression on Chebyshev polynomials over all anchors of the run: Spectrum's forecast.

    Time is mapped so that the first step of the run is -1 and the last is +1, ``tau = 2 t / (T - 1) - 1``;
    ``w = phi(tau) (Phi^T Phi + ridge I)^-1 Phi^T``. A single anchor is reused.

    Args:
        degree: of the polynomials.
        ridge: above 0 nothing is reproduced exactly, not even constants, as in the published method.
        reads: the maximum number of anchors, the newest ones; also the size of the ring.
        num_steps: of the run, ``T``. Set by a run that states its length; if unknown, the run is assumed to end at the
            forecast step.
    """

    degree: int = 4
    ridge: float = 0.1
    reads: int = 16
    num_steps: int | None = None

    traits: ClassVar[frozenset[Trait]] = frozenset({Trait.BY_RUN})

    def __post_init__(self) -> None:
        whole_number("GlobalChebyshev", "degree", self.degree, 0, MAX_ORDER)
        real_number("GlobalChebyshev", "ridge", self.ridge, 0, 1e6)
        whole_number("GlobalChebyshev", "reads", self.reads, 1, MOST_ANCHORS)
        if self.num_steps is not None:
            whole_number("GlobalChebyshev", "num_steps", self.num_steps, 1)

    def bind(self, run: RunInfo) -> GlobalChebyshev:
        """The forecaster for ``run``."""
        return self if run.num_steps in (None, self.num_steps) else replace(self, num_steps=run.num_steps)

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        read = np.asarray(anchors[: self.reads], dtype=np.float64)
        if len(read) == 1:
            return [1.0]
        last = target if self.num_steps is None else max(1, self.num_steps - 1)
        return _regression(2 * read / last - 1, 2 * target / last - 1, self.degree, self.ridge)


def _regression(times: np.ndarray, target: float, degree: int, ridge: float) -> list[float]:
    """The weights of values at ``times`` in the regression at ``target``; times are in [-1, 1]."""
    features = chebvander(times, degree)
    gram = features.T @ features + ridge * np.eye(degree + 1)
    weights: list[float] = (chebvander(target, degree) @ np.linalg.solve(gram, features.T)).ravel().tolist()
    return weights
