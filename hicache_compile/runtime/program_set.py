"""The programs of one policy cut: straight-line graphs, lowered when they are first needed."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import fx
from torch._dynamo.convert_frame import compile_lock

from hicache_compile.backends import Lowered, lower
from hicache_compile.backends.generated import generated_code
from hicache_compile.passes import Choice, Rewrite, build, build_divided, build_observed
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import copy_graph, placeholders
from hicache_compile.passes.graph.shapes import Bindings, concrete
from hicache_compile.passes.lowering.deciding import deciding
from hicache_compile.passes.lowering.either import either
from hicache_compile.policy.guards import Measure
from hicache_compile.policy.sparsity.phases import PHASES
from hicache_compile.runtime.storage.budget import Layout
from hicache_compile.runtime.storage.rings import RingShape

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Program:
    """One lowered program and what it reads: positions among the denoiser's inputs, then state by name, then rings.

    ``returns``: names of the values that a probe hands over to the programs after it.
    """

    run: Lowered
    inputs: tuple[int, ...]
    state: tuple[str, ...]
    rings: tuple[int, ...] = ()
    returns: tuple[str, ...] = ()
    code: tuple[str, ...] = ()  # what Inductor generated


def rewrite(captured: fx.GraphModule, layout: Layout, depth: int) -> Rewrite:
    """``captured`` rewritten as ``layout`` says, with rings of ``depth`` anchors."""
    if layout.split is not None:
        return build_divided(captured, layout.split)
    if any(probe.measure is Measure.OBSERVE for probe in layout.probes):
        return build_observed(captured, layout.probes[0])
    ends = layout.first, layout.last
    return build(
        captured,
        layout.scope,
        depth,
        *ends,
        layout.dtype,
        layout.probes,
        layout.groups,
        layout.sparsity,
        layout.by_slot,
    )


class Variant:
    """The programs of one cut and ring depth, lowered when they are first needed."""

    def __init__(self, rewrite: Rewrite, depth: int, guards: int = 0) -> None:
        self.rewrite = rewrite
        self.depth = depth
        self.guards = guards
        self.programs: dict[str, Program] = {}
        self._fixed_shapes: tuple[RingShape, ...] | None = None
        inputs = [node for program in rewrite.programs.values() for node in placeholders(program)]
        rings = {node.meta["slot"]: ops.value(node) for node in inputs if node.meta.get("state") == "anchors"}
        self._place = {slot: place for place, slot in enumerate(sorted(rings))}
        self.rings = [rings[slot] for slot in self._place]
        memory = [node for node in inputs if str(node.meta.get("state")).startswith("memory:")]
        self.memory = {str(node.meta["state"]): ops.value(node) for node in memory}
        self.stateless = not rings and not memory
        self.probes = {stage.probe for stage in rewrite.stages}
        self.weights_dtype = torch.float32
        for ring in self.rings:
            self.weights_dtype = torch.promote_types(self.weights_dtype, ring.dtype)

        dynamic = any(isinstance(size, torch.SymInt) for ring in self.rings for size in ring.shape)
        self._fixed_shapes = None if dynamic else self.ring_shapes({})

    def ring_shapes(self, bindings: Bindings) -> tuple[RingShape, ...]:
        """The rings' shapes at the sizes in ``bindings``."""
        if self._fixed_shapes is not None:
            return self._fixed_shapes
        return tuple((concrete(ring.shape, bindings), ring.dtype, ring.device) for ring in self.rings)

    def memory_shapes(self, bindings: Bindings) -> dict[str, RingShape]:
        """What guards keep from step to step, at the sizes in ``bindings``."""
        return {
            name: (concrete(value.shape, bindings), value.dtype, value.device) for name, value in self.memory.items()
        }

    def known(self, choice: str) -> str:
        """``choice``, or where nothing is sparse that is to be, the full one."""
        return str(Choice.FULL) if choice in PHASES and choice not in self.rewrite.programs else choice

    def _both_branches(self) -> fx.GraphModule:
        if not self.guards:
            return either(self.rewrite.programs)
        stages = [(stage.probe, stage.skip) for stage in self.rewrite.stages]
        return deciding(self.rewrite.programs, stages, self.guards)

    def program(self, choice: str, backend: str, mode: str | None) -> Program:
        """The program of ``choice``, lowered now if it was not yet."""
        if choice in self.programs:
            return self.programs[choice]
        with compile_lock:  # Dynamo's own: one thread compiles at a time
            if choice in self.programs:
                return self.programs[choice]
            graph = self._both_branches() if choice == Choice.EITHER else self.rewrite.program(choice)
            log.info("lowering %s to %s: %d nodes", choice, backend, len(graph.graph.nodes))
            inputs = placeholders(graph)
            with generated_code() as code:
                # A compiler owns the graph it is given and may rewrite it; ours stays readable.
                run = lower(copy_graph(graph)[0], backend, mode)
            self.programs[choice] = Program(
                run,
                tuple(node.meta["input"] for node in inputs if "input" in node.meta),
                tuple(node.meta["state"] for node in inputs if "input" not in node.meta and _role(node) != "anchors"),
                tuple(self._place[node.meta["slot"]] for node in inputs if _role(node) == "anchors"),
                tuple(graph.meta.get("returns", ())),
                tuple(code),
            )
        return self.programs[choice]


def _role(node: fx.Node) -> str:
    return str(node.meta.get("state", "")).partition(":")[0]
