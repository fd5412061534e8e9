"""Runs under many policies give what the record says: see ``tests.support.record``."""

from __future__ import annotations

import json

import pytest

from tests.support.record import BACKENDS, CASES, PATH, entry

RECORD = json.loads(PATH.read_text(encoding="utf-8"))
# How far sums may differ where this CPU's kernels round in another way: those of the uncached model, or others only
# (sparse attention runs kernels that the uncached model does not).
ROUNDING = {"uncached too": 1e-3, "others only": 1e-6}


def differences(model: str, backend: str, case: str) -> dict[str, tuple[object, object]]:
    """What is not as in the record: name to (recorded, found)."""
    found, recorded = entry(model, backend, case), dict(RECORD[f"{model}, {backend}: {case}"])
    if found["digest"] != recorded["digest"]:
        uncached_differs = (
            entry(model, backend, "uncached")["digest"] != RECORD[f"{model}, {backend}: uncached"]["digest"]
        )
        rounding = ROUNDING["uncached too" if uncached_differs else "others only"]
        if found["sums"] == pytest.approx(recorded["sums"], rel=rounding):
            recorded |= {"digest": found["digest"], "sums": found["sums"]}
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
