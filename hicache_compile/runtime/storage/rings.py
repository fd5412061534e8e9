"""Anchors: the rings of one compiled graph in one context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from hicache_compile.runtime.deciders.guarded import Course
from hicache_compile.runtime.deciders.scheduled import GroupPlan, Inputs, OwnPlan, Plan

RingShape = tuple[tuple[int, ...], torch.dtype, torch.device]
Token = tuple[object, ...]


@runtime_checkable
class Decided(Protocol):
    """A run that is decided as it goes along, and goes on after ``restore`` as it stood at ``standing``."""

    num_steps: int | None
    depth: int
    start: int
    nonfinite: int

    def standing(self) -> dict[str, Any]: ...

    def restore(self, standing: Mapping[str, Any]) -> None: ...


AnyPlan = Plan | GroupPlan | Decided


class AnchorState:
    """Ring buffers at fixed addresses, and what they are valid for.

    Made zero at every start, so a ring row without an anchor contributes exactly nothing even if the run
    before it ended in infinities. ``memory`` is what guards keep from step to step, by name.
    """

    def __init__(self, shapes: Sequence[RingShape], memory: Mapping[str, RingShape] | None = None) -> None:
        self.shapes = tuple(shapes)
        self.memory_shapes = dict(memory or {})
        # Inference tensors could not be written outside inference mode, and a run may mix the two.
        with torch.inference_mode(False), torch.no_grad():
            self.rings = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in shapes]
            self.memory = {
                name: torch.zeros(shape, dtype=dtype, device=device)
                for name, (shape, dtype, device) in self.memory_shapes.items()
            }
        self.plan: AnyPlan | None = None
        self.next_step = -1
        self.trajectory = -1
        self.run = -1  # the trajectory that `plan` is of, though its anchors may be stale
        self.weights_token: Token | None = ()  # None: the first that is seen
        self.signature: tuple[object, ...] = ()  # of the graph that wrote them
        self.suspended: dict[str, Any] | None = None  # what `standing` said when the run was suspended

    @property
    def nbytes(self) -> int:
        return sum(kept.untyped_storage().nbytes() for kept in (*self.rings, *self.memory.values()))

    def continues(self, trajectory: int, step: int, token: Token) -> bool:
        """Whether the anchors are those of this trajectory, complete, and made with these weights."""
        if self.weights_token is None:
            self.weights_token = token
        return (self.trajectory, self.next_step, self.weights_token) == (trajectory, step, token)

    def start(self, plan: AnyPlan, trajectory: int, token: Token) -> None:
        """Forget every anchor and follow ``plan``."""
        with torch.inference_mode(False), torch.no_grad():
            if kept := [*self.rings, *self.memory.values()]:
                torch._foreach_zero_(kept)
        self.plan, self.trajectory, self.weights_token, self.suspended = plan, trajectory, token, None
        self.run = trajectory

    def invalidate(self) -> None:
        """The anchors are no longer complete: the next step starts over."""
        self.trajectory = -1

    def standing(self) -> dict[str, Any] | None:
        """How the run stands as plain data, from which ``resume`` makes its plan again; ``None`` before its start."""
        if self.plan is None:
            return self.suspended
        course = {"course": self.plan.standing()} if isinstance(self.plan, Decided) else {}
        return {"depth": self.plan.depth, "start": self.plan.start, **course}

    def resume(self, plan: AnyPlan) -> None:
        """Go on with ``plan``, made again for a run that was suspended."""
        assert self.suspended is not None
        if isinstance(plan, Decided):
            plan.restore(self.suspended["course"])
        self.plan, self.suspended = plan, None

    def inputs(self, step: int, dtype: torch.dtype) -> Inputs:
        """What a program of ``step`` reads besides the rings."""
        assert isinstance(self.plan, Plan | GroupPlan | Course)  # a divided attention has no rings
        kept = [*self.rings, *self.memory.values()]
        return {**self.plan.inputs(step, kept[0].device, dtype), **self.memory}

    def before_forecast(self, step: int) -> int:
        """Make the rings ready to be read; how often the host waited for the device."""
        return self.plan.measure(self.rings, step) if isinstance(self.plan, OwnPlan) else 0

    def after_full(self, step: int) -> None:
        """Keep what the program wrote into the rings."""
