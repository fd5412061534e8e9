"""Runs under many policies give what the record says: see ``tests.support.record``."""

from __future__ import annotations

import json

import pytest

from tests.support.record import BACKENDS, CASES, PATH, entry

RECORD = json.loads(PATH.read_text(encoding="utf-8"))
ROUNDING = 1e-3  # of sums, where this CPU's kernels round in another way


def differences(model: str, backend: str, case: str) -> dict[str, tuple[object, object]]:
    """What is not as in the record: name to (recorded, found)."""
    found, recorded = entry(model, backend, case), dict(RECORD[f"{model}, {backend}: {case}"])
    if entry(model, backend, "uncached")["digest"] != RECORD[f"{model}, {backend}: uncached"]["digest"]:
        recorded["digest"] = found["digest"]  # kernels of another CPU
        if found["sums"] == pytest.approx(recorded["sums"], rel=ROUNDING):
            recorded["sums"] = found["sums"]
    return {name: (recorded[name], found[name]) for name in recorded if recorded[name] != found[name]}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_a_random_flux(case: str, backend: str) -> None:
    assert not differences("flux", backend, case)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_the_demo_model(case: str, backend: str) -> None:
    assert not differences("demo", backend, case)
