"""A forecaster with weights fitted to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace

from hicache_compile.errors import HiCacheError, whole_number
from hicache_compile.policy.compatibility import Trait
from hicache_compile.policy.forecasters.base import MOST_ANCHORS
from hicache_compile.policy.forecasters.kriging import kriging_weights
from hicache_compile.policy.forecasters.table import Table, Weights
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.run import RunInfo


@plain_data
class Calibrated:
    """Weights fitted by least squares to runs of this model, without a basis.

    Under the schedule it was calibrated for, the weights are the table's ``rows``. For other steps, anchors or run
    lengths they are computed from its ``distances`` (see ``kriging``), with steps mapped linearly so that the first and
    the last step coincide. Weights from distances sum to 1, so constants are reproduced; so do those of each step that
    ``with_weights`` fits, but not those that whole runs refine.

    Args:
        table: a ``Table``, its fields as a dict, or a path to one; ``hicache tune --fit calibrated`` writes it.
        reads: the maximum number of anchors a forecast reads.
        ridge: of weights computed from distances, relative to the mean squared difference of the anchors.
        num_steps: of the run; by default that of the table. Set by a run that states its length.
    """

    table: Table
    reads: int = 3
    ridge: float = 1e-3
    num_steps: int | None = None
    _rows: dict[int, tuple[tuple[int, ...], Weights]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", Table.of(self.table))
        whole_number("Calibrated", "reads", self.reads, 1, MOST_ANCHORS)
        real = isinstance(self.ridge, int | float) and not isinstance(self.ridge, bool)
        if not real or not 0 <= self.ridge <= 1e6:
            raise HiCacheError(f"Calibrated.ridge = {self.ridge!r}: must be a number from 0 to 1e6")
        if self.num_steps is not None:
            whole_number("Calibrated", "num_steps", self.num_steps, 1)
        longest = max((len(anchors) for _, anchors, _ in self.table.rows), default=0)
        if longest > self.reads:
            raise HiCacheError(f"Calibrated.reads = {self.reads}: must be {longest} or more, as the rows of its table")
        object.__setattr__(self, "_rows", {step: (anchors, weights) for step, anchors, weights in self.table.rows})

    def bind(self, run: RunInfo) -> Calibrated:
        """The forecaster for ``run``."""
        return self if run.num_steps in (None, self.num_steps) else replace(self, num_steps=run.num_steps)

    @property
    def traits(self) -> frozenset[Trait]:
        return frozenset({Trait.BY_RUN, *((Trait.PER_SLOT,) if self.by_slot else ())})

    @property
    def by_slot(self) -> bool:
        """Whether the slots have separate weights."""
        return self.table.slots is not None

    def weights(self, anchors: Sequence[int], target: int) -> list[float]:
        """As in ``Forecaster``. If the slots have separate weights: those computed from distances."""
        known = self._known(anchors, target)
        if known is not None and not self.by_slot:
            return list(known)  # type: ignore[arg-type]  # of all slots
        positions = [self._position(step) for step in (*anchors[: self.reads], target)]
        return kriging_weights(self.table.matrix, positions[:-1], positions[-1:], self.ridge)[0]

    def slot_weights(self, anchors: Sequence[int], target: int) -> list[list[float]]:
        """The weights of each slot."""
        known = self._known(anchors, target)
        if known is not None and self.by_slot:
            return [list(weights) for weights in known]  # type: ignore[arg-type]  # of each slot
        return [self.weights(anchors, target)] * (self.table.slots or 1)

    def _known(self, anchors: Sequence[int], target: int) -> Weights | None:
        """The row of ``target`` if the table has one for this run length and these anchors."""
        if self.num_steps not in (None, self.table.num_steps) or target not in self._rows:
            return None
        known, weights = self._rows[target]
        return weights if tuple(anchors[: len(known)]) == known else None

    def _position(self, step: int) -> float:
        if self.num_steps is None:
            return float(step)
        return step * (self.table.num_steps - 1) / max(1, self.num_steps - 1)
