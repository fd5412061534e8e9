"""The rows of steps as tensors on a device, each uploaded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hicache_compile.passes.graph.choices import Phases
from hicache_compile.passes.graph.inputs import Role, StateInput

POSITION, WEIGHTS, DRAW = StateInput(Role.POSITION), StateInput(Role.WEIGHTS), StateInput(Role.DRAW)
KEPT = 64  # rows of guarded runs that are kept on the device


@dataclass(frozen=True, slots=True)
class RowSpec:
    """Which row of weights and positions a slot reads.

    Args:
        depth: anchors a ring holds.
        groups: groups of sites that are decided each by itself; ``("",)``: all together. Each has a position.
        group_of: the place of each ring's group, in the order of the rings.
        per_slot: each slot has a row of weights; else each group.
        own: rings with a row of their own, where each slot has one; a ring beyond reads the last (SpeCa's).
        offset: slots of the graphs that are called before this one in a step.
        parts: rows of weights that a forecast of one slot reads (``ByBand``).
    """

    depth: int
    groups: tuple[str, ...] = ("",)
    group_of: tuple[int, ...] = ()
    per_slot: bool = False
    own: int = 0
    offset: int = 0
    parts: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights of a step: ``[K]`` where there is one row."""
        rows = (self.own if self.per_slot else len(self.groups)) * self.parts
        return (rows, self.depth) if rows > 1 or self.per_slot else (self.depth,)


@dataclass(slots=True)
class StepRows:
    """One step: by group the ring row and how many anchors there are after it, and the weights ``[rows][K]``."""

    positions: list[int]
    known: list[int]
    weights: list[list[float]]
    forecasts: list[str]
    phases: Phases = ()


@dataclass(frozen=True, slots=True)
class DeviceTable:
    """By step the positions ``[groups]`` int64 and the weights, on a device."""

    device: torch.device
    dtype: torch.dtype
    positions: list[torch.Tensor]
    weights: list[torch.Tensor]


class DeviceRows:
    """What was uploaded of the rows of one run."""

    def __init__(self, spec: RowSpec) -> None:
        self.spec = spec
        self._table: DeviceTable | None = None
        self._rows: dict[tuple[object, ...], torch.Tensor] = {}

    def inputs(self, rows: StepRows, device: torch.device, dtype: torch.dtype) -> dict[StateInput, torch.Tensor]:
        """The position and the weights of one step; rows that come again are uploaded once."""
        place = self._kept(("position", *rows.positions), lambda: torch.tensor(rows.positions, device=device))
        flat = tuple(weight for row in rows.weights for weight in row)
        return {POSITION: place, WEIGHTS: self._kept(flat, lambda: self._upload([rows], device, dtype)[0])}

    def table(self, steps: Sequence[StepRows], device: torch.device, dtype: torch.dtype, wanted: int) -> DeviceTable:
        """``steps`` on ``device``, uploaded again when fewer than ``wanted`` are there."""
        found = self._table
        if found is None or (found.device, found.dtype) != (device, dtype) or wanted > len(found.weights):
            groups = len(self.spec.groups)
            positions = torch.zeros(len(steps), max(2, groups), dtype=torch.int64)  # each at a multiple of 16 bytes
            positions[:, :groups] = torch.tensor([rows.positions for rows in steps])
            places = [place[:groups] for place in positions.to(device, non_blocking=True)]
            found = self._table = DeviceTable(device, dtype, places, self._upload(steps, device, dtype))
        return found

    def refresh(self, step: int, rows: StepRows) -> None:
        """Write the weights of ``step`` into the table on the device."""
        if self._table is not None and step < len(self._table.weights):
            weights = torch.tensor(rows.weights, dtype=torch.float64)
            self._table.weights[step].copy_(weights.view(self.spec.shape))

    def _upload(self, steps: Sequence[StepRows], device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        # Rows start at multiples of 16 bytes: a misaligned input would be copied before every forecast.
        count = len(steps[0].weights) * self.spec.depth
        padded = torch.zeros(len(steps), -(-count // 4) * 4, dtype=dtype)
        flat = [[weight for row in rows.weights for weight in row] for rows in steps]
        padded[:, :count] = torch.tensor(flat, dtype=torch.float64)
        return [row[:count].view(self.spec.shape) for row in padded.to(device, non_blocking=True)]

    def _kept(self, key: tuple[object, ...], make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if key not in self._rows:
            while len(self._rows) > KEPT:
                del self._rows[next(iter(self._rows))]
            self._rows[key] = make()
        return self._rows[key]
