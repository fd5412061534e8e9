"""Which steps of a run the rings hold, and how each was computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hicache_compile.policy.policy import Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.sparsity.phases import Phase
from hicache_compile.runtime.deciders.bridging import bridged
from hicache_compile.runtime.deciders.sparse_phases import Ageing


class ComputedSteps:
    """The computed steps of one run so far, of the sites that are decided together.

    ``steps``: those that are remembered, in order. ``sparsity``: how sparse computed steps are; ``None``: dense.
    """

    def __init__(self, sparsity: Chipmunk | None = None) -> None:
        self.sparsity = sparsity
        self.steps: list[int] = []
        self._refreshed: set[int] = set()
        self._ageing = Ageing(sparsity) if sparsity is not None else None

    def compute(self, step: int) -> Phase:
        """``step`` is computed, in the phase that is returned."""
        phase = Phase.DENSE
        if self._ageing is not None and self.sparsity is not None:
            phase = self._ageing.compute(step)
            if not phase.is_sparse:
                self._refreshed.add(step)
            elif self.sparsity.anchors == "dense":
                return phase
        self.steps.append(step)
        return phase

    def weights(self, policy: Policy, step: int, most: int) -> list[list[float]]:
        """Weights over the newest of ``steps``, newest first, to forecast ``step``: a row for each part of a slot."""
        return [self.bridged(policy, row) for row in policy.part_weights(self.steps, step, most)]

    def bridged(self, policy: Policy, weights: list[float]) -> list[float]:
        """``weights`` over the anchors that ``policy`` reads; over those on both sides of a dense step, see
        ``bridging``."""
        if self.sparsity is None or self.sparsity.anchors != "bridged":
            return weights
        return bridged(weights, policy.eligible(self.steps)[: len(weights)], self._refreshed)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on, as plain data."""
        aged = {} if self._ageing is None else {"ageing": self._ageing.state_dict()}
        return {"computed": self.steps, "refreshed": sorted(self._refreshed), **aged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self.steps, self._refreshed = list(state["computed"]), set(state["refreshed"])
        if self._ageing is not None:
            self._ageing.load_state_dict(state["ageing"])


def letters_of(policy: Policy, num_steps: int, sparsity: Chipmunk | None, tokenwise: bool = False) -> str:
    """``policy.decisions(num_steps)``, with ``S`` for the steps that ``sparsity`` makes sparse, and where there are
    ``tokenwise`` sites ``t`` for those that compute some of their tokens."""
    computed, tokens = ComputedSteps(sparsity), policy.tokens if tokenwise else None
    letters, skipped = "", 0
    for step, letter in enumerate(policy.decisions(num_steps)):
        skipped = 0 if letter == "F" else skipped + 1
        if letter == "F":
            letters += "S" if computed.compute(step).is_sparse else "F"
        else:
            letters += "t" if tokens is not None and tokens.chosen_at(skipped) else letter
    return letters
