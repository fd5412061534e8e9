"""Batches whose rows are of several runs: in one call where the rows can be told apart, else run by run."""

from __future__ import annotations

import logging
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.traced import Traced
from hicache_compile.passes.analysis.batch import NotByRowError
from hicache_compile.runtime.replay.dispatch_modes import aside
from hicache_compile.runtime.replay.frames import UNTRACED, drop_compiled
from hicache_compile.runtime.rows.arguments import by_sample, joined, mark_rows, of_rows, rows_in, samples_in
from hicache_compile.runtime.rows.row import Row
from hicache_compile.runtime.rows.samples import Samples
from hicache_compile.runtime.rows.step import RowsStep
from hicache_compile.runtime.runs import Inside, Sessions
from hicache_compile.runtime.step import Step

log = logging.getLogger(__name__)

Make = Callable[[Step, tuple[Any, ...], dict[str, Any]], Any]  # makes a step of one run
Together = Callable[..., Any]  # makes steps of rows, see ``CompiledDenoiser.together``


class Batches:
    """Calls of one denoiser with several rows.

    Args:
        sessions: of the denoiser.
        traced: makes a denoiser as Dynamo traces it, whose graphs are of batches alone.
    """

    def __init__(self, sessions: Sessions, traced: Callable[[], Traced]) -> None:
        self._sessions = sessions
        self._traced = traced
        self._denoise: Traced | None = None
        self._run_by_run = False
        self._samples = Samples()

    def make(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any], make: Make, together: Together) -> Any:
        """Make ``step`` of one run: by sample, where each decides for itself, else with ``make``."""
        return self._samples.make(
            self._sessions.mine(),
            step,
            lambda: samples_in(args, kwargs),
            lambda rows: together(rows, args, kwargs, in_one_call=True),
            lambda: make(step, args, kwargs),
        )

    def __call__(self, step: RowsStep, args: tuple[Any, ...], kwargs: dict[str, Any], make: Make) -> Any:
        """Make the steps of all rows; ``make``: makes that of one.

        Raises:
            HiCacheError: the batch has another number of rows.
        """
        count = len(step.rows)
        found = rows_in(args, kwargs)
        if found != count:
            raise HiCacheError(f"rows: the batch has {found} rows, must have {count}, one for each run")
        if count == 1 or (self._run_by_run and not step.in_one_call):
            return self._each_run(step, args, kwargs, make)
        if self._denoise is None:
            self._denoise = self._traced()
            self._denoise.whole = True
            weakref.finalize(self, _drop, self._denoise.code).atexit = False
        mark_rows(args, kwargs, count)
        try:
            return self._denoise(args, kwargs, step, step.start_over)
        except (NotByRowError, *UNTRACED) as error:
            cause = getattr(error, "inner_exception", error)
            if isinstance(cause, HiCacheError) and not isinstance(cause, NotByRowError):
                raise
            if step.in_one_call:
                raise NotByRowError(str(cause)) from error
            log.warning("the calls of several runs are made one by one, because they cannot share one: %s", cause)
            self._run_by_run = True
        step.start_over()
        return self._each_run(step, args, kwargs, make)

    def _each_run(self, step: RowsStep, args: tuple[Any, ...], kwargs: Mapping[str, Any], make: Make) -> Any:
        """A call for each run with all of its rows, which may depend on each other: as the run by itself makes it."""
        outputs, start = [], 0
        for rows in step.runs():
            end = start + len(rows)
            whole = end - start == len(step.rows)
            mine = (args, dict(kwargs)) if whole else of_rows(args, kwargs, slice(start, end), len(step.rows))
            outputs.append(self.one(rows[0], *mine, make))
            for row in rows[1:]:
                row.step.letter = rows[0].step.letter
            step.graphs += rows[0].step.graphs
            start = end
        return joined(outputs, by_sample(args, kwargs)) if len(outputs) > 1 else outputs[0]

    def one(self, row: Row, args: tuple[Any, ...], kwargs: dict[str, Any], make: Make) -> Any:
        """Make the step of ``row``, and of others of its run, as a call of its run does."""
        with Inside(self._sessions, row.session):
            row.session.step = row.step
            row.step.modes = aside()
            try:
                return make(row.step, args, kwargs)
            finally:
                row.session.step = None


def _drop(code: list[types.CodeType]) -> None:
    for compiled in code:
        drop_compiled(compiled)
