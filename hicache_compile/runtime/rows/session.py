"""Batches in one thread: each call makes a step of every row's run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hicache_compile.runtime.call_arguments import Call
from hicache_compile.runtime.modes import handed_on
from hicache_compile.runtime.options import CompileOptions, Shared
from hicache_compile.runtime.rows.row import Row
from hicache_compile.runtime.rows.step import RowsStep
from hicache_compile.runtime.session import Session
from hicache_compile.runtime.step import Context, Step

Member = tuple[Session, str]  # the session of a row's run, and its context; empty: that of the batch


class RowsSession(Session):
    """``members``: of the rows of the next call, in their order."""

    def __init__(self, options: CompileOptions, shared: Shared) -> None:
        super().__init__(options, shared)
        self.members: Sequence[Member] = ()
        self._own = Context("rows", self.policy)

    def next_step(self, call: Call) -> Step:
        seen: Counter[tuple[int, str]] = Counter()
        rows = []
        for session, given in self.members:
            name = given or self.context_name
            seen[id(session), name] += 1
            again = seen[id(session), name]
            with handed_on(self, session), session.in_context(name if again == 1 else f"{name}[{again - 1}]"):
                rows.append(Row(session, session.next_step(call)))
        return self.step_of(rows)

    def step_of(self, rows: Sequence[Row], in_one_call: bool = False) -> RowsStep:
        """The step of a batch of ``rows``; ``in_one_call``: they are never called run by run."""
        if any(not row.step.index for row in rows):  # a run begins: Dynamo looks once
            self._own.replays.clear()
        return RowsStep(self._own, tuple(rows), in_one_call)

    def finish(self, step: Step, again: bool = False) -> None:
        assert isinstance(step, RowsStep)
        self.last_graphs = step.graphs
        for row in step.rows:
            row.session.finish(row.step, again)
