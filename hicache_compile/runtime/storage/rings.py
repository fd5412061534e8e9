"""Anchors on the device: the rings of one captured graph in one context, and what they are valid for."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.operators.anchors import dequantised
from hicache_compile.operators.collectives import Ranks
from hicache_compile.passes.graph.inputs import SCALE, Role, StateInput, memory
from hicache_compile.runtime.deciders.base import Decider, Decision, Inputs

Shape = tuple[tuple[int, ...], torch.dtype, torch.device]
Kept = Mapping[StateInput, Shape]  # what lasts from step to step, in the order of programs
Token = tuple[object, ...]
Witness = Callable[[int], Token | None]  # of some parameters: what changes when they do
UNKNOWN = ("unknown",)  # the signature of anchors of an older format


class Page:
    """A place in ``pool`` that the tensors of some rings are views of; ``free`` is told once they are gone."""

    def __init__(self, pool: Any, index: int, free: Callable[[int], object]) -> None:
        self.pool = pool
        self.index = index
        weakref.finalize(self, free, index).atexit = False


class Values(Sequence[torch.Tensor]):
    """The values of anchors by slot; those of a quantised ring are made when they are asked for."""

    def __init__(self, rings: Sequence[torch.Tensor], scales: Sequence[torch.Tensor | None]) -> None:
        self.rings, self.scales = rings, scales

    def __len__(self) -> int:
        return len(self.rings)

    def __getitem__(self, slot: Any) -> Any:
        ring, scale = self.rings[slot], self.scales[slot]
        return ring if scale is None else dequantised(ring, scale)


class Rings:
    """Ring buffers, and the memory of probes and sparse steps, at fixed addresses.

    All are made zero at every start, so a ring row without an anchor contributes exactly nothing even if the run before
    it ended in infinities. ``declared``: what programs call for, where it lives elsewhere.
    """

    def __init__(self, kept: Kept, declared: Kept | None = None) -> None:
        self.kept = kept if declared is None else declared
        # Inference tensors could not be written outside inference mode, and a run may mix the two.
        with torch.inference_mode(False), torch.no_grad():
            self.tensors = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in kept.values()]
        self.decider: Decider | None = None
        self.next_step = -1
        self.trajectory = -1
        self.run = -1  # the trajectory that `decider` is of, though its anchors may be stale
        self.token: Token | None = ()  # of the parameters that made them; None: of those at `resume`
        self.signature: tuple[object, ...] = ()  # of the graph that wrote them
        self._witness: Witness = lambda epoch: None  # of the parameters as they are now
        self._witnessed: Token | None = None  # when these were known to have made the anchors
        self.suspended: dict[str, Any] | None = None  # the decider's state when the run was suspended
        self.page: Page | None = None  # that `tensors` are views of
        self.counted = False  # rings are told by their place among those that are read, and not by their slots

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self.tensors)

    @property
    def rings(self) -> list[torch.Tensor]:
        """The rings on the device, by slot."""
        return [t for state, t in zip(self.kept, self.tensors, strict=True) if state.role is Role.ANCHORS]

    @property
    def anchors(self) -> Sequence[torch.Tensor]:
        """The values of the anchors, by slot, ``[K, *S]``: wherever and however they are kept."""
        kept = self.named()
        return Values(self.rings, [kept.get(memory(SCALE, state.slot)) for state in kept if state.role is Role.ANCHORS])

    def named(self) -> dict[StateInput, torch.Tensor]:
        """Everything a run keeps."""
        return dict(zip(self.kept, self.tensors, strict=True))

    def memory(self, state: StateInput) -> torch.Tensor:
        """What is kept under ``state``."""
        return self.tensors[list(self.kept).index(state)]

    on_host = False  # the rings that forecasts read are filled from others on the CPU

    def fits(self, kept: Kept, signature: tuple[object, ...]) -> bool:
        """Whether programs that call for ``kept``, of the graph ``signature``, may go on with this."""
        if self.signature is not signature and self.signature not in (UNKNOWN, signature):
            return False
        return self.kept is kept or self.kept == kept

    def differs_in_depth(self, kept: Kept, signature: tuple[object, ...]) -> bool:
        """Whether programs that call for ``kept`` may go on with this once its rings have their depth."""
        alike = self.signature == UNKNOWN or self.signature[:-1] == signature[:-1]
        return alike and self.kept != kept and _without_depth(self.kept) == _without_depth(kept)

    def change_depth(
        self, kept: Kept, signature: tuple[object, ...], decider: Decider, group_of: Sequence[int], step: int
    ) -> None:
        """Move the newest anchors to rings as deep as ``kept`` says, and go on with ``decider``, made for these.

        ``group_of``: the group of each ring.
        """
        described = self.state_dict()
        assert described is not None  # of a run that is under way
        decider.load_state_dict(described["decider"])
        decider.carry_over(self.decider)
        known = decider.known(step)
        rings = [state.slot for state in kept if state.role is Role.ANCHORS]
        written = {slot: known[group] for slot, group in zip(rings, group_of, strict=True)}
        before = self.tensors
        with torch.inference_mode(False), torch.no_grad():
            self.tensors = [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in kept.values()]
            for state, old, new in zip(kept, before, self.tensors, strict=True):
                if not _has_depth(state):
                    new.copy_(old)
                    continue
                for place in range(written[state.slot])[-min(len(old), len(new)) :]:
                    new[place % len(new)].copy_(old[place % len(old)])
        self.kept, self.signature, self.page = kept, signature, None
        self.decider, self.suspended = decider, None

    def name_rings(self, kept: Kept) -> None:
        """Take the slots of rings that are only counted from ``kept``, where everything else is as it is there."""
        if self.counted and _without_slots(self.kept) == _without_slots(kept):
            self.kept, self.counted = kept, False

    def continues(self, trajectory: int, step: int, token: Token, epoch: int) -> bool:
        """Whether the anchors are those of this trajectory, complete, and made with these parameters.

        ``epoch`` counts the changes of parameters that no version shows.
        """
        if self.token is None and not self._stale(epoch):
            self.token = token
        return (self.trajectory, self.next_step, self.token) == (trajectory, step, token)

    def is_awaited(self, trajectory: int, step: int, epoch: int) -> bool:
        """Whether it was read from a file to go on with at this step, and nothing has happened to it since."""
        return self.token is None and (self.trajectory, self.next_step) == (trajectory, step) and not self._stale(epoch)

    def start(self, decider: Decider, trajectory: int, token: Token) -> None:
        """Forget every anchor and follow ``decider``."""
        with torch.inference_mode(False), torch.no_grad():
            if self.tensors:
                torch._foreach_zero_(self.tensors)
        self.decider, self.trajectory, self.token, self.suspended = decider, trajectory, token, None
        self.run = trajectory

    def invalidate_if_stale(self, epoch: int) -> None:
        """The next step starts over if parameters changed; ``epoch`` as for ``continues``."""
        if self._stale(epoch):
            self.invalidate()

    def made_with(self, witness: Witness, epoch: int) -> None:
        """The anchors are of the parameters that ``witness`` knows, as they are now."""
        self._witness, self._witnessed = witness, witness(epoch)

    def _stale(self, epoch: int) -> bool:
        return self._witness(epoch) != self._witnessed

    def invalidate(self) -> None:
        """The anchors are no longer complete: the next step starts over."""
        self.trajectory = -1

    @property
    def start_of_run(self) -> int:
        """The step at which nothing was remembered."""
        return int(self.decider.start if self.decider is not None else (self.suspended or {"start": 0})["start"])

    def state_dict(self) -> dict[str, Any] | None:
        """The state of the run as plain data, from which ``resume`` goes on; ``None`` before its start."""
        if self.decider is None:
            return self.suspended
        return {"start": self.decider.start, "decider": self.decider.state_dict()}

    def resume(self, decider: Decider) -> None:
        """Go on with ``decider``, made again for a run that was suspended."""
        assert self.suspended is not None
        try:
            decider.load_state_dict(self.suspended["decider"])
        except (KeyError, TypeError) as error:
            raise HiCacheError(
                f"resume(): the decisions of the run are kept in another way ({error}): must be continued with the "
                "backend and options that it was suspended with"
            ) from None
        self.decider, self.suspended = decider, None

    def prepare(self, decision: Decision, step: int, ranks: Ranks = ()) -> int:
        """Make the anchors, of which each of ``ranks`` has a part, ready to be read by a forecast; how often the host
        waited for the device."""
        rows = getattr(self.decider, "rows", None)
        if rows is None or not rows.measures or not decision.choice.forecasts:
            return 0
        waited: int = rows.fit(step, self.anchors, ranks)
        return waited

    def device_rows(self, inputs: Inputs) -> Inputs:
        """``inputs`` as programs read them."""
        return inputs

    def keep(self, decision: Decision, step: int) -> None:
        """Keep what the program wrote into the rings."""

    def replace(self, after: Mapping[StateInput, torch.Tensor]) -> None:
        """Take over what a program returned in place of what is kept."""
        self.tensors = [after.get(state, kept) for state, kept in zip(self.kept, self.tensors, strict=True)]


def _has_depth(state: StateInput) -> bool:
    return state.role is Role.ANCHORS or state == memory(SCALE, state.slot)


def _without_depth(kept: Kept) -> list[tuple[StateInput, Shape]]:
    return [
        (state, (shape[1:] if _has_depth(state) else shape, dtype, device))
        for state, (shape, dtype, device) in kept.items()
    ]


def _without_slots(kept: Kept) -> list[tuple[Role, str, Shape]]:
    return [(state.role, state.name, shape) for state, shape in kept.items()]
