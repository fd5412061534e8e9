"""The phases of a computed step under Chipmunk."""

from __future__ import annotations

from enum import StrEnum

from hicache_compile.policy.sparsity.chipmunk import Chipmunk


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


def phases_of(chipmunk: Chipmunk) -> tuple[Phase, ...]:
    """The phases a run can have, but for the plain dense one."""
    phases = [Phase.SELECT, Phase.SPARSE]
    phases += [] if chipmunk.reselect else [Phase.REFRESH]
    phases += [Phase.KEPT] if chipmunk.mlp_select_every > 1 and chipmunk.mlp_keys is not None else []
    return tuple(phases)
