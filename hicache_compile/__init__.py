"""hicache_compile: a graph-transform optimizer for ``torch.compile`` that makes diffusion transformers sample faster.

from hicache_compile import hicache_compile, HiCache

model = hicache_compile(model, HiCache(interval=6, order=2))
with model.trajectory(num_steps=50):
    for t in timesteps:
        x = step(model(x, t), t, x)

Policies are plain data and import without torch; what needs torch is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hicache_compile import config
from hicache_compile.errors import CannotRewrite, HiCacheError
from hicache_compile.policy import Policy
from hicache_compile.policy.forecasters import (
    BDF2,
    DMD,
    AdamsBashforth,
    ByBand,
    ByChannel,
    Calibrated,
    Chebyshev,
    Forecaster,
    Gated,
    GlobalChebyshev,
    Hermite,
    MeanVelocity,
    Mixed,
    Newton,
    NewtonHermite,
    NewtonScaledTaylor,
    ResidualGate,
    Reuse,
    ScaledTaylor,
    Smoothing,
    SteppedHermite,
    Table,
    Taylor,
    VariableAdamsBashforth,
    VariableBDF2,
    weights,
)
from hicache_compile.policy.guards import (
    TEACACHE_MODELS,
    AdaCacheGuard,
    DiCacheGuard,
    EasyCacheGuard,
    FirstBlockGuard,
    Guard,
    SeaCacheGuard,
    SenCacheGuard,
    SpeCaGuard,
    TeaCacheGuard,
)
from hicache_compile.policy.packs import Contract, Pack
from hicache_compile.policy.presets import (
    FORA,
    PAB,
    SCM,
    AdaCache,
    ClusCa,
    DBCache,
    DiCache,
    DiTango,
    DuCa,
    EasyCache,
    FBCache,
    FBCacheTeaCache,
    FlexCache,
    FreqCa,
    HiCache,
    HiClusCa,
    LeMiCa,
    MagCache,
    MeanCache,
    SeaCache,
    SenCache,
    SpeCa,
    Spectrum,
    TaylorSeer,
    TeaCache,
    ToCa,
    Uncached,
    XSlim,
)
from hicache_compile.policy.schedules.base import Always, Free, Growing, Interval, StepMask
from hicache_compile.policy.schedules.ditango import DiTangoSchedule
from hicache_compile.policy.schedules.magcache import MagCacheSchedule
from hicache_compile.policy.schedules.per_branch import PerBranch
from hicache_compile.policy.schedules.per_kind import Broadcast, KeySteps, PerKind
from hicache_compile.policy.schedules.per_range import PerRange
from hicache_compile.policy.schedules.planned import PlannedSteps
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.tokens import Tokens

if TYPE_CHECKING:
    from hicache_compile.export import export_onnx
    from hicache_compile.frontend.bisect import bisect
    from hicache_compile.frontend.compile import hicache_compile
    from hicache_compile.frontend.denoiser import CompiledDenoiser
    from hicache_compile.frontend.dynamo_backend import inspect
    from hicache_compile.frontend.handle import Handle
    from hicache_compile.frontend.shadow import Shadow
    from hicache_compile.inspection.report import Report

# Public name -> the module that has it and imports torch.
_NEEDS_TORCH = {
    "CompiledDenoiser": "frontend.denoiser",
    "Handle": "frontend.handle",
    "Report": "inspection.report",
    "Shadow": "frontend.shadow",
    "bisect": "frontend.bisect",
    "export_onnx": "export",
    "hicache_compile": "frontend.compile",
    "inspect": "frontend.dynamo_backend",
}


_PACKAGES = ("collect_env", "serialize", "tune")  # that documentation names as attributes


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"hicache_compile.{name}")
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module 'hicache_compile' has no attribute {name!r}")
    found = getattr(import_module(f"hicache_compile.{_NEEDS_TORCH[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "BDF2",
    "DMD",
    "FORA",
    "PAB",
    "SCM",
    "TEACACHE_MODELS",
    "AdaCache",
    "AdaCacheGuard",
    "AdamsBashforth",
    "Always",
    "Broadcast",
    "ByBand",
    "ByChannel",
    "Calibrated",
    "CannotRewrite",
    "Chebyshev",
    "Chipmunk",
    "ClusCa",
    "CompiledDenoiser",
    "Contract",
    "DBCache",
    "DiCache",
    "DiCacheGuard",
    "DiTango",
    "DiTangoSchedule",
    "DuCa",
    "EasyCache",
    "EasyCacheGuard",
    "FBCache",
    "FBCacheTeaCache",
    "FirstBlockGuard",
    "FlexCache",
    "Forecaster",
    "Free",
    "FreqCa",
    "Gated",
    "GlobalChebyshev",
    "Growing",
    "Guard",
    "Handle",
    "Hermite",
    "HiCache",
    "HiCacheError",
    "HiClusCa",
    "Interval",
    "KeySteps",
    "LeMiCa",
    "MagCache",
    "MagCacheSchedule",
    "MeanCache",
    "MeanVelocity",
    "Mixed",
    "Newton",
    "NewtonHermite",
    "NewtonScaledTaylor",
    "Pack",
    "PerBranch",
    "PerKind",
    "PerRange",
    "PlannedSteps",
    "Policy",
    "Report",
    "ResidualGate",
    "Reuse",
    "ScaledTaylor",
    "SeaCache",
    "SeaCacheGuard",
    "SenCache",
    "SenCacheGuard",
    "Shadow",
    "Smoothing",
    "SpeCa",
    "SpeCaGuard",
    "Spectrum",
    "StepMask",
    "SteppedHermite",
    "Table",
    "Taylor",
    "TaylorSeer",
    "TeaCache",
    "TeaCacheGuard",
    "ToCa",
    "Tokens",
    "Uncached",
    "VariableAdamsBashforth",
    "VariableBDF2",
    "XSlim",
    "bisect",
    "config",
    "export_onnx",
    "hicache_compile",
    "inspect",
    "weights",
]
