"""Linear forecasters: each is a weight vector over anchors, ``F^ = sum_j w_j * anchor_j``.

A forecaster is any object with ``weights(anchors, target) -> list[float]``. Its arguments are the step indices of the
available anchors, newest first, and the step to forecast. It returns one float64 weight for each anchor it reads,
newest first, and never more than there are anchors. It does not handle tensors or graphs. A custom forecaster is one
class with that method.

Published rules that are exact only for evenly spaced anchors have a corrected counterpart:

=====================  ============================
as published           for any spacing of anchors
=====================  ============================
``Taylor``             ``Newton``
``Hermite``            ``NewtonHermite``
``ScaledTaylor``       ``NewtonScaledTaylor``
``AdamsBashforth``     ``VariableAdamsBashforth``
``BDF2``               ``VariableBDF2``
=====================  ============================

Fitted to a model on fully computed runs: ``Calibrated``, ``SteppedHermite``, ``Gated``. Fitted to the anchors within
each run: ``DMD``, ``ResidualGate``. Of several forecasters: ``Mixed``, ``ByBand``, ``ByChannel``.
"""

from hicache_compile.policy.forecasters.base import Forecaster, Reuse
from hicache_compile.policy.forecasters.calibrated import Calibrated
from hicache_compile.policy.forecasters.chebyshev import Chebyshev, GlobalChebyshev
from hicache_compile.policy.forecasters.differences import Hermite, ScaledTaylor, Taylor
from hicache_compile.policy.forecasters.mean_velocity import MeanVelocity
from hicache_compile.policy.forecasters.measured import DMD, MeasuredForecaster, ResidualGate
from hicache_compile.policy.forecasters.mixed import Mixed
from hicache_compile.policy.forecasters.multistep import BDF2, AdamsBashforth, VariableAdamsBashforth, VariableBDF2
from hicache_compile.policy.forecasters.newton import Newton, NewtonHermite, NewtonScaledTaylor
from hicache_compile.policy.forecasters.parts import ByBand, ByChannel
from hicache_compile.policy.forecasters.rows import depth, measured_weights, rows_of, weights
from hicache_compile.policy.forecasters.smoothing import Smoothing
from hicache_compile.policy.forecasters.stepped import Gated, SteppedHermite
from hicache_compile.policy.forecasters.table import Table

FORECASTERS = (
    Reuse,
    Taylor,
    Hermite,
    ScaledTaylor,
    Newton,
    NewtonHermite,
    NewtonScaledTaylor,
    AdamsBashforth,
    VariableAdamsBashforth,
    BDF2,
    VariableBDF2,
    Chebyshev,
    GlobalChebyshev,
    Calibrated,
    SteppedHermite,
    Gated,
    Mixed,
    ByBand,
    ByChannel,
    MeanVelocity,
    DMD,
    ResidualGate,
)

__all__ = [
    "BDF2",
    "DMD",
    "FORECASTERS",
    "AdamsBashforth",
    "ByBand",
    "ByChannel",
    "Calibrated",
    "Chebyshev",
    "Forecaster",
    "Gated",
    "GlobalChebyshev",
    "Hermite",
    "MeanVelocity",
    "MeasuredForecaster",
    "Mixed",
    "Newton",
    "NewtonHermite",
    "NewtonScaledTaylor",
    "ResidualGate",
    "Reuse",
    "ScaledTaylor",
    "Smoothing",
    "SteppedHermite",
    "Table",
    "Taylor",
    "VariableAdamsBashforth",
    "VariableBDF2",
    "depth",
    "measured_weights",
    "rows_of",
    "weights",
]
