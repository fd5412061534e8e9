"""Guards: measured decisions on top of a schedule."""

from hicache_compile.policy.guards.adacache import AdaCacheGuard
from hicache_compile.policy.guards.arithmetic import Arithmetic, HostArithmetic, Numbers
from hicache_compile.policy.guards.base import Guard, HostRule, Measure, Probe, Signal, SpectralFilter
from hicache_compile.policy.guards.dicache import DiCacheGuard
from hicache_compile.policy.guards.easycache import EasyCacheGuard
from hicache_compile.policy.guards.first_block import FirstBlockGuard
from hicache_compile.policy.guards.models import TEACACHE_MODELS, TeaCacheModel
from hicache_compile.policy.guards.observer import ObserverGuard
from hicache_compile.policy.guards.seacache import SeaCacheGuard
from hicache_compile.policy.guards.sencache import SenCacheGuard
from hicache_compile.policy.guards.speca import SpeCaGuard
from hicache_compile.policy.guards.teacache import TeaCacheGuard

GUARDS: tuple[type[Guard], ...] = (
    TeaCacheGuard,
    FirstBlockGuard,
    EasyCacheGuard,
    DiCacheGuard,
    AdaCacheGuard,
    SpeCaGuard,
    SeaCacheGuard,
    SenCacheGuard,
)

__all__ = [
    "GUARDS",
    "TEACACHE_MODELS",
    "AdaCacheGuard",
    "Arithmetic",
    "DiCacheGuard",
    "EasyCacheGuard",
    "FirstBlockGuard",
    "Guard",
    "HostArithmetic",
    "HostRule",
    "Measure",
    "Numbers",
    "ObserverGuard",
    "Probe",
    "SeaCacheGuard",
    "SenCacheGuard",
    "Signal",
    "SpeCaGuard",
    "SpectralFilter",
    "TeaCacheGuard",
    "TeaCacheModel",
]
