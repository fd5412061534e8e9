"""The rules of the guards by themselves, against the published vectors; no model runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from hicache_compile import (
    PAB,
    AdaCache,
    AdaCacheGuard,
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
