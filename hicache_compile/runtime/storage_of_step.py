"""Which anchors a step goes on with."""

from __future__ import annotations

from typing import Protocol

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.passes.graph.inputs import Role
from hicache_compile.runtime.deciders import Decider
from hicache_compile.runtime.live import Live
from hicache_compile.runtime.options import CompileOptions
from hicache_compile.runtime.replay.parameters import Parameters
from hicache_compile.runtime.session import Session
from hicache_compile.runtime.shape_checks import check_shapes
from hicache_compile.runtime.step import Step
from hicache_compile.runtime.storage import make_storage
from hicache_compile.runtime.storage.rings import Rings


class Graph(Protocol):
    """What is asked of a ``CompiledGraph``."""

    options: CompileOptions
    quantised: torch.dtype | None

    @property
    def session(self) -> Session: ...

    def depth_of(self, live: Live) -> int: ...

    def decider_of(self, live: Live, step: Step, start: int) -> Decider: ...


def storage_of(graph: Graph, live: Live, step: Step, parameters: Parameters) -> Rings:
    """The anchors of ``graph`` in the context of ``step``, started over when they do not continue."""
    kept = live.programs.shapes(live.bindings)
    context, epoch = step.context, graph.session.shared.parameters_epoch
    depth = graph.depth_of(live)
    # Not by graph: Dynamo may capture the same graph again in the middle of a run, because an input came
    # with other strides or out of inference mode, and the anchors are still good.
    place = len(step.graphs)
    state = context.states.get(place)
    on_host = graph.options.offload and any(one.role is Role.ANCHORS for one in kept)
    elsewhere = state is not None and state.on_host != on_host  # resumed with or without offload
    if state is not None and not elsewhere:
        state.name_rings(kept)
        # By what ran before: programs of a policy with more anchors serve those with fewer.
        if state.trajectory == context.trajectory and state.differs_in_depth(kept, live.signature):
            decider = graph.decider_of(live, step, state.start_of_run)
            state.change_depth(kept, live.signature, decider, live.programs.rows(depth, 0).group_of, step.index)
    if state is None or elsewhere or not state.fits(kept, live.signature):
        if state is not None and state.is_awaited(context.trajectory, step.index, epoch):
            raise HiCacheError(
                f"resume(): the anchors of context {context.name!r} are of another graph: must be continued by the "
                "denoiser, backend, shapes and options (anchors, memory_budget, offload, together) that were suspended"
            )
        check_shapes(state, kept, step)
        if state is not None and state.page is not None and state.trajectory == context.trajectory:
            graph.session.shared.warn_once(
                "a row keeps anchors of other shapes in a batch than by itself, so it starts over where it goes from "
                "one to the other: make all calls of a run in batches, or none"
            )
        context.drop_stale(place)  # another shape or scope: what it held is of no use
        state = make_storage(kept, depth if graph.options.offload else None, graph.quantised)
        state.signature = live.signature
        context.states[place] = state
    token = parameters.token(epoch)
    if not state.continues(context.trajectory, step.index, token, epoch):
        decider = graph.decider_of(live, step, step.index)
        decider.carry_over(state.decider)
        state.start(decider, context.trajectory, token)
        state.made_with(parameters.witness(), epoch)
    elif state.suspended is not None:
        state.resume(graph.decider_of(live, step, state.suspended["start"]))
        state.made_with(parameters.witness(), epoch)
    return state
