"""How a step runs: decide, read, compute or forecast, keep. One function for every decider."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hicache_compile.operators import collectives
from hicache_compile.operators.collectives import Ranks
from hicache_compile.passes.analysis.ranks import communicates_inside
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.inputs import MEASURED, Role, StateInput, memory
from hicache_compile.passes.lowering.cond_graph import branches_of, computing
from hicache_compile.runtime.deciders.base import Asking, Decider, Decision, Inputs
from hicache_compile.runtime.places import same_place
from hicache_compile.runtime.program_set import Program, ProgramSet
from hicache_compile.runtime.step import Step
from hicache_compile.runtime.storage.rings import Rings

Run = Callable[[Choice, Inputs], tuple[Program, Any]]  # runs the program of a choice; what is kept it knows
CPU = torch.device("cpu")


def execute(run: Run, programs: ProgramSet, storage: Rings, step: Step, graph: object) -> Any:
    """Run ``step`` of ``graph`` as the decider of ``storage`` decides; returns what the denoiser returns."""
    decider = storage.decider
    assert decider is not None
    decision = decider.decide(step.index, step.forced)
    if not programs.rewrite.ranks:
        return _execute(decision, run, programs, storage, step, graph)
    known = decision.choice if isinstance(decision, Decision) and not decision.pending else None
    communicates = known is None or communicates_inside(programs.rewrite, known)
    with same_place(programs.rewrite.ranks, step, str(known or "decided by guards"), communicates):
        return _execute(decision, run, programs, storage, step, graph)


def _execute(
    decision: Decision | Asking, run: Run, programs: ProgramSet, storage: Rings, step: Step, graph: object
) -> Any:
    decider = storage.decider
    assert decider is not None
    ranks = programs.rewrite.ranks
    handed: dict[StateInput, torch.Tensor] = {}
    if not isinstance(decision, Decision):
        decision = _asked(decision, run, decider, storage, step, handed, ranks)
    step.syncs += storage.prepare(decision, step.index, ranks)
    device = storage.tensors[0].device if storage.tensors else CPU
    inputs = {**handed, **storage.device_rows(decider.inputs(step.index, decision, device, programs.weights_dtype))}
    if programs.cond and programs.rings and not decision.pending:
        program, outputs = run(Choice.EITHER, {**inputs, **_predicates(programs, decision.choice)})
    else:
        program, outputs = run(decision.choice, inputs)
    if program.after:
        count = len(outputs) - len(program.after)
        after = dict(zip(program.after, outputs[count:], strict=True))
        outputs = outputs[:count]
        storage.replace(after)
        decider.take(after, step.resolver(graph, programs.rewrite.stages))
    storage.keep(decision, step.index)
    measured = {number: _read(storage, number, decider, step, ranks) for number in decision.reads}
    decider.after(step.index, decision, measured)
    step.record(graph, decision)
    return outputs


def _asked(
    asking: Asking,
    run: Run,
    decider: Decider,
    storage: Rings,
    step: Step,
    handed: dict[StateInput, torch.Tensor],
    ranks: Ranks,
) -> Decision:
    """The decision of a generator, once its probes have run; ``handed``: what they hand over to later programs."""
    try:
        ask = next(asking)
        while True:
            program, values = run(ask.probe, handed)
            handed |= dict(zip(program.returns, values, strict=True))
            ask = asking.send(_read(storage, ask.guard, decider, step, ranks) if ask.reads else [])
    except StopIteration as end:
        decision: Decision = end.value
        return decision


def _read(storage: Rings, guard: int, decider: Decider, step: Step, ranks: Ranks) -> list[Any]:
    """What ``guard`` measured: the one time a step waits for the device."""
    step.syncs += 1
    measured = storage.memory(memory(MEASURED, guard))
    if measured.dim() > 1:  # of the groups of keys of each attention, over this rank's queries
        measured = collectives.mean(measured, None if decider.spans_ranks else ranks)
    found: list[Any] = measured.tolist()
    return found


def _predicates(programs: ProgramSet, choice: Choice) -> Inputs:
    """Which branches of the one program are taken for ``choice``."""
    rewrite = programs.rewrite
    if rewrite.layout.groups:
        forecasts = frozenset(rewrite.groups if choice == Choice.FORECAST else choice.groups or ())
        taken = {StateInput(Role.COMPUTING, group): group not in forecasts for group in rewrite.groups}
    else:
        taken = {computing(branch): branch == choice for branch in branches_of(rewrite)}
    return {state: torch.tensor(value) for state, value in taken.items()}
