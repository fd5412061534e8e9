"""Published methods as presets: each preset is a function that returns a ``Policy``."""

from __future__ import annotations

from collections.abc import Callable

from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets.attention import PAB, DiTango
from hicache_compile.policy.presets.by_input import SeaCache, SenCache
from hicache_compile.policy.presets.flexcache import FlexCache
from hicache_compile.policy.presets.guarded import (
    AdaCache,
    DBCache,
    DiCache,
    EasyCache,
    FBCache,
    FBCacheTeaCache,
    SpeCa,
)
from hicache_compile.policy.presets.listed import SCM, LeMiCa, MagCache
from hicache_compile.policy.presets.scheduled import (
    FORA,
    FreqCa,
    HiCache,
    MeanCache,
    Spectrum,
    TaylorSeer,
    Uncached,
)
from hicache_compile.policy.presets.teacache import TeaCache
from hicache_compile.policy.presets.tokenwise import ClusCa, DuCa, HiClusCa, ToCa, XSlim

__all__ = [
    "FORA",
    "PAB",
    "PRESETS",
    "SCM",
    "AdaCache",
    "ClusCa",
    "DBCache",
    "DiCache",
    "DiTango",
    "DuCa",
    "EasyCache",
    "FBCache",
    "FBCacheTeaCache",
    "FlexCache",
    "FreqCa",
    "HiCache",
    "HiClusCa",
    "LeMiCa",
    "MagCache",
    "MeanCache",
    "SeaCache",
    "SenCache",
    "SpeCa",
    "Spectrum",
    "TaylorSeer",
    "TeaCache",
    "ToCa",
    "Uncached",
    "XSlim",
]

PRESETS: dict[str, Callable[..., Policy]] = {
    preset.__name__: preset
    for preset in (
        HiCache,
        TaylorSeer,
        FORA,
        SCM,
        Spectrum,
        FreqCa,
        TeaCache,
        FBCache,
        FBCacheTeaCache,
        DBCache,
        MagCache,
        LeMiCa,
        MeanCache,
        EasyCache,
        DiCache,
        AdaCache,
        SpeCa,
        SeaCache,
        SenCache,
        PAB,
        DiTango,
        FlexCache,
        ToCa,
        DuCa,
        ClusCa,
        HiClusCa,
        XSlim,
        Uncached,
    )
}
