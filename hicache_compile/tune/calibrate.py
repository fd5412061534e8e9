"""Fit the weights of forecasts to a model: least squares on what the denoiser returns.

A run is made again with the cache. At each step that is forecast the program runs once for every anchor, with the
whole weight on it, which shows what that anchor alone would make of the denoiser's output; the weights are the least
squares of these against what the run in full returned there, plus a share of what puts the sample back on the path
of that run. The branches of guidance are fitted as the sampler takes them together, which makes more of what they
differ in. One linear system of ``K - 1`` unknowns a step, from the Gram matrix of ``K`` outputs summed over runs: no
features are kept. Because the run goes on with the weights just found, later steps are fitted to the anchors they will
really have.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.forecasters import Calibrated, Table
from hicache_compile.policy.forecasters.kriging import solve
from hicache_compile.policy.forecasters.table import Row
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import Schedule
from hicache_compile.runtime.session import Call
from hicache_compile.runtime.step import Step
from hicache_compile.tune.reference import Difference, Reference, Runs, output_of, sample_of

RIDGE = 1e-3  # of the weights of a schedule, as a share of the mean squared difference that anchors make
SLOT_RIDGE = 1e-2  # of what a slot's own weights differ by from those of all, likewise


System = tuple[np.ndarray, np.ndarray]  # a Gram matrix and moments
Branch = tuple[torch.Tensor, torch.Tensor]  # what its anchors make of the output, and what it should be
Weights = list[list[float]]  # of each slot


@dataclass(frozen=True, slots=True)
class Calibration:
    """A policy with fitted weights. ``error``: of what the runs it was fitted on return, relative (2-norm); where they
    return no tensor, of the denoiser's outputs."""

    policy: Policy
    error: float


def calibrate(
    denoiser: CompiledDenoiser,
    runs: Runs,
    references: Sequence[Reference],
    table: Table,
    schedule: Schedule,
    policy: Policy,
    *,
    correction: float = 1.0,
    passes: int = 1,
    by_slot: bool = False,
) -> Calibration:
    """The best weights for ``schedule``, at the cut of ``policy``, whose forecaster is a ``Calibrated``.

    Args:
        denoiser: what ``hicache_compile`` returned; its policy is put back.
        runs, references: the runs, and what ``record`` said of them, in the same order.
        table: with distances, for steps and anchors that ``schedule`` does not have.
        correction: which share of its distance from the run in full the sample makes up until the next computed step.
        passes: how often all runs are made. One is enough for a single run without guidance, of any batch; with more,
            the first ones are made with weights that do not know all runs and branches yet.
        by_slot: whether each slot gets weights of its own; ``table.slots`` says how many there are.

    Raises:
        HiCacheError: the schedule does not serve runs of that length.
    """
    assert isinstance(policy.forecaster, Calibrated)
    reads, num_steps = policy.forecaster.reads, references[0].num_steps
    table = replace(table, rows=(), slots=table.slots if by_slot else None)
    kept, open_loop = denoiser.policy, Calibrated(table, reads)
    policy = replace(policy, schedule=schedule, forecaster=open_loop)
    try:
        denoiser.policy = policy
        fitter = _Fitter(policy, correction, num_steps)
        for _ in range(passes):
            fitter.begin_pass()
            for number, (run, reference) in enumerate(zip(runs, references, strict=True)):
                fitter.begin(number, reference)
                with denoiser.observed(fitter):
                    fitter.finish(run())
    finally:
        denoiser.policy = kept
        denoiser.reset()
    fitted = replace(table, rows=tuple(fitter.rows[step] for step in sorted(fitter.rows)))
    return Calibration(replace(policy, forecaster=Calibrated(fitted, reads)), fitter.error)


@dataclass(slots=True)
class _Fitter:
    """Makes the calls of a run: those that are forecast once for each anchor, then with the best weights so far."""

    policy: Policy
    correction: float
    num_steps: int
    reference: Reference | None = None
    run: int = 0
    rows: dict[int, Row] = field(default_factory=dict)
    # by step, then by run, and by branch where each is fitted by itself; of the newest pass that came there
    _systems: defaultdict[int, dict[tuple[int, str], System]] = field(default_factory=lambda: defaultdict(dict))
    _branches: dict[str, Branch] = field(default_factory=dict)  # of the step in progress
    _going: Weights = field(default_factory=list)  # in it
    _outputs: Difference = field(default_factory=Difference)
    _results: Difference = field(default_factory=Difference)

    @property
    def error(self) -> float:
        """See ``Calibration``."""
        return self._results.relative if self._results.size else self._outputs.relative

    def begin_pass(self) -> None:
        """All runs are made again."""
        self._outputs, self._results = Difference(), Difference()

    def begin(self, run: int, reference: Reference) -> None:
        """The next calls are those of ``run``."""
        self.run, self.reference = run, reference
        self._branches.clear()

    def __call__(self, step: Step, call: Call, run: Callable[[], Any]) -> Any:
        if not self.policy.forces(step.index, step.num_steps) and step.index:
            self._fit(step, call, run)
        value = run()
        self._compare(step, output_of(value))
        return value

    def _fit(self, step: Step, call: Call, run: Callable[[], Any]) -> None:
        deciders: list[Any] = [state.decider for state in step.context.states.values()]
        plans = [decider.rows for decider in deciders if hasattr(decider, "rows")]
        anchors = plans[0].anchors(step.index)
        per_slot = plans[0].spec.per_slot
        counts = [len(plan.steps[step.index].weights) for plan in plans]
        slots = sum(counts) if per_slot else 1
        best: Weights = [[1.0]] * slots
        going = best

        def assign(rows: Weights) -> None:
            for place, plan in enumerate(plans):
                first = sum(counts[:place])
                plan.assign(step.index, rows[first : first + counts[place]] if per_slot else rows[:1] * counts[place])

        def made(slot: int | None, place: int) -> torch.Tensor:
            """The output with the whole weight of ``slot`` on the anchor at ``place``, else on the newest."""
            chosen = [place if slot in (None, other) else 0 for other in range(slots)]
            assign([[float(anchor == one) for anchor in range(len(anchors))] for one in chosen])
            output = output_of(run()).float().flatten().double()
            step.undo()
            return output

        if len(anchors) > 1:
            newest = made(None, 0)
            older = [made(slot, place) - newest for slot in range(slots) for place in range(1, len(anchors))]
            wanted = self._target(step, call).flatten().double() - newest
            best, going = self._weights(step, torch.stack(older), wanted, slots)
        each = tuple(map(tuple, best))
        self.rows[step.index] = (step.index, tuple(anchors), each if per_slot else each[0])
        assign(going)

    def _weights(self, step: Step, older: torch.Tensor, wanted: torch.Tensor, slots: int) -> tuple[Weights, Weights]:
        """The best weights, now that of a branch of ``step`` it is known what its anchors differ in (``older``) and
        what is ``wanted``; and those the run goes on with. These are the same in all branches of a step: what they have
        wrong alike guidance leaves as it is, and it makes more of the rest."""
        assert self.reference is not None
        gains, systems = self.reference.gains[step.index], self._systems[step.index]
        is_first = not self._branches
        if gains:
            self._branches[step.context.name] = older, wanted
            if self._branches.keys() == gains.keys():
                systems[self.run, ""] = _system(*_guided(self._branches, gains))
                self._branches.clear()
        else:
            systems[self.run, step.context.name] = _system(older, wanted)
        # The first branch of the first run has to go on before the others are known.
        best = _solved(list(systems.values()) or [_system(older, wanted)], slots)
        self._going = best if is_first else self._going
        return best, self._going

    def _target(self, step: Step, call: Call) -> torch.Tensor:
        """What the denoiser should return: as in the run in full, and back onto its path."""
        assert self.reference is not None
        target = self.reference.outputs[step.context.name][step.index]
        before = self.reference.samples[step.context.name][step.index]
        sample = sample_of(call.arguments(), target)
        gains = [sum(mine.values()) for mine in self.reference.gains]
        if sample is None or before is None or not gains[step.index]:
            return target
        ahead = range(step.index + 1, self.num_steps)
        following = next((later for later in ahead if self.policy.forces(later, self.num_steps)), self.num_steps)
        reach = sum(gains[step.index : following])
        usual = statistics.median(map(abs, gains))  # a short last step is not made to do all that is left
        reach = math.copysign(max(abs(reach), usual), reach)
        return target - self.correction * (sample.float() - before) / reach

    def _compare(self, step: Step, output: torch.Tensor) -> None:
        assert self.reference is not None
        known = self.reference.outputs.get(step.context.name, [])
        if step.index >= len(known):
            raise HiCacheError("calibrate.runs: must make the same calls each time")
        self._outputs.add(output, known[step.index])

    def finish(self, result: object) -> None:
        """A run returned ``result``."""
        assert self.reference is not None
        if isinstance(result, torch.Tensor) and self.reference.result is not None:
            self._results.add(result, self.reference.result)


def _guided(branches: Mapping[str, Branch], gains: Mapping[str, float]) -> Branch:
    """``branches`` as the sampler takes them together."""
    total = sum(gains.values())
    shares = [(gains[name] / total, *branch) for name, branch in branches.items()]
    older = torch.stack([share * mine for share, mine, _ in shares]).sum(0)
    wanted = torch.stack([share * mine for share, _, mine in shares]).sum(0)
    return older, wanted


def _solved(systems: Sequence[System], slots: int) -> Weights:
    """The least-squares weights of each slot, of all ``systems`` together."""
    gram, moments = (np.sum(parts, axis=0) for parts in zip(*systems, strict=True))
    alike = np.tile(np.eye(len(gram) // slots), (slots, 1))  # all slots have the same weights
    shared = alike @ solve(alike.T @ gram @ alike, alike.T @ moments, RIDGE).T
    found = shared if slots == 1 else shared + solve(gram, moments - gram @ shared, SLOT_RIDGE).T
    return [[1.0 - float(one.sum()), *one.tolist()] for one in found.reshape(slots, -1)]


def _system(older: torch.Tensor, wanted: torch.Tensor) -> System:
    """The normal equations of ``weights @ older = wanted``."""
    return (older @ older.T).cpu().numpy(), (older @ wanted).cpu().numpy()[:, None]
