"""Every guard decides and computes as its authors describe it, at every step (``tests/guard_oracle.py``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from hicache_compile import (
    AdaCache,
    DBCache,
    DiCache,
    EasyCache,
    FBCache,
    FBCacheTeaCache,
    Policy,
    SenCache,
    SpeCa,
    Taylor,
    TeaCache,
    hicache_compile,
)
from hicache_compile.demo.sampling import load_model
from tests.support import guard_oracle as oracle
from tests.support.guard_oracle import OpenFlux, Step
from tests.support.models import demo_inputs, flux_inputs, random_flux, trace

STEPS = 20
FLUX = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)
LUMINA = (393.76566581, -603.50993606, 209.10239044, -23.00726601, 0.86377344)
BOOK = ((0.02, 4), (0.05, 3), (0.1, 2), (1.0, 1))
OF_INPUT, OF_TIME = (1.5, 0.5, 1.0, 2.0), (0.4, 1.0)  # four points lie on the sixteen of the guard
Case = tuple[Policy, Callable[[OpenFlux], Step]]

CASES: dict[str, Callable[[float], Case]] = {
    "teacache": lambda t: (TeaCache(t), lambda f: oracle.teacache(f, STEPS, t, FLUX, False)),
    "teacache of the time": lambda t: (
        TeaCache(t, "cogvideox-2b", coefficients=(1.0, 0.0)),
        lambda f: oracle.teacache(f, STEPS, t, (1.0, 0.0), True),
    ),
    "teacache exact": lambda t: (
        TeaCache(t, "lumina2", exact=True),
        lambda f: oracle.teacache(f, STEPS, t, LUMINA, False),
    ),
    "first block": lambda t: (FBCache(t), lambda f: oracle.first_block(f, t, 1, 1, 0)),
    "every second channel": lambda t: (FBCache(t, 2, 3), lambda f: oracle.first_block(f, t, 1, 2, 3)),
    "dbcache": lambda t: (DBCache(3, 0, t, 2), lambda f: oracle.first_block(f, t, 3, 1, 2)),
    "easycache": lambda t: (EasyCache(t, 3), lambda f: oracle.easycache(f, STEPS, t, 3)),
    "dicache": lambda t: (DiCache(t), lambda f: oracle.dicache(f, STEPS, t, 1, False)),
    "dicache excess": lambda t: (DiCache(t, 2, error="excess"), lambda f: oracle.dicache(f, STEPS, t, 2, True)),
    "both": lambda t: (FBCacheTeaCache(t, 0.4), lambda f: oracle.both(f, STEPS, t, 0.4, FLUX)),
    "adacache": lambda t: (
        AdaCache([(c * t, n) for c, n in BOOK]),
        lambda f: oracle.adacache(f, STEPS, tuple((c * t, n) for c, n in BOOK), 2, 2),
    ),
    "speca": lambda t: (
        SpeCa(t, forecaster=Taylor(1), max_skips=5),
        lambda f: oracle.speca(f, STEPS, t, 0.3, 3, 2, 5),
    ),
    "sencache": lambda t: (
        SenCache(t, OF_INPUT, OF_TIME, max_skips=4),
        lambda f: oracle.sencache(f, STEPS, t, OF_INPUT, OF_TIME, 4),
    ),
}
THRESHOLDS: dict[str, dict[str, list[float]]] = {
    "random": {
        "teacache": [0.25, 0.6, 1.5],
        "teacache of the time": [0.05, 0.2, 1.0],
        "teacache exact": [0.9, 2.0, 3.0],
        "first block": [0.1, 0.2, 0.4],
        "every second channel": [0.1, 0.2, 0.4],
        "dbcache": [0.05, 0.2, 0.4],
        "easycache": [0.03, 0.1, 0.3],
        "dicache": [0.05, 0.15, 0.3],
        "dicache excess": [0.01, 0.03, 0.1],
        "both": [0.1, 0.3, 0.6],
        "adacache": [0.5, 1.0, 3.0],
        "speca": [0.05, 0.5, 2.0],
        "sencache": [0.06, 0.12, 0.4],
    }
}
THRESHOLDS["demo"] = THRESHOLDS["random"]


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Any, dict[str, Tensor]]]:
    return {"random": (random_flux(2, 3), flux_inputs(batch=1)), "demo": (load_model(), demo_inputs([3]))}


@pytest.mark.parametrize("guard", CASES)
@pytest.mark.parametrize("model", THRESHOLDS)
def test_a_guard_decides_as_described(models: dict[str, tuple[Any, dict[str, Tensor]]], model: str, guard: str) -> None:
    denoiser, inputs = models[model]
    thresholds = THRESHOLDS[model][guard]
    compiled = hicache_compile(denoiser, CASES[guard](thresholds[0])[0], backend="eager")
    for threshold in thresholds:
        compiled.policy, reference = CASES[guard](threshold)
        expected, states = oracle.sample(reference(OpenFlux(denoiser, inputs)), inputs["hidden_states"], STEPS)
        with compiled.trajectory(STEPS):
            mine = trace(compiled, inputs, STEPS)
        assert compiled.report().decisions() == expected, threshold
        error = (mine - states).flatten(1).norm(dim=1) / states.flatten(1).norm(dim=1)
        assert float(error.max()) < 1e-4, threshold
