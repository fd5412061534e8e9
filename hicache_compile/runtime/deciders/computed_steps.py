"""Which steps of a run the rings hold, and how each was computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hicache_compile.policy.policy import Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.sparsity.phases import PHASES, SPARSE, Phase
from hicache_compile.runtime.deciders.bridging import bridged
from hicache_compile.runtime.deciders.sparse_phases import Ageing

FULL = "full"


class Anchors:
    """The computed steps of one run so far. ``steps``: those that are remembered, in order.

    ``sparsity``: how sparse computed steps are; without it each is computed in full.
    """

    def __init__(self, sparsity: Chipmunk | None = None) -> None:
        self.sparsity = sparsity
        self.steps: list[int] = []
        self._refreshed: set[int] = set()
        self._ageing = Ageing(sparsity) if sparsity is not None else None

    def choice(self, step: int) -> str:
        """The program of ``step``, should it be computed."""
        phase = Phase.DENSE if self._ageing is None else self._ageing.phase(step)
        return FULL if phase is Phase.DENSE else str(phase)

    def compute(self, step: int) -> str:
        """``step`` is computed, by the program that is returned."""
        choice = self.choice(step)
        if self._ageing is not None and self.sparsity is not None:
            if not self._ageing.compute(step).is_sparse:
                self._refreshed.add(step)
            elif self.sparsity.anchors == "dense":
                return choice
        self.steps.append(step)
        return choice

    def weights(self, policy: Policy, step: int, most: int) -> list[float]:
        """Weights over the newest of ``steps``, newest first, to forecast ``step``."""
        weights = policy.weights(self.steps, step, most)
        if self.sparsity is None or self.sparsity.anchors != "bridged":
            return weights
        return bridged(weights, policy.eligible(self.steps)[: len(weights)], self._refreshed)

    def standing(self) -> dict[str, Any]:
        """All that the next steps depend on, as plain data."""
        aged = {} if self._ageing is None else {"ageing": self._ageing.standing()}
        return {"computed": self.steps, "refreshed": sorted(self._refreshed), **aged}

    def restore(self, standing: Mapping[str, Any]) -> None:
        """Go on from what ``standing`` returned."""
        self.steps, self._refreshed = list(standing["computed"]), set(standing["refreshed"])
        if self._ageing is not None:
            self._ageing.restore(standing["ageing"])


def letters_of(policy: Policy, num_steps: int, sparsity: Chipmunk | None) -> str:
    """``policy.decisions(num_steps)``, with ``S`` for the steps that ``sparsity`` makes sparse."""
    anchors = Anchors(sparsity)
    decisions = enumerate(policy.decisions(num_steps))
    return "".join(letter_of(anchors.compute(step)) if letter == "F" else letter for step, letter in decisions)


def is_computed(choice: str) -> bool:
    """Whether a program of this name computes every site."""
    return choice == FULL or choice in PHASES


def letter_of(choice: str) -> str:
    """``S`` for a program that computes sparsely, ``F`` for any other that computes."""
    return "S" if choice in SPARSE else "F"
