"""The samples of a batch of one run: each decides for itself, as in a call of its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from hicache_compile.passes.analysis.batch import NotByRowError
from hicache_compile.policy.compatibility import Trait
from hicache_compile.policy.guards.base import Measure
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.rows.part import check_options
from hicache_compile.runtime.rows.row import Row
from hicache_compile.runtime.rows.siblings import drop, finish, rows_of
from hicache_compile.runtime.rows.step import RowsStep
from hicache_compile.runtime.session import Session
from hicache_compile.runtime.step import Step


class Samples:
    """Makes the steps of one run whose calls have several samples.

    Where guards measure, samples may decide otherwise than their neighbours, and where a forecaster is fitted to the
    anchors, they have other weights: the step is then made by row. Where samples cannot be told apart, or with
    ``together=True``, they decide as one.
    """

    def __init__(self) -> None:
        self._as_one: set[Hashable] = set()  # layouts, and how many samples

    def make(
        self,
        session: Session,
        step: Step,
        count: Callable[[], int],
        by_row: Callable[[list[Row]], Any],
        as_one: Callable[[], Any],
    ) -> Any:
        """Make ``step``, a call with ``count()`` samples, by row or as one."""
        policy, kept = step.context.policy, session.contexts.get(step.context.name) is step.context
        asked = kept and not session.options.together and not isinstance(step, RowsStep) and _measured(policy)
        samples = count() if asked else 1
        key = (session.layout_of(policy), samples)
        if samples < 2 or key in self._as_one:
            return as_one()
        rows = rows_of(session, step, samples)
        try:
            check_options(session.options, key[0])
            output = by_row(rows)
        except NotByRowError as error:
            self._as_one.add(key)
            drop(rows)
            session.shared.warn_once(
                f"the samples of a batch decide as one, by what is measured of all (together=True): {error}"
            )
            return as_one()
        finish(rows)
        return output


def _measured(policy: Policy) -> bool:
    """Whether what is measured of a sample decides its steps, or the weights of its forecasts."""
    decides = any(guard.probe.measure is not Measure.OBSERVE for guard in policy.guards)
    return decides or Trait.READS_ANCHORS in policy.traits
