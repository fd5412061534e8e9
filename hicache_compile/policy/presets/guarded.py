"""Published methods that measure: presets with guards, and the static schedules of their family."""

from __future__ import annotations

from collections.abc import Sequence

from hicache_compile.errors import one_of, whole_number
from hicache_compile.policy.forecasters import Forecaster, Reuse
from hicache_compile.policy.guards import (
    TEACACHE_MODELS,
    AdaCacheGuard,
    DiCacheGuard,
    EasyCacheGuard,
    FirstBlockGuard,
    SpeCaGuard,
    TeaCacheGuard,
)
from hicache_compile.policy.guards.adacache import FAST_30
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import Free, StepMask
from hicache_compile.policy.schedules.lemica_lists import lemica_mask
from hicache_compile.policy.schedules.magcache import MagCacheSchedule

_REUSE = Reuse()


def TeaCache(
    threshold: float,
    model: str = "flux",
    *,
    coefficients: Sequence[float] | None = None,
    warmup: int | None = None,
    max_skips: int | None = None,
    exact: bool = False,
    scope: str = "stack",
    cooldown: int | None = None,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """TeaCache (2411.19108): reuse the stack's residual until the rescaled changes of a signal reach ``threshold``.

    Args:
        model: whose fit, signal and forced steps (``TEACACHE_MODELS``).
        coefficients: a fit of your own, highest power first (``hicache tune --fit teacache``).
        warmup, cooldown: steps forced at the start and at the end; by default the model's.
        max_skips, exact: see ``TeaCacheGuard``.
    """
    guard = _teacache(threshold, model, coefficients, warmup, cooldown, max_skips, exact)
    return Policy(Free(), forecaster, scope, (guard,))


def _teacache(
    threshold: float,
    model: str,
    coefficients: Sequence[float] | None = None,
    warmup: int | None = None,
    cooldown: int | None = None,
    max_skips: int | None = None,
    exact: bool = False,
) -> TeaCacheGuard:
    one_of("TeaCache", "model", model, TEACACHE_MODELS)
    fit = TEACACHE_MODELS[model]
    return TeaCacheGuard(
        threshold,
        fit.coefficients if coefficients is None else tuple(coefficients),
        fit.signal,
        exact,
        warmup=fit.warmup if warmup is None else warmup,
        cooldown=fit.cooldown if cooldown is None else cooldown,
        max_skips=max_skips,
    )


def FBCache(
    threshold: float,
    downsample: int = 1,
    warmup: int = 0,
    *,
    max_skips: int | None = None,
    scope: str = "stack",
    cooldown: int = 0,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """First-block cache (ParaAttention, diffusers): reuse while block 0 adds what it added at the last full step."""
    guard = FirstBlockGuard(threshold, downsample, warmup=warmup, cooldown=cooldown, max_skips=max_skips)
    return Policy(Free(), forecaster, scope, (guard,), first=1)


def FBCacheTeaCache(
    fb_threshold: float,
    tea_threshold: float,
    model: str = "flux",
    *,
    coefficients: Sequence[float] | None = None,
    max_skips: int | None = None,
    scope: str = "stack",
    cooldown: int | None = None,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """TeaCache outside, first-block cache inside: where TeaCache computes, block 0 runs and may end the step.

    Only steps computed in full are remembered, so neither builds on the other's approximation; steps TeaCache forces
    are computed in full; a step TeaCache skips leaves the first block's memory as it was.

    Args:
        model, coefficients: see ``TeaCache``.
        max_skips: steps in a row that may be skipped, by both together.
    """
    tea = _teacache(tea_threshold, model, coefficients, cooldown=cooldown, max_skips=max_skips)
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
    """DBCache (cache-dit): the first blocks measure, the last refine, the ones between are reused.

    Args:
        first, last: blocks that always run.
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
    threshold: float,
    warmup: int = 5,
    *,
    max_skips: int | None = None,
    scope: str = "stack",
    cooldown: int = 1,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """EasyCache (2507.02860): no calibration; the output is taken to follow the input as it did last."""
    guard = EasyCacheGuard(threshold, warmup=warmup, cooldown=cooldown, max_skips=max_skips)
    return Policy(Free(), forecaster, scope, (guard,))


def DiCache(
    threshold: float,
    blocks: int = 1,
    *,
    error: str = "end",
    warmup: int = 1,
    max_skips: int | None = None,
    scope: str = "stack",
    cooldown: int = 1,
    forecaster: Forecaster | None = None,
) -> Policy:
    """DiCache (2508.17356): the first ``blocks`` blocks probe, and align what is reused with where the step goes.

    Args:
        error: see ``DiCacheGuard``.
        forecaster: instead of the alignment.
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
    """AdaCache (2411.02397): the change of the residual between computed steps says when to compute next."""
    guard = AdaCacheGuard(tuple(codebook), warmup=warmup, cooldown=cooldown)
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
    """SpeCa (2509.11628): forecasts are drafts; the last block is really computed on them and judges.

    Args:
        threshold, decay, least: see ``SpeCaGuard``.
        max_skips: drafts in a row at most.
        forecaster: by default ``Taylor(2)``.
    """
    from hicache_compile.policy.forecasters import Taylor

    guard = SpeCaGuard(threshold, decay, least=least, warmup=warmup, cooldown=cooldown, max_skips=max_skips)
    return Policy(Free(), forecaster or Taylor(2), scope, (guard,))


def MagCache(
    threshold: float = 0.06,
    max_skips: int = 3,
    retention: float = 0.2,
    table: str | Sequence[float] = "flux",
    *,
    scope: str = "stack",
    cooldown: int = 0,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """MagCache (2506.09045): calibrated magnitudes lay out the steps before the run; nothing is measured in it."""
    strict = table == "qwen-image"
    schedule = MagCacheSchedule(
        threshold,
        max_skips,
        retention,
        table if isinstance(table, str) else tuple(table),
        inclusive=not strict,
        rounded=not strict and table != "hunyuan-video",
        cooldown=cooldown,
    )
    return Policy(schedule, forecaster, scope)


def LeMiCa(
    budget: int,
    model: str = "flux",
    *,
    scope: str = "stack",
    cooldown: int = 0,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """LeMiCa (2511.00090): the published list of ``budget`` computed steps of ``model``."""
    whole_number("LeMiCa", "cooldown", cooldown, 0)
    mask = lemica_mask(model, budget)
    return Policy(StepMask(mask[: max(1, len(mask) - cooldown)].ljust(len(mask), "1")), forecaster, scope)
