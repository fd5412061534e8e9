"""What a caller sees of a compiled denoiser: its graphs, its tables, its report."""

from __future__ import annotations

import itertools
import os
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import fx, nn

from hicache_compile.errors import HiCacheError
from hicache_compile.inspection.bytecode import decompiled
from hicache_compile.inspection.dump import schedule, write
from hicache_compile.inspection.explanation import Explanation, View, explain
from hicache_compile.inspection.report import Report, gather
from hicache_compile.passes import Choice
from hicache_compile.passes.graph.source import printable
from hicache_compile.passes.work import Rewrite
from hicache_compile.policy.files import file_path
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.usual_length import usual_length
from hicache_compile.runtime.compiled_graph import CompiledGraph
from hicache_compile.runtime.runs import Sessions
from hicache_compile.runtime.session import Session
from hicache_compile.runtime.step import Context, Step

_dumps = itertools.count()


class Inspected:
    """User-facing methods that change nothing, of ``Handle``."""

    _sessions: Sessions
    _graphs: list[CompiledGraph]
    _model: nn.Module | None = None  # whose weights they are, where that is known
    _dumped: list[int]  # programs in the newest dump, and its number
    _plain: Sequence[Rewrite] = ()  # of graphs that run uncached
    policy: Any

    @property
    def _session(self) -> Session:
        """That of this thread, or of the run it is in."""
        return self._sessions.mine()

    @property
    def graphs(self) -> dict[str, fx.GraphModule]:
        """``captured``, ``guarded``, ``full`` and ``forecast``: empty before the first call. Where guards decide in the
        middle of a step, also what runs before each decision, ``probe_0`` and so on, and each way to end the step.

        ``print`` shows each as Python that runs, with where it comes from in the first lines. A denoiser that was
        captured in several graphs has ``captured.1`` and so on for the later ones.
        """
        found: dict[str, fx.GraphModule] = {}
        made = [graph.programs(self._layout(graph)[0]).rewrite for graph in self._graphs]
        for number, rewritten in enumerate(made or self._plain):
            suffix = f".{number}" if number else ""
            for name, module in rewritten.levels().items():
                if name != str(Choice.PLAIN):  # the captured graph once more
                    title = f"{name} graph of {self._name()}, scope {rewritten.layout.scope}"
                    found[name + suffix] = printable(module, title)
        return found

    def _layout(self, graph: CompiledGraph) -> tuple[Layout, str]:
        """The layout of ``graph`` under the policy of the next trajectory, and what a memory budget has to say."""
        live, called = self._session.live.get(graph), self._session.last_graphs
        earlier = called[: called.index(graph)] if graph in called else []
        step = Step(Context("", self.policy), 0, None, graphs=earlier)  # what they take is no longer left for this one
        return graph.layout(self.policy, step, live.bindings if live else {})

    def _layouts(self) -> list[Layout]:
        return [self._layout(graph)[0] for graph in self._newest()] or [made.layout for made in self._plain]

    def explain(self, num_steps: int | None = None) -> Explanation:
        """What was found in the denoiser and what its policy makes of a run of ``num_steps``: ``print`` shows tables,
        ``html(path)`` writes a page. By default the length of the policy's mask, or 50 where it has none.

        Blocks, sites with their kind, FLOPs and bytes, the same policy at the other scopes, what was refused, and what
        the newest run of this thread did.

        Raises:
            HiCacheError: the denoiser was not called yet, or ``num_steps`` is not a length the policy can serve.
        """
        if not self._graphs and not self._plain:
            raise HiCacheError("explain(): the denoiser must have been called once, or warmup(example_inputs)")
        memory = "; ".join(why for _, why in map(self._layout, self._newest()) if why)
        views, layouts, report = self._views(), self._layouts(), self.report()
        steps = usual_length(self.policy) if num_steps is None else num_steps
        return explain(
            self._name(),
            views,
            self.policy,
            steps,
            layouts=layouts,
            memory=memory,
            ran=report.ran(),
            by_sample=any(name.endswith("]") for name in report.rows),
        )

    def _views(self) -> list[View]:
        live = self._session.live
        views = [View(graph.captured, live[graph].bindings if graph in live else {}) for graph in self._newest()]
        return views or [View(made.captured, {}) for made in self._plain]

    def dump(self, path: str | Path, num_steps: int | None = None) -> None:
        """Write everything about the denoiser into the folder ``path``, and ``index.html``, a page to read it by.

        Numbered files in the order they were made: each graph as Python, what Inductor generated for each program,
        Dynamo's bytecode (decompiled where depyf is installed); the policy, its schedule and weight table for a run of
        ``num_steps`` (see ``explain``), the report, versions.

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
        views, layouts = self._views(), self._layouts()
        schedules = {"schedule.tsv": self.policy} | {
            f"schedule.{quote(name, safe='')}.tsv": self.policy.for_branch(name) for name in self.policy.branches
        }
        extra = {
            **{name: schedule(one, explained.num_steps, views, layouts) for name, one in schedules.items()},
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
        return gather(self._session, self._graphs, self._plain)
