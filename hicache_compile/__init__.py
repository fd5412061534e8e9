"""hicache_compile: a graph-transform optimizer for ``torch.compile`` that makes diffusion transformers sample faster.

from hicache_compile import hicache_compile, HiCache

model = hicache_compile(model, HiCache(interval=6, order=2))
with model.trajectory(num_steps=50):
    for t in timesteps:
        x = step(model(x, t), t, x)
"""

from hicache_compile import config
from hicache_compile.bisect import bisect
from hicache_compile.chipmunk import Chipmunk
from hicache_compile.compile import hicache_compile
from hicache_compile.denoiser import CompiledDenoiser
from hicache_compile.ditango import DiTangoSchedule
from hicache_compile.entry import inspect
from hicache_compile.errors import CannotRewrite, HiCacheError
from hicache_compile.export import export_onnx
from hicache_compile.flexcache import FlexCache
from hicache_compile.forecasters import (
    BDF2,
    DMD,
    AdamsBashforth,
    Calibrated,
    Chebyshev,
    Forecaster,
    Gated,
    GlobalChebyshev,
    Hermite,
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
from hicache_compile.guards import (
    TEACACHE_MODELS,
    AdaCacheGuard,
    DiCacheGuard,
    EasyCacheGuard,
    FirstBlockGuard,
    Guard,
    SpeCaGuard,
    TeaCacheGuard,
)
from hicache_compile.handle import Handle
from hicache_compile.magcache import MagCacheSchedule
from hicache_compile.perkind import Broadcast, KeySteps, PerKind
from hicache_compile.policy import Policy
from hicache_compile.presets import (
    FORA,
    PAB,
    SCM,
    AdaCache,
    DBCache,
    DiCache,
    DiTango,
    EasyCache,
    FBCache,
    FBCacheTeaCache,
    HiCache,
    LeMiCa,
    MagCache,
    SpeCa,
    Spectrum,
    TaylorSeer,
    TeaCache,
    Uncached,
)
from hicache_compile.report import Report
from hicache_compile.schedules import Always, Free, Growing, Interval, StepMask

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
    "Calibrated",
    "CannotRewrite",
    "Chebyshev",
    "Chipmunk",
    "CompiledDenoiser",
    "DBCache",
    "DiCache",
    "DiCacheGuard",
    "DiTango",
    "DiTangoSchedule",
    "EasyCache",
    "EasyCacheGuard",
    "FBCache",
    "FBCacheTeaCache",
    "FirstBlockGuard",
    "FlexCache",
    "Forecaster",
    "Free",
    "Gated",
    "GlobalChebyshev",
    "Growing",
    "Guard",
    "Handle",
    "Hermite",
    "HiCache",
    "HiCacheError",
    "Interval",
    "KeySteps",
    "LeMiCa",
    "MagCache",
    "MagCacheSchedule",
    "Newton",
    "NewtonHermite",
    "NewtonScaledTaylor",
    "PerKind",
    "Policy",
    "Report",
    "ResidualGate",
    "Reuse",
    "ScaledTaylor",
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
    "Uncached",
    "VariableAdamsBashforth",
    "VariableBDF2",
    "bisect",
    "config",
    "export_onnx",
    "hicache_compile",
    "inspect",
    "weights",
]
