"""Linear forecasters: each is a weight vector over anchors, ``F^ = sum_j w_j * anchor_j``.

A forecaster is any object with ``weights(anchors, target) -> list[float]``. It is handed the step
indices of the anchors it may read, newest first, and the step to forecast; it returns one float64
weight for each anchor it reads, newest first, and never more than there are anchors. It knows
nothing of tensors or graphs. Your own forecaster is one small class with that method.

Published rules that are only right on evenly spaced anchors stand beside a corrected one:

=====================  =========================
as published           right on uneven anchors
=====================  =========================
``Taylor``             ``Newton``
``Hermite``            ``NewtonHermite``
``ScaledTaylor``       ``NewtonScaledTaylor``
``AdamsBashforth``     ``VariableAdamsBashforth``
``BDF2``               ``VariableBDF2``
=====================  =========================

Fitted to a model, from runs in full: ``Calibrated``, ``SteppedHermite``, ``Gated``. Fitted in each run to its anchors:
``DMD``, ``ResidualGate``.
"""

from hicache_compile.policy.forecasters.base import Forecaster, Reuse
from hicache_compile.policy.forecasters.calibrated import Calibrated
from hicache_compile.policy.forecasters.chebyshev import Chebyshev, GlobalChebyshev
from hicache_compile.policy.forecasters.differences import Hermite, ScaledTaylor, Taylor
from hicache_compile.policy.forecasters.measured import DMD, MeasuredForecaster, ResidualGate
from hicache_compile.policy.forecasters.multistep import BDF2, AdamsBashforth, VariableAdamsBashforth, VariableBDF2
from hicache_compile.policy.forecasters.newton import Newton, NewtonHermite, NewtonScaledTaylor
from hicache_compile.policy.forecasters.rows import depth, measured_weights, weights
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
    DMD,
    ResidualGate,
)

__all__ = [
    "BDF2",
    "DMD",
    "FORECASTERS",
    "AdamsBashforth",
    "Calibrated",
    "Chebyshev",
    "Forecaster",
    "Gated",
    "GlobalChebyshev",
    "Hermite",
    "MeasuredForecaster",
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
    "weights",
]
