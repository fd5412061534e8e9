"""The rows of one run: each sample of a batch has a context of its own beside that of the first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hicache_compile.runtime.rows.row import Row
from hicache_compile.runtime.session import Session
from hicache_compile.runtime.step import Context, Step


def rows_of(session: Session, step: Step, count: int) -> list[Row]:
    """``step`` as the steps of ``count`` rows. The contexts of those after the first are ``name[1]`` and so on."""
    if not step.index:
        _free_others(session, step, count)
    return [Row(session, step), *(Row(session, _beside(session, step, number)) for number in range(1, count))]


def _free_others(session: Session, step: Step, count: int) -> None:
    """A run begins with ``count`` samples: the anchors of more than these are of a run before."""
    name, known = step.context.name, session.contexts
    for number in itertools.takewhile(lambda number: f"{name}[{number}]" in known, itertools.count(count)):
        known[f"{name}[{number}]"].free()


def _beside(session: Session, step: Step, number: int) -> Step:
    name = f"{step.context.name}[{number}]"
    context = session.contexts.setdefault(name, Context(name, step.context.policy))
    if context.trajectory != step.context.trajectory:
        context.begin(step.context.trajectory, step.context.policy)
        context.step = step.index
    if context.step > step.index:  # an observer makes the step again
        context.step = step.index
        context.history[-1].pop()
    context.ambiguous = step.context.ambiguous
    return Step(context, step.index, step.num_steps, step.uncached, step.doubtful)


def finish(rows: Sequence[Row]) -> None:
    """Count the steps of the rows after the first, whose call its session counts."""
    for row in rows[1:]:
        row.session.finish(row.step)


def drop(rows: Sequence[Row]) -> None:
    """The rows after the first are none."""
    for row in rows[1:]:
        del row.session.contexts[row.step.context.name]
