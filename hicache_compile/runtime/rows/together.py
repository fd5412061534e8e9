"""A call that is a step of every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hicache_compile.passes.analysis.batch import NotByRowError
from hicache_compile.runtime.replay.dispatch_modes import aside
from hicache_compile.runtime.rows.row import Row
from hicache_compile.runtime.rows.session import RowsSession
from hicache_compile.runtime.rows.step import RowsStep
from hicache_compile.runtime.runs import Inside, Sessions


def together(
    sessions: Sessions,
    rows: Sequence[Row],
    make: Callable[[RowsStep], Any],
    *,
    in_one_call: bool = False,
    session: RowsSession | None = None,
) -> Any:
    """Make ``rows``, steps that the sessions of their runs have begun and will count, with ``make``.

    Args:
        in_one_call: or not at all; else run by run where they cannot be told apart.
        session: keeps what one such call leaves to the next; by default that of this thread.
    """
    session = session or sessions.of_rows()
    with Inside(sessions, session):
        step = session.step_of(rows, in_one_call)
        session.step = step
        step.modes = aside()
        try:
            return make(step)
        except NotByRowError:  # nothing was changed
            raise
        except BaseException:
            step.invalidate()
            raise
        finally:
            session.step = None
