"""How one step runs: which programs in which order, and what is decided between them.

planned    the step index decided before the run: one program
measured   guards decide: probe, look, and either end the step in a forecast or go on to the next probe
divided    a plan for each group of each attention, made by what the step before measured
inside     the program takes the branch that the step index decided, under the cond backends
decided    the program measures and decides by itself, under the cond backends
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.key_partitions import Code
from hicache_compile.passes import Choice
from hicache_compile.runtime.deciders.computed_steps import is_computed, letter_of
from hicache_compile.runtime.deciders.guarded import Course
from hicache_compile.runtime.deciders.in_graph import DeviceCourse
from hicache_compile.runtime.deciders.partitioned import DiTangoCourse
from hicache_compile.runtime.deciders.scheduled import GroupPlan, Plan
from hicache_compile.runtime.program_set import Variant
from hicache_compile.runtime.step import Step
from hicache_compile.runtime.storage.rings import AnchorState

Data = Mapping[str, torch.Tensor]
Run = Callable[[str, Data], Any]  # run the program of a choice on what is not an input of the denoiser
Ran = tuple[str, Any]  # the choice that was made, and what the denoiser returns


def run_planned(run: Run, variant: Variant, state: AnchorState, step: Step) -> Ran:
    """A step whose choice is known."""
    assert state.plan is not None
    assert isinstance(state.plan, Plan | GroupPlan)
    choice = variant.known(Choice.FULL if step.context.ambiguous else state.plan.choice(step.index))
    computed = is_computed(choice)
    if computed:
        step.letter = letter_of(choice)
    else:
        step.syncs += state.before_forecast(step.index)
        step.letter = "." if choice == Choice.FORECAST else "p"
    outputs = run(choice, state.inputs(step.index, variant.weights_dtype))
    if computed:
        state.after_full(step.index)
    return choice, outputs


def run_measured(run: Run, variant: Variant, state: AnchorState, step: Step) -> Ran:
    """A step whose guards decide."""
    course = state.plan
    assert isinstance(course, Course)
    stages = variant.rewrite.stages
    forced = step.context.ambiguous or course.forces(step.index)
    values: dict[str, torch.Tensor] = dict(state.memory)
    for number, stage in enumerate(stages):
        values |= run(stage.probe, values)
        if forced:
            continue
        seen = course.nonfinite
        if course.skips(number, step.index, _read(state, number, step)):
            return _forecast(run, variant, state, step, course, number, values)
        forced = course.nonfinite > seen
    if not stages and not forced and course.skips(0, step.index, ()):
        return _forecast(run, variant, state, step, course, 0, values)
    choice = variant.known(course.compute(step.index))
    step.letter = letter_of(choice)
    outputs = run(choice, {**values, **state.inputs(step.index, variant.weights_dtype)})
    state.after_full(step.index)
    late = not stages and len(course.anchors.steps) > 1 and _measures(variant, choice)
    course.after(step.index, True, _read(state, 0, step) if late else ())
    return choice, outputs


def _forecast(
    run: Run, variant: Variant, state: AnchorState, step: Step, course: Course, number: int, values: Data
) -> Ran:
    course.forecast(step.index, number)
    state.before_forecast(step.index)
    step.letter = "s" if number else "."
    stages = variant.rewrite.stages
    choice = stages[number].skip if stages else str(Choice.FORECAST)
    outputs = run(choice, {**values, **state.inputs(step.index, variant.weights_dtype)})
    late = not stages and _measures(variant, choice)
    course.after(step.index, False, _read(state, 0, step) if late else ())
    return choice, outputs


def run_divided(run: Run, state: AnchorState, step: Step) -> Ran:
    """A step whose attentions reuse groups of keys."""
    course = state.plan
    assert isinstance(course, DiTangoCourse)
    codes = course.codes(step.index)
    forced = step.uncached or step.context.ambiguous or Code.FORCED in codes[0]
    distributed = course.split.distributed
    if forced and not distributed:
        return Choice.PLAIN, run(Choice.PLAIN, {})
    plan = torch.zeros(len(codes), course.split.groups, dtype=torch.int64) if forced else torch.tensor(codes)
    outputs = run(Choice.FORECAST, {**state.memory, "plan": plan})
    if forced:
        return Choice.FORECAST, outputs
    measured = state.memory[_measured(0)]
    if distributed:  # every rank plans by the same numbers
        torch.distributed.all_reduce(measured)
        measured /= course.split.partitions
    step.syncs += 1
    course.after(step.index, measured.tolist())
    step.letter = course.letter(step.index)
    return f"{Choice.FORECAST}:{course.reused(step.index)}", outputs


def run_inside(run: Run, variant: Variant, state: AnchorState, step: Step) -> Ran:
    """A step whose program takes the branch by itself and returns the rings as they are after it."""
    assert state.plan is not None
    computes = step.context.ambiguous or state.plan.choice(step.index) == Choice.FULL  # type: ignore[union-attr]  # no Course
    if not computes:
        state.before_forecast(step.index)
        step.letter = "."
    computing = torch.tensor(computes)
    outputs = run(Choice.EITHER, {"computing": computing, **state.inputs(step.index, variant.weights_dtype)})
    count = len(outputs) - len(state.rings)
    state.rings = list(outputs[count:])
    if computes:
        state.after_full(step.index)
    return Choice.FULL if computes else Choice.FORECAST, outputs[:count]


def run_decided(
    run: Run, variant: Variant, state: AnchorState, step: Step, note: Callable[[list[str], int, int], None]
) -> Ran:
    """A step whose guards are in its program, under the cond backends: nobody here knows what they decide."""
    course = state.plan
    assert isinstance(course, DeviceCourse)
    outputs = run(Choice.EITHER, {**state.memory, **course.inputs(step.index, step.context.ambiguous)})
    own = len(outputs) - len(state.rings) - len(state.memory) - len(course.vectors)
    kept = list(outputs[own:])
    state.rings, kept = kept[: len(state.rings)], kept[len(state.rings) :]
    state.memory, kept = dict(zip(sorted(state.memory), kept, strict=False)), kept[len(state.memory) :]
    letters = step.context.history[-1]
    course.take(kept, functools.partial(note, letters, len(letters)))
    step.letter = "?"
    return Choice.EITHER, outputs[:own]


def _measures(variant: Variant, choice: str) -> bool:
    """Whether the program of ``choice`` measures something the host is to look at after it."""
    return _measured(0) in variant.programs[choice].state


def _measured(number: int) -> str:
    return f"memory:measured_{number}"


def _read(state: AnchorState, number: int, step: Step) -> Sequence[float]:
    """What guard ``number`` measured: the one time a step waits for the device."""
    step.syncs += 1
    measured = state.memory[_measured(number)]
    if step.together:
        measured = _largest_of_all_ranks(measured)
    found: list[float] = measured.tolist()
    return found


def _largest_of_all_ranks(measured: torch.Tensor) -> torch.Tensor:
    """``measured`` with its first number, by which is decided, the largest of all ranks; no finite one is infinite."""
    dist = torch.distributed
    if not dist.is_available() or not dist.is_initialized():
        raise HiCacheError("hicache_compile.decide_together: must be false where torch.distributed is not initialised")
    first = torch.where(measured[:1].isfinite(), measured[:1], torch.inf)
    dist.all_reduce(first, dist.ReduceOp.MAX)
    return torch.cat([first, measured[1:]])
