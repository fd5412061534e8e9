"""What a captured graph is called with, where nothing wraps the denoiser."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from hicache_compile.passes.analysis.batch import NotByRowError
from hicache_compile.passes.graph.arguments import Signature, argument_of
from hicache_compile.passes.graph.graphs import placeholders
from hicache_compile.runtime.compiled_graph import CompiledGraph
from hicache_compile.runtime.rows.arguments import samples_in


class GraphInputs:
    """The inputs of a captured graph that are arguments of the denoiser."""

    def __init__(self, captured: fx.GraphModule, signature: Signature, forward: Callable[..., Any] | None) -> None:
        self.places: dict[str, int] = {}
        self._tensors = [i for i, node in enumerate(placeholders(captured)) if not node.meta["weight"]]
        ordered = list(inspect.signature(forward).parameters) if forward else []
        for place, node in enumerate(placeholders(captured)):
            name = argument_of(node, signature)
            if isinstance(name, int):
                name = ordered[name] if name < len(ordered) else f"input_{name}"
            if name is not None and not node.meta["weight"]:
                self.places[name] = place

    def of_call(self, values: Sequence[Any]) -> Iterator[Any]:
        return (values[place] for place in self._tensors)


@dataclass(frozen=True, slots=True)
class GraphCallInputs:
    """One call of a captured graph, as the step counter asks for it."""

    inputs: GraphInputs
    values: Sequence[Any]

    def arguments(self) -> Mapping[str, Any]:
        return {name: self.values[place] for name, place in self.inputs.places.items()}

    def samples(self, graph: CompiledGraph) -> int:
        """How many samples the call of ``graph`` has."""
        try:
            place, dim = next(iter(graph.batch.inputs.items()))
        except NotByRowError:  # said where there are several
            return samples_in(list(self.inputs.of_call(self.values)), {})
        return int(self.values[place].shape[dim])
