"""Published methods with static schedules: each preset is a function that returns a ``Policy``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hicache_compile.policy.forecasters import (
    ByBand,
    Forecaster,
    GlobalChebyshev,
    Hermite,
    MeanVelocity,
    Mixed,
    Newton,
    Reuse,
    Taylor,
)
from hicache_compile.policy.policy import NOWHERE, Policy
from hicache_compile.policy.schedules.base import Always, Growing, Interval

_REUSE = Reuse()


def Uncached() -> Policy:
    """Compute every step in full and store nothing: for sparsity without a cache.

    Use it with ``sparsity=``, or to compare.
    """
    return Policy(Always(), Reuse(), NOWHERE)


def HiCache(
    interval: int = 6,
    order: int = 2,
    sigma: float = 0.5,
    warmup: int = 3,
    *,
    scope: str = "module",
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """HiCache (2508.16984): every ``interval``-th step in full, scaled Hermite forecasts between.

    Use it first, for runs of about 20 steps or more; a larger interval is faster and rougher.

    Args:
        interval, warmup, cooldown: see ``Interval``.
        order, sigma: see ``Hermite``: of the polynomial, and the factor of its argument.
        scope: see ``Policy``.
        forecaster: replaces ``Hermite(order, sigma)``.
    """
    return Policy(Interval(interval, warmup, cooldown), _chosen(forecaster, Hermite(order, sigma)), scope)


def TaylorSeer(
    interval: int = 6,
    order: int = 1,
    warmup: int = 3,
    *,
    scope: str = "module",
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """TaylorSeer (2503.06923): every ``interval``-th step in full, Taylor forecasts between.

    Use it to reproduce results with Taylor forecasts.

    Args:
        interval, warmup, cooldown: see ``Interval``.
        order: of the Taylor polynomial.
        scope: see ``Policy``.
        forecaster: replaces ``Taylor(order)``.
    """
    return Policy(Interval(interval, warmup, cooldown), _chosen(forecaster, Taylor(order)), scope)


def FORA(
    interval: int = 3,
    warmup: int = 1,
    *,
    scope: str = "module",
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """FORA (2407.01425): every ``interval``-th step in full, plain reuse between.

    Use it as a baseline, or where memory holds a single anchor.

    Args:
        interval, warmup, cooldown: see ``Interval``.
        scope: see ``Policy``.
        forecaster: replaces ``Reuse()``.
    """
    return Policy(Interval(interval, warmup, cooldown), _chosen(forecaster, Reuse()), scope)


def Spectrum(
    alpha: float = 0.75,
    degree: int = 4,
    ridge: float = 0.1,
    warmup: int = 5,
    mix: float = 1.0,
    *,
    scope: str = "output",
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """Spectrum (2603.01623): full steps with growing gaps, and a Chebyshev regression on all of them between.

    Use it for long runs, where memory holds one slot for the whole model.

    Args:
        alpha, warmup, cooldown: see ``Growing``.
        degree, ridge: see ``GlobalChebyshev``.
        mix: the share of the regression, in (0, 1]; the rest is a line through the last two full steps. Its authors
            have come to recommend .5 and more.
        scope: see ``Policy``.
        forecaster: replaces the regression.
    """
    fitted = GlobalChebyshev(degree, ridge)
    regression = fitted if mix == 1.0 else Mixed(fitted, Newton(1), mix)
    return Policy(Growing(alpha, warmup, cooldown), _chosen(forecaster, regression), scope)


def FreqCa(
    interval: int = 6,
    order: int = 2,
    cutoff: float = 0.25,
    grid: tuple[int, ...] | None = None,
    warmup: int = 3,
    *,
    sigma: float = 0.5,
    scope: str = "stack",
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """FreqCa (2510.08669): every ``interval``-th step in full; between, low frequencies are reused, high ones forecast.

    Use it where reuse and a forecast err in different parts of the picture; give it the ``grid`` of the tokens.

    Args:
        interval, warmup, cooldown: see ``Interval``.
        order, sigma: see ``Hermite``: of the high frequencies.
        cutoff, grid: see ``ByBand``.
        scope: see ``Policy``.
        forecaster: replaces ``ByBand``.
    """
    bands = ByBand(Reuse(), Hermite(order, sigma), cutoff, grid)
    return Policy(Interval(interval, warmup, cooldown), _chosen(forecaster, bands), scope)


def MeanCache(
    interval: int = 6,
    span: int | Sequence[int] = 2,
    warmup: int = 2,
    *,
    scope: str = "output",
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """MeanCache (2601.19961): a velocity is forecast from the average velocity of the steps before it.

    Use it with flow matching and Euler's rule. Of 50 steps it computes 10, the first two and the last among them, as
    the published list of 10 does; for steps and spans planned for a model: ``hicache tune --fit mean``.

    Args:
        interval, warmup, cooldown: see ``Interval``.
        span: see ``MeanVelocity``.
        scope: see ``Policy``. Published is the forecast of the velocity itself; at ``"output"`` it is that of the
            hidden state from which the final layer makes the velocity in every step.
        forecaster: replaces ``MeanVelocity(span)``.
    """
    spans: Any = tuple(span) if isinstance(span, list) else span
    return Policy(Interval(interval, warmup, cooldown), _chosen(forecaster, MeanVelocity(spans)), scope)


def _chosen(forecaster: Forecaster | None, published: Forecaster) -> Forecaster:
    return published if forecaster is None else forecaster
