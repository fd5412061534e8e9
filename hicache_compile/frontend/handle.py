"""What a caller holds of a compiled denoiser: its runs and its policy, and what ``Inspected`` shows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError, plain, whole_number
from hicache_compile.frontend.inspected import Inspected
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.packs import Contract
from hicache_compile.policy.policy import NOWHERE, Policy
from hicache_compile.policy.schedules.base import StepMask
from hicache_compile.runtime.options import CompileOptions, warn_if_in_full
from hicache_compile.runtime.replay.capture import as_call
from hicache_compile.runtime.replay.parameters import Parameters
from hicache_compile.runtime.runs import Rows, Run, members_of
from hicache_compile.runtime.session import Observer
from hicache_compile.runtime.storage import rank_files, snapshot
from hicache_compile.runtime.storage.snapshot import Snapshot


class Handle(Inspected):
    """User-facing methods shared by ``CompiledDenoiser`` and the handle that ``inspect()`` returns."""

    _call: Callable[..., Any]  # calls what was compiled

    def trajectory(self, num_steps: int, timesteps: Sequence[float] | None = None) -> AbstractContextManager[None]:
        """``with compiled.trajectory(num_steps):`` one sampling run; anchors of earlier runs are forgotten.

        Args:
            num_steps: calls of the denoiser in each context.
            timesteps: of each step, in 0..1000, for policies made of timesteps (``PAB``); by default they fall evenly.

        Raises:
            HiCacheError: ``num_steps`` is not a positive integer or not the length the policy is made for, or
                ``timesteps`` are not that many numbers, or a trajectory is open already; inside, a call beyond
                ``num_steps`` in one context.
        """
        return self._session.open(num_steps, timesteps=timesteps)

    def run(self, num_steps: int, policy: Any = None, timesteps: Sequence[float] | None = None) -> Run:
        """A run as an object: ``with run:`` its steps, one or several at a time, while others are under way too.

        What ``trajectory`` does for the calls of one ``with`` statement, for those of many: requests that take turns in
        one thread, in generators, in tasks of asyncio. Each has anchors and a policy of its own, and is as it is alone.

        Args:
            num_steps, timesteps: see ``trajectory``.
            policy: of this run, in any form that ``policy`` takes; by default that of the denoiser, or what keeps the
                promise that this is ``promising`` inside of.

        Raises:
            HiCacheError: see ``trajectory`` and ``policy``.
        """
        mine = self._session.own_policy if policy is None else self._fitted(policy)
        return Run(self._sessions, num_steps, mine, timesteps)

    def rows(self, runs: Sequence[Run], contexts: Sequence[str] | None = None) -> AbstractContextManager[None]:
        """``with compiled.rows(runs): compiled(...)`` row ``i`` of the batch makes a step of ``runs[i]``.

        The runs may be at different steps, under different policies: rows that are computed and rows that are forecast
        run as programs of their own, and each row is what it is in a call by itself. Where the rows of a denoiser
        cannot be told apart, they are called one after another, and one warning says why.

        Args:
            runs: what ``run`` returned, one for each row.
            contexts: the guidance branch of each row; by default that of ``cache_context``.

        Raises:
            HiCacheError: ``runs`` are none, or closed, or of another denoiser, or there are not as many ``contexts``;
                inside, a batch with another number of rows.
        """
        return Rows(self._sessions, members_of(self._sessions, runs, contexts))

    def warmup(self, example_inputs: Mapping[str, Any] | Sequence[Any], num_steps: int = 50) -> None:
        """Capture the denoiser and compile every program of the policy now, for inputs that look like these.

        The denoiser is called, a full step and where the step alone decides a forecast one; no anchors and no history
        stay. Call it in the mode of the runs (``torch.no_grad()``, ``torch.inference_mode()``), on which Dynamo guards.

        Args:
            example_inputs: the arguments of one call, by name or in order, as they will be given.
            num_steps: how long the runs will be, which matters where the policy forecasts kinds of sites apart.

        Raises:
            HiCacheError: ``example_inputs`` is no dict, tuple or list, or a trajectory is open, or the policy cannot
                serve ``num_steps``.
        """
        args, kwargs = as_call(example_inputs, "warmup")
        num_steps = plain(num_steps)
        whole_number("warmup", "num_steps", num_steps, 1)
        policy, layout = self.policy, self.policy.layout
        decided = not (layout.probes or layout.groups or layout.partitions or layout.scope == NOWHERE)
        rehearsed, calls = (replace(policy, schedule=StepMask("10")), 2) if decided else (policy, 1)
        with self._session.rehearse(rehearsed, 2 if decided else num_steps):
            for _ in range(calls):
                self._call(*args, **kwargs)
            for graph in self._newest():
                graph.lower_all(policy, num_steps)

    def suspend(self, path: str | Path) -> None:
        """Write the open trajectory to ``path``: its policy, its step counter, every anchor of every context.

        Where ranks sample one thing each writes its own file beside ``path``: ``run-rank1of2.safetensors``.

        Raises:
            HiCacheError: no trajectory is open, or a step is in progress.
        """
        session = self._session
        if session.trajectory is None or session.num_steps is None or session.step is not None:
            raise HiCacheError("suspend(): must be called between two steps of an open `with compiled.trajectory(...)`")
        path = rank_files.own_path(path) if any(live.over_ranks for live in session.live.values()) else path
        snapshot.save(path, Snapshot(session.num_steps, session.policy, session.under_way(), self._weights()))

    @contextmanager
    def resume(self, path: str | Path) -> Iterator[None]:
        """``with compiled.resume(path):`` the steps that are left of a trajectory that ``suspend`` wrote.

        They are what they would have been, bit for bit, in another process too: on the same kind of device, with
        the same backend.

        Raises:
            HiCacheError: no such file, or other weights or another number of ranks made it, or a trajectory is open.
                Nothing is changed then.
        """
        path = rank_files.path_to_resume(path)
        kept = snapshot.load(path)
        self._session.options.check(kept.policy)
        mine = self._weights()
        if mine and kept.weights and mine != kept.weights:
            raise HiCacheError(f"resume.path = {str(path)!r}: must be of a denoiser with these weights; others made it")
        with self._session.open_again(kept, Parameters([*self._model.parameters()] if self._model else [])):
            yield

    def _weights(self) -> str:
        return "" if self._model is None else snapshot.fingerprint(self._model)

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """``with compiled.cache_context(name):`` calls inside belong to the guidance branch ``name``."""
        return self._session.in_context(name)

    def observed(self, observer: Observer) -> AbstractContextManager[None]:
        """``with compiled.observed(observer):`` each call inside is made by ``observer(step, call, make)``."""
        return self._session.observed(observer)

    def disabled(self) -> AbstractContextManager[None]:
        """``with compiled.disabled():`` calls inside run uncached (and compiled); they count as steps."""
        return self._session.without_cache()

    def reset(self) -> None:
        """Forget every anchor and decision of this thread, and every anchor of threads with no run under way."""
        if self._session.step is not None:
            raise HiCacheError("reset(): must not be called in the middle of a step")
        self._session.reset()

    @property
    def contract(self) -> Contract | None:
        """What was promised, where the policy was picked from a pack."""
        return self._session.options.contract

    @contextmanager
    def promising(self, max_error: float | None = None, max_seconds: float | None = None) -> Iterator[None]:
        """``with compiled.promising(max_error=.05):`` runs that begin inside, in this thread, keep another promise.

        So do those of the other denoisers of its pipeline: a pack is measured on the whole.

        Args:
            max_error, max_seconds: as of ``hicache_compile``.

        Raises:
            HiCacheError: the policy is of no pack, or nothing in the pack keeps the promise.
        """
        if self.contract is None:
            raise HiCacheError(
                "promising(): the denoiser must be compiled with a pack as policy; `hicache eval --pack`"
            )
        broken = self.contract.report().stepped_back
        picked = self.contract.pack.pick(max_error, max_seconds, without=broken)
        warn_if_in_full(picked, {"max_error": max_error, "max_seconds": max_seconds})
        policies = [(one._session, one._fitted(picked.policy)) for one in self._of_contract()]
        outer = [session.own_policy for session, _ in policies]
        for session, policy in policies:
            session.own_policy = policy
        try:
            yield
        finally:
            for (session, _), before in zip(policies, outer, strict=True):
                session.own_policy = before

    def _of_contract(self) -> list[Handle]:
        """This denoiser, and those of its pipelines that share its contract."""
        pipelines = [each.pipeline for each in self._session.shared.watched()]
        parts = [part for pipeline in pipelines for part in getattr(pipeline, "components", {}).values()]
        others = [part for part in parts if isinstance(part, Handle) and part.contract is self.contract]
        return [self, *(part for part in others if part is not self)]

    @property
    def policy(self) -> Policy:
        """The policy of the next trajectory. Assign a Policy, a preset name, a dict or a path to JSON."""
        return self._session.shared.policy

    @policy.setter
    def policy(self, value: Any) -> None:
        self._session.shared.policy = self._fitted(value)

    def _copied_options(self) -> CompileOptions:
        """For a copy: nothing of its contract is shared."""
        return replace(self._session.options, policy=self.policy, contract=copy.deepcopy(self.contract))

    def _fitted(self, value: Any) -> Policy:
        """``value`` as a policy for this denoiser, checked against the other options."""
        policy = as_policy(value)
        self._session.options.check(policy)
        return self._session.shared.fitted(policy, self._model)
