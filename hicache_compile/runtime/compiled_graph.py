"""dispatch: step counter -> choice -> compiled program(inputs, weights, rings)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import torch
from torch import fx

from hicache_compile.backends import keeps_both_branches
from hicache_compile.errors import HiCacheError, switched_on
from hicache_compile.passes import Choice
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.cost import flops_by_node
from hicache_compile.passes.graph.graphs import placeholders
from hicache_compile.passes.graph.shapes import Bindings, bind_symbols, is_dynamic
from hicache_compile.passes.trace import trace_rewrite
from hicache_compile.passes.transforms.partition_attention import DIVIDED
from hicache_compile.policy.policy import NOWHERE, Policy
from hicache_compile.policy.schedules.ditango import DiTangoSchedule
from hicache_compile.runtime.deciders.guarded import Course
from hicache_compile.runtime.deciders.in_graph import DeviceCourse
from hicache_compile.runtime.deciders.partitioned import DiTangoCourse
from hicache_compile.runtime.deciders.scheduled import GroupPlan, SlotPlan
from hicache_compile.runtime.execute import run_decided, run_divided, run_inside, run_measured, run_planned
from hicache_compile.runtime.program_set import Variant, rewrite
from hicache_compile.runtime.replay.dispatch_modes import brought_back
from hicache_compile.runtime.replay.parameters import Weights
from hicache_compile.runtime.replay.replay import GraphCall
from hicache_compile.runtime.session import Session
from hicache_compile.runtime.step import Step
from hicache_compile.runtime.storage.budget import Layout, SlotShapes, choose, layout_of
from hicache_compile.runtime.storage.host_rings import OffloadedState
from hicache_compile.runtime.storage.rings import AnchorState, AnyPlan, RingShape

log = logging.getLogger(__name__)


class CapturedStep:
    """One captured graph of the denoiser, and everything compiled from it. Dynamo calls it once a step."""

    def __init__(self, captured: fx.GraphModule, session: Session, backend: str, mode: str | None) -> None:
        self.captured = captured
        self.session = session
        self.backend = backend
        self.mode = mode
        self.variants: dict[Layout, Variant] = {}
        self.current: Variant | None = None
        self.memory = ""
        self.replayable = False
        self._layouts: dict[Hashable, Layout] = {}
        self.bindings: Bindings = {}
        self._inputs = placeholders(captured)
        self._weights = [i for i, node in enumerate(self._inputs) if node.meta["weight"]]
        self._sized = [i for i, node in enumerate(self._inputs) if not node.meta["weight"]]
        sizes = [str(getattr(ops.value(self._inputs[i]), "shape", "")) for i in self._sized]
        self.signature = (len(captured.graph.nodes), *sizes)
        self._flops: dict[tuple[object, ...], int] = {}
        self._dynamic = any(is_dynamic(ops.value(self._inputs[i])) for i in self._sized)

    def __call__(self, *inputs: Any) -> Any:
        """Called by what Dynamo compiled."""
        return self.again(inputs, Weights([inputs[i] for i in self._weights]))

    def again(self, inputs: Sequence[Any], weights: Weights) -> Any:
        """The same, called directly: ``weights`` are those among ``inputs``."""
        step = self.session.step
        if step is None:
            raise HiCacheError("a captured graph ran outside of its compiled denoiser: call the denoiser itself")
        step.graphs.append(self)
        outputs = self._compute(step, inputs, weights)
        if self.replayable:
            step.calls.append(GraphCall(self.again, weights, inputs, outputs))
        return outputs

    def _compute(self, step: Step, inputs: Sequence[Any], weights: Weights) -> Any:
        if self._dynamic:
            self.bindings = bind_symbols([self._inputs[i] for i in self._sized], [inputs[i] for i in self._sized])
        layout = self.layout(step.context.policy, step)
        variant = self.current = self.variant(layout)
        if variant.stateless or (step.uncached and not _spans_ranks(layout)):
            step.choices.append((self, Choice.PLAIN))
            return self._run(variant, Choice.PLAIN, inputs, {}, (), step)
        state = self._state(layout, variant, step, weights)

        def run(choice: str, data: Mapping[str, torch.Tensor]) -> Any:
            return self._run(variant, choice, inputs, data, state.rings, step)

        state.next_step = -1  # an exception in the middle leaves the anchors incomplete
        if isinstance(state.plan, DeviceCourse):
            choice, outputs = run_decided(run, variant, state, step, functools.partial(self._note, variant, step))
        elif keeps_both_branches(self.backend):
            choice, outputs = run_inside(run, variant, state, step)
        elif isinstance(state.plan, DiTangoCourse):
            choice, outputs = run_divided(run, state, step)
        elif isinstance(state.plan, Course):
            choice, outputs = run_measured(run, variant, state, step)
        else:
            choice, outputs = run_planned(run, variant, state, step)
        state.next_step = step.index + 1
        if choice != Choice.EITHER:
            step.choices.append((self, choice))
        return outputs

    def _note(self, variant: Variant, step: Step, letters: list[str], place: int, code: int) -> None:
        """Write down which guard ended a step that decided by itself (0: none did)."""
        stages = variant.rewrite.stages
        choice = Choice.FULL if not code else stages[code - 1].skip if stages else Choice.FORECAST
        letters[place] = "F" if not code else "." if code == 1 else "s"
        if letters is step.context.history[-1]:
            step.context.choices[self, str(choice)] += 1

    def lower_now(self) -> None:
        """Lower what the step in progress needs, while Dynamo compiles: it may specialise a value and start again."""
        step = self.session.step
        if step is not None:
            layout = self.layout(step.context.policy, step)
            variant = self.variant(layout)
            computing = Choice.EITHER if keeps_both_branches(self.backend) else Choice.FULL
            stages = [] if computing == Choice.EITHER else [stage.probe for stage in variant.rewrite.stages]
            needed = [Choice.PLAIN] if step.uncached or variant.stateless else [*stages, computing]
            if variant.rewrite.divided:
                needed = [Choice.FORECAST] if _spans_ranks(layout) else [Choice.PLAIN, Choice.FORECAST]
            for choice in needed:
                variant.program(choice, self.backend, self.mode)

    def lower_all(self, policy: Policy, num_steps: int) -> None:
        """Lower every program that a run of ``num_steps`` under ``policy``, which made the newest step, may need."""
        variant = self.current
        if variant is None or variant.stateless or variant.rewrite.divided:
            return
        specialiser = variant.rewrite.specialiser
        if specialiser.apart:
            plan = GroupPlan(policy, num_steps, policy.depth, 0, specialiser.groups, specialiser.name)
            needed = {plan.choice(step) for step in range(num_steps)}
        elif keeps_both_branches(self.backend):
            needed = {str(Choice.EITHER)}
        else:
            needed = set(variant.rewrite.programs) - {Choice.PLAIN}
            needed -= {Choice.FORECAST} if policy.scope == NOWHERE else set()
        for choice in sorted(needed):
            variant.program(choice, self.backend, self.mode)

    def layout(self, policy: Policy, step: Step | None = None) -> Layout:
        """Where to cut for ``policy``: as it says, or what the memory budget leaves room for."""
        settings = self.session.settings
        if settings.memory_budget is None:
            return layout_of(policy, settings.sparsity)
        earlier = [graph for graph in step.graphs if graph is not self] if step else []
        taken = sum(graph.nbytes for graph in earlier if isinstance(graph, CapturedStep))
        contexts = max(1, self.session.live_contexts())
        wanted = layout_of(policy, settings.sparsity)
        key = (wanted, taken, contexts, *self.bindings.values())
        if key not in self._layouts:
            budget = settings.memory_budget // contexts - taken
            layout, why = choose(wanted, budget, 1 if settings.offload else None, self._slots_at(policy))
            log.info("memory budget for %d contexts: %s", contexts, why)
            self._layouts[key] = layout
            self.memory = why
        return self._layouts[key]

    def _slots_at(self, policy: Policy) -> Callable[[str], SlotShapes]:
        """The slots each scope keeps anchors of, from shapes alone: nothing is lowered."""

        @cache
        def slots_at(scope: str) -> SlotShapes:
            cut = policy.cut
            ends = (cut.first, cut.last) if scope in ("block", "stack") else (0, 0)
            at_scope = Layout(scope, *ends, 1, None, cut.probes, cut.groups)
            variant = Variant(rewrite(self.captured, at_scope, 1), 1)
            return [(shape[1:], dtype) for shape, dtype, _ in variant.ring_shapes(self.bindings)]

        return slots_at

    def variant(self, layout: Layout) -> Variant:
        """The programs for ``layout``: shared by every layout with its cut and no more anchors."""
        offloaded = self.session.settings.offload
        depth = 1 if offloaded else layout.depth
        exact = self.session.settings.memory_budget is not None
        key = replace(layout, depth=depth if exact else 1)
        variant = self.variants.get(key)
        if variant is None or variant.depth < depth:
            made = rewrite(self.captured, layout, depth)
            trace_rewrite(made, layout.scope)
            variant = self.variants[key] = Variant(made, depth, len(layout.probes))
        return variant

    @property
    def nbytes(self) -> int:
        """Bytes of the rings of one context on the device, at the shapes and layout last seen."""
        if self.current is None:
            return 0
        shapes = self.current.ring_shapes(self.bindings)
        return sum(prod(shape) * dtype.itemsize for shape, dtype, _ in shapes)

    def flops(self, choice: str) -> int:
        """FLOPs of the program of ``choice`` at the shape last seen; ``forecast:0.25``: a divided one that reused a
        quarter of the keys."""
        assert self.current is not None
        key = (id(self.current), choice, *self.bindings.values())
        if key not in self._flops:
            program, _, reused = choice.partition(":")
            parts = [flops_by_node(part, self.bindings) for part in self.current.rewrite.parts(program)]
            divided = sum(count for part in parts for name, count in part.items() if name.startswith(DIVIDED))
            total = sum(count for part in parts for count in part.values())
            self._flops[key] = total - int(divided * float(reused or 0.0))
        return self._flops[key]

    def _run(
        self,
        variant: Variant,
        choice: str,
        inputs: Sequence[Any],
        data: Mapping[str, torch.Tensor],
        rings: Sequence[torch.Tensor],
        step: Step,
    ) -> Any:
        program = variant.program(choice, self.backend, self.mode)
        arguments = [
            *[inputs[i] for i in program.inputs],
            *[data[name] for name in program.state],
            *[rings[place] for place in program.rings],
        ]
        if not step.modes:
            outputs = program.run(*arguments)
        else:
            with brought_back(step.modes):
                outputs = program.run(*arguments)
        return dict(zip(program.returns, outputs, strict=True)) if choice in variant.probes else outputs

    def _state(self, layout: Layout, variant: Variant, step: Step, weights: Weights) -> AnchorState:
        """The anchors of this graph in this context, started over when they do not continue."""
        shapes = variant.ring_shapes(self.bindings)
        memory = variant.memory_shapes(self.bindings)
        context = step.context
        depth = layout.depth if self.session.settings.offload else variant.depth
        # Not by graph: Dynamo may capture the same graph again in the middle of a run, because an input came
        # with other strides or out of inference mode, and the anchors are still good.
        place = len(step.graphs)
        state = context.states.get(place)
        signature = (*self.signature, depth)
        if state is None or (state.shapes, state.memory_shapes, state.signature) != (shapes, memory, signature):
            if state is not None and state.weights_token is None:
                raise HiCacheError(
                    f"resume(): the anchors of context {context.name!r} are of another graph: must be continued by the "
                    "denoiser, backend and shapes that were suspended"
                )
            self._check_shapes(state, shapes, step)
            context.drop_stale(place)  # another shape or scope: what it held is of no use
            offload = self.session.settings.offload
            state = OffloadedState(shapes, depth, memory) if offload else AnchorState(shapes, memory)
            state.signature = signature
            context.states[place] = state
        token = weights.token(self.session.settings.weights_epoch)
        if not state.continues(context.trajectory, step.index, token):
            plan = self._plan(step, depth, variant, step.index)
            if isinstance(plan, DeviceCourse):
                plan.inherit(state.plan)
            state.start(plan, context.trajectory, token)
        elif state.suspended is not None:
            state.resume(self._plan(step, depth, variant, state.suspended["start"]))
        return state

    def _plan(self, step: Step, depth: int, variant: Variant, start: int) -> AnyPlan:
        """What the policy makes of the run that ``step`` is of, from the step ``start`` on."""
        policy = step.context.policy
        if policy.guards and keeps_both_branches(self.backend):
            ring = variant.rings[0]
            return DeviceCourse(policy, step.num_steps, depth, start, ring.device, variant.weights_dtype)
        if policy.guards:
            return Course(policy, step.num_steps, depth, start, self.session.settings.sparsity)
        if isinstance(policy.schedule, DiTangoSchedule):
            attentions = variant.rewrite.divided or []
            return DiTangoCourse(policy.schedule, policy.schedule.split(), step.num_steps, len(attentions), start)
        specialiser = variant.rewrite.specialiser
        if specialiser.apart:
            return GroupPlan(policy, step.num_steps, depth, start, specialiser.groups, specialiser.name)
        if policy.cut.by_slot:
            return SlotPlan(policy, step.num_steps, depth, start, len(variant.rings))
        return self.session.plan(policy, step.num_steps, depth, start)

    def _check_shapes(self, before: AnchorState | None, shapes: Sequence[RingShape], step: Step) -> None:
        """``TS_DEBUG_SHAPES`` and ``TS_STRICT_SHAPES``: see ``hicache_compile.environment``."""
        if switched_on("TS_DEBUG_SHAPES"):
            sizes = ", ".join(str(list(shape)) for shape, _, _ in shapes)
            log.warning("[TS][step %d][%s] anchors: %s", step.index, step.context.name, sizes)
        changed = before is not None and before.trajectory == step.context.trajectory and before.shapes != shapes
        if changed and switched_on("TS_STRICT_SHAPES"):
            raise HiCacheError(
                f"step {step.index} of context {step.context.name!r}: the shapes of the anchors changed inside a run: "
                "must not while TS_STRICT_SHAPES is on"
            )


def _spans_ranks(layout: Layout) -> bool:
    """Whether a part of every step runs on other ranks: then uncached steps go their way too."""
    return layout.split is not None and layout.split.distributed
