"""Fit policies to a model, from uncached runs of it: guards and tables, forecasts and schedules."""

from hicache_compile.tune.calibrated import FITS, Measured, fit_forecasts, measure, with_weights
from hicache_compile.tune.fit import METHODS, Fitted, fit
from hicache_compile.tune.grid_plan import GridFit, fit_grid

__all__ = [
    "FITS",
    "METHODS",
    "Fitted",
    "GridFit",
    "Measured",
    "fit",
    "fit_forecasts",
    "fit_grid",
    "measure",
    "with_weights",
]
