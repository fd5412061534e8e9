"""Anchors on the CPU: the device holds one row a slot, the newest anchor or the forecast that is about to be read.

A forecast is a weighted sum, so the host can make it: a program of ring depth 1 reads a single row with weight 1.
The host rings are pinned where the device is a GPU, and copies go slot by slot without waiting, so that the copy of
one slot runs while the host sums the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from hicache_compile.operators.anchors import quantised, scale_of
from hicache_compile.operators.collectives import Ranks
from hicache_compile.operators.parts import joined
from hicache_compile.passes.graph.inputs import SCALE, Role, StateInput, memory
from hicache_compile.passes.graph.parts import parts_of
from hicache_compile.runtime.deciders.base import Decider, Decision, Inputs
from hicache_compile.runtime.deciders.device_rows import POSITION, WEIGHTS
from hicache_compile.runtime.deciders.rows import AnchorRows
from hicache_compile.runtime.storage.rings import Kept, Rings, Token, Values


class HostRings(Rings):
    """Rings of ``depth`` anchors on the CPU behind device rings of one row.

    Args:
        kept: shapes on the device, rings ``[1, *S]``.
        depth: anchors kept on the CPU.
        quantised: the dtype they are kept in there, each with a scale; ``None``: in their own.
    """

    on_host = True

    def __init__(self, kept: Kept, depth: int, quantised: torch.dtype | None = None) -> None:
        super().__init__(kept)
        self.depth = depth
        self.quantised = quantised
        rings = {state.slot: shape for state, shape in kept.items() if state.role is Role.ANCHORS}
        shapes, self._numbers = [*rings.values()], [*rings]
        pinned = any(device.type == "cuda" for _, _, device in shapes)
        with torch.inference_mode(False), torch.no_grad():
            self.host = [
                torch.zeros((depth, *shape[1:]), dtype=quantised or dtype, pin_memory=pinned)
                for shape, dtype, _ in shapes
            ]
            self.scales = [torch.zeros(depth, pin_memory=pinned) for _ in shapes] if quantised else []
            self.sums = [torch.empty(shape[1:], dtype=dtype, pin_memory=pinned) for shape, dtype, _ in shapes]
        self._copied = torch.cuda.Event() if pinned else None
        self._inputs: dict[tuple[int, ...], Inputs] = {}

    @property
    def anchors(self) -> Sequence[torch.Tensor]:
        return Values(self.host, self.scales or [None] * len(self.host))

    def named(self) -> dict[StateInput, torch.Tensor]:
        host = iter(self.host)
        kept = {state: next(host) if state.role is Role.ANCHORS else on for state, on in super().named().items()}
        return kept | {memory(SCALE, slot): scales for slot, scales in enumerate(self.scales)}

    def start(self, decider: Decider, trajectory: int, token: Token) -> None:
        super().start(decider, trajectory, token)
        self._wait()
        torch._foreach_zero_([*self.host, *self.scales])

    def device_rows(self, inputs: Inputs) -> Inputs:
        weights, position = inputs[WEIGHTS], inputs[POSITION]
        shape = (*weights.shape[:-1], 1)
        if shape not in self._inputs:
            self._inputs[shape] = {WEIGHTS: weights.new_ones(shape), POSITION: torch.zeros_like(position)}
        return {**inputs, **self._inputs[shape]}

    def prepare(self, decision: Decision, step: int, ranks: Ranks = ()) -> int:
        if not decision.choice.forecasts:
            return 0
        self._wait()
        super().prepare(decision, step, ranks)  # the Gram matrix is made on the host
        for slot, ring, anchors in self._slots(step, forecast=True):
            wide = torch.float32 if self.quantised else torch.promote_types(anchors.dtype, torch.float32)
            rows = torch.tensor(self._rows.rows_of(step, slot), dtype=wide)
            factors = rows * self.scales[slot] if self.quantised else rows
            pieces = torch.tensordot(factors, anchors.to(wide), dims=1)
            parts = parts_of(self._rows.policy.layout, self._numbers[slot])
            self.sums[slot].copy_(pieces[0] if parts is None else joined(pieces.unbind(), parts))
            ring[0].copy_(self.sums[slot], non_blocking=True)
        self._mark()
        return 0

    def keep(self, decision: Decision, step: int) -> None:
        self._wait()
        for slot, ring, anchors in self._slots(step, forecast=False):
            place = self._rows.steps[step].positions[self._rows.spec.group_of[slot]]
            value = ring[0]
            if self.quantised is not None:
                scale = scale_of(value, self.quantised)
                value = quantised(value, scale, self.quantised)
                self.scales[slot][place].copy_(scale, non_blocking=True)
            anchors[place].copy_(value, non_blocking=True)
        self._mark()

    @property
    def _rows(self) -> AnchorRows:
        rows: AnchorRows = self.decider.rows  # type: ignore[union-attr]  # what has rings has rows
        return rows

    def _slots(self, step: int, forecast: bool) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """The slots whose group is forecast, or computed, in ``step``."""
        spec, forecasts = self._rows.spec, self._rows.steps[step].forecasts
        for slot, (ring, anchors) in enumerate(zip(self.rings, self.host, strict=True)):
            if (spec.groups[spec.group_of[slot]] in forecasts) == forecast:
                yield slot, ring, anchors

    def _mark(self) -> None:
        if self._copied is not None:
            self._copied.record()

    def _wait(self) -> None:
        """Until the copies under way are done: the host reads what they write and writes what they read."""
        if self._copied is not None:
            self._copied.synchronize()
