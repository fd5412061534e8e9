"""How good the pictures of a policy are: against those in full, and by themselves."""

from hicache_compile.evaluation.intervals import Interval95, summary
from hicache_compile.evaluation.runs import Judge, Line

__all__ = ["Interval95", "Judge", "Line", "summary"]
