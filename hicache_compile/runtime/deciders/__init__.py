"""What turns a policy into decisions, step by step."""

from __future__ import annotations

from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.forecasters.parts import Channels
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.runtime.deciders.base import Decider, Decision
from hicache_compile.runtime.deciders.device_rows import RowSpec
from hicache_compile.runtime.deciders.guarded import GuardedDecider
from hicache_compile.runtime.deciders.in_graph import InGraphDecider
from hicache_compile.runtime.deciders.partitioned import PartitionDecider
from hicache_compile.runtime.deciders.scheduled import ScheduledDecider

__all__ = ["Decider", "Decision", "RowSpec", "make_decider"]


def make_decider(
    policy: Policy, programs: Any, num_steps: int | None, start: int, spec: RowSpec, sparsity: Chipmunk | None = None
) -> Decider:
    """The decider of ``policy`` for one run of one context.

    Args:
        policy: the policy in force.
        programs: the ``ProgramSet`` that it decides over.
        num_steps: length of the run; ``None``: unknown.
        start: the step at which nothing is remembered yet.
        spec: which row of weights and positions each slot reads.
        sparsity: how sparse computed steps are.

    Raises:
        HiCacheError: ``ByChannel`` has the slots of several graphs.
    """
    rewrite = programs.rewrite
    if spec.offset and isinstance(rewrite.layout.parts, Channels):
        raise HiCacheError(
            "ByChannel: the denoiser is captured as several graphs, whose slots cannot be told apart: must be one; "
            "fullgraph=True says where it breaks"
        )
    sparse = sparsity if rewrite.sparse else None
    if rewrite.layout.partitions is not None:
        schedule: Any = policy.schedule
        layers = len(rewrite.partitioned)
        return PartitionDecider(schedule, rewrite.layout.partitions, num_steps, layers, start, sparse, rewrite)
    if policy.guards and programs.cond:
        ring = programs.rings[0]
        return InGraphDecider(policy, num_steps, spec.depth, start, ring.device, programs.weights_dtype)
    decider = GuardedDecider if policy.guards else ScheduledDecider
    return decider(policy, rewrite, spec, num_steps, start, sparse)
