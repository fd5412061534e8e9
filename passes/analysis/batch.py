"""Which inputs and outputs of a captured graph have rows: those with its batch size in their shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import output_node, placeholders
from hicache_compile.passes.graph.shapes import Bindings


class NotByRowError(HiCacheError):
    """The rows of a batch cannot be told apart in one call; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The batch of a graph that was captured with a symbolic one.

    Args:
        symbols: its size, as Dynamo calls it: one name for each input whose size it did not compare with others.
        size: the same, as an example.
        inputs: by the place of an input the dimension its rows are in; those without rows are not in it.
        sizes: places of inputs that are the batch size itself.
        outputs: the dimension of each output, ``None``: it has no rows.
    """

    symbols: frozenset[Any]
    size: torch.SymInt
    inputs: dict[int, int]
    sizes: frozenset[int]
    outputs: tuple[int | None, ...]

    def is_size(self, size: Any) -> bool:
        """Whether ``size`` is that of the batch."""
        return isinstance(size, torch.SymInt) and size.node.expr in self.symbols

    def dim_of(self, value: Any, what: str) -> int | None:
        """The dimension of the rows of ``value``; ``None``: it has none.

        Raises:
            NotByRowError: the batch size is more than one dimension, or a part of one.
        """
        if not isinstance(value, torch.Tensor):
            return None
        one = self.size.node.expr
        equal = dict.fromkeys(self.symbols, one)
        sizes = [size.node.expr.subs(equal) if isinstance(size, torch.SymInt) else size for size in value.shape]
        read = [dim for dim, size in enumerate(sizes) if one in getattr(size, "free_symbols", ())]
        if not read:
            return None
        if len(read) > 1 or sizes[read[0]] != one:
            shape = ", ".join(map(str, sizes))
            raise NotByRowError(f"{what}: its shape ({shape}) has more of the batch size in it than a dimension")
        return read[0]

    def check_sizes(self, most: int, bindings: Bindings) -> None:
        """Raise ``NotByRowError`` unless the graph holds for batches of up to ``most`` rows, other sizes being those of
        ``bindings``: what Dynamo found that a size must be was asked for the whole batch only."""
        asked = [guard.expr for guard in self.size.node.shape_env.guards if guard.expr.free_symbols & self.symbols]
        for expr in dict.fromkeys(asked):
            for count in range(1, most + 1):
                sizes = bindings | dict.fromkeys(self.symbols, count)
                if expr.subs(sizes) == False:  # noqa: E712  # sympy's
                    raise NotByRowError(f"the captured code is another for a batch of {count}: not {expr}")


def batch_of(captured: fx.GraphModule) -> Batch:
    """The batch of ``captured``: the size of the first dimension of its first output.

    Raises:
        NotByRowError: rows cannot be told apart in it, and why.
    """
    returned = _tensors(output_node(captured.graph).args)
    size = _first_size(returned[0]) if returned else None
    if size is None:
        raise NotByRowError("output: its first dimension is the same whatever the batch size is")
    inputs = placeholders(captured)
    hint = size.node.hint
    first = [found for node in inputs if (found := _first_size(node)) is not None and found.node.hint == hint]
    symbols = frozenset(found.node.expr for found in (size, *first))
    batch = Batch(symbols, size, {}, frozenset(), ())
    sized = frozenset(place for place, node in enumerate(inputs) if batch.is_size(ops.value(node)))
    rows = {place: batch.dim_of(ops.value(node), f"input {node.name}") for place, node in enumerate(inputs)}
    outputs = tuple(batch.dim_of(ops.value(node), f"output {node.name}") for node in returned)
    for node in captured.graph.nodes:
        if ops.is_random(node):
            raise NotByRowError(f"{node.name}: it draws random numbers, which a row shares with its neighbours")
        for written in (target for target in ops.mutated(node) if target.op == "placeholder"):
            raise NotByRowError(f"{node.name}: it writes to the input {written.name}, which all rows share")
        if ops.op(node) == ops.OPAQUE:
            raise NotByRowError(f"{node.name}: Dynamo cannot trace it, so nothing is known of its rows")
    return Batch(symbols, size, {place: dim for place, dim in rows.items() if dim is not None}, sized, outputs)


def _first_size(node: fx.Node) -> torch.SymInt | None:
    """The size of the first dimension of a tensor, where it is a symbol."""
    size = next(iter(getattr(ops.value(node), "shape", ())), None)
    return size if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol else None


def _tensors(args: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(args, found.append)
    return [node for node in found if ops.is_tensor(node)]
