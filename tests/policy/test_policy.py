"""Policies: plain JSON both ways, everything ``policy=`` accepts, values, and every refusal with its message."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from hicache_compile import (
    BDF2,
    DMD,
    FORA,
    SCM,
    AdamsBashforth,
    Always,
    Broadcast,
    ByBand,
    ByChannel,
    Calibrated,
    Chebyshev,
    DiTangoSchedule,
    Forecaster,
    Free,
    Gated,
    GlobalChebyshev,
    Growing,
    Hermite,
    HiCache,
    HiCacheError,
    Interval,
    KeySteps,
    MagCacheSchedule,
    MeanVelocity,
    Mixed,
    Newton,
    NewtonHermite,
    NewtonScaledTaylor,
    PerBranch,
    PerKind,
    PerRange,
    PlannedSteps,
    Policy,
    ResidualGate,
    Reuse,
    ScaledTaylor,
    Smoothing,
    StepMask,
    SteppedHermite,
    Table,
    Taylor,
    TaylorSeer,
    Tokens,
    VariableAdamsBashforth,
    VariableBDF2,
)
from hicache_compile.policy.forecasters import FORECASTERS
from hicache_compile.policy.json_codec import SCHEDULES, as_policy, from_dict, from_json, to_dict, to_json
from hicache_compile.policy.presets import PRESETS
from hicache_compile.policy.schedules.base import Schedule
from hicache_compile.policy.schedules.lemica import LeMiCaSchedule

BRANCHES: dict[str, Any] = {"schedules": {"uncond": Interval(3)}, "other": StepMask("101")}
PLAN: dict[str, Any] = {"mask": "10", "times": (1000.0, 500.0), "sigmas": (1.0, 0.5)}
RANGES = {"parts": (Interval(3), Interval(2))}

TABLE = Table(3, (1.0, 4.0, 1.0), ((2, (1, 0), (2.0, -1.0)),))
SCHEDULE_VALUES: list[Schedule] = [Interval(6), Interval(1, 1), Interval(4, 2, 5), StepMask("1101"), Growing()]
SCHEDULE_VALUES += [Growing(3.0, 2, 1)]
SCHEDULE_VALUES += [Free(2, 1), MagCacheSchedule(0.1, 2, 0.1, (1.0, 0.9)), Broadcast(2, 1, 1, (100, 850))]
SCHEDULE_VALUES += [Free(2, 1, True), Broadcast(2, strict=True), LeMiCaSchedule(20, 1)]
SCHEDULE_VALUES += [KeySteps((676, 788)), PerKind({"self-attention": Broadcast(2), "mlp": KeySteps((500,), 2)})]
ON_DIFFERENCES = [Taylor(3), Hermite(1, 0.3), ScaledTaylor(3, 1)]
FORECASTER_VALUES: list[Forecaster] = [
    *ON_DIFFERENCES,
    Reuse(),
    Newton(3),
    NewtonHermite(1, 0.7),
    NewtonScaledTaylor(0, 2),
    AdamsBashforth(4),
    VariableAdamsBashforth(1),
    BDF2(),
    VariableBDF2(),
    Chebyshev(3, 1e-3),
    GlobalChebyshev(3, 1e-3, 8),
    GlobalChebyshev(num_steps=20),
    Calibrated(TABLE, 2),
    Calibrated(TABLE, 3, 0.0, 28),
    SteppedHermite(2, (0.5, 0.6)),
    Gated(Hermite(2), (0.5, 1.0), 12),
    Mixed(GlobalChebyshev(), Newton(1), 0.7),
    ByBand(),
    ByBand(Newton(1), Hermite(1), 0.5, (4, 4)),
    ByChannel((Reuse(), Taylor(2)), ("01", "11")),
    MeanVelocity(),
    MeanVelocity((1, 4), 3, (1000.0, 500.0), 2),
]
MEASURED = [DMD(2), ResidualGate(Taylor(2))]
SMOOTHING_VALUES = [None, Smoothing(), Smoothing("moving_average"), Smoothing("exponential", 0.25)]
POLICIES = [
    *(Policy(s, f, smoothing=m) for s, f, m in itertools.product(SCHEDULE_VALUES, FORECASTER_VALUES, SMOOTHING_VALUES)),
    *(Policy(Interval(6), f, smoothing=Smoothing(hybrid=True)) for f in ON_DIFFERENCES),
    Policy(PerRange(**RANGES), Reuse()),
    Policy(PerBranch(**BRANCHES), Reuse()),
    Policy(PlannedSteps(**PLAN), Reuse()),
    Policy(PlannedSteps("101", (1000.0, 500.0, 250.0)), Reuse()),
    *(Policy(Interval(6), f) for f in MEASURED),
    *(
        Policy(Interval(6), Hermite(), scope, first=i, last=j)
        for scope in ("module", "block", "stack")
        for i, j in [(3, 1), (3, 0), (0, 1)]
    ),
    *(Policy(Interval(6), Hermite(), scope) for scope in ("module", "output")),
    Policy(DiTangoSchedule(0.5, 2, 1, 2, 6), Reuse()),
    Policy(Always(), Reuse(), scope="none"),
]
HICACHE: dict[str, Any] = {
    "version": 1,
    "schedule": {"type": "Interval", "interval": 6, "warmup": 3, "cooldown": 0},
    "forecaster": {"type": "Hermite", "order": 2, "sigma": 0.5},
    "scope": "module",
    "guards": [],
    "groups": None,
    "first": 0,
    "last": 0,
    "smoothing": None,
}


def test_every_schedule_and_forecaster_is_tried() -> None:
    assert {type(policy.schedule) for policy in POLICIES} == set(SCHEDULES)
    assert {type(forecaster) for forecaster in [*FORECASTER_VALUES, *MEASURED]} == set(FORECASTERS)


@pytest.mark.parametrize("policy", POLICIES, ids=range(len(POLICIES)))
def test_json_gives_an_equal_policy_back(policy: Policy) -> None:
    data = to_dict(policy)
    assert json.loads(json.dumps(data, allow_nan=False)) == data  # plain: no tuple, no class, no NaN
    assert json.loads(to_json(policy)) == data
    again = from_json(to_json(policy))
    assert again == policy == from_dict(data)
    assert (again.depth, repr(again)) == (policy.depth, repr(policy))  # repr: 1 stays 1 and does not become 1.0


@pytest.mark.parametrize("policy", POLICIES, ids=range(len(POLICIES)))
def test_keys_in_any_order_give_an_equal_policy_of_one_layout(policy: Policy) -> None:
    def turned(data: Any) -> Any:
        if isinstance(data, dict):
            return {key: turned(value) for key, value in reversed(data.items())}
        return list(map(turned, data)) if isinstance(data, list) else data

    again = from_dict(turned(to_dict(policy)))
    assert again == policy
    assert hash(again) == hash(policy)
    assert again.layout == policy.layout


@pytest.mark.parametrize("version", [0, 2, "1", True, None])
def test_the_json_of_another_release_is_refused(version: object) -> None:
    with pytest.raises(HiCacheError, match=r"policy\.version = .*: must be 1, "):
        from_dict({**to_dict(HiCache()), "version": version})


def test_json_without_a_version_is_in_the_newest_format() -> None:
    data = to_dict(HiCache())
    del data["version"]
    assert from_dict(data) == HiCache()


def test_the_json_of_hicache_is_this() -> None:
    assert to_dict(HiCache()) == HICACHE
    assert from_dict({key: HICACHE[key] for key in ("schedule", "forecaster")}) == HiCache()


@pytest.mark.parametrize(
    ("data", "policy"),
    [
        ({"preset": "HiCache", "interval": 6}, HiCache(6)),
        ({"preset": "HiCache", "interval": 7, "order": 1, "sigma": 0.7, "warmup": 2}, HiCache(7, 1, 0.7, 2)),
        ({"preset": "TaylorSeer", "order": 2, "cooldown": 3}, TaylorSeer(order=2, cooldown=3)),
        ({"preset": "FORA", "scope": "block"}, FORA(scope="block")),
        ({"preset": "SCM", "mask": "ultra", "num_steps": 50}, SCM("ultra", 50)),
        ({"preset": "HiCache", "forecaster": {"type": "Newton", "order": 3}}, HiCache(forecaster=Newton(3))),
    ],
)
def test_presets_are_plain_data_too(data: dict[str, Any], policy: Policy) -> None:
    assert from_dict(data) == as_policy(data) == from_json(json.dumps(data)) == policy


def test_a_policy_is_given_as_itself_a_name_a_dict_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text(to_json(TaylorSeer(4)))
    policy = HiCache(4)
    assert as_policy(policy) is policy
    assert [as_policy(name) for name in ("HiCache", "TaylorSeer", "FORA")] == [HiCache(), TaylorSeer(), FORA()]
    assert as_policy(to_dict(policy)) == policy
    assert as_policy(path) == as_policy(str(path)) == TaylorSeer(4)


def test_policies_are_frozen_values() -> None:
    assert len({HiCache(), HiCache(6), Policy(Interval(6), Hermite()), from_dict(HICACHE)}) == 1
    assert len(set(POLICIES)) == len(POLICIES)  # every field counts
    values: list[Any] = [HiCache(), *SCHEDULE_VALUES, *FORECASTER_VALUES, Smoothing()]
    for value in values:
        for field in dataclasses.fields(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, field.name, 1)


NOT_WHOLE = ["3", 3.0, None, True, [3], math.nan]
NOT_REAL = ["0.5", None, True, [0.5], math.nan, math.inf, 0, -0.5]
NO_OBJECT: list[Any] = [None, 3, "Interval", [], ()]

WHOLE: list[tuple[Any, dict[str, Any], str, int, int | None]] = [
    *(
        (Interval, {"interval": 3}, field, low, None)
        for field, low in [("interval", 1), ("warmup", 1), ("cooldown", 0)]
    ),
    (Free, {}, "warmup", 1, None),
    (Free, {}, "cooldown", 0, None),
    *((Broadcast, {"every": 2}, field, low, None) for field, low in [("every", 1), ("warmup", 0), ("cooldown", 0)]),
    *((MagCacheSchedule, {"threshold": 0.1}, field, 0, None) for field in ("max_skips", "cooldown")),
    (KeySteps, {"keys": (1,)}, "skips", 1, None),
    *(
        (DiTangoSchedule, {"cache_ratio": 0.5}, field, low, None)
        for field, low in [("warmup", 1), ("cooldown", 0), ("groups", 1)]
    ),
    (SteppedHermite, {"sigmas": (0.5,)}, "order", 0, 8),
    (ResidualGate, {"forecaster": Taylor(1)}, "reads", 2, 32),
    (Calibrated, {"table": Table(2, (1.0,))}, "reads", 1, 32),
    *((Growing, {}, field, low, None) for field, low in [("warmup", 1), ("cooldown", 0)]),
    *((f, {}, "order", 0, 8) for f in (Taylor, Hermite, ScaledTaylor, Newton, NewtonHermite, NewtonScaledTaylor)),
    *((f, {}, "order", 1, 4) for f in (AdamsBashforth, VariableAdamsBashforth)),
    *((f, {}, "degree", 0, 8) for f in (Chebyshev, GlobalChebyshev)),
    *((f, {}, "reads", 1, 32) for f in (GlobalChebyshev, MeanVelocity)),
    (DMD, {}, "rank", 1, 32),
    (DMD, {}, "reads", 3, 32),
    *((Policy, {"schedule": Interval(6), "forecaster": Reuse()}, field, 0, None) for field in ("first", "last")),
]
REAL: list[tuple[Any, str, float, str]] = [
    *((f, "sigma", 2, "(0, 2]") for f in (Hermite, ScaledTaylor, NewtonHermite, NewtonScaledTaylor)),
    *((f, "ridge", 1e6, "(0, 1e+06]") for f in (Chebyshev, GlobalChebyshev)),
    (Growing, "alpha", 1e3, "(0.05, 1000]"),
    (Smoothing, "alpha", 1, "(0, 1]"),
]
LIMITS, FLAGS = ("threshold", "retention"), ("inclusive", "rounded")
POLICY_FIELDS = {"schedule": Interval(6), "forecaster": Hermite()}
OTHER: list[tuple[Any, dict[str, Any], str, list[Any], str]] = [
    (
        StepMask,
        {},
        "mask",
        [None, 5, "", "012", "1.1", ["1"], b"10", "1 0"],
        "a string of 1 (compute) and 0 (forecast)",
    ),
    (StepMask, {}, "mask", ["0", "011"], "must start with 1"),
    *((MagCacheSchedule, {"threshold": 0.1}, name, ["1", None, True, -1], "a number from 0") for name in LIMITS),
    *((MagCacheSchedule, {"threshold": 0.1}, name, [None, 0, "yes"], "true or false") for name in FLAGS),
    (MagCacheSchedule, {"threshold": 0.1}, "table", [3, (), (1.0, "2"), (1.0, -1.0)], "one or more numbers >= 0"),
    (MagCacheSchedule, {"threshold": 0.1}, "table", ["sdxl"], "flux, flux-kontext"),
    (MagCacheSchedule, {"threshold": 0.1}, "never", [-1, "11", 1.5], "an integer >= 0"),
    (LeMiCaSchedule, {}, "budget", [0, 12, "20", 1.5, True], "one of 6, 7, 8, 10, 14, 15, 17, 20, 25, 26"),
    (LeMiCaSchedule, {}, "cooldown", [-1, "1", None], "an integer >= 0"),
    (Broadcast, {"every": 2}, "window", [3, (1,), (2, 1), "ab"], "two timesteps"),
    (KeySteps, {}, "keys", [None, (), 3, ("a",)], "one or more numbers"),
    (KeySteps, {"keys": (1,)}, "blocks", [0, "5", 1.5], "an integer >= 1"),
    (Broadcast, {"every": 2}, "times", [3, (), ("a",)], "one or more numbers"),
    (KeySteps, {"keys": (1,)}, "times", [3, (), ("a",)], "one or more numbers"),
    (PerKind, {}, "schedules", [None, {}, 3, []], "must map kinds to schedules"),
    *(
        (cls, given, "strict", [None, 0, "yes"], "true or false")
        for cls, given in ((Free, {}), (Broadcast, {"every": 2}))
    ),
    (DiTangoSchedule, {}, "cache_ratio", [None, "1", True, -0.1, 1.1, math.nan], "a number from 0 to 1"),
    (DiTangoSchedule, {"cache_ratio": 0.5}, "partitions", [1, "4", 2.0], "an integer >= 2"),
    (DiTangoSchedule, {"cache_ratio": 0.5}, "partitions", [3, 5], "a multiple of groups = 2"),
    (DiTangoSchedule, {"cache_ratio": 0.5}, "distributed", [None, 0, "yes"], "true or false"),
    *(
        (cls, given, "num_steps", [0, -1, 2.5, "50", True], "an integer >= 1")
        for cls, given in (
            (GlobalChebyshev, {}),
            (MeanVelocity, {}),
            (Calibrated, {"table": TABLE}),
            (SteppedHermite, {"order": 2, "sigmas": (0.5,)}),
            (Gated, {"forecaster": Hermite(), "gates": (1.0,)}),
        )
    ),
    (Calibrated, {}, "table", [None, 3, {}, {"num_steps": 3}, []], "a Table or a path"),
    (Calibrated, {"table": TABLE}, "ridge", [None, "0", True, -1e-9, math.inf, math.nan], "a number from 0 to 1e6"),
    (Calibrated, {"table": TABLE}, "reads", [1], "must be 2 or more, as the rows of its table"),
    (SteppedHermite, {"order": 2}, "sigmas", [None, (), 0.5, ("a",), (-0.1,)], "one or more numbers >= 0"),
    (Gated, {"forecaster": Hermite()}, "gates", [None, (), 0.5, ("a",), (math.nan,)], "one or more numbers"),
    (Gated, {"gates": (1.0,)}, "forecaster", [*NO_OBJECT, Hermite, DMD(), ByBand()], "an object with a method"),
    *(
        (
            Mixed,
            {"forecaster": Hermite(), "second": Newton()},
            field,
            [*NO_OBJECT, Hermite, DMD(), ByBand()],
            "an object",
        )
        for field in ("forecaster", "second")
    ),
    (Mixed, {"forecaster": Hermite(), "second": Newton()}, "share", [*NOT_REAL, 1.1], "a number in (0, 1]"),
    *((ByBand, {}, field, [*NO_OBJECT, Hermite, DMD(), ByBand()], "an object with a") for field in ("low", "high")),
    (ByBand, {}, "cutoff", [*NOT_REAL, 1.1], "a number in (0, 1]"),
    (ByBand, {}, "grid", [3, (4,), (1, 2, 3, 4), "ab", {}, (0, 4), (2.0, 4)], "must be (H, W) or (T, H, W)"),
    (ByChannel, {"chosen": ("01",)}, "forecasters", [None, (), [], "ab"], "a list of 2 to 16"),
    (ByChannel, {"chosen": ("01",)}, "forecasters", [(Hermite(), DMD()), (Hermite(), 3)], "an object with a"),
    (
        ByChannel,
        {"forecasters": (Reuse(), Taylor(1))},
        "chosen",
        [None, (), (0, 1), ("2",), "01"],
        "0 to 1",
    ),
    (
        MeanVelocity,
        {},
        "span",
        [None, 0, 32, "2", 1.5, True, (), (1, 0), ("a",)],
        "an integer from 1 to 31",
    ),
    (MeanVelocity, {}, "times", [3, (), ("a",), (-1.0,), (math.nan,)], "one or more numbers >= 0"),
    (ResidualGate, {}, "forecaster", [*NO_OBJECT, Hermite, DMD(), ByBand()], "of all slots and by steps alone"),
    (Smoothing, {}, "method", ["average", "", None, 1, ["exponential"]], "exponential, moving_average"),
    (Smoothing, {}, "hybrid", [None, 0, 1, "true", []], "true or false"),
    (Policy, POLICY_FIELDS, "schedule", [*NO_OBJECT, Interval, Reuse()], "a schedule"),
    (Policy, POLICY_FIELDS, "forecaster", [*NO_OBJECT, Hermite, Interval(6), Smoothing()], "weights(anchors, target)"),
    (Policy, POLICY_FIELDS, "scope", ["blocks", "", None, 1, ["module"]], "module, block, stack, output"),
    (Policy, POLICY_FIELDS, "guards", [None, (1,), "", 0, {}], "a tuple of guards"),
    (Policy, POLICY_FIELDS, "groups", [(), {}, 0, False, "self"], "must be None"),
    (Policy, POLICY_FIELDS, "tokens", ["clusters", True, 3, Tokens, {}], "Tokens(...) or None"),
    (
        PerBranch,
        BRANCHES,
        "schedules",
        [3, {}, {"a": 3}, {1: Interval(3)}, {"a": Interval}],
        "schedules by the name of",
    ),
    (PerBranch, BRANCHES, "other", [*NO_OBJECT, Interval, Reuse(), PerBranch(**BRANCHES)], "a schedule, e.g."),
    (PlannedSteps, PLAN, "mask", [None, 5, "", "012", ["1"]], "a string of 1 (compute) and 0 (forecast)"),
    (PlannedSteps, PLAN, "mask", ["01"], "must start with 1"),
    *(
        (PlannedSteps, PLAN, field, [3, (), ("a",), (math.nan,)], "one or more numbers")
        for field in ("times", "sigmas")
    ),
    (PerRange, RANGES, "parts", [3, (), (Interval(3),), (Interval, Interval)], "two or more schedules"),
    (PerRange, RANGES, "starts", [3, (), (0.1, 0.5), (0, 1), "01"], "numbers"),
    (Policy, POLICY_FIELDS, "smoothing", ["exponential", True, 0.8, Smoothing, {}], "a Smoothing or None"),
]


def bad_values() -> list[tuple[Any, dict[str, Any], str, Any, str]]:
    """Every field of every dataclass with each value it must not take, and what the message says is allowed."""
    cases: list[tuple[Any, dict[str, Any], str, Any, str]] = []
    for cls, fields, field, low, high in WHOLE:
        allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
        outside = [low - 1] if high is None else [low - 1, high + 1]
        cases += [(cls, fields, field, value, allowed) for value in [*NOT_WHOLE, *outside]]
    for cls, field, most, allowed in REAL:
        cases += [(cls, {}, field, value, f"a number in {allowed}") for value in [*NOT_REAL, most * 1.001]]
    for cls, fields, field, values, allowed in OTHER:
        cases += [(cls, fields, field, value, allowed) for value in values]
    return cases


@pytest.mark.parametrize(("cls", "fields", "field", "value", "allowed"), bad_values())
def test_a_bad_value_names_field_value_and_what_is_allowed(
    cls: type, fields: dict[str, Any], field: str, value: Any, allowed: str
) -> None:
    with pytest.raises(HiCacheError) as error:
        cls(**(fields | {field: value}))
    assert str(error.value).startswith(f"{cls.__name__}.{field} = {value!r}: ")
    assert allowed in str(error.value)


def test_every_field_is_tried_with_bad_values() -> None:
    tried = {(cls, field) for cls, _, field, _, _ in bad_values()}
    classes = (*SCHEDULES, *FORECASTERS, Smoothing, Policy)
    assert tried == {(cls, field.name) for cls in classes for field in dataclasses.fields(cls) if field.init}


@pytest.mark.parametrize(
    ("cls", "field", "good"),
    [
        *((cls, field, value) for cls, _, field, low, high in WHOLE[19:-2] for value in (low, high)),
        *((cls, field, value) for cls, field, high, _ in REAL for value in (1e-9, high) if cls is not Growing),
    ],
)
def test_the_ends_of_a_range_are_allowed(cls: type, field: str, good: float) -> None:
    assert getattr(cls(**{field: good}), field) == good


def test_first_and_last_blocks_stay_live_where_blocks_are_cut() -> None:
    for scope in ("module", "block", "stack"):
        policy = Policy(Interval(6), Hermite(), scope, first=2, last=1)
        assert (policy.layout.first, policy.layout.last) == (2, 1)
    for field in ("first", "last"):
        with pytest.raises(HiCacheError, match="it has no sites of single blocks: use scope"):
            Policy(Interval(6), Hermite(), "output", **{field: 1})


def test_hybrid_smoothing_needs_differences() -> None:
    with pytest.raises(HiCacheError, match=r"Smoothing\.hybrid = True: must be false with Newton\b"):
        Policy(Interval(6), Newton(2), smoothing=Smoothing(hybrid=True))


def test_a_forecaster_whose_weights_cannot_be_called_is_refused() -> None:
    class Table:
        weights = (0.5, 0.5)

    with pytest.raises(HiCacheError, match=r"Policy\.forecaster = .*Table.*: must be an object with a method weights"):
        Policy(Interval(6), Table())  # type: ignore[arg-type]  # the point


def without(field: str) -> dict[str, Any]:
    return {key: value for key, value in HICACHE.items() if key != field}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HICACHE | {"forecaster": {"type": "Hermit"}}, "policy.forecaster.type = 'Hermit': must be one of Reuse,"),
        (HICACHE | {"schedule": {"interval": 6}}, "policy.schedule.type is missing: must be one of Interval,"),
        (
            HICACHE | {"schedule": {"type": ["Interval"]}},
            "policy.schedule.type = ['Interval']: must be one of Interval,",
        ),
        (HICACHE | {"orders": 2}, "Policy.orders: no such field; must be one of schedule, forecaster, scope,"),
        (HICACHE | {"depth": 2}, "Policy.depth: no such field"),
        (HICACHE | {"forecaster": {"type": "Taylor", "sigma": 1}}, "Taylor.sigma: no such field; must be one of order"),
        (HICACHE | {"forecaster": {"type": "Reuse", "order": 1}}, "Reuse.order: no such field; must be one of none"),
        (HICACHE | {"schedule": {"type": "Interval"}}, "Interval.interval is missing"),
        (without("schedule"), "Policy.schedule is missing"),
        (without("forecaster"), "Policy.forecaster is missing"),
        ({}, "Policy.schedule is missing"),
        (HICACHE | {"forecaster": {"type": "Taylor", "order": 9}}, "Taylor.order = 9: must be an integer from 0 to 8"),
        (
            HICACHE | {"forecaster": {"type": "Smoothing"}},
            "policy.forecaster.type = 'Smoothing': must be one of Reuse,",
        ),
        (HICACHE | {"schedule": {"type": "Reuse"}}, "policy.schedule.type = 'Reuse': must be one of Interval,"),
        (HICACHE | {"guards": [1]}, "Policy.guards = (1,): must be a tuple of guards"),
        ({"preset": "Hicash"}, "policy.preset = 'Hicash': must be one of HiCache, TaylorSeer, FORA, SCM"),
        ({"preset": None}, "policy.preset = None: must be one of HiCache, TaylorSeer, FORA, SCM"),
        ({"preset": {"name": "HiCache"}}, "policy.preset = {'name': 'HiCache'}: must be one of HiCache, TaylorSeer"),
        ({"preset": "HiCache", "forecaster": False}, "Policy.forecaster = False: must be"),
        ({"preset": "HiCache", "ordr": 1}, "HiCache.ordr: no such field; must be one of interval, order, sigma,"),
        ({"preset": "FORA", "interval": 0}, "Interval.interval = 0: must be an integer >= 1"),
        (HICACHE | {"schedule": {"type": "StepMask"}}, "StepMask.mask is missing"),
        ([1, 2], "policy = [1, 2]: must be an object"),
        ("HiCache", "policy = 'HiCache': must be an object"),
        (None, "policy = None: must be an object"),
    ],
)
def test_bad_data_says_what_is_wrong_and_what_is_allowed(data: Any, message: str) -> None:
    with pytest.raises(HiCacheError) as error:
        from_json(json.dumps(data))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "where"), [(to_json(HiCache())[:-20], "line"), ("", "line 1"), ("{'a': 1}", "line 1")]
)
def test_text_that_is_not_json_says_where(text: str, where: str) -> None:
    with pytest.raises(HiCacheError, match=f"must be JSON .*{where}"):
        from_json(text)


@pytest.mark.parametrize("content", [b"", b'{"preset": "HiCa', b"\xff\xfe{}", b"[1, 2]"])
def test_a_file_that_holds_no_policy_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(HiCacheError, match=r"broken\.json"):
        as_policy(path)


def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder.json"
    folder.mkdir()
    for path in (folder, str(folder), tmp_path / "none.json", str(tmp_path / "none.json"), tmp_path / "none"):
        with pytest.raises(HiCacheError, match=r"(folder|none).*: must be a readable text file \(.*director"):
            as_policy(path)


@pytest.mark.parametrize(
    "value",
    [None, 6, "shortcut", "", Hermite(), Interval(6), HiCache, ["HiCache"]],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_no_policy(value: object) -> None:
    with pytest.raises(HiCacheError) as error:
        as_policy(value)
    allowed = f"must be a Policy, a dict, a path to a .json file, or one of {', '.join(PRESETS)}, env"
    assert str(error.value) == f"policy = {value!r}: {allowed}"


class Own:
    """A forecaster only Python can name."""

    def weights(self, anchors: object, target: int) -> list[float]:
        return [1.0]


def test_a_policy_with_an_object_of_your_own_is_not_written() -> None:
    own: Forecaster = Own()
    with pytest.raises(HiCacheError, match=r"Own is none of the library's own classes: .*cannot be written as JSON"):
        to_json(Policy(Interval(6), own))
