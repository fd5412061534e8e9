"""What a caller holds of a compiled denoiser: its runs, its policy, its graphs, its report."""

from __future__ import annotations

import itertools
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import fx, nn

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.inspection.bytecode import decompiled
from hicache_compile.inspection.dump import schedule, write
from hicache_compile.inspection.explanation import Explanation, View, explain
from hicache_compile.inspection.report import Report, gather
from hicache_compile.passes import Choice
from hicache_compile.passes.graph.source import printable
from hicache_compile.policy.files import file_path
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.policy import NOWHERE, Policy
from hicache_compile.policy.schedules.base import StepMask
from hicache_compile.runtime.compiled_graph import CompiledGraph
from hicache_compile.runtime.per_thread import PerThread
from hicache_compile.runtime.replay.capture import as_call
from hicache_compile.runtime.replay.parameters import Parameters
from hicache_compile.runtime.session import Observer, Session
from hicache_compile.runtime.step import Context, Step
from hicache_compile.runtime.storage import snapshot
from hicache_compile.runtime.storage.snapshot import Snapshot

_dumps = itertools.count()


class Handle:
    """User-facing methods shared by ``CompiledDenoiser`` and the handle that ``inspect()`` returns."""

    _sessions: PerThread[Session]
    _graphs: list[CompiledGraph]
    _model: nn.Module | None = None  # whose weights they are, where that is known
    _call: Callable[..., Any]  # calls what was compiled
    _dumped: list[int]  # programs in the newest dump, and its number

    @property
    def _session(self) -> Session:
        """That of this thread."""
        return self._sessions.mine()

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

        Raises:
            HiCacheError: no trajectory is open, or a step is in progress.
        """
        session = self._session
        if session.trajectory is None or session.num_steps is None or session.step is not None:
            raise HiCacheError("suspend(): must be called between two steps of an open `with compiled.trajectory(...)`")
        snapshot.save(path, Snapshot(session.num_steps, session.policy, session.under_way(), self._weights()))

    @contextmanager
    def resume(self, path: str | Path) -> Iterator[None]:
        """``with compiled.resume(path):`` the steps that are left of a trajectory that ``suspend`` wrote.

        They are what they would have been, bit for bit, in another process too: on the same kind of device, with
        the same backend.

        Raises:
            HiCacheError: no such file, or other weights made it, or a trajectory is open. Nothing is changed then.
        """
        kept = snapshot.load(path)
        self._session.options.check(kept.policy)
        mine = self._weights()
        if mine and kept.weights and mine != kept.weights:
            raise HiCacheError(f"resume.path = {str(path)!r}: must be of a denoiser with these weights; others made it")
        with self._session.open_again(kept, Parameters([*self._model.parameters()] if self._model else [])):
            yield

    def _weights(self) -> str:
        return "" if self._model is None else snapshot.fingerprint(self._model.state_dict().items())

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
    def policy(self) -> Policy:
        """The policy of the next trajectory. Assign a Policy, a preset name, a dict or a path to JSON."""
        return self._session.shared.policy

    @policy.setter
    def policy(self, value: Any) -> None:
        policy = as_policy(value)
        self._session.options.check(policy)
        self._session.shared.policy = self._session.shared.fitted(policy, self._model)

    @property
    def graphs(self) -> dict[str, fx.GraphModule]:
        """``captured``, ``guarded``, ``full`` and ``forecast``: empty before the first call. Where guards decide in the
        middle of a step, also what runs before each decision, ``probe_0`` and so on, and each way to end the step.

        ``print`` shows each as Python that runs, with where it comes from in the first lines. A denoiser that was
        captured in several graphs has ``captured.1`` and so on for the later ones.
        """
        found: dict[str, fx.GraphModule] = {}
        for number, graph in enumerate(self._graphs):
            suffix = f".{number}" if number else ""
            layout, _ = self._layout(graph)
            for name, module in graph.programs(layout).rewrite.levels().items():
                if name != str(Choice.PLAIN):  # the captured graph once more
                    title = f"{name} graph of {self._name()}, scope {layout.scope}"
                    found[name + suffix] = printable(module, title)
        return found

    def _layout(self, graph: CompiledGraph) -> tuple[Layout, str]:
        """The layout of ``graph`` under the policy of the next trajectory, and what a memory budget has to say."""
        live, called = self._session.live.get(graph), self._session.last_graphs
        earlier = called[: called.index(graph)] if graph in called else []
        step = Step(Context("", self.policy), 0, None, graphs=earlier)  # what they take is no longer left for this one
        return graph.layout(self.policy, step, live.bindings if live else {})

    def _layouts(self) -> list[Layout]:
        return [self._layout(graph)[0] for graph in self._newest()]

    def explain(self, num_steps: int = 50) -> Explanation:
        """What was found in the denoiser and what its policy makes of a run of ``num_steps``: ``print`` shows tables.

        Blocks, sites with their kind, FLOPs and bytes, the same policy at the other scopes, and what was refused.

        Raises:
            HiCacheError: the denoiser was not called yet, or ``num_steps`` is not a length the policy can serve.
        """
        if not self._graphs:
            raise HiCacheError("explain(): the denoiser must have been called once, or warmup(example_inputs)")
        memory = "; ".join(why for _, why in map(self._layout, self._newest()) if why)
        return explain(self._name(), self._views(), self.policy, num_steps, layouts=self._layouts(), memory=memory)

    def _views(self) -> list[View]:
        live = self._session.live
        return [View(g.captured, live[g].bindings if g in live else {}) for g in self._newest()]

    def dump(self, path: str | Path, num_steps: int = 50) -> None:
        """Write everything about the denoiser into the folder ``path``, and ``index.html``, a page to read it by.

        Numbered files in the order they were made: each graph as Python, what Inductor generated for each program,
        Dynamo's bytecode (decompiled where depyf is installed); the policy, its schedule and weight table for a run of
        ``num_steps``, the report, versions.

        Raises:
            HiCacheError: see ``explain``.
        """
        explained = self.explain(num_steps)
        graphs = {name: str(graph) for name, graph in self.graphs.items()}
        code: dict[str, str] = {}
        for graph in self._newest():
            for key, program in graph.programs(self._layout(graph)[0]).programs.items():
                choice = key[0] if isinstance(key, tuple) else key
                for text in program.code:
                    earlier = sum(name.startswith(f"{choice}_generated") for name in code)
                    code[f"{choice}_generated" + (f".{earlier}" if earlier else "")] = text
        code["dynamo_bytecode"] = decompiled(self._frames())
        extra = {
            "schedule.tsv": schedule(self.policy, num_steps, self._views(), self._layouts()),
            "report.json": self.report().to_json(),
        }
        write(file_path("dump.path", path), explained, graphs, code=code, extra=extra)

    def _dump_where_asked(self) -> None:
        """``HICACHE_DUMP=DIR``: dump into a folder of one's own there whenever another program was compiled."""
        folder = os.environ.get("HICACHE_DUMP")
        if not folder:
            return
        programs = sum(len(made.programs) for graph in self._graphs for made in graph.program_sets.values())
        if programs != self._dumped[0]:
            number = self._dumped[1] if self._dumped[0] else next(_dumps)
            self._dumped[:] = programs, number
            self.dump(Path(folder) / f"{number:02}_{self._name().replace(' ', '_')}")

    def _frames(self) -> list[types.CodeType]:
        """The code Dynamo compiled to call the graphs."""
        return []

    def _newest(self) -> list[CompiledGraph]:
        """The graphs of the newest call, or all where none was made."""
        newest = [graph for graph in self._graphs if graph in self._session.last_graphs]
        return newest or self._graphs

    def _name(self) -> str:
        return "a function" if self._model is None else type(self._model).__name__

    def report(self) -> Report:
        """What happened so far in this thread, as plain data."""
        return gather(self._session, self._graphs)
