"""Guards: measured decisions on top of a schedule."""

from hicache_compile.guards.adacache import AdaCacheGuard
from hicache_compile.guards.base import Guard, Measure, Probe, Signal, Watcher
from hicache_compile.guards.dicache import DiCacheGuard
from hicache_compile.guards.easycache import EasyCacheGuard
from hicache_compile.guards.first_block import FirstBlockGuard
from hicache_compile.guards.models import TEACACHE_MODELS, TeaCacheModel
from hicache_compile.guards.observer import ObserverGuard
from hicache_compile.guards.speca import SpeCaGuard
from hicache_compile.guards.teacache import TeaCacheGuard

GUARDS: tuple[type[Guard], ...] = (
    TeaCacheGuard,
    FirstBlockGuard,
    EasyCacheGuard,
    DiCacheGuard,
    AdaCacheGuard,
    SpeCaGuard,
)

__all__ = [
    "GUARDS",
    "TEACACHE_MODELS",
    "AdaCacheGuard",
    "DiCacheGuard",
    "EasyCacheGuard",
    "FirstBlockGuard",
    "Guard",
    "Measure",
    "ObserverGuard",
    "Probe",
    "Signal",
    "SpeCaGuard",
    "TeaCacheGuard",
    "TeaCacheModel",
    "Watcher",
]
