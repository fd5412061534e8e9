"""The rules of the guards by themselves, against the published vectors; no model runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from hicache_compile import (
    PAB,
    TEACACHE_MODELS,
    AdaCache,
    AdaCacheGuard,
    Broadcast,
    DBCache,
    DiCache,
    DiCacheGuard,
    EasyCache,
    EasyCacheGuard,
    FBCache,
    FBCacheTeaCache,
    FirstBlockGuard,
    FlexCache,
    Free,
    HiCacheError,
    Interval,
    KeySteps,
    LeMiCa,
    MagCache,
    MagCacheSchedule,
    PerKind,
    Policy,
    Reuse,
    SeaCacheGuard,
    SenCache,
    SenCacheGuard,
    SpeCa,
    SpeCaGuard,
    TeaCache,
    TeaCacheGuard,
    XSlim,
)
from hicache_compile.passes.graph.choices import Choice, Phases
from hicache_compile.passes.work import Stage
from hicache_compile.policy.guards import GUARDS
from hicache_compile.policy.json_codec import from_json, to_json
from hicache_compile.policy.presets.flexcache import from_params, pab_ranges, teacache_threshold
from hicache_compile.policy.run import RunInfo
from hicache_compile.policy.schedules.lemica import lemica_mask
from hicache_compile.policy.schedules.lemica_lists import LISTS
from hicache_compile.policy.schedules.magcache_tables import MAGCACHE_TABLES
from hicache_compile.runtime.deciders import Decision, RowSpec
from hicache_compile.runtime.deciders.guarded import GuardedDecider

Measured = Callable[[int, Sequence[int]], float]  # step, computed steps -> what the guard is shown


class Programs:
    """What the passes make of a policy with guards, without a model."""

    def __init__(self, policy: Policy) -> None:
        probes = enumerate(guard.probe for guard in policy.guards)
        self.stages = [Stage(n, Choice.probe(n), Choice.FORECAST) for n, probe in probes if probe.before]

    tokenwise: Sequence[str] = ()

    def choice(self, forecasts: Sequence[str], phases: Phases = ()) -> Choice:
        return Choice.forecasting(forecasts, [""])


def decider_of(policy: Policy, num_steps: int) -> GuardedDecider:
    return GuardedDecider(policy, Programs(policy), RowSpec(policy.depth), num_steps)  # type: ignore[arg-type]


def decided(decider: GuardedDecider, step: int, shown: Callable[[int], list[float]], forced: bool = False) -> Decision:
    """What ``step`` does where guard ``n`` is shown ``shown(n)`` whenever the host reads what it measured."""
    asking = decider.decide(step, forced)
    try:
        ask = next(asking)
        while True:
            ask = asking.send(shown(ask.guard) if ask.reads else [])
    except StopIteration as end:
        decision: Decision = end.value
        return decision


def decisions(policy: Policy, num_steps: int, measured: Measured) -> str:
    """The letters of a run in which guards are shown ``measured`` of each step."""
    decider = decider_of(policy, num_steps)
    letters = ""
    for step in range(num_steps):
        shown = [measured(step, decider.computed), 1.0] if step else [math.inf, math.nan]
        decision = decided(decider, step, lambda guard, shown=shown: shown)  # type: ignore[misc]
        decider.after(step, decision, {})
        letters += decision.letter
    return letters


def late_decisions(policy: Policy, num_steps: int, measured: Callable[[int], float]) -> str:
    """The letters of a run in which what is measured after a step is ``measured`` of it, when the host reads it."""
    decider = decider_of(policy, num_steps)
    letters = ""
    for step in range(num_steps):
        decision = decided(decider, step, lambda guard: [])
        decider.after(step, decision, {guard: [measured(step)] for guard in decision.reads})
        letters += decision.letter
    return letters


def computed(schedule: Any, num_steps: int) -> list[int]:
    return [step for step in range(num_steps) if schedule.computes(step, num_steps)]


def identity(threshold: float, **fields: Any) -> Policy:
    return Policy(Free(), Reuse(), "stack", (TeaCacheGuard(threshold, (1.0, 0.0), **fields),))


@pytest.mark.parametrize(("increment", "threshold"), [(0.1, 0.25), (0.1, 0.35), (0.05, 0.11), (0.3, 0.2), (0.1, 0.95)])
def test_constant_changes_add_up_to_a_period(increment: float, threshold: float) -> None:
    period = math.ceil(threshold / increment)
    expected = ("F" + "." * (period - 1)) * 40
    assert decisions(identity(threshold), 40, lambda step, full: increment) == expected[:40]
    drift = Policy(Free(), Reuse(), "stack", (FirstBlockGuard(threshold),), first=1)
    assert decisions(drift, 40, lambda step, full: (step - full[-1]) * increment) == expected[:40]


def test_the_first_flexcache_adds_up_distances_that_grow() -> None:
    policy = identity(0.25, reference="computed")
    assert policy.guards[0].probe.every_step is False
    letters = decisions(policy, 20, lambda step, full: (step - full[-1]) * 0.1)
    assert letters == ("F." * 10)  # the smallest k with .1 k (k + 1) / 2 >= .25 is 2


def test_every_model_has_a_fit_and_flux_is_as_measured() -> None:
    assert len(TEACACHE_MODELS) >= 34
    for name in TEACACHE_MODELS:
        assert TeaCache(0.1, name).guards[0].probe.before
    flux = TeaCacheGuard(0.4, TEACACHE_MODELS["flux"].coefficients, exact=True)
    assert flux.rescaled(0.0) == pytest.approx(0.264, abs=1e-3)
    places = [i / 1000 for i in range(500)]
    lowest = min(places, key=flux.rescaled)
    assert (lowest, flux.rescaled(lowest)) == (pytest.approx(0.053, abs=1e-3), pytest.approx(0.180, abs=1e-3))


# Where the published polynomials are negative (reference: evaluated on d in [0, .5]).
NEGATIVE = {
    "wan2.1-t2v-14b": [(0.0, 0.130), (0.411, 0.5)],
    "wan2.1-i2v-480p": [(0.0, 0.057), (0.44, 0.5)],
    "wan2.1-t2v-1.3b": [(0.185, 0.31)],
    "flux-kontext": [(0.241, 0.5)],
    "mochi": [(0.1445, 0.5)],
    "hidream-full": [(0.0685, 0.5)],
    "latte": [(0.237, 0.5)],
    "z-image": [(0.2865, 0.5)],
}


@pytest.mark.parametrize("model", NEGATIVE)
def test_the_sign_of_the_published_polynomials(model: str) -> None:
    coefficients = TEACACHE_MODELS[model].coefficients
    exact = TeaCacheGuard(0.1, coefficients, exact=True)
    clamped = TeaCacheGuard(0.1, coefficients)
    for d in [i / 1000 for i in range(1, 500)]:
        edge = any(min(abs(d - a), abs(d - b)) < 0.006 for a, b in NEGATIVE[model])
        inside = any(a <= d <= b for a, b in NEGATIVE[model])
        assert edge or (exact.rescaled(d) < 0) == inside
        assert clamped.rescaled(d) == max(0.0, exact.rescaled(d))


def test_wan_14b_is_far_below_zero() -> None:
    guard = TeaCacheGuard(0.1, TEACACHE_MODELS["wan2.1-t2v-14b"].coefficients, exact=True)
    assert guard.rescaled(0.05) == pytest.approx(-4.09, abs=0.01)


FLUX_28 = [0, 1, 2, 3, 4, 5, 7, 9, 13, 17, 21, 24, 26, 27]
MAGCACHE: list[tuple[MagCacheSchedule, int, list[int]]] = [
    (MagCacheSchedule(0.06, 3, 0.2), 28, FLUX_28),
    (MagCacheSchedule(0.24, 5, 0.1), 28, [0, 1, 2, 5, 9, 15, 21, 26]),
    (MagCacheSchedule(0.24, 5, 0.1, never=11), 28, [0, 1, 2, 5, 9, 11, 17, 23, 26]),
    (MagCacheSchedule(0.24, 5, 0.1), 50, [0, 1, 2, 3, 4, 6, 9, 13, 17, 23, 29, 35, 41, 45, 48]),
    (
        MagCacheSchedule(0.24, 6, 0.2, "hunyuan-video", rounded=False),
        50,
        [*range(10), 14, 18, 23, 29, 34, 41, 46, 48, 49],
    ),
    (
        MagCacheSchedule(0.06, 2, 0.2, "qwen-image", inclusive=False, rounded=False),
        50,
        [*range(16), 17, 18, 19, 21, 23, 25, 27, 29, 31, 34, 37, 39, *range(41, 50)],
    ),
]


@pytest.mark.parametrize(("schedule", "num_steps", "expected"), MAGCACHE)
def test_magcache_computes_the_published_steps(schedule: MagCacheSchedule, num_steps: int, expected: list[int]) -> None:
    assert computed(schedule, num_steps) == expected


def test_magcache_presets_and_tables() -> None:
    assert computed(MagCache().schedule, 28) == FLUX_28
    assert computed(MagCache(0.24, 6, 0.2, "hunyuan-video").schedule, 50) == MAGCACHE[4][2]
    assert computed(MagCache(0.06, 2, 0.2, "qwen-image").schedule, 50) == MAGCACHE[5][2]
    lengths = {name: len(table) for name, table in MAGCACHE_TABLES.items()}
    assert lengths == {"flux": 28, "flux-kontext": 28, "hunyuan-video": 50, "qwen-image": 50}
    assert all(table[0] == 1 for table in MAGCACHE_TABLES.values())
    with pytest.raises(HiCacheError, match="known length"):
        MagCacheSchedule(0.1).computes(3, None)


@pytest.mark.parametrize(("model", "budget"), [(m, b) for m, (_, lists) in LISTS.items() for b in lists])
def test_a_lemica_list_has_its_budget(model: str, budget: int) -> None:
    mask = lemica_mask(model, budget)
    assert (mask.count("1"), len(mask), mask[0], mask[-1]) == (budget, LISTS[model][0], "1", "1")
    assert LeMiCa(budget, model).decisions(len(mask)).count("F") == budget


def test_an_unknown_lemica_list_is_refused() -> None:
    with pytest.raises(HiCacheError, match=r"LeMiCa.budget = 12: must be one of 26, 20, 15, 10 for flux"):
        LeMiCa(12, "flux")


FLEXCACHE = [
    (0.0, 0.040, 0.0800, 0, 0),
    (0.1, 0.056, 0.1070, 1, 2),
    (0.2, 0.072, 0.1340, 2, 3),
    (0.3, 0.088, 0.1610, 3, 5),
    (0.4, 0.104, 0.1880, 4, 7),
    (0.5, 0.120, 0.2150, 5, 8),
    (0.6, 0.136, 0.2420, 6, 10),
    (0.7, 0.152, 0.2690, 7, 12),
    (0.8, 0.168, 0.2960, 8, 13),
    (0.9, 0.184, 0.3230, 9, 15),
    (1.0, 0.200, 0.3500, 10, 17),
]


@pytest.mark.parametrize(("ratio", "large", "small", "own", "cross"), FLEXCACHE)
def test_flexcache_maps_its_knob_as_published(ratio: float, large: float, small: float, own: int, cross: int) -> None:
    assert teacache_threshold(ratio, "Wan2.1-T2V-14B") == pytest.approx(large)
    assert teacache_threshold(ratio, "Wan2.1-T2V-1.3B") == pytest.approx(small)
    assert pab_ranges(ratio) == (own, cross)
    tea = FlexCache("teacache", ratio, model="Wan2.1-T2V-14B")
    pab = FlexCache(" PAB ", ratio)
    if ratio == 0.0:
        assert tea.decisions(20) == pab.decisions(20) == "F" * 20
        return
    (guard,) = tea.guards
    assert isinstance(guard, TeaCacheGuard)
    assert guard.threshold == pytest.approx(large)
    assert (guard.signal, guard.warmup, guard.cooldown) == ("modulation", 5, 5)
    assert guard.coefficients == TEACACHE_MODELS["wan2.1-t2v-14b-ret"].coefficients
    schedules = pab.schedule.schedules  # type: ignore[attr-defined]
    assert (schedules["self-attention"].every, schedules["cross-attention"].every) == (own, cross)


@pytest.mark.parametrize(
    ("ratio", "own", "cross"), [(0.05, 0, 0), (0.15, 2, 3), (0.25, 2, 3), (0.35, 4, 7), (0.45, 4, 7), (0.55, 6, 10)]
)
def test_halves_round_to_even(ratio: float, own: int, cross: int) -> None:
    assert pab_ranges(ratio) == (own, cross)
    FlexCache("pab", ratio)  # a range of 0 means 1


def test_flexcache_pab_computes_the_published_steps() -> None:
    schedules = FlexCache("pab", 0.3).schedule.schedules  # type: ignore[attr-defined]
    assert computed(schedules["self-attention"], 20) == [0, 1, 2, 3, 4, 5, 8, 11, 14, 15, 16, 17, 18, 19]
    assert computed(schedules["cross-attention"], 20) == [0, 1, 2, 3, 4, 5, 10, 15, 16, 17, 18, 19]


@pytest.mark.parametrize("name", [None, "", "none", "off", "Disable", "DISABLED"])
def test_flexcache_off_is_every_step(name: str | None) -> None:
    assert FlexCache(name).decisions(9) == from_params(name).decisions(9) == "F" * 9


def test_flexcache_takes_the_older_styles() -> None:
    assert from_params("teacache") == FlexCache("teacache", 0.5, 5, 5)
    assert from_params({"strategy": "pab", "cache_ratio": "0.3", "warmup": "2"}) == FlexCache("pab", 0.3, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "fora"}, "FlexCache.strategy = 'fora': must be one of teacache, pab"),
        ({"strategy": "pab", "cache_ratio": 1.2}, "FlexCache.cache_ratio = 1.2: must be a number from 0 to 1"),
        ({"strategy": "pab", "cache_ratio": "x"}, "FlexCache.cache_ratio = 'x': must be a number from 0 to 1"),
        ({"strategy": "pab", "warmup": -1}, "FlexCache.warmup = -1: must be an integer >= 0"),
        ({"strategy": "pab", "cooldown": None}, "FlexCache.cooldown = None: must be an integer >= 0"),
        ({"strategy": "pab", "ratio": 1}, "FlexCache.ratio: no such field"),
    ],
)
def test_flexcache_says_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(HiCacheError) as error:
        from_params(fields)
    assert message in str(error.value)


def test_pab_reuses_inside_its_window_only() -> None:
    times = tuple(1000 - 50 * step for step in range(20))
    schedule = Broadcast(3, window=(100, 850)).bind(RunInfo(times=lambda: times))
    skipped = [step for step in range(20) if not schedule.computes(step, 20)]
    assert skipped == [s for s in range(20) if s % 3 and 100 < times[s] < 850]
    assert computed(Broadcast(3, window=(100, 850)), 20) == computed(schedule, 20)  # times fall evenly
    with pytest.raises(HiCacheError, match=r"Broadcast.window: .* length"):
        Broadcast(3, window=(100, 850)).computes(4, None)


def test_mlps_are_broadcast_after_their_key_steps() -> None:
    times = (1000, 864, 788, 676, 500, 300)
    schedule = KeySteps((864, 676), skips=2).bind(RunInfo(times=lambda: times))
    assert [schedule.computes(step, 6) for step in range(6)] == [True, True, False, True, False, True]


def test_pab_kinds() -> None:
    groups = dict(PAB(2, 4, 6, mlp=KeySteps((500,), 3)).layout.groups)
    assert groups["mlp"] == 3
    assert set(groups) >= {"self-attention", "cross-attention", "temporal-attention"}


def test_dbcache_tests_in_order() -> None:
    low: Measured = lambda step, full: 0.01  # noqa: E731
    assert decisions(DBCache(2, 0, 0.08, 3), 10, low) == "FFF......."
    assert decisions(DBCache(2, 0, 0.08, 3, max_cached=2), 10, low) == "FFF..FFFFF"
    assert decisions(DBCache(2, 0, 0.08, 3, max_continuous=2), 10, low) == "FFF..F..F."
    assert decisions(DBCache(2, 0, 0.0, 3), 10, low) == "F" * 10
    assert decisions(DBCache(2, 0, 1.0, 3), 10, lambda step, full: 5.0) == "FFF......."  # blind from 1 on
    capped = Policy(Free(), Reuse(), "stack", (FirstBlockGuard(0.08, max_accumulated=0.025),), first=1)
    assert decisions(capped, 8, low) == "F...F..."


def test_every_guard_has_a_window_and_a_cap() -> None:
    for guard in (
        TeaCacheGuard(1e9, warmup=2, cooldown=3, max_skips=4),
        FirstBlockGuard(1e9, warmup=2, cooldown=3, max_skips=4),
        DiCacheGuard(1e9, warmup=2, cooldown=3, max_skips=4),
        EasyCacheGuard(1e9, warmup=2, cooldown=3, max_skips=4),
    ):
        policy = Policy(Free(), Reuse(), "stack", (guard,), first=1)
        assert decisions(policy, 14, lambda step, full: 0.1) == "FF....F....FFF"


def test_adacache_follows_its_codebook() -> None:
    policy = AdaCache(((0.1, 4), (0.2, 2), (1.0, 1)), warmup=2, cooldown=0)
    changes = {1: 0.15, 3: 0.1, 7: 4.0, 8: 0.05}
    assert late_decisions(policy, 16, lambda step: changes.get(step, 9.0))[:12] == "FF.F...FF..."


def test_speca_rejects_for_the_next_step() -> None:
    policy = SpeCa(0.5, 1.0, least=2, warmup=1, max_skips=4)
    errors = [0.9, 0.6, 0.1, 0.1, 0.1, 0.1]  # the first draft is not judged
    assert late_decisions(policy, 20, lambda step: errors.pop(0) if errors else 9.0)[:9] == "F..F....F"


def test_dicache_aligns_with_how_far_the_probe_went() -> None:
    rule = DiCacheGuard(1.0).watch(20)
    rule.after_full(0, ())
    assert rule.skips(1, [0.1, math.nan])
    assert rule.weights() is None  # one residual: it is reused
    rule.after_full(2, ())
    for progress, gamma in [(0.5, 1.0), (1.2, 1.2), (3.0, 1.5), (math.nan, 1.0), (math.inf, 1.5)]:
        assert rule.skips(3, [0.0, progress])
        assert rule.weights() == [gamma, 1.0 - gamma]


@pytest.mark.parametrize("shown", [math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_computes_and_is_counted(shown: float, caplog: pytest.LogCaptureFixture) -> None:
    decider = decider_of(FBCache(0.5), 5)
    for step in range(2):
        decision = decided(decider, step, lambda guard: [shown])
        decider.after(step, decision, {})
        assert decision == Decision(Choice.FULL, "F")
    assert decider.nonfinite == 1
    assert "FirstBlockGuard measured" in caplog.text


@pytest.mark.parametrize(
    "policy",
    [
        TeaCache(0.25),
        TeaCache(0.2, "wan2.1-t2v-14b-ret", coefficients=[1, 0], max_skips=3),
        FBCache(0.1, 2, 3, cooldown=1),
        FBCacheTeaCache(0.1, 0.2),
        DBCache(4, 2, max_cached=9),
        EasyCache(0.05),
        DiCache(0.2, 2),
        AdaCache(),
        SpeCa(),
        SenCache(0.2, (1.0, 2.5), [3.0, 0.5, 0.25]),
        MagCache(table=(1, 0.9, 1.1)),
        LeMiCa(15),
        PAB(mlp=KeySteps((676, 788))),
        FlexCache("teacache"),
        FlexCache("pab"),
    ],
)
def test_json_gives_an_equal_policy_back(policy: Policy) -> None:
    again = from_json(to_json(policy))
    assert again == policy
    assert (repr(again), again.layout, hash(again)) == (repr(policy), policy.layout, hash(policy))


BAD: list[tuple[type, dict[str, Any], str, Any]] = [
    *((cls, {"threshold": 0.1}, "threshold", value) for cls in GUARDS[:4] for value in (-1, "1", None, math.nan)),
    *((cls, {"threshold": 0.1}, field, -1) for cls in GUARDS[:4] for field in ("warmup", "cooldown", "max_skips")),
    (TeaCacheGuard, {"threshold": 1}, "coefficients", ()),
    (TeaCacheGuard, {"threshold": 1}, "coefficients", ("a",)),
    (TeaCacheGuard, {"threshold": 1}, "signal", "rhythm"),
    (TeaCacheGuard, {"threshold": 1}, "exact", 1),
    (TeaCacheGuard, {"threshold": 1}, "reference", "next"),
    *((TeaCacheGuard, {"threshold": 1}, "warning", bad) for bad in (-0.1, 1.1, "1", None)),
    (FirstBlockGuard, {"threshold": 1}, "downsample", 0),
    (FirstBlockGuard, {"threshold": 1}, "blocks", 0),
    (FirstBlockGuard, {"threshold": 1}, "max_cached", -2),
    (FirstBlockGuard, {"threshold": 1}, "max_continuous", 1.5),
    (FirstBlockGuard, {"threshold": 1}, "max_accumulated", -0.1),
    (FirstBlockGuard, {"threshold": 1}, "blind", "yes"),
    (DiCacheGuard, {"threshold": 1}, "blocks", 0),
    (DiCacheGuard, {"threshold": 1}, "error", "start"),
    (DiCacheGuard, {"threshold": 1}, "aligned", None),
    (DiCacheGuard, {"threshold": 1}, "limits", (2, 1)),
    (AdaCacheGuard, {}, "codebook", ()),
    (AdaCacheGuard, {}, "codebook", ((0.2, 3), (0.1, 2))),
    (AdaCacheGuard, {}, "codebook", ((0.2, 0),)),
    (SeaCacheGuard, {}, "threshold", -1),
    (SeaCacheGuard, {}, "exponent", 0),
    (SeaCacheGuard, {}, "grid", (4,)),
    *((SenCacheGuard, {}, field, -1) for field in ("threshold", "input_sensitivity", "time_sensitivity")),
    *((SenCacheGuard, {}, "input_sensitivity", bad) for bad in ((), (1, -1), "1", None)),
    *((SenCacheGuard, {}, "time_sensitivity", bad) for bad in ((), (1, -1), "1", None)),
    (SpeCaGuard, {}, "threshold", -1),
    (SpeCaGuard, {}, "decay", 0),
    (SpeCaGuard, {}, "floor", -0.1),
    (SpeCaGuard, {}, "least", -1),
    (SpeCaGuard, {}, "blocks", 0),
]


@pytest.mark.parametrize(("cls", "fields", "field", "value"), BAD)
def test_a_bad_value_is_named(cls: type, fields: dict[str, Any], field: str, value: Any) -> None:
    with pytest.raises(HiCacheError) as error:
        cls(**{**fields, field: value})
    assert str(error.value).startswith(f"{cls.__name__}.{field} = {value!r}: must be")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scope": "stack", "guards": (FirstBlockGuard(0.1), TeaCacheGuard(0.1))}, "from the fewest blocks measured"),
        ({"scope": "stack", "guards": 3}, "must be a tuple of guards"),
    ],
)
def test_guards_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(HiCacheError, match=message):
        Policy(Free(), Reuse(), **fields)


def test_kinds_are_sites_of_their_own_at_one_scope_only() -> None:
    with pytest.raises(
        HiCacheError, match=r"kinds of sites apart \(PerKind, DiTangoSchedule, Tokens\) cannot be combined with a scope"
    ):
        PAB(scope="stack")


def test_where_no_guard_skips_kinds_follow_their_schedules() -> None:
    """Attention every second step, MLPs are free: computed unless a guard skips."""
    schedule = PerKind({"self-attention": Interval(2, 1), "mlp": Free()})
    policy = Policy(schedule, Reuse(), "module", (TeaCacheGuard(0.25),))
    programs, groups = Programs(policy), ("self-attention", "mlp")
    programs.choice = lambda forecasts, phases=(): Choice.forecasting(forecasts, groups)  # type: ignore[method-assign]
    decider = GuardedDecider(policy, programs, RowSpec(1, groups, (0, 1)), 8)  # type: ignore[arg-type]
    letters, forecast = "", []
    for step in range(8):
        decision = decided(decider, step, lambda guard: [0.1])
        decider.after(step, decision, {})
        letters += decision.letter
        forecast.append(decider.rows.steps[step].forecasts)
    # .1 and .2 skip, .3 does not: where the schedule computes attention too, the sum starts over
    assert letters == "F..pF..p"
    assert forecast[1:4] == [[*groups], [*groups], ["self-attention"]]


def test_a_cooldown_needs_to_know_the_end() -> None:
    with pytest.raises(HiCacheError, match=r"TeaCacheGuard.cooldown = 1: must be 0 when the length"):
        TeaCache(0.2).forces(3, None)


def test_sensitivities_are_those_of_the_last_computed_step() -> None:
    """From 1 to 4 over 13 steps they are 1 + s / 4: .5 moved is worth .5 after step 0, and 1 after step 4."""
    policy = SenCache(0.99, (1.0, 4.0), max_skips=3, cooldown=0)
    assert decisions(policy, 13, lambda step, computed: 0.5) == "F...FFFFFFFFF"
    assert decisions(replace(policy, guards=(replace(policy.guards[0], threshold=1.01),)), 13, lambda s, c: 0.5) == (
        "F...F...FFFFF"
    )


def test_time_that_passes_is_a_share_of_the_run() -> None:
    """Each step passes 1 / 10 of the run: .3 is reached by the third after a computed one."""
    policy = SenCache(0.29, 0.0, 1.0, max_skips=None, cooldown=0)
    assert decisions(policy, 10, lambda step, computed: 0.0) == "F..F..F..F"
    assert decisions(policy, 20, lambda step, computed: 0.0) == "F.....F.....F.....F."
    with pytest.raises(HiCacheError, match=r"SenCacheGuard.num_steps = None: must be known"):
        policy.check_open_ended()


@pytest.mark.parametrize(("warning", "expected"), [(0.5, "F..tF.ttF..F"), (0.0, "FtttFtttFttF"), (1.0, "F...F...F..F")])
def test_below_the_warning_steps_are_forecast_and_above_it_polished(warning: float, expected: str) -> None:
    """Against the rule written out: below the warning line skip, below the hard line polish, else compute."""
    changes = [0.0, 0.1, 0.3, 0.4, 0.3, 0.2, 0.4, 0.2, 0.3, 0.2, 0.1, 0.9]
    policy = XSlim(1.0, warning, coefficients=(1.0, 0.0), cooldown=1)
    decider = decider_of(policy, len(changes))
    decider.rewrite.tokenwise = ["mlp"]  # type: ignore[misc]  # what stands for a rewrite can be written
    letters, rule, total = "", "", 0.0
    for step, change in enumerate(changes):
        decision = decided(decider, step, lambda guard, change=change: [change])  # type: ignore[misc]
        decider.after(step, decision, {})
        letters += decision.letter
        total += change
        letter = "F" if step in (0, len(changes) - 1) or total >= 1 else "t" if total >= warning else "."
        rule, total = rule + letter, 0.0 if letter == "F" else total
    assert letters == rule == expected
