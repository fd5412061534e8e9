"""Published methods with static schedules: each preset is a function that returns a ``Policy``."""

from __future__ import annotations

from collections.abc import Sequence

from hicache_compile.errors import HiCacheError, numbers, one_of, whole_number
from hicache_compile.policy.forecasters import Forecaster, GlobalChebyshev, Hermite, Reuse, Taylor
from hicache_compile.policy.policy import NOWHERE, Policy
from hicache_compile.policy.schedules.base import Always, Growing, Interval, StepMask
from hicache_compile.policy.schedules.lemica_lists import lemica_mask
from hicache_compile.policy.schedules.magcache import MagCacheSchedule
from hicache_compile.policy.schedules.scm_masks import SPEEDS, steps_mask

_REUSE = Reuse()


def Uncached() -> Policy:
    """Compute every step in full and store nothing: for sparsity without a cache."""
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
    """HiCache (2508.16984): every ``interval``-th step in full, scaled Hermite forecasts between."""
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
    """TaylorSeer (2503.06923): every ``interval``-th step in full, Taylor forecasts between."""
    return Policy(Interval(interval, warmup, cooldown), _chosen(forecaster, Taylor(order)), scope)


def FORA(
    interval: int = 3,
    warmup: int = 1,
    *,
    scope: str = "module",
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """FORA (2407.01425): every ``interval``-th step in full, plain reuse between."""
    return Policy(Interval(interval, warmup, cooldown), _chosen(forecaster, Reuse()), scope)


def Spectrum(
    alpha: float = 0.75,
    degree: int = 4,
    ridge: float = 0.1,
    warmup: int = 5,
    *,
    scope: str = "output",
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """Spectrum (2603.01623): full steps with growing gaps, and a Chebyshev regression on all of them between."""
    return Policy(Growing(alpha, warmup, cooldown), _chosen(forecaster, GlobalChebyshev(degree, ridge)), scope)


def SCM(
    mask: str,
    num_steps: int | None = None,
    *,
    scope: str = "stack",
    cooldown: int = 0,
    forecaster: Forecaster | None = None,
) -> Policy:
    """Steps-computation mask: compute the steps marked ``1``, reuse the stack's residual at ``0``.

    Args:
        mask: a string of ``1`` and ``0``, or the name of a common mask, ``"slow"``, ``"medium"``, ``"fast"``,
            ``"ultra"``.
        num_steps: length of the trajectory for a named mask (by default 28).
        cooldown: the number of steps at the end that are computed whatever the mask.
    """
    if not isinstance(mask, str) or not mask.strip("01"):
        steps = mask
        if isinstance(mask, str) and num_steps not in (None, len(mask)):
            raise HiCacheError(f"SCM.num_steps = {num_steps}: must be {len(mask)}, the length of the mask")
    else:
        one_of("SCM", "mask", mask, SPEEDS)
        steps = steps_mask(mask, 28 if num_steps is None else num_steps)
    whole_number("SCM", "cooldown", cooldown, 0)
    schedule = StepMask(steps)
    if cooldown:
        schedule = StepMask(steps[: max(1, len(steps) - cooldown)].ljust(len(steps), "1"))
    return Policy(schedule, _chosen(forecaster, Reuse()), scope)


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
    """MagCache (2506.09045): calibrated magnitude ratios fix the schedule before the run; nothing is measured."""
    strict = table == "qwen-image"
    schedule = MagCacheSchedule(
        threshold,
        max_skips,
        retention,
        table if isinstance(table, str) else numbers("MagCache", "table", table),
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
    """LeMiCa (2511.00090): the published list of ``budget`` computed steps for ``model``."""
    whole_number("LeMiCa", "budget", budget, 1)
    whole_number("LeMiCa", "cooldown", cooldown, 0)
    mask = lemica_mask(model, budget)
    return Policy(StepMask(mask[: max(1, len(mask) - cooldown)].ljust(len(mask), "1")), forecaster, scope)


def _chosen(forecaster: Forecaster | None, published: Forecaster) -> Forecaster:
    return published if forecaster is None else forecaster
