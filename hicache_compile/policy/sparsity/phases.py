"""The phases of a computed step under Chipmunk."""

from __future__ import annotations

from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.str_enum import StrEnum


class Phase(StrEnum):
    """How a computed step is computed."""

    DENSE = "dense"  # stores nothing
    SELECT = "select"  # dense; selects columns and stores the sum of the others
    REFRESH = "refresh"  # dense; stores the sum of the others for the current columns
    SPARSE = "sparse"  # sparse; selects hidden units
    KEPT = "kept"  # sparse, with the hidden units of the previous step

    @property
    def is_sparse(self) -> bool:
        return self in (Phase.SPARSE, Phase.KEPT)


SPARSE = frozenset(phase for phase in Phase if phase.is_sparse)


def phases_of(chipmunk: Chipmunk) -> tuple[Phase, ...]:
    """The phases a run can have besides ``DENSE``."""
    phases = [Phase.SELECT, Phase.SPARSE]
    phases += [] if chipmunk.reselect else [Phase.REFRESH]
    phases += [Phase.KEPT] if chipmunk.mlp_select_every > 1 and chipmunk.mlp_keys is not None else []
    return tuple(phases)
