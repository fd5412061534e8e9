"""Published methods that reuse attention: PAB, DiTango."""

from __future__ import annotations

from hicache_compile.policy.forecasters import Forecaster, Reuse
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.ditango import DiTangoSchedule
from hicache_compile.policy.schedules.per_kind import Broadcast, PerKind

_REUSE = Reuse()


def PAB(
    spatial: int = 2,
    temporal: int = 4,
    cross: int = 6,
    window: tuple[float, float] | None = (100, 850),
    *,
    warmup: int = 0,
    mlp: object = None,
    scope: str = "module",
    cooldown: int = 0,
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """Pyramid Attention Broadcast (2408.12588): each kind of attention is computed at its own interval.

    Use it for video models with attention over space, over time and to the prompt.

    Args:
        spatial: interval of self-attention, joint attention and the parallel blocks of FLUX; 1 computes every step.
        temporal, cross: interval of attention over time; of attention to the prompt.
        window: timesteps in 0..1000; attention is reused strictly between them.
        mlp: a schedule for the MLPs, e.g. ``KeySteps((676, 788, 864))``; by default they are computed in every step.
    """
    ranges = {
        "self-attention": spatial,
        "joint-attention": spatial,
        "parallel": spatial,
        "temporal-attention": temporal,
        "cross-attention": cross,
    }
    schedules: dict[str, object] = {kind: Broadcast(every, warmup, cooldown, window) for kind, every in ranges.items()}
    if mlp is not None:
        schedules["mlp"] = mlp
    return Policy(PerKind(schedules), forecaster, scope)


def DiTango(
    cache_ratio: float = 0.5,
    warmup: int = 5,
    cooldown: int = 5,
    groups: int = 2,
    *,
    partitions: int | None = None,
    distributed: bool = False,
    scope: str = "module",
    forecaster: Forecaster = _REUSE,
) -> Policy:
    """DiTango (HPDC'26): reuse attention to distant keys until the local attention drifts. See ``DiTangoSchedule``.

    Use it for long videos on several ranks, where attention to distant keys costs the most.

    Args:
        cache_ratio, warmup, cooldown, groups, partitions, distributed: see ``DiTangoSchedule``.
    """
    schedule = DiTangoSchedule(cache_ratio, warmup, cooldown, groups, partitions, distributed)
    return Policy(schedule, forecaster, scope)
