"""Push slices towards their source in a forecast program, so that rows nobody reads are not forecast.

    before   s = add(cat([txt, img]), mul(gate, forecast(anchors, w)));  img2 = s[:, 512:]
    after    img2 = add(img, mul(gate, forecast(anchors, w)[:, 512:]))

FLUX's single blocks join text and image; once attention is gone, only the image rows reach the output.
The text slots then die, and the others shrink to the rows that are read (``windows``).

    Requires   a forecast program
    Ensures    the same value for every output; no slice of a sum that has no other reader
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from hicache_compile.internals import statically_known_true
from hicache_compile.operators.anchors import forecast
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import drop_dead_code, reachable_from
from hicache_compile.passes.graph.slices import part_of_join, range_of

Window = tuple[Any, ...]  # slices; where they begin and end may be inputs of the denoiser, see ``SizeInput``
POINTWISE = ops.ADD | ops.MUL | ops.DIV | {"to", "float", "half", "bfloat16", "type_as", "clip", "clamp"}


@dataclass(frozen=True, slots=True)
class SizeInput:
    """A size that the denoiser is given as an input: its place, and an example."""

    place: int
    example: Any

    def __str__(self) -> str:
        return f"input {self.place}"


def narrow(program: fx.GraphModule, whole: Iterable[int] = (), staged: bool = False) -> dict[int, Window]:
    """Narrow ``program`` in place; returns slot -> the only window of it that is read, where there is one.

    ``whole``: the slots that are kept whole, whatever is read of them here. ``staged``: only what follows from a
    forecast is narrowed.
    """
    graph = program.graph
    changed = True
    while changed:
        drop_dead_code(graph)
        nodes = list(graph.nodes)
        if staged:
            following = reachable_from(node for node in nodes if node.target is forecast)
            nodes = [node for node in nodes if node in following]
        changed = sum(_push(graph, node) for node in nodes) > 0
    windows = {}
    for node in list(graph.nodes):
        readers = list(node.users)
        if node.target is forecast and len(readers) == 1 and range_of(readers[0]) is not None:
            anchors = node.args[0]
            assert isinstance(anchors, fx.Node)
            window = _window(readers[0])
            if window is not None and anchors.meta["slot"] not in whole:
                windows[anchors.meta["slot"]] = window
                readers[0].replace_all_uses_with(node)
                node.meta["example_value"] = ops.value(readers[0])
                graph.erase_node(readers[0])
    program.recompile()
    return windows


def _push(graph: fx.Graph, node: fx.Node) -> bool:
    """Move the slice ``node`` above its source, when nothing else reads the source."""
    taken = range_of(node)
    if taken is None or not node.users:
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    part = part_of_join(node, source)
    if part is not None:
        node.replace_all_uses_with(part)
        return True
    if ops.op(source) not in POINTWISE or len(source.users) != 1:
        return False
    operands = [argument for argument in source.args if isinstance(argument, fx.Node)]
    rank = ops.value(source).dim()
    if not operands or not all(ops.is_tensor(a) and ops.value(a).dim() == rank for a in operands):
        return False
    sliced: dict[fx.Node, fx.Node] = {}
    with graph.inserting_before(node):
        for operand in operands:
            if statically_known_true(ops.value(operand).shape[taken.dim] == ops.value(source).shape[taken.dim]):
                sliced[operand] = graph.node_copy(node, lambda a, o=operand: o if a is source else a)  # type: ignore[misc]
                index = fx.node.map_arg(node.args[1], ops.value)
                sliced[operand].meta["example_value"] = ops.value(operand)[index]
        moved = graph.node_copy(source, lambda argument: sliced.get(argument, argument))
    moved.meta["example_value"] = ops.value(node)
    node.replace_all_uses_with(moved)
    return True


def _window(node: fx.Node) -> Window | None:
    """What the slice ``node`` takes; ``None``: it depends on what is only known in the program."""
    found = []
    for part in node.args[1]:  # type: ignore[union-attr]  # a slice along one dimension
        ends = [_as_input(end) for end in (part.start, part.stop)]  # type: ignore[union-attr]
        if any(isinstance(end, fx.Node) for end in ends):
            return None
        found.append(slice(*ends))
    return tuple(found)


def _as_input(end: Any) -> Any:
    given = isinstance(end, fx.Node) and end.op == "placeholder" and "input" in end.meta
    return SizeInput(end.meta["input"], ops.value(end)) if given else end


def as_values(window: Window) -> Window:
    """``window`` with the examples of sizes."""
    return _replaced(window, lambda size: size.example)


def as_nodes(window: Window, graph: fx.Graph) -> Window:
    """``window`` with the inputs of ``graph`` that are its sizes."""
    inputs = {node.meta.get("input"): node for node in graph.find_nodes(op="placeholder")}
    return _replaced(window, lambda size: inputs[size.place])


def _replaced(window: Window, of: Callable[[SizeInput], Any]) -> Window:
    ends = [[of(end) if isinstance(end, SizeInput) else end for end in (part.start, part.stop)] for part in window]
    return tuple(slice(*pair) for pair in ends)
