"""Which computed steps are dense: by how old what the last dense one remembered is.

Age is looked at in computed steps only, so however many steps a policy forecasts, a refresh is late but never missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from hicache_compile.chipmunk.settings import Chipmunk


class Phase(StrEnum):
    """How a computed step is computed."""

    DENSE = "dense"  # and nothing is remembered
    SELECT = "select"  # dense; columns are chosen and the rest is remembered
    REFRESH = "refresh"  # dense; the rest is remembered, for the columns there are
    SPARSE = "sparse"  # hidden units are chosen
    KEPT = "kept"  # sparse, with the hidden units of the step before

    @property
    def is_sparse(self) -> bool:
        return self in (Phase.SPARSE, Phase.KEPT)


PHASES = frozenset(Phase)
SPARSE = frozenset(phase for phase in Phase if phase.is_sparse)


class Ageing:
    """The phases of one run of one context.

    The first computed step is dense and the second selects; from then on steps are sparse until what is remembered is
    too old.
    """

    def __init__(self, chipmunk: Chipmunk) -> None:
        self.chipmunk = chipmunk
        self.computed = 0
        self.last_dense = -1
        self.since_dense = 0  # computed steps

    def phase(self, step: int) -> Phase:
        """The phase of ``step``, should it be computed."""
        if self.computed < 2:
            return Phase.SELECT if self.computed else Phase.DENSE
        if self._is_due(step):
            return Phase.SELECT if self.chipmunk.reselect else Phase.REFRESH
        return Phase.KEPT if self.since_dense % self.chipmunk.mlp_select_every else Phase.SPARSE

    def _is_due(self, step: int) -> bool:
        if self.chipmunk.full_steps is not None:
            return any(self.last_dense < planned <= step for planned in self.chipmunk.full_steps)
        return self.since_dense + 1 >= self.chipmunk.full_every or step - self.last_dense >= self.chipmunk.oldest

    def compute(self, step: int) -> Phase:
        """``step`` is computed, in the phase that is returned."""
        phase = self.phase(step)
        self.computed += 1
        if phase.is_sparse:
            self.since_dense += 1
        else:
            self.since_dense, self.last_dense = 0, step
        return phase

    def standing(self) -> dict[str, int]:
        """All that the next phases depend on, as plain data."""
        return {"computed": self.computed, "last_dense": self.last_dense, "since_dense": self.since_dense}

    def restore(self, standing: Mapping[str, Any]) -> None:
        """Go on from what ``standing`` returned."""
        self.computed, self.last_dense = int(standing["computed"]), int(standing["last_dense"])
        self.since_dense = int(standing["since_dense"])


def phases_of(chipmunk: Chipmunk) -> tuple[Phase, ...]:
    """The phases a run can have, but for the plain dense one."""
    phases = [Phase.SELECT, Phase.SPARSE]
    phases += [] if chipmunk.reselect else [Phase.REFRESH]
    phases += [Phase.KEPT] if chipmunk.mlp_select_every > 1 and chipmunk.mlp_keys is not None else []
    return tuple(phases)
