"""A pack for the small FLUX pipeline, as if measured in five steps."""

from __future__ import annotations

from hicache_compile import HiCache, Pack
from hicache_compile.policy.packs import Entry

STEPS = 5
TRUE = Entry("true", HiCache(interval=2, warmup=1), tuple(0.001 * n for n in range(1, 41)), 4.0, 1.7, 3.0)
FAST = Entry("fast", HiCache(interval=4, warmup=1), tuple(0.01 * n for n in range(1, 41)), 1.5, 2.5, 2.0)
PACK = Pack((TRUE, FAST), STEPS, 8.0, "a machine")
DECISIONS = {"true": "F.F.F", "fast": "F...F", "in full": "FFFFF"}
