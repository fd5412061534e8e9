"""Anchors on the CPU: the device holds one row a slot, the newest anchor or the forecast that is about to be read.

A forecast is a weighted sum, so the host can make it: a program of ring depth 1 reads a single row with weight 1.
The host rings are pinned where the device is a GPU, and copies go slot by slot without waiting, so that the copy of
one slot runs while the host sums the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hicache_compile.runtime.deciders.guarded import Course
from hicache_compile.runtime.deciders.scheduled import Inputs, OwnPlan, Plan
from hicache_compile.runtime.storage.rings import AnchorState, AnyPlan, RingShape, Token


class OffloadedState(AnchorState):
    """Rings of ``depth`` anchors on the CPU behind device rings of one row.

    Args:
        shapes: of the device rings, ``[1, *S]``.
        depth: anchors kept on the CPU.
    """

    def __init__(self, shapes: Sequence[RingShape], depth: int, memory: Mapping[str, RingShape] | None = None) -> None:
        super().__init__(shapes, memory)
        self.depth = depth
        pinned = any(device.type == "cuda" for _, _, device in shapes)
        with torch.inference_mode(False), torch.no_grad():
            self.host = [torch.zeros((depth, *shape[1:]), dtype=dtype, pin_memory=pinned) for shape, dtype, _ in shapes]
            self.sums = [torch.empty(shape[1:], dtype=dtype, pin_memory=pinned) for shape, dtype, _ in shapes]
            self.position = torch.zeros(1, dtype=torch.int64, device=self.rings[0].device)
            self.weights = torch.ones(1, device=self.rings[0].device)
        self._copied = torch.cuda.Event() if pinned else None

    def start(self, plan: AnyPlan, trajectory: int, token: Token) -> None:
        super().start(plan, trajectory, token)
        self._wait()
        torch._foreach_zero_(self.host)

    def inputs(self, step: int, dtype: torch.dtype) -> Inputs:
        return {"position": self.position, "weights": self.weights.to(dtype), **self.memory}

    def before_forecast(self, step: int) -> int:
        assert isinstance(self.plan, Plan | Course)  # groups are not offloaded
        self._wait()
        if isinstance(self.plan, OwnPlan):
            self.plan.measure(self.host, step)
        for ring, anchors, total in zip(self.rings, self.host, self.sums, strict=True):
            wide = torch.promote_types(anchors.dtype, torch.float32)
            row = torch.tensor(self.plan.rows[step], dtype=wide)
            total.copy_(torch.tensordot(row, anchors.to(wide), dims=1))
            ring[0].copy_(total, non_blocking=True)
        self._mark()
        return 0

    def after_full(self, step: int) -> None:
        assert isinstance(self.plan, Plan | Course)  # groups are not offloaded
        self._wait()
        for ring, anchors in zip(self.rings, self.host, strict=True):
            anchors[self.plan.positions[step]].copy_(ring[0], non_blocking=True)
        self._mark()

    def _mark(self) -> None:
        if self._copied is not None:
            self._copied.record()

    def _wait(self) -> None:
        """Until the copies under way are done: the host reads what they write and writes what they read."""
        if self._copied is not None:
            self._copied.synchronize()
