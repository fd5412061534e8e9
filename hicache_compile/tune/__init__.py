"""Fit guards and tables to a model, from uncached runs of it."""

from hicache_compile.tune.fit import METHODS, Fitted, fit

__all__ = ["METHODS", "Fitted", "fit"]
