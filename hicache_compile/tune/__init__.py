"""Fit policies to a model, from uncached runs of it: guards and tables, forecasts and schedules."""

from hicache_compile.tune.calibrated import FITS, Measured, fit_forecasts, measure, with_weights
from hicache_compile.tune.fit import METHODS, Fitted, fit

__all__ = ["FITS", "METHODS", "Fitted", "Measured", "fit", "fit_forecasts", "measure", "with_weights"]
