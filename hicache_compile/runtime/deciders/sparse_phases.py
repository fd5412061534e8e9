"""Which computed steps are dense: by how old what the last dense one remembered is.

Age is looked at in computed steps only, so however many steps a policy forecasts, a refresh is late but never missed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.sparsity.phases import Phase


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

    def state_dict(self) -> dict[str, int]:
        """All that the next phases depend on, as plain data."""
        return {"computed": self.computed, "last_dense": self.last_dense, "since_dense": self.since_dense}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self.computed, self.last_dense = int(state["computed"]), int(state["last_dense"])
        self.since_dense = int(state["since_dense"])
