"""dispatch: step counter -> choice -> compiled program(inputs, weights, rings)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

from hicache_compile import passes
from hicache_compile.errors import HiCacheError
from hicache_compile.modes import brought_back
from hicache_compile.passes import Choice, ops
from hicache_compile.passes.cost import count_flops
from hicache_compile.passes.graphs import placeholders
from hicache_compile.passes.shapes import Bindings, bind_symbols, is_dynamic
from hicache_compile.policy import Policy
from hicache_compile.programs import Variant
from hicache_compile.state import AnchorState, Token
from hicache_compile.trajectory import Session, Step


class CapturedStep:
    """One captured graph of the denoiser, and everything compiled from it. Dynamo calls it once a step."""

    def __init__(self, captured: fx.GraphModule, session: Session, backend: str, mode: str | None) -> None:
        self.captured = captured
        self.session = session
        self.backend = backend
        self.mode = mode
        self.variants: dict[tuple[str, int, int], Variant] = {}
        self.current: Variant | None = None
        self.bindings: Bindings = {}
        self._inputs = placeholders(captured)
        self._weights = [i for i, node in enumerate(self._inputs) if node.meta["weight"]]
        self._sized = [i for i, node in enumerate(self._inputs) if not node.meta["weight"]]
        sizes = [str(getattr(ops.value(self._inputs[i]), "shape", "")) for i in self._sized]
        self.signature = (len(captured.graph.nodes), *sizes)
        self._flops: dict[tuple[object, ...], int] = {}
        self._dynamic = any(is_dynamic(ops.value(self._inputs[i])) for i in self._sized)

    def __call__(self, *inputs: Any) -> Any:
        step = self.session.step
        if step is None:
            raise HiCacheError("a captured graph ran outside of its compiled denoiser: call the denoiser itself")
        step.graphs.append(self)
        variant = self.current = self.variant(step.context.policy)
        if self._dynamic:
            self.bindings = bind_symbols([self._inputs[i] for i in self._sized], [inputs[i] for i in self._sized])
        if step.uncached or not variant.rings:
            step.letter = "F"
            return self._run(variant, Choice.PLAIN, inputs, {}, (), step.modes)
        state = self._state(variant, step, inputs)
        assert state.plan is not None
        choice = Choice.FORECAST
        if step.context.ambiguous or state.plan.computes(step.index):
            choice, step.letter = Choice.FULL, "F"
        table = state.plan.on_device(state.rings[0].device, variant.weights_dtype, step.index)
        data = {"position": table.positions[step.index], "weights": table.rows[step.index]}
        state.next_step = -1  # an exception in the middle leaves the anchors incomplete
        outputs = self._run(variant, choice, inputs, data, state.rings, step.modes)
        state.next_step = step.index + 1
        return outputs

    def lower_now(self) -> None:
        """Lower what the step in progress needs, while Dynamo compiles: it may specialise a value and start again."""
        step = self.session.step
        if step is not None:
            variant = self.variant(step.context.policy)
            choice = Choice.PLAIN if step.uncached or not variant.rings else Choice.FULL
            variant.program(choice, self.backend, self.mode)

    def variant(self, policy: Policy) -> Variant:
        """The programs for ``policy``: shared by every policy with its cut and no more anchors."""
        variant = self.variants.get(policy.cut)
        if variant is None or variant.depth < policy.depth:
            rewrite = passes.build(self.captured, policy.scope, policy.depth, policy.first, policy.last)
            variant = self.variants[policy.cut] = Variant(rewrite, policy.depth)
        return variant

    def flops(self, choice: Choice) -> int:
        """FLOPs of the program of ``choice`` at the shape last seen."""
        assert self.current is not None
        key = (id(self.current), choice, *self.bindings.values())
        if key not in self._flops:
            self._flops[key] = count_flops(self.current.rewrite.programs[choice], self.bindings)
        return self._flops[key]

    def _run(
        self,
        variant: Variant,
        choice: Choice,
        inputs: Sequence[Any],
        data: dict[str, torch.Tensor],
        rings: Sequence[torch.Tensor],
        modes: list[TorchDispatchMode],
    ) -> Any:
        program = variant.program(choice, self.backend, self.mode)
        arguments = [*[inputs[i] for i in program.inputs], *[data[name] for name in program.state], *rings]
        if not modes:
            return program.run(*arguments)
        with brought_back(modes):
            return program.run(*arguments)

    def _state(self, variant: Variant, step: Step, inputs: Sequence[Any]) -> AnchorState:
        """The anchors of this graph in this context, started over when they do not continue."""
        shapes = variant.ring_shapes(self.bindings)
        context = step.context
        # Not by graph: Dynamo may capture the same graph again in the middle of a run, because an input came
        # with other strides or out of inference mode, and the anchors are still good.
        key = (self.signature, len(step.graphs), shapes)
        state = context.states.get(key)
        if state is None:
            context.drop_stale()  # another shape or scope: what the last run held is of no use
            state = context.states[key] = AnchorState(shapes)
        token = self._weights_token(inputs)
        if not state.continues(context.trajectory, step.index, token):
            state.start(self.session.plan(step, variant.depth), context.trajectory, token)
        return state

    def _weights_token(self, inputs: Sequence[Any]) -> Token:
        """Changes when a parameter is replaced or written to."""
        weights = [inputs[i] for i in self._weights]
        return (*map(id, weights), *[0 if weight.is_inference() else weight._version for weight in weights])
