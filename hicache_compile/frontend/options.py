"""What a caller may ask for besides the policy, checked in one place for every way in."""

from __future__ import annotations

from typing import Any

from torch._inductor import list_mode_options

from hicache_compile.backends import BACKENDS, keeps_both_branches
from hicache_compile.errors import HiCacheError, one_of, true_or_false
from hicache_compile.policy.forecasters import MeasuredForecaster
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.policy import NOWHERE, Policy
from hicache_compile.policy.presets import Uncached
from hicache_compile.policy.schedules.ditango import DiTangoSchedule
from hicache_compile.policy.schedules.per_kind import PerKind
from hicache_compile.policy.sparsity.chipmunk import as_sparsity
from hicache_compile.runtime.deciders.in_graph import DEPTH
from hicache_compile.runtime.settings import Settings
from hicache_compile.runtime.storage.budget import parse_bytes


def check_options(
    policy: Any,
    backend: str = "inductor",
    sparsity: Any = None,
    mode: str | None = None,
    memory_budget: str | int | None = None,
    offload: bool = False,
    decide_together: bool = False,
) -> Settings:
    """The settings they come to.

    Raises:
        HiCacheError: one of them is not what is allowed; the message says what is.
    """
    sparse = as_sparsity(sparsity)
    wanted = Uncached() if policy is None and sparse is not None else as_policy(policy)
    one_of("hicache_compile", "backend", backend, BACKENDS)
    if mode is not None and backend != "inductor":
        raise HiCacheError(f"hicache_compile.mode = {mode!r}: must be None with backend {backend!r}")
    if mode is not None:
        one_of("hicache_compile", "mode", mode, list_mode_options())
    true_or_false("hicache_compile", "offload", offload)
    true_or_false("hicache_compile", "decide_together", decide_together)
    settings = Settings(wanted, parse_bytes(memory_budget), offload, backend, sparse, decide_together)
    check_fit(settings, wanted)
    return settings


def check_fit(settings: Settings, policy: Policy) -> None:
    """Raise unless ``policy`` can run under ``settings``."""
    if keeps_both_branches(settings.backend) and policy.guards:
        _check_decides_inside(settings, policy)
    elif keeps_both_branches(settings.backend):
        check_decides_before(f"Policy under backend {settings.backend!r}", policy)
    if settings.sparsity is not None:
        _check_sparsity(settings, policy)
    if policy.scope == NOWHERE and (settings.offload or settings.memory_budget is not None):
        raise HiCacheError("Policy.scope = 'none': must not be with offload or memory_budget, it keeps no anchors")
    if settings.offload and policy.cut.by_slot:
        raise HiCacheError("Policy.forecaster: must have weights for all slots together with offload=True")
    if settings.offload and isinstance(policy.schedule, PerKind):
        raise HiCacheError(f"Policy.schedule = {policy.schedule!r}: must not be a PerKind with offload=True")
    if isinstance(policy.schedule, DiTangoSchedule) and (settings.offload or settings.memory_budget is not None):
        raise HiCacheError(
            f"Policy.schedule = {policy.schedule!r}: must not be with offload or memory_budget, it keeps no anchors"
        )


def _check_sparsity(settings: Settings, policy: Policy) -> None:
    """Raise unless ``policy`` can run over sparse attention and MLPs."""
    if policy.cut.by_slot:
        raise HiCacheError("hicache_compile.sparsity: must be None with a forecaster that has weights for each slot")
    if keeps_both_branches(settings.backend):
        raise HiCacheError(f"hicache_compile.sparsity: must be None with backend {settings.backend!r}")
    if isinstance(policy.schedule, PerKind | DiTangoSchedule):
        name = type(policy.schedule).__name__
        raise HiCacheError(f"hicache_compile.sparsity: must be None with a {name}, which computes attentions apart")


def _check_decides_inside(settings: Settings, policy: Policy) -> None:
    """Raise unless a program can take the decisions of ``policy`` by itself."""
    where = f"under backend {settings.backend!r} with guards"
    if settings.offload or settings.decide_together:
        raise HiCacheError(f"hicache_compile.offload, decide_together: must be false {where}; the host does not decide")
    if policy.depth > DEPTH:
        raise HiCacheError(f"Policy.forecaster = {policy.forecaster!r}: must read at most {DEPTH} anchors {where}")
    if hasattr(policy.forecaster, "sized"):
        name = type(policy.forecaster).__name__
        raise HiCacheError(f"Policy.forecaster: must go by the gaps between steps {where}, a {name} goes by the run")
    for guard in policy.guards:
        guard.numbers(1)


def check_decides_before(owner: str, policy: Policy) -> None:
    """Raise unless ``policy`` decides before a step, and once for all its sites: what a single branch can do."""
    if isinstance(policy.forecaster, MeasuredForecaster):
        raise HiCacheError(
            f"{owner}: must go by steps alone, its forecaster {policy.forecaster!r} looks at the anchors"
        )
    if policy.cut.by_slot:
        raise HiCacheError(f"{owner}: must have weights for all slots together, its forecaster has some for each")
    if policy.guards:
        names = ", ".join(type(guard).__name__ for guard in policy.guards)
        raise HiCacheError(f"{owner}: must decide by the step alone, its guards ({names}) measure")
    if isinstance(policy.schedule, PerKind | DiTangoSchedule):
        name = type(policy.schedule).__name__
        raise HiCacheError(f"{owner}: must have one decision a step, its schedule is a {name}")
