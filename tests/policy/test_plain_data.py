"""Numbers and arrays of numpy and torch are taken wherever Python's are, and kept as Python's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hicache_compile import (
    Chipmunk,
    HiCache,
    HiCacheError,
    Interval,
    LeMiCa,
    MagCache,
    PlannedSteps,
    StepMask,
    TeaCache,
    hicache_compile,
)
from hicache_compile.policy.json_codec import as_policy, from_json, to_json
from tests.support.models import ToyDiT

ARRAYS = [np.array, torch.tensor]


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize(
    ("make", "plain"),
    [
        (lambda array: HiCache(array(4)), HiCache(4)),
        (lambda array: replace(HiCache(4), first=array(1)), replace(HiCache(4), first=1)),
        (lambda array: TeaCache(array(0.25), coefficients=array([0.0, 1.0])), TeaCache(0.25, coefficients=(0.0, 1.0))),
        (lambda array: TeaCache(0.25, coefficients=[*array([0.0, 1.0])]), TeaCache(0.25, coefficients=(0.0, 1.0))),
        (lambda array: MagCache(table=array([1.0, 0.5])), MagCache(table=(1.0, 0.5))),
        (lambda array: LeMiCa(array(17)), LeMiCa(17)),
    ],
)
def test_policies_are_those_of_plain_numbers(array: Any, make: Callable[[Any], Any], plain: Any) -> None:
    made = make(array)
    assert made == plain == from_json(to_json(made))
    assert repr(made) == repr(plain)  # nothing of an array is left


@pytest.mark.parametrize("array", ARRAYS)
def test_parts_of_policies(array: Any) -> None:
    assert StepMask(array([1, 0, 1])) == StepMask(array([True, False, True])) == StepMask("101")
    planned = PlannedSteps(array([1, 0]), array([900.0, 500.0]), array([0.75, 0.5]))
    assert planned == PlannedSteps("10", (900.0, 500.0), (0.75, 0.5))
    assert Chipmunk(top_keys=array(0.25), full_every=array(5)) == Chipmunk(top_keys=0.25, full_every=5)


@pytest.mark.parametrize("array", ARRAYS)
def test_runs_take_a_schedulers_timesteps_as_they_are(array: Any) -> None:
    compiled: Any = hicache_compile(ToyDiT(), HiCache(array(2)), backend="eager", together=np.bool_(True))
    compiled.warmup((torch.randn(1, 16, 16), torch.ones(1)), num_steps=array(4))
    with torch.no_grad(), compiled.trajectory(array(4), timesteps=array([900, 600, 300, 100])):
        for step in range(4):
            compiled(torch.randn(1, 16, 16), torch.full((1,), 1 - step / 4))
    assert compiled.report().decisions() == compiled.explain(array(4)).decisions == "FFF."


@pytest.mark.parametrize(
    "value", [np.array([2, 3]), np.array(2.5), np.array("2"), torch.ones(2), np.array(float("nan"))]
)
def test_arrays_that_are_no_such_number(value: Any) -> None:
    with pytest.raises(HiCacheError, match=r"Interval\.interval = .*: must be an integer >= 1"):
        Interval(value)


def test_timesteps_of_another_scale_are_refused() -> None:
    compiled: Any = hicache_compile(ToyDiT(), HiCache(), backend="eager")
    with (
        pytest.raises(HiCacheError, match=r"all are in 0\.\.1, must be in 0\.\.1000"),
        compiled.trajectory(3, [1.0, 0.5, 0.0]),
    ):
        pass
    with compiled.trajectory(3, [1000, 0.5, 0]), compiled.cache_context("ended"):
        pass


def test_a_pack_is_no_policy() -> None:
    with pytest.raises(HiCacheError, match="policy: is a pack of policies: must be one"):
        as_policy({"format": "hicache pack", "entries": []})
