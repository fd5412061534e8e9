"""Fit policies to a model, from uncached runs of it: guards and tables, forecasts and schedules."""

from hicache_compile.tune.calibrated import FITS, fit_forecasts, with_weights
from hicache_compile.tune.fit import METHODS, Fitted, fit
from hicache_compile.tune.grid_plan import GridFit, fit_grid
from hicache_compile.tune.measured import Measured, measure
from hicache_compile.tune.refinement import refine
from hicache_compile.tune.sensitivity import Sensitivities, sensitivities

__all__ = [
    "FITS",
    "METHODS",
    "Fitted",
    "GridFit",
    "Measured",
    "Sensitivities",
    "fit",
    "fit_forecasts",
    "fit_grid",
    "measure",
    "refine",
    "sensitivities",
    "with_weights",
]
