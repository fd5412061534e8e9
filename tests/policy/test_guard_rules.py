"""Every guard's rule on the host and on tensors: the same decisions, memory and weights whatever is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hicache_compile import Forecaster, Free, Hermite, Policy, Reuse
from hicache_compile.operators import guard_state as rules
from hicache_compile.policy.guards import (
    GUARDS,
    AdaCacheGuard,
    DiCacheGuard,
    EasyCacheGuard,
    FirstBlockGuard,
    Guard,
    Measure,
    Numbers,
    SeaCacheGuard,
    SenCacheGuard,
    SpeCaGuard,
    TeaCacheGuard,
)
from tests.policy.test_guards import decided, decider_of

STEPS = 16
WEIRD = (math.nan, math.inf, -math.inf)
THRESHOLDS = st.sampled_from([0.0, 1e9]) | st.floats(0, 3)
MEASURED = st.sampled_from(WEIRD) | st.floats(0, 3, width=32)  # what a probe leaves is float32
WINDOW: dict[str, Any] = {
    "warmup": st.integers(0, 2),
    "cooldown": st.integers(0, 2),
    "max_skips": st.none() | st.integers(0, 4),
}


def rising(pairs: list[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    return tuple(sorted(dict(pairs).items()))


FIELDS: dict[type[Guard], dict[str, Any]] = {
    TeaCacheGuard: {
        "threshold": THRESHOLDS,
        "coefficients": st.lists(st.floats(-3, 3), min_size=1, max_size=4).map(tuple),
        "exact": st.booleans(),
        "reference": st.sampled_from(["previous", "computed"]),
        "warning": st.floats(0, 1),
    },
    FirstBlockGuard: {
        "threshold": THRESHOLDS,
        "max_cached": st.integers(-1, 6),
        "max_continuous": st.integers(-1, 4),
        "max_accumulated": st.none() | st.floats(0, 4),
        "blind": st.booleans(),
    },
    EasyCacheGuard: {"threshold": THRESHOLDS},
    DiCacheGuard: {
        "threshold": THRESHOLDS,
        "aligned": st.booleans(),
        "limits": st.tuples(st.floats(0, 1), st.floats(1, 2)),
    },
    AdaCacheGuard: {
        "codebook": st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5)), min_size=1, max_size=5).map(rising)
    },
    SeaCacheGuard: {"threshold": THRESHOLDS},
    SenCacheGuard: {
        "threshold": THRESHOLDS,
        "input_sensitivity": st.floats(0, 3) | st.lists(st.floats(0, 3), min_size=1, max_size=20).map(tuple),
        "time_sensitivity": st.floats(0, 9) | st.lists(st.floats(0, 9), min_size=1, max_size=20).map(tuple),
    },
    SpeCaGuard: {
        "threshold": THRESHOLDS,
        "decay": st.floats(0.01, 1),
        "floor": st.floats(0, 1),
        "least": st.integers(0, 3),
    },
}


def guards(kind: type[Guard]) -> st.SearchStrategy[Guard]:
    return st.builds(kind, **FIELDS[kind], **WINDOW)


class InGraph:
    """A run as the one program of a cond backend decides it: its functions of tensors, called one by one."""

    def __init__(self, policy: Policy, num_steps: int) -> None:
        self.rules = [rules.TensorRule(guard, Numbers) for guard in policy.guards]
        self.parameters = [vector(rule.parameters(num_steps)) for rule in self.rules]
        self.remembered = [vector(rule.first_remembered()) for rule in self.rules]
        self.run = torch.zeros(rules.HEAD + policy.depth, dtype=torch.float64)
        self.table = table_of(policy.forecaster, policy.depth).reshape(-1, policy.depth)
        self.policy = policy

    def decide(self, step: int, computing: bool, shown: Sequence[Sequence[float]]) -> int | None:
        """The guard that ends ``step``; ``None``: it is computed."""
        at = vector([step])
        forced = rules.starts_forced(torch.tensor(computing), self.run, at, *self.parameters)
        for number, rule in enumerate(self.rules):
            seen = vector(shown[number] if rule.guard.probe.before else [math.nan])
            answer = rule.ask(self.parameters[number], self.remembered[number], forced, at, seen)
            self.run = rules.counted(self.run, answer)
            self.remembered[number] = rules.remembered_after(answer)
            if rules.skips(answer):
                return number
            forced = rules.still_forced(answer)
        return None

    def weights(self, guard: int, step: int) -> list[float]:
        given = self.parameters[guard], self.remembered[guard], self.run, vector([step]), self.table
        found: list[float] = self.rules[guard].weights(*given).tolist()
        return found

    def after(self, step: int, skipped: int | None, late: Sequence[Sequence[float]]) -> None:
        for number, rule in enumerate(self.rules):
            after = rule.after_full if skipped is None else rule.after_forecast
            given = self.parameters[number], self.remembered[number], vector([step]), vector(late[number])
            self.remembered[number] = after(*given)
        if skipped is None:
            self.run = rules.run_after_full(self.run, vector([step]))
        else:
            self.run = rules.run_after_forecast(self.run, skipped + 1)

    def state(self, guard: int) -> dict[str, float]:
        names = self.rules[guard].guard.remembers
        return dict(zip(names, self.remembered[guard].tolist(), strict=False))


@cache
def table_of(forecaster: Forecaster, depth: int) -> Tensor:
    return rules.weight_table(Policy(Free(), forecaster, "stack"), depth, STEPS)


def vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def late_of(guard: Guard, computed: bool) -> bool:
    """Whether ``guard`` measures such a step when it is made."""
    measure = guard.probe.measure
    return (measure is Measure.VERIFY) if not computed else (measure is not Measure.VERIFY and not guard.probe.before)


def check_run(policy: Policy, measured: Sequence[Sequence[tuple[float, float]]], forced: Sequence[bool]) -> str:
    """The letters of a run that the host and tensors decide, of which everything is compared at every step."""
    host, graph = decider_of(policy, STEPS), InGraph(policy, STEPS)
    before = sum(guard.probe.before for guard in policy.guards)
    letters = ""
    for step in range(STEPS):
        shown = measured[step]
        decision = decided(host, step, lambda guard, shown=shown: list(shown[guard]), forced[step])  # type: ignore[misc]
        skipped = graph.decide(step, forced[step] or policy.forces(step, STEPS), shown)
        assert decision.letter == ("F" if skipped is None else "s" if skipped else ".")
        if skipped is not None:
            expected = host.rows.steps[step].weights[0]
            assert graph.weights(skipped, step) == pytest.approx(expected, rel=1e-6, abs=1e-6)  # a float32 table
        else:
            assert int(rules.position_of(graph.run)) == host.rows.steps[step].positions[0]
        first = skipped is None and len(host.computed) == 1  # measured against nothing
        late = [
            shown[n][:1] if late_of(guard, skipped is None) else [math.nan] for n, guard in enumerate(policy.guards)
        ]
        host.after(step, decision, {n: list(late[n]) for n in decision.reads})
        graph.after(step, skipped, [[math.inf] if first else one for one in late])
        for number, rule in enumerate(host.rules):
            assert graph.state(number) == pytest.approx(rule.state, rel=1e-12, abs=1e-12, nan_ok=True)
        assert graph.run[:2].tolist() == [len(host.computed), host.skipped]
        if before == len(policy.guards):
            assert graph.run[2] == host.nonfinite
        letters += decision.letter
    return letters


def runs(guards_count: int) -> Any:
    one = st.tuples(MEASURED, MEASURED)
    return st.lists(st.tuples(*[one] * guards_count), min_size=STEPS, max_size=STEPS)


FORCED = st.lists(st.sampled_from([False] * 7 + [True]), min_size=STEPS, max_size=STEPS)
FORECASTERS = st.sampled_from([Reuse(), Hermite(1), Hermite(2, 0.7)])


def test_every_guard_is_tried() -> None:
    assert set(FIELDS) == set(GUARDS)


@pytest.mark.parametrize("kind", GUARDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_host_and_tensors_agree(kind: type[Guard], data: st.DataObject) -> None:
    policy = Policy(Free(), data.draw(FORECASTERS), "stack", (data.draw(guards(kind)),))
    check_run(policy, data.draw(runs(1)), data.draw(FORCED))


@settings(max_examples=60, deadline=None)
@given(outer=guards(TeaCacheGuard), inner=guards(FirstBlockGuard), shown=runs(2), forced=FORCED)
@example(TeaCacheGuard(0.5), FirstBlockGuard(0.5), [((0.2, 0.0), (0.3, 0.0))] * STEPS, [False] * STEPS)
def test_guards_one_inside_another_agree(outer: Guard, inner: Guard, shown: Any, forced: list[bool]) -> None:
    check_run(Policy(Free(), Reuse(), "stack", (outer, inner)), shown, forced)


USUAL: dict[type[Guard], tuple[Guard, float, str]] = {
    TeaCacheGuard: (TeaCacheGuard(0.5), 0.2, "F..F..F..F..F..F"),
    FirstBlockGuard: (FirstBlockGuard(0.5, max_continuous=2), 0.2, "F..F..F..F..F..F"),
    EasyCacheGuard: (EasyCacheGuard(0.5), 0.2, "FF..F..F..F..F.."),
    DiCacheGuard: (DiCacheGuard(0.5), 0.2, "F..F..F..F..F..F"),
    AdaCacheGuard: (AdaCacheGuard(((0.3, 4), (1.0, 1))), 0.2, "FF...F...F...F.."),
    SeaCacheGuard: (SeaCacheGuard(0.5), 0.2, "F..F..F..F..F..F"),
    SenCacheGuard: (SenCacheGuard(0.4, 1.0, 1.2), 0.2, "F..F..F..F..F..F"),
    SpeCaGuard: (SpeCaGuard(0.1, 1.0, 0.0, 2), 0.2, "F..F..F..F..F..F"),
}


@pytest.mark.parametrize("kind", GUARDS)
def test_both_skip_as_they_should(kind: type[Guard]) -> None:
    """That they agree would say nothing if no step were ever skipped."""
    guard, shown, expected = USUAL[kind]
    policy = Policy(Free(), Hermite(1), "stack", (guard,))
    assert check_run(policy, [((shown, 1.2),)] * STEPS, [False] * STEPS) == expected


@pytest.mark.parametrize("weird", WEIRD)
@pytest.mark.parametrize("kind", GUARDS)
def test_what_is_no_finite_number_skips_nothing(kind: type[Guard], weird: float) -> None:
    """Where it is measured before the step, the step is computed; a draft with such an error is rejected."""
    guard, _, _ = USUAL[kind]
    letters = check_run(Policy(Free(), Reuse(), "stack", (guard,)), [((weird, weird),)] * STEPS, [False] * STEPS)
    assert letters == ("F..F..F..F..F..F" if kind is SpeCaGuard else "F" * STEPS)


def test_numbers_of_rules_are_data() -> None:
    """Guards that differ in numbers alone share a program."""
    for kind, others in {
        TeaCacheGuard: (TeaCacheGuard(0.1), TeaCacheGuard(7.0, (1.0, 2.0, 3.0), exact=True, warmup=3)),
        FirstBlockGuard: (FirstBlockGuard(0.1), FirstBlockGuard(0.2, max_cached=3, max_continuous=1, blind=True)),
        EasyCacheGuard: (EasyCacheGuard(0.1), EasyCacheGuard(0.2, max_skips=1)),
        DiCacheGuard: (DiCacheGuard(0.1), DiCacheGuard(0.2, aligned=False, limits=(0.0, 9.0))),
        AdaCacheGuard: (AdaCacheGuard(), AdaCacheGuard(((0.3, 4),))),
        SeaCacheGuard: (SeaCacheGuard(0.1), SeaCacheGuard(0.2, 3.0, (2, 3))),
        SenCacheGuard: (SenCacheGuard(0.1), SenCacheGuard(0.2, (1.0, 2.0, 0.5), 3.0, cooldown=2)),
        SpeCaGuard: (SpeCaGuard(), SpeCaGuard(1.0, 0.5, 0.2, 3)),
    }.items():
        signatures = {rules.TensorRule(guard, Numbers).signature for guard in others}
        assert len(signatures) == 1
        assert next(iter(signatures))[0] is kind
    assert len({rules.TensorRule(guard, Numbers).signature for guard, _, _ in USUAL.values()}) == len(GUARDS)
