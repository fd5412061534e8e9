"""Every policy that can be written as JSON works, or is refused in one line that says what is wrong."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hicache_compile import (
    DMD,
    FORA,
    PAB,
    SCM,
    AdaCache,
    DBCache,
    DiCache,
    DiTango,
    EasyCache,
    FlexCache,
    HiCache,
    HiCacheError,
    HiClusCa,
    Interval,
    KeySteps,
    MagCache,
    MeanCache,
    Newton,
    PerBranch,
    PerKind,
    PerRange,
    PlannedSteps,
    Policy,
    Reuse,
    SeaCache,
    SenCache,
    Smoothing,
    SpeCa,
    Spectrum,
    StepMask,
    SteppedHermite,
    TeaCache,
    ToCa,
    XSlim,
)
from hicache_compile.policy.json_codec import TYPES, as_policy, from_json, to_dict
from hicache_compile.policy.presets import PRESETS
from tests.support.any_value import VALUES, many, refusal

POLICIES = [
    HiCache(),
    HiCache(interval=4, order=2, scope="stack"),
    HiCache(forecaster=DMD(2, 4)),
    Policy(Interval(3), SteppedHermite(1, (0.5, 0.5)), smoothing=Smoothing()),
    SCM("11001010"),
    FORA(),
    Spectrum(),
    MeanCache(span=(1, 2)),
    Policy(StepMask("110010"), Newton(1)),
    MagCache(),
    TeaCache(0.2),
    DBCache(),
    DiCache(0.2),
    AdaCache(),
    EasyCache(0.1),
    SeaCache(0.2),
    SenCache(0.2, (1.0, 2.0), 0.5),
    SpeCa(),
    PAB(),
    DiTango(0.5),
    FlexCache("teacache"),
    Policy(PerKind({"self-attention": Interval(3), "mlp": KeySteps([0, 2])}), Reuse()),
    Policy(PerRange((Interval(6), StepMask("1100"), Interval(3)), (0, 0.2, 0.7)), Reuse(), "stack"),
    Policy(PerBranch({"uncond": Interval(6)}, StepMask("1100")), Reuse(), "stack"),
    Policy(PlannedSteps("1100", (1000, 750, 500, 250), (1, 0.75, 0.5, 0.25)), Reuse(), "stack"),
    ToCa(),
    HiClusCa(blend=0.1),
    XSlim(0.3),
]

TEXTS = st.one_of(st.text(), st.sampled_from(["[" * 100_000, "9" * 5000, '{"preset": ' * 2000]))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a policy."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in inner for place in places(item, (*path, key))]


@st.composite
def edited(draw: st.DrawFn) -> Any:
    """A policy of ours in which one or two values are others."""
    policy = copy.deepcopy(to_dict(draw(st.sampled_from(POLICIES))))
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(policy)))
        holder = policy
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = draw(VALUES)
    return policy


@st.composite
def presets(draw: st.DrawFn) -> dict[str, Any]:
    """A preset with values in some of its fields."""
    name = draw(st.sampled_from(list(PRESETS)))
    fields = st.sampled_from(list(inspect.signature(PRESETS[name]).parameters) or ["none"])
    return {"preset": name, **draw(st.dictionaries(fields, VALUES, max_size=3))}


@st.composite
def parts(draw: st.DrawFn) -> dict[str, Any]:
    """A policy with a schedule, a forecaster and guards of any kind, with any fields."""

    def part() -> Any:
        name = draw(st.sampled_from(list(TYPES)))
        fields = list(inspect.signature(TYPES[name]).parameters)
        return {"type": name, **(draw(st.dictionaries(st.sampled_from(fields), VALUES, max_size=3)) if fields else {})}

    return {"schedule": part(), "forecaster": part(), "guards": [part()]}


def test_a_number_of_more_digits_than_can_be_shown() -> None:
    for value in (10**5000, {"preset": "HiCache", "interval": 10**5000}, {"preset": 10**5000}):
        with pytest.raises(HiCacheError, match="bits"):
            as_policy(value)


@many
@given(st.one_of(edited(), presets(), parts(), VALUES), st.integers(1, 60))
def test_any_policy(value: Any, num_steps: int) -> None:
    try:
        policy = as_policy(value)
        assert isinstance(policy, Policy)
        letters = policy.decisions(num_steps)
        assert len(letters) == num_steps
        assert as_policy(to_dict(policy)) == policy
    except HiCacheError as error:
        refusal(error)


@many
@given(st.one_of(TEXTS, edited().map(lambda value: repr(value)[:-1])))
def test_any_text(text: str) -> None:
    try:
        assert isinstance(from_json(text), Policy)
    except HiCacheError as error:
        refusal(error)
