"""The environment variables of earlier TaylorSeer frameworks, as a policy.

| variable | default | here |
|---|---|---|
| ``TS_CACHE_INTERVAL`` | 6 | ``Interval.interval`` |
| ``TS_FIRST_ENHANCE`` | 3 | ``Interval.warmup`` |
| ``TS_MAX_ORDER`` | 1 | ``Taylor.order`` |
| ``USE_SMOOTHING`` | off | smooth the anchors; ``1``, ``true``, ``yes``, ``on`` switch it on |
| ``USE_HYBRID_SMOOTHING`` | off | smooth the second difference only; requires ``USE_SMOOTHING`` |
| ``SMOOTHING_METHOD`` | ``exponential`` | or ``moving_average`` |
| ``SMOOTHING_ALPHA`` | 0.8 | weight of the newer value |
| ``TS_DEBUG_SHAPES`` | off | log the shapes of the anchors whenever they are allocated |
| ``TS_STRICT_SHAPES`` | off | on: a shape change inside a run is an error; off: the anchors are reset |

The behaviour follows the upstream documentation. The upstream code differs: it smooths values that are already smoothed
(a lag), treats an unknown method as no smoothing (here an error), accepts only ``true`` for hybrid smoothing, applies
it with ``USE_SMOOTHING`` off in some blocks, forecasts with order 1 when order 0 is smoothed, has other defaults in
other models (order 2, interval 5, alpha 0.7), and continues with unsmoothed anchors after a shape change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from hicache_compile.errors import HiCacheError, switched_on
from hicache_compile.policy.forecasters import Smoothing, Taylor
from hicache_compile.policy.schedules.base import Interval

Number = TypeVar("Number", int, float)


def fields_from_env(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The fields of the ``Policy`` that the variables describe.

    Raises:
        HiCacheError: a variable has an invalid value; the message names it.
    """
    smoothing = None
    if switched_on("USE_SMOOTHING", environ):
        smoothing = Smoothing(
            _read(environ, "SMOOTHING_METHOD", "exponential").lower(),
            _number(environ, "SMOOTHING_ALPHA", 0.8),
            hybrid=switched_on("USE_HYBRID_SMOOTHING", environ),
        )
    schedule = Interval(_number(environ, "TS_CACHE_INTERVAL", 6), warmup=_number(environ, "TS_FIRST_ENHANCE", 3))
    return {"schedule": schedule, "forecaster": Taylor(_number(environ, "TS_MAX_ORDER", 1)), "smoothing": smoothing}


def _read(environ: Mapping[str, str], name: str, default: str) -> str:
    return environ.get(name, "").strip() or default


def _number(environ: Mapping[str, str], name: str, default: Number) -> Number:
    text = _read(environ, name, str(default))
    try:
        return type(default)(text)
    except ValueError:
        kind = "an integer" if isinstance(default, int) else "a number"
        raise HiCacheError(f"{name} = {text!r}: must be {kind}") from None
