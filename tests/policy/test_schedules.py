"""Schedules, presets and masks against the published tables; rows of weights against a ring simulated by hand."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from hicache_compile import (
    FORA,
    SCM,
    Hermite,
    HiCache,
    HiCacheError,
    Interval,
    Newton,
    Policy,
    Reuse,
    Smoothing,
    StepMask,
    Taylor,
    TaylorSeer,
)
from hicache_compile.passes.graph.choices import Choice, Phases
from hicache_compile.runtime.deciders import Decision, RowSpec
from hicache_compile.runtime.deciders.scheduled import ScheduledDecider

Preset = Callable[..., Policy]
CPU = torch.device("cpu")

GOLDEN = {
    ("slow", 28): "1111111101110011100110010001",
    ("medium", 28): "1111110110001100011000110001",
    ("fast", 28): "1111110100010000100000100001",
    ("ultra", 28): "1111001000001000000100000001",
    ("slow", 50): "11111111111111111111110011111000111110001110001101",
    ("medium", 50): "11111111111111110011100000111000001110000011100001",
    ("fast", 50): "11111111111001100000110000000110000000001100000001",
    ("ultra", 50): "11111110001100000000011000000000001100000000000001",
    ("medium", 30): "111111111011000110001100011001",
    ("slow", 20): "11111111011100111001",
    ("medium", 20): "11111101100011000101",
    ("fast", 20): "11111101000000000001",
    ("ultra", 20): "11110000000000000001",
    ("slow", 8): "11111011",
    ("medium", 8): "11110101",
    ("fast", 8): "11101001",
    ("ultra", 8): "11001001",
    **{(speed, 4): "1101" for speed in ("slow", "medium", "fast", "ultra")},
}


def counter_rule(num_steps: int, warmup: int, interval: int) -> str:
    """The published code's counter (section 1.5)."""
    letters, counter = "", 0
    for step in range(num_steps):
        full = step < warmup or counter == interval - 1
        counter = 0 if full else counter + 1
        letters += "F" if full else "."
    return letters


@pytest.mark.parametrize(
    ("interval", "full", "last"),
    [(1, 50, 49), (2, 26, 48), (3, 18, 47), (4, 14, 46), (5, 12, 47)]
    + [(6, 10, 44), (7, 9, 44), (8, 8, 42), (9, 8, 47), (10, 7, 42)],
)
def test_fifty_steps_have_the_published_full_steps(interval: int, full: int, last: int) -> None:
    decisions = HiCache(interval).decisions(50)
    assert (len(decisions), decisions.count("F"), decisions.rindex("F")) == (50, full, last)


@pytest.mark.parametrize("warmup", range(1, 6))
@pytest.mark.parametrize("interval", range(1, 11))
def test_interval_is_the_published_counter(interval: int, warmup: int) -> None:
    policy = HiCache(interval, warmup=warmup)
    for num_steps in range(warmup, 61):
        decisions = policy.decisions(num_steps)
        assert decisions == counter_rule(num_steps, warmup, interval)
        assert decisions.count("F") == warmup + (num_steps - warmup) // interval


@pytest.mark.parametrize(
    ("schedule", "decisions"),
    [
        (Interval(1), "FFFFFFFFFFFF"),
        (Interval(3), "FFF..F..F..F"),
        (Interval(6), "FFF.....F..."),
        (Interval(4, 1), "F...F...F..."),
        (Interval(4, 2, 2), "FF...F...FFF"),
        (Interval(6, 1, 3), "F.....F..FFF"),
        (Interval(20, 1, 12), "FFFFFFFFFFFF"),
        (Interval(20, 1, 99), "FFFFFFFFFFFF"),
        (Interval(2, 20), "FFFFFFFFFFFF"),
        (StepMask("100101000011"), "F..F.F....FF"),
    ],
    ids=repr,
)
def test_decisions_are_one_letter_a_step(schedule: Interval | StepMask, decisions: str) -> None:
    assert Policy(schedule, Reuse()).decisions(12) == decisions


def test_a_restarted_run_computes_its_first_step_and_keeps_the_schedule() -> None:
    assert HiCache(6).decisions(12, start=4) == "F...F..."
    assert SCM("100101000011").decisions(12, start=6) == "F...FF"


@pytest.mark.parametrize("num_steps", [0, -1, 2.0, "28", None, True])
def test_a_length_that_is_no_positive_integer_is_refused(num_steps: object) -> None:
    with pytest.raises(HiCacheError, match=rf"num_steps = {num_steps!r}: must be an integer >= 1"):
        HiCache().decisions(num_steps)  # type: ignore[arg-type]  # the point


def test_cooldown_without_a_length_is_refused() -> None:
    with pytest.raises(HiCacheError, match=r"Interval\.cooldown = 2: must be 0 when the length .* not known"):
        Interval(6, cooldown=2).computes(9, None)


@pytest.mark.parametrize(
    ("preset", "names", "policy"),
    [
        (HiCache, ("interval", "order", "sigma", "warmup"), Policy(Interval(6, 3, 0), Hermite(2, 0.5), "module")),
        (TaylorSeer, ("interval", "order", "warmup"), Policy(Interval(6, 3, 0), Taylor(1), "module")),
        (FORA, ("interval", "warmup"), Policy(Interval(3, 1, 0), Reuse(), "module")),
        (lambda: SCM("fast"), None, Policy(StepMask(GOLDEN["fast", 28]), Reuse(), "stack")),
        (lambda: HiCache(7, 3, 0.6, 4), None, Policy(Interval(7, 4, 0), Hermite(3, 0.6), "module")),
        (lambda: TaylorSeer(4, 2, 1), None, Policy(Interval(4, 1, 0), Taylor(2), "module")),
        (lambda: FORA(5, 2), None, Policy(Interval(5, 2, 0), Reuse(), "module")),
        (lambda: SCM("ultra", 50), None, Policy(StepMask(GOLDEN["ultra", 50]), Reuse(), "stack")),
        (lambda: SCM("1011"), None, Policy(StepMask("1011"), Reuse(), "stack")),
        (lambda: SCM("10000", cooldown=2), None, Policy(StepMask("10011"), Reuse(), "stack")),
        (lambda: SCM("10000", cooldown=9), None, Policy(StepMask("11111"), Reuse(), "stack")),
    ],
)
def test_presets_are_these_points_in_policy_space(
    preset: Preset, names: tuple[str, ...] | None, policy: Policy
) -> None:
    assert preset() == policy
    if names:
        assert tuple(inspect.signature(preset).parameters) == (*names, "scope", "cooldown", "forecaster")


@pytest.mark.parametrize("preset", [HiCache, TaylorSeer, FORA])
def test_every_preset_takes_scope_cooldown_and_forecaster(preset: Preset) -> None:
    policy = preset(interval=5, warmup=2, scope="block", cooldown=4, forecaster=Newton(3))
    assert policy == Policy(Interval(5, 2, 4), Newton(3), "block")
    masked = SCM("fast", 28, scope="output", cooldown=3, forecaster=Taylor(2))
    assert masked == Policy(StepMask("1111110100010000100000100111"), Taylor(2), "output")


@pytest.mark.parametrize("preset", [HiCache, TaylorSeer, FORA, lambda **options: SCM("fast", **options)])
@pytest.mark.parametrize("value", [None, "", 0.0, False, "3", -1])
def test_presets_refuse_a_cooldown_that_is_no_count(preset: Preset, value: object) -> None:
    with pytest.raises(HiCacheError, match=rf"cooldown = {value!r}: must be an integer >= 0"):
        preset(cooldown=value)


@pytest.mark.parametrize("preset", [HiCache, TaylorSeer, FORA, lambda **options: SCM("fast", **options)])
@pytest.mark.parametrize("value", [0, False, "", {}, "Taylor", Taylor])
def test_presets_refuse_a_forecaster_that_is_none(preset: Preset, value: object) -> None:
    with pytest.raises(HiCacheError, match=r"forecaster = .*: must be an object with a method weights"):
        preset(forecaster=value)


@pytest.mark.parametrize(("speed", "num_steps"), GOLDEN)
def test_named_masks_are_the_golden_ones(speed: str, num_steps: int) -> None:
    assert SCM(speed, num_steps=num_steps).schedule == StepMask(GOLDEN[speed, num_steps])


@pytest.mark.parametrize(("speed", "runs"), [("slow", 6), ("medium", 6), ("fast", 6), ("ultra", 5)])
def test_longer_masks_cover_every_length_with_the_published_number_of_runs(speed: str, runs: int) -> None:
    for num_steps in range(28, 151):
        mask = SCM(speed, num_steps).decisions(num_steps)  # refused unless it is as long
        assert re.fullmatch(r"F+(\.+F+)*", mask)
        assert len(re.findall("F+", mask)) == runs


@pytest.mark.parametrize(
    ("mask", "num_steps", "message"),
    [
        ("fastest", None, r"SCM\.mask = 'fastest': must be one of slow, medium, fast, ultra"),
        ("fast", 27, r"SCM\.num_steps = 27: must be 4, 8, 20 or at least 28"),
        ("fast", 0, r"SCM\.num_steps = 0: must be an integer from 1 to 10000"),
        ("fast", "50", r"SCM\.num_steps = '50': must be an integer from 1 to 10000"),
        ("fast", 10**18, "must be an integer from 1 to 10000"),
        ("1011", 5, r"SCM\.num_steps = 5: must be 4, the length of the mask"),
        ("0111", None, r"StepMask\.mask = '0111': must start with 1"),
        ("", None, r"StepMask\.mask = '': must be a string of 1 .* and 0"),
        ([1, 2], None, r"StepMask\.mask = \[1, 2\]: must be a string of 1 .* and 0"),
    ],
)
def test_unusable_masks_are_refused(mask: str, num_steps: int, message: str) -> None:
    with pytest.raises(HiCacheError, match=message):
        SCM(mask, num_steps)


def test_a_mask_serves_only_its_own_length() -> None:
    schedule = StepMask("1011")
    assert [schedule.computes(step, None) for step in range(4)] == [True, False, True, True]
    with pytest.raises(HiCacheError, match=r"mask is for 4 steps, the trajectory has 5: must be equal"):
        schedule.computes(0, 5)
    with pytest.raises(HiCacheError, match=r"step 4: StepMask\.mask covers only 4 steps"):
        schedule.computes(4, None)


POLICIES = [
    HiCache(4),
    HiCache(5, order=4, warmup=2, cooldown=3),
    TaylorSeer(6, order=3, warmup=1),
    FORA(3),
    SCM("medium", 40, forecaster=Newton(2)),
    Policy(Interval(3, 1), Hermite(2), smoothing=Smoothing()),
]


class Programs:
    """Programs of sites that are decided all together, without a model."""

    tokenwise = ()

    def choice(self, forecasts: Sequence[str], phases: Phases = ()) -> Choice:
        return Choice.forecasting(forecasts, [""])


def decider_of(policy: Policy, num_steps: int | None, depth: int, start: int = 0) -> ScheduledDecider:
    return ScheduledDecider(policy, Programs(), RowSpec(depth), num_steps, start)  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [0, 1, 7])
@pytest.mark.parametrize("spare", [0, 1, 3])
@pytest.mark.parametrize("policy", POLICIES, ids=range(len(POLICIES)))
def test_rows_in_ring_order_reproduce_the_weights(policy: Policy, spare: int, start: int) -> None:
    decider = decider_of(policy, 40, policy.depth + spare, start)
    values = np.random.default_rng(start).normal(size=40)
    ring = np.full(policy.depth + spare, 1e30)  # an unwritten row that is read would show
    computed: list[int] = []
    for step, letter in enumerate(policy.decisions(40, start), start):
        rows = decider.rows.steps[step]
        assert decider.computes(step) == (letter == "F")
        assert decider.decide(step, False) == Decision(Choice.FULL if letter == "F" else Choice.FORECAST, letter)
        if letter == "F":
            ring[rows.positions[0]] = values[step]
            computed.append(step)
            continue
        expected = np.dot(policy.weights(computed, step), values[computed[::-1]][: len(policy.weights(computed, step))])
        assert np.dot(rows.weights[0], ring) == pytest.approx(expected, rel=1e-12, abs=1e-12)  # same sum, other order


@pytest.mark.parametrize("policy", [HiCache(4), TaylorSeer(6, order=3, warmup=1), FORA(3)], ids=str)
@pytest.mark.parametrize("start", [0, 7])
def test_a_run_of_unknown_length_grows_into_the_known_one(policy: Policy, start: int) -> None:
    known = decider_of(policy, 300, policy.depth, start)
    growing = decider_of(policy, None, policy.depth, start)
    for step in (start, start + 63, start + 64, 150, 299):
        assert growing.computes(step) == known.computes(step)
        decision = growing.decide(step, False)
        assert decision == known.decide(step, False)
        for state, value in growing.inputs(step, decision, CPU, torch.float32).items():
            assert torch.equal(value, known.inputs(step, decision, CPU, torch.float32)[state])
    assert growing.rows.steps[:300] == known.rows.steps[:300]


def test_a_mask_serves_a_run_of_unknown_length_until_it_ends() -> None:
    decider = decider_of(SCM("fast"), None, 1)
    assert "".join("1" if decider.computes(step) else "0" for step in range(28)) == GOLDEN["fast", 28]
    decider.inputs(27, decider.decide(27, False), CPU, torch.float32)
    with pytest.raises(HiCacheError, match=r"step 28: StepMask\.mask covers only 28 steps"):
        decider.computes(28)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_device_rows_are_those_of_the_run_in_the_wanted_dtype(depth: int, dtype: torch.dtype) -> None:
    decider = decider_of(HiCache(5), 30, depth)
    table = decider.rows.table(CPU, dtype, 0)
    rows = decider.rows.steps
    assert torch.equal(torch.stack(table.weights), torch.tensor([row.weights[0] for row in rows], dtype=dtype))
    assert torch.equal(torch.stack(table.positions), torch.tensor([row.positions for row in rows]))
    assert {place.dtype for place in table.positions} == {torch.int64}
    for entry in (*table.weights, *table.positions):
        assert entry.storage_offset() * entry.element_size() % 16 == 0  # else inductor copies it before every step


def test_the_table_is_uploaded_once_a_dtype_and_again_only_to_grow() -> None:
    decider = decider_of(HiCache(6), None, 3)

    def inputs(step: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
        return tuple(decider.inputs(step, decider.decide(step, False), CPU, dtype).values())

    first = [inputs(step) for step in range(64)]
    assert all(new is old for step in range(64) for new, old in zip(inputs(step), first[step], strict=True))
    grown = inputs(64)
    assert all(torch.equal(new, old) for s in range(64) for new, old in zip(inputs(s), first[s], strict=True))
    assert all(new is old for new, old in zip(inputs(64), grown, strict=True))
    table = decider.rows.table(CPU, torch.float32, 128)
    inputs(127)
    assert decider.rows.table(CPU, torch.float32, 128) is table
    assert {value.dtype for value in inputs(0, torch.float64)} == {torch.int64, torch.float64}
