"""Where anchors live, and how they are handed to programs."""

from __future__ import annotations

import torch

from hicache_compile.passes.graph.inputs import MEASURED, Role
from hicache_compile.runtime.storage.host_rings import HostRings
from hicache_compile.runtime.storage.rings import Kept, Rings

CPU = torch.device("cpu")


def make_storage(kept: Kept, offloaded: int | None, quantised: torch.dtype | None = None) -> Rings:
    """Storage for ``kept``; ``offloaded``: how many anchors of a slot are kept on the CPU, ``None``: none.

    ``quantised``: the dtype they are kept in on the CPU.
    """
    if offloaded is None:
        return Rings(kept)
    if any(state.role is Role.ANCHORS for state in kept):
        return HostRings(kept, offloaded, quantised)
    return Rings(  # attention over partitions has no rings: its states are on the CPU, and its operator copies
        {
            state: shape if state.name.startswith(MEASURED) else (shape[0], shape[1], CPU)
            for state, shape in kept.items()
        },
        kept,
    )
