"""The session: where a trajectory begins and ends, and how each of its steps is made.

The class it extends, ``StepCounter``, says which step a call is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hicache_compile.errors import HiCacheError, plain, whole_number
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.run import RunInfo, checked_times
from hicache_compile.runtime.call_arguments import Call
from hicache_compile.runtime.deciders.base import Decider
from hicache_compile.runtime.deciders.rows import check_slots
from hicache_compile.runtime.following.announced_run import ids
from hicache_compile.runtime.following.step_counter import StepCounter
from hicache_compile.runtime.nothing_cached import say_what_never_hit, say_what_was_compiled_anew
from hicache_compile.runtime.options import CompileOptions, Shared
from hicache_compile.runtime.places import call_under_way
from hicache_compile.runtime.replay.dispatch_modes import set_aside
from hicache_compile.runtime.replay.parameters import Parameters
from hicache_compile.runtime.step import Context, Step
from hicache_compile.runtime.storage.snapshot import Snapshot

__all__ = ["Call", "Observer", "Session"]

log = logging.getLogger(__name__)

Output = Any
Observer = Callable[[Step, Call, Callable[[], Output]], Output]  # makes a call of the denoiser, once or several times


class Session(StepCounter):
    """The trajectories of one compiled denoiser in one thread, or one of its runs; ``live``: how graphs were used."""

    def __init__(self, options: CompileOptions, shared: Shared) -> None:
        super().__init__(options, shared)
        self.live: dict[object, Any] = {}
        self.step: Step | None = None
        self._in_call = False  # from before its step is known until it is counted
        self.latest: Step | None = None  # the step of the call before
        self.last_graphs: list[object] = []
        self.most_graphs = 0
        self.warned_eager = False
        self.observer: Observer | None = None
        self._deciders: list[tuple[object, Decider]] = []
        self._layouts = list[tuple[Policy, Layout]]()
        self._slots: tuple[Policy, int] | None = None  # of the step before, where each has its own weights

    @contextmanager
    def open(
        self, num_steps: int, policy: Policy | None = None, timesteps: Sequence[float] | None = None
    ) -> Iterator[None]:
        """A trajectory of ``num_steps`` steps in every context, by default under the policy of ``shared``.

        ``timesteps``: of each step, for policies that are made of them.

        Raises:
            HiCacheError: ``num_steps`` is no positive integer, a mask has another length, or one is open already.
        """
        num_steps = plain(num_steps)
        whole_number("trajectory", "num_steps", num_steps, 1)
        if self.trajectory is not None:
            raise HiCacheError(f"trajectory({num_steps}): a trajectory of {self.num_steps} steps is open already")
        policy = policy or self.next_policy
        times = None if timesteps is None else checked_times(timesteps, num_steps)
        policy = policy.bind(RunInfo(times=lambda: times))
        policy.decisions(num_steps)  # a policy that cannot serve it says so now
        self._free_idle()
        self.policy = policy
        with self.shared.lock:
            self.num_steps, self.trajectory = num_steps, next(ids)
        try:
            yield
        except BaseException:
            self.invalidate()
            raise
        finally:
            self.num_steps = self.trajectory = None
            for other in self.shared.sessions.all():
                if other is not self:
                    other.free_if_idle()

    @contextmanager
    def open_again(self, run: Snapshot, parameters: Parameters) -> Iterator[None]:
        """The trajectory of ``run``; its anchors are of ``parameters`` as they are now.

        Raises:
            HiCacheError: a trajectory is open already.
        """
        if self.trajectory is not None:
            raise HiCacheError(f"resume(): must not be called while a trajectory of {self.num_steps} steps is open")
        with self._given_back(self.contexts), self.open(run.num_steps, run.policy):
            assert self.trajectory is not None
            self.contexts = {context.name: context for context in run.contexts}
            for context in run.contexts:
                context.trajectory = self.trajectory
                for state in context.states.values():
                    state.trajectory = state.run = self.trajectory
                    state.made_with(parameters.witness(), self.shared.parameters_epoch)
            yield

    def under_way(self) -> list[Context]:
        """The contexts of the open trajectory; anchors of other weights are stale, as the next step would find."""
        found = [context for context in self.contexts.values() if context.trajectory == self.trajectory]
        for state in (state for context in found for state in context.states.values()):
            state.invalidate_if_stale(self.shared.parameters_epoch)
        return found

    @contextmanager
    def _given_back(self, contexts: dict[str, Context]) -> Iterator[None]:
        """After an exception ``contexts`` are those of before."""
        try:
            yield
        except BaseException:
            self.contexts = contexts
            raise

    @contextmanager
    def rehearse(self, policy: Policy, num_steps: int) -> Iterator[None]:
        """A trajectory of ``num_steps`` steps under ``policy``, of which nothing stays."""
        if self.trajectory is not None or self.run is not None:
            raise HiCacheError("warmup(): must not be called inside a trajectory")
        kept = self.contexts, self.policy
        self.contexts = {}
        self.policy, self.num_steps, self.trajectory = policy, num_steps, next(ids)
        try:
            yield
        finally:
            self.contexts, self.policy = kept
            self.num_steps = self.trajectory = None

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Every call inside is made by ``observer(step, call, make)``."""
        outer, self.observer = self.observer, observer
        try:
            yield
        finally:
            self.observer = outer

    def run_step(self, call: Call, make: Callable[[Step], Output], step: Step | None = None) -> Output:
        """Make one step with ``make``: count it, run it without gradients, keep what it leaves behind.

        Args:
            call: the denoiser's call.
            make: makes it, once or, where it is observed, several times.
            step: the step in progress, where another part of its call runs.
        """
        if self.step is not None:
            raise HiCacheError("the compiled denoiser was called from inside its own call")
        self._in_call = True
        try:
            with call_under_way():
                return self._run_step(call, make, step)
        finally:
            self._in_call = False

    def _run_step(self, call: Call, make: Callable[[Step], Output], step: Step | None) -> Output:
        again = step is not None
        if not again:
            self._check_slots()
        current = self.step = step or self.next_step(call)
        try:
            with torch.no_grad(), set_aside() as current.modes:
                if self.observer is None or again:
                    output = make(current)
                else:
                    output = self.observer(current, call, lambda: make(current))
        except BaseException:
            current.invalidate()
            raise
        finally:
            self.step = None
        self.finish(current, again)
        return output

    def finish(self, step: Step, again: bool = False) -> None:
        """The call returned: count it. ``again``: it was counted, and another of its graphs ran."""
        self.latest = step
        self.last_graphs = step.graphs
        self._slots = self._slots_of(step)
        self.syncs += step.syncs
        step.context.choices.update(step.choices)
        step.choices, step.calls, step.syncs = [], [], 0
        self.most_graphs = max(self.most_graphs, len(step.graphs))
        if step.context.history and again:
            step.context.history[-1][-1] = step.letter
        elif step.context.history:
            step.context.step += 1
            step.context.history[-1].append(step.letter)
            say_what_never_hit(step)
            say_what_was_compiled_anew(step, self.most_graphs, self.shared.warn_once)

    @property
    def is_idle(self) -> bool:
        return not self._in_call and super().is_idle

    def forget(self) -> None:
        """Forget the anchors and the history of this thread."""
        super().reset()
        self.last_graphs, self.latest = [], None
        self._deciders, self._slots = [], None
        self.live.clear()

    def reset(self) -> None:
        """Forget the anchors and the history of this thread, and the anchors of threads that no run is under way in."""
        self.forget()
        for other in self.shared.sessions.all():
            other.free_if_idle()

    def _check_slots(self) -> None:
        """How many slots a denoiser has is known once every graph of its first step, which is computed, has run."""
        if self._slots is not None:
            (policy, slots), self._slots = self._slots, None
            check_slots(policy, slots)

    def _slots_of(self, step: Step) -> tuple[Policy, int] | None:
        policy = step.context.policy
        if step.uncached or not self.layout_of(policy).per_slot:
            return None
        return policy, sum(self.live[graph].slots for graph in step.graphs if graph in self.live)

    def layout_of(self, policy: Policy) -> Layout:
        """The layout of ``policy``; the same object while the policy is."""
        for known, layout in self._layouts:
            if known is policy:
                return layout
        self._layouts = [*self._layouts[-7:], (policy, self.options.layout(policy))]
        return self._layouts[-1][1]

    def shared_decider(self, key: object, make: Callable[[], Decider]) -> Decider:
        """The decider of ``key``; shared by contexts where the step index alone decides and nobody observes."""
        for known, decider in self._deciders:
            if known == key:
                return decider
        made = make()
        if made.shareable and self.observer is None:
            self._deciders = [*self._deciders[-7:], (key, made)]
        return made
