"""Push slices towards their source in a forecast program, so that rows nobody reads are not forecast.

    before   s = add(cat([txt, img]), mul(gate, forecast(anchors, w)));  img2 = s[:, 512:]
    after    img2 = add(img, mul(gate, forecast(anchors, w)[:, 512:]))

FLUX's single blocks join text and image; once attention is gone, only the image rows reach the output.
The text slots then die, and the others shrink to the rows that are read (``windows``).

    Requires   a forecast program
    Ensures    the same value for every output; no slice of a sum that has no other reader
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from hicache_compile.passes import ops
from hicache_compile.passes.branch import forecast
from hicache_compile.passes.graphs import drop_dead_code, reachable_from

POINTWISE = ops.ADD | ops.MUL | ops.DIV | {"to", "float", "half", "bfloat16", "type_as", "clip", "clamp"}
Window = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Range:
    dim: int
    start: Any
    stop: Any


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
        if node.target is forecast and len(readers) == 1 and _range(readers[0]) is not None:
            anchors = node.args[0]
            assert isinstance(anchors, fx.Node)
            window = readers[0].args[1]
            plain = all(isinstance(part, slice) and not _symbolic(part) for part in window)
            if plain and anchors.meta["slot"] not in whole:
                windows[anchors.meta["slot"]] = window
                readers[0].replace_all_uses_with(node)
                node.meta["example_value"] = ops.value(readers[0])
                graph.erase_node(readers[0])
    program.recompile()
    return windows


def part_of_join(node: fx.Node, source: fx.Node) -> fx.Node | None:
    """The part of the join ``source`` that the slice ``node`` takes, when it takes exactly one."""
    taken = _range(node)
    if taken is None or ops.op(source) not in ops.JOIN:
        return None
    dim = source.kwargs.get("dim", source.args[1] if len(source.args) > 1 else 0)
    parts = source.args[0]
    if not isinstance(dim, int) or dim % ops.value(source).dim() != taken.dim:
        return None
    offset: Any = 0
    for part in parts:  # type: ignore[union-attr]  # a list of nodes
        assert isinstance(part, fx.Node)
        end = offset + ops.value(part).shape[taken.dim]
        if statically_known_true(offset == taken.start) and statically_known_true(end == taken.stop):
            return part
        offset = end
    return None


def _push(graph: fx.Graph, node: fx.Node) -> bool:
    """Move the slice ``node`` above its source, when nothing else reads the source."""
    taken = _range(node)
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


def _range(node: fx.Node) -> _Range | None:
    """``x[:, a:b]`` as (dim, a, b) when ``node`` is such a slice along one dimension."""
    if ops.op(node) != "getitem" or not isinstance(node.args[1], tuple) or not ops.is_tensor(node.args[0]):
        return None
    whole = slice(None, None, None)
    if not all(isinstance(part, slice) for part in node.args[1]):
        return None
    cut = [(dim, part) for dim, part in enumerate(node.args[1]) if part != whole]
    if len(cut) != 1 or cut[0][1].step not in (None, 1):
        return None
    dim, part = cut[0]
    assert isinstance(part, slice)
    assert isinstance(node.args[0], fx.Node)
    size = ops.value(node.args[0]).shape[dim]
    start, stop = (ops.value(e) if isinstance(e, fx.Node) else e for e in (part.start, part.stop))
    start = 0 if start is None else start
    stop = size if stop is None else stop
    if statically_known_true(start < 0):
        start = size + start
    if statically_known_true(stop < 0):
        stop = size + stop
    return _Range(dim, start, stop)


def _symbolic(part: slice) -> bool:
    return isinstance(part.start, fx.Node) or isinstance(part.stop, fx.Node)
