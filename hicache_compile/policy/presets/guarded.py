"""Presets of published methods with guards: each preset is a function that returns a ``Policy``."""

from __future__ import annotations

from collections.abc import Sequence

from hicache_compile.policy.forecasters import Forecaster, Reuse
from hicache_compile.policy.guards import (
    AdaCacheGuard,
    DiCacheGuard,
    EasyCacheGuard,
    FirstBlockGuard,
    SpeCaGuard,
)
from hicache_compile.policy.guards.adacache import FAST_30
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets.teacache import teacache_guard
from hicache_compile.policy.schedules.base import Free

_REUSE = Reuse()


def FBCache(
    threshold: float = 0.05,
    downsample: int = 1,
    warmup: int = 0,
    *,
    max_skips: int | None = None,
    scope: str = "stack",
    cooldown: int = 0,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """First-block cache (ParaAttention, diffusers): reuse while block 0's residual is near the last computed one.

    Use it where prompts differ in how much can be skipped: each run decides for itself, without calibration.

    Args:
        threshold: relative L1 change of block 0's residual below which a step is skipped; 0 skips none.
        downsample, warmup, cooldown, max_skips: see ``FirstBlockGuard``.
    """
    guard = FirstBlockGuard(threshold, downsample, warmup=warmup, cooldown=cooldown, max_skips=max_skips)
    return Policy(Free(), forecaster, scope, (guard,), first=1)


def FBCacheTeaCache(
    fb_threshold: float = 0.12,
    tea_threshold: float | None = None,
    model: str | None = None,
    *,
    coefficients: Sequence[float] | None = None,
    max_skips: int | None = None,
    scope: str = "stack",
    cooldown: int | None = None,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """TeaCache, then the first-block cache: on steps TeaCache does not skip, block 0 runs and may end the step.

    Use it where a fit is published for the model and block 0 is a small part of it.

    Both guards store only fully computed steps, so neither builds on the approximation of the other. Steps TeaCache
    forces are computed in full. A step TeaCache skips does not change the state of the first-block cache.

    Args:
        fb_threshold, tea_threshold: of ``FBCache`` and of ``TeaCache``.
        model, coefficients: see ``TeaCache``.
        max_skips: the maximum number of consecutive steps skipped by both guards.
    """
    tea = teacache_guard(tea_threshold, model, coefficients, cooldown=cooldown, max_skips=max_skips)
    block = FirstBlockGuard(fb_threshold, warmup=tea.warmup, cooldown=tea.cooldown, max_skips=max_skips)
    return Policy(Free(), forecaster, scope, (tea, block))


def DBCache(
    first: int = 8,
    last: int = 0,
    threshold: float = 0.08,
    warmup: int = 8,
    max_cached: int = -1,
    max_continuous: int = -1,
    *,
    downsample: int = 1,
    scope: str = "stack",
    cooldown: int = 0,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """DBCache (cache-dit): the first blocks are measured, the last refine, the residual of those between is reused.

    Use it to reproduce cache-dit; more first blocks are safer and slower.

    Args:
        first, last: the number of blocks at the start and at the end that always run.
        threshold: relative L1 change of the first blocks' residual below which a step is skipped.
        max_cached, max_continuous: see ``FirstBlockGuard``.
    """
    guard = FirstBlockGuard(
        threshold,
        downsample,
        first,
        max_cached,
        max_continuous,
        blind=True,
        warmup=warmup,
        cooldown=cooldown,
    )
    return Policy(Free(), forecaster, scope, (guard,), first=first, last=last)


def EasyCache(
    threshold: float = 0.05,
    warmup: int = 5,
    *,
    max_skips: int | None = None,
    scope: str = "stack",
    cooldown: int = 1,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """EasyCache (2507.02860): no calibration; the output's change is estimated from the input's by their last ratio.

    Use it where nothing is published for the model.

    Args:
        threshold: of the summed estimated relative change since the last computed step.
        warmup, cooldown, max_skips: see ``Guard``.
    """
    guard = EasyCacheGuard(threshold, warmup=warmup, cooldown=cooldown, max_skips=max_skips)
    return Policy(Free(), forecaster, scope, (guard,))


def DiCache(
    threshold: float = 0.4,
    blocks: int = 1,
    *,
    error: str = "end",
    warmup: int = 1,
    max_skips: int | None = None,
    scope: str = "stack",
    cooldown: int = 1,
    forecaster: Forecaster | None = None,
) -> Policy:
    """DiCache (2508.17356): the first ``blocks`` blocks are the probe, and their residual aligns the reused residual.

    Use it where plain reuse drifts and each run has to decide for itself.

    Args:
        threshold: of the summed relative change of the probe since the last computed step.
        blocks: of the probe; they run in every step.
        error: see ``DiCacheGuard``.
        forecaster: replaces the alignment.
    """
    guard = DiCacheGuard(
        threshold, blocks, error, forecaster is None, warmup=warmup, cooldown=cooldown, max_skips=max_skips
    )
    return Policy(Free(), forecaster or _REUSE, scope, (guard,), first=blocks)


def AdaCache(
    codebook: Sequence[tuple[float, int]] = FAST_30,
    *,
    warmup: int = 2,
    scope: str = "stack",
    cooldown: int = 2,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """AdaCache (2411.02397): the change of the residual between computed steps sets the distance to the next one.

    Use it for videos that differ in how much they move.

    Args:
        codebook: see ``AdaCacheGuard``: pairs of the largest change and the distance to the next computed step.
    """
    guard = AdaCacheGuard(codebook, warmup=warmup, cooldown=cooldown)  # type: ignore[arg-type]  # made tuples and checked there
    return Policy(Free(), forecaster, scope, (guard,))


def SpeCa(
    threshold: float = 7.0,
    decay: float = 0.3,
    *,
    least: int = 2,
    max_skips: int = 8,
    warmup: int = 3,
    scope: str = "stack",
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """SpeCa (2509.11628): forecasts are drafts, and the last block is computed on them to verify.

    Use it where no forecast may go unverified: a draft that is far off is computed.

    Args:
        threshold, decay, least: see ``SpeCaGuard``.
        max_skips: the maximum number of consecutive drafts.
        forecaster: by default ``Taylor(2)``.
    """
    from hicache_compile.policy.forecasters import Taylor

    guard = SpeCaGuard(threshold, decay, least=least, warmup=warmup, cooldown=cooldown, max_skips=max_skips)
    return Policy(Free(), forecaster or Taylor(2), scope, (guard,))
