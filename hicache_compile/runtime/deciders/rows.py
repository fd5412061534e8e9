"""Weights and ring positions of the steps of one run, as rows that programs read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.operators.collectives import Ranks, total_outside
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.inputs import StateInput
from hicache_compile.policy.compatibility import Trait
from hicache_compile.policy.forecasters import measured_weights
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.run import RunInfo
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.sparsity.phases import Phase
from hicache_compile.runtime.deciders.computed_steps import ComputedSteps
from hicache_compile.runtime.deciders.device_rows import DRAW, DeviceRows, DeviceTable, RowSpec, StepRows


@dataclass(slots=True)
class AnchorRows:
    """The rows of one run, laid out step by step.

    Args:
        policy: the policy in force.
        spec: which row a slot reads.
        num_steps: length of the run; ``None``: unknown.
        start: the step at which the rings are empty.
        sparsity: how sparse computed steps are.
    """

    policy: Policy
    spec: RowSpec
    num_steps: int | None
    start: int = 0
    sparsity: Chipmunk | None = None
    tracks: dict[str, ComputedSteps] = field(init=False)
    steps: list[StepRows] = field(init=False)
    skipped: int = field(init=False, default=0)  # steps in a row that were not computed
    first: int = field(init=False)  # step that is known; those before were made elsewhere
    _bound: Policy = field(init=False)
    _rest: ComputedSteps | None = field(init=False)  # of sparse sites in no group, which every step computes
    _gram: dict[str, np.ndarray] = field(default_factory=dict)
    _device: DeviceRows = field(init=False)

    def __post_init__(self) -> None:
        self._device = DeviceRows(self.spec)
        self._bound = self.policy.bind(RunInfo(self.num_steps))
        self.tracks = {group: ComputedSteps(self.sparsity) for group in self.spec.groups}
        apart = self.sparsity is not None and "" not in self.tracks
        self._rest = ComputedSteps(self.sparsity) if apart else None
        blank = StepRows([0] * len(self.spec.groups), [0] * len(self.spec.groups), self._zeros(), [])
        self.steps = [blank] * self.start
        self.first = self.start
        if self.spec.per_slot:
            check_slots(self.policy, self.spec.offset + self.spec.own, complete=False)

    def _zeros(self) -> list[list[float]]:
        rows = self.spec.shape[0] if len(self.spec.shape) > 1 else 1
        return [[0.0] * self.spec.depth for _ in range(rows)]

    def lay(self, step: int, computed: Collection[str], own: Sequence[float] | None = None) -> StepRows:
        """Lay out ``step``: the groups ``computed`` write their next row, the others are forecast.

        ``own``: weights, newest first, in place of the forecaster's.
        """
        rows = StepRows([], [], self._zeros(), [group for group in self.spec.groups if group not in computed])
        phases = []
        for group, track in self.tracks.items():
            if group in computed:
                phase = track.compute(step)
                phases += [(group, phase)] if phase is not Phase.DENSE else []
            rows.positions.append((len(track.steps) - 1) % self.spec.depth)
            rows.known.append(len(track.steps))
        if self._rest is not None:
            phase = self._rest.compute(step)
            phases += [("", phase)] if phase is not Phase.DENSE else []
        rows.phases = tuple(phases)
        for place, group in enumerate(self.spec.groups):
            if group not in computed:
                self._forecast(rows, step, place, group, own)
        self.steps.append(rows)
        self.skipped = self.skipped + 1 if rows.forecasts else 0
        return rows

    def _forecast(self, rows: StepRows, step: int, place: int, group: str, own: Sequence[float] | None) -> None:
        track, known = self.tracks[group], rows.known[place]
        if own is None and self.spec.per_slot:
            read = self._bound.eligible(track.steps)[: self.spec.depth]
            each = self._bound.forecaster.slot_weights(read, step)  # type: ignore[attr-defined]  # Trait.PER_SLOT
            for slot, at in enumerate(self.spec.group_of[: self.spec.own]):
                if at == place:
                    found = track.bridged(self._bound, list(each[self.spec.offset + slot]))
                    rows.weights[slot] = self._in_ring_order(known, found)
            return
        parts = track.weights(self._bound, step, self.spec.depth) if own is None else [own] * self.spec.parts
        for row in self._rows_of(place):
            for part, weights in enumerate(parts):
                rows.weights[row * self.spec.parts + part] = self._in_ring_order(known, weights)

    def _rows_of(self, place: int) -> list[int]:
        """The rows of weights of the group at ``place``; where slots have parts, each stands for as many rows."""
        if not self.spec.per_slot:
            return [place]
        return [slot for slot, at in enumerate(self.spec.group_of[: self.spec.own]) if at == place]

    def _in_ring_order(self, computed: int, weights: Sequence[float]) -> list[float]:
        """``weights``, newest first, as a row of the ring after ``computed`` anchors were written."""
        row = [0.0] * self.spec.depth
        for age, weight in enumerate(weights[: self.spec.depth]):
            row[(computed - 1 - age) % self.spec.depth] = weight
        return row

    def rows_of(self, step: int, slot: int) -> list[list[float]]:
        """The weights of ``slot`` in ``step``, by ring row: a row for each part."""
        own = min(slot, self.spec.own - 1)
        first = (own if self.spec.per_slot else self.spec.group_of[slot]) * self.spec.parts
        return self.steps[step].weights[first : first + self.spec.parts]

    def anchors(self, step: int, group: str = "") -> list[int]:
        """The steps whose values a forecast of ``step`` may read, newest first."""
        place = self.spec.groups.index(group) if group in self.spec.groups else 0
        track = self.tracks[self.spec.groups[place]]
        return self.policy.eligible(track.steps[: self.steps[step].known[place]])[: self.spec.depth]

    def known(self, step: int) -> list[int]:
        """How many anchors were written before ``step``, by group."""
        if self.first < step <= len(self.steps):
            return self.steps[step - 1].known
        return [len(track.steps) for track in self.tracks.values()]

    def assign(self, step: int, weights: Sequence[Sequence[float]]) -> None:
        """Forecast ``step`` with ``weights``, newest first, one row for each row of weights."""
        rows = self.steps[step]
        for row, found in enumerate(weights):
            place = self.spec.group_of[row] if self.spec.per_slot else row
            rows.weights[row] = self._in_ring_order(rows.known[place], found)
        self._device.refresh(step, rows)

    @property
    def measures(self) -> bool:
        """Whether weights are fitted to the anchors."""
        return Trait.READS_ANCHORS in self.policy.traits

    def fit(self, step: int, rings: Sequence[torch.Tensor], ranks: Ranks = ()) -> int:
        """Fit the weights of ``step`` to the anchors, group by group.

        Args:
            rings: the anchors of each slot, ``[K, *S]`` in a floating dtype.
            ranks: each has a part of every slot.

        Returns:
            How often the host waited for the device: once for each group that was computed since.
        """
        waited = 0
        rows = self.steps[step]
        for place, group in enumerate(self.spec.groups):
            if group not in rows.forecasts:
                continue
            read = self.anchors(step, group)
            if group not in self._gram or group not in self.steps[step - 1].forecasts:
                places = [(rows.known[place] - 1 - age) % self.spec.depth for age in range(len(read))]
                mine = [slot for slot in range(len(rings)) if self.spec.group_of[slot] == place]
                gram = torch.stack([_gram(rings[slot][places]) for slot in mine]).sum(0).double()
                self._gram[group] = total_outside(gram, ranks).cpu().numpy()
                waited += 1
            found = measured_weights(
                self._bound.forecaster,  # type: ignore[arg-type]  # Trait.READS_ANCHORS
                _finite(self._gram[group]),
                read,
                step,
                self.policy.smoothing,
            )
            rows.weights[place] = self._in_ring_order(rows.known[place], found)
        self._device.refresh(step, rows)
        return waited

    def inputs(self, step: int, device: torch.device, dtype: torch.dtype) -> dict[StateInput, torch.Tensor]:
        """What the programs of ``step`` read."""
        return self._device.inputs(self.steps[step], device, dtype) | self.drawn(step, device)

    def drawn(self, step: int, device: torch.device) -> dict[StateInput, torch.Tensor]:
        """What is random in ``step``. A fill, which no device waits for."""
        tokens = self.policy.tokens
        return {} if tokens is None else {DRAW: torch.full((1,), tokens.draw(step), device=device)}

    def tokenwise(self, choice: Choice) -> Choice:
        """``choice`` of the step laid out last, with some tokens computed where the policy says so."""
        tokens = self.policy.tokens
        chosen = tokens is not None and choice.forecasts and tokens.chosen_at(self.skipped)
        return choice.with_tokens() if chosen else choice

    def table(self, device: torch.device, dtype: torch.dtype, steps: int) -> DeviceTable:
        """The rows of the first ``steps`` on ``device``, uploaded once."""
        return self._device.table(self.steps, device, dtype, steps)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later rows depend on, as plain data."""
        rest = {} if self._rest is None else {"rest": self._rest.state_dict()}
        tracks = {group: track.state_dict() for group, track in self.tracks.items()}
        return {"tracks": tracks, "skipped_in_a_row": self.skipped, **rest}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Go on at ``step`` from what ``state_dict`` returned."""
        for group, track in self.tracks.items():
            track.load_state_dict(state["tracks"][group])
        self.skipped = int(state.get("skipped_in_a_row", 0))  # of formats that had no tokens
        if self._rest is not None:
            self._rest.load_state_dict(state["rest"])
        blank = StepRows([0] * len(self.spec.groups), [0] * len(self.spec.groups), self._zeros(), [])
        self.steps += [blank] * max(0, step - len(self.steps))
        self.first = step


def _gram(anchors: torch.Tensor) -> torch.Tensor:
    flat = anchors.flatten(1).to(torch.promote_types(anchors.dtype, torch.float32))
    return flat @ flat.T


def _finite(gram: np.ndarray) -> np.ndarray:
    """``gram``, or that of one anchor alone where a value is not finite: then the newest is reused."""
    return gram if np.isfinite(gram).all() else np.eye(len(gram))


def check_slots(policy: Policy, slots: int, complete: bool = True) -> None:
    """Raise unless a table with weights for each slot has those of ``slots`` slots.

    Args:
        policy: whose forecaster has the table, if it has one.
        slots: the slots of the graphs that ran.
        complete: they are all graphs of a step; else more may follow.
    """
    known = getattr(getattr(policy.forecaster, "table", None), "slots", None)
    if known is not None and (known < slots or (complete and known > slots)):
        raise HiCacheError(
            f"Calibrated.table.slots = {known}: must be {slots}, the slots of this denoiser at scope {policy.scope!r}"
        )
