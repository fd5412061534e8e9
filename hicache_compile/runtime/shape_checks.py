"""``TS_DEBUG_SHAPES`` and ``TS_STRICT_SHAPES``: see ``hicache_compile.policy.environment``."""

from __future__ import annotations

import logging

from hicache_compile.errors import HiCacheError, switched_on
from hicache_compile.passes.graph.inputs import Role
from hicache_compile.runtime.step import Step
from hicache_compile.runtime.storage.rings import Kept, Rings

log = logging.getLogger(__name__)


def check_shapes(before: Rings | None, kept: Kept, step: Step) -> None:
    """Log the shapes of the anchors about to be allocated in place of ``before``, or refuse a change inside a run.

    Raises:
        HiCacheError: ``TS_STRICT_SHAPES`` is on and ``before`` holds anchors of the same trajectory.
    """
    if switched_on("TS_DEBUG_SHAPES"):
        shapes = [shape for state, (shape, _, _) in kept.items() if state.role is Role.ANCHORS]
        sizes = ", ".join(str(list(shape)) for shape in shapes)
        log.warning("[TS][step %d][%s] anchors: %s", step.index, step.context.name, sizes)
    changed = before is not None and before.trajectory == step.context.trajectory and before.kept != kept
    if changed and switched_on("TS_STRICT_SHAPES"):
        raise HiCacheError(
            f"step {step.index} of context {step.context.name!r}: the shapes of the anchors changed inside a run: "
            "must not while TS_STRICT_SHAPES is on"
        )
