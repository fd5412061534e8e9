"""Find the residual sums: ``y = x + f(x)``, where ``f`` holds a matrix product, a convolution or an attention.

``x`` may come through other sums, joins, slices and casts, so that ``f`` may start from any earlier value of the
stream. A sum whose operands carry the same value, or each follow from the other's stream, or are streams with residual
sums both, merges two streams and adds no contribution. Class names, module lists and argument names are never read.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from hicache_compile.passes import ops
from hicache_compile.passes.ancestry import Ancestry, Bits


@dataclass(frozen=True, slots=True)
class Residual:
    """One residual sum: ``node = stream + contribution``."""

    node: fx.Node
    stream: fx.Node
    contribution: fx.Node


def find_residuals(graph: fx.Graph, ancestry: Ancestry) -> list[Residual]:
    """The residual sums of ``graph`` in its order, without those inside another one's contribution."""
    carried = _Carried(ancestry)
    found: list[Residual] = []
    sums: Bits = 0
    for node in graph.nodes:
        residual = _residual(node, ancestry, carried)
        if residual is not None and not carried.bits[residual.contribution] & sums:
            found.append(residual)
            sums |= ancestry.bit(node)
    return [residual for residual in found if not any(_inside(residual, other, ancestry) for other in found)]


class _Carried:
    """What every value carries: itself and, through carriers, what they were made from."""

    def __init__(self, ancestry: Ancestry) -> None:
        self.bits: dict[fx.Node, Bits] = {}
        for node in ancestry.nodes:
            carried = ancestry.bit(node)
            for carrier in stream_carriers(node):
                carried |= self.bits[carrier]
            self.bits[node] = carried


def stream_carriers(node: fx.Node) -> list[fx.Node]:
    """The carriers of ``node``. Of a sum only the operands of its own shape: a bias carries nothing. Of a selection
    only a source with as many channels: a part of them (a shift of a modulation, a query) is not the stream."""
    carriers = ops.carriers(node)
    if ops.op(node) in ops.ADD:
        return [c for c in carriers if ops.is_tensor(c) and ops.is_tensor(node) and ops.same_shape(c, node)]
    if ops.op(node) in ops.SELECT and ops.is_tensor(node):
        return [c for c in carriers if _channels(c) in (None, _channels(node))]
    return carriers


def _channels(node: fx.Node) -> object:
    """The last size of ``node``, or of what it splits; None when it has none."""
    source = node if ops.is_tensor(node) else node.args[0] if node.args else None
    if not ops.is_tensor(source):
        return None
    shape = ops.value(source).shape  # type: ignore[arg-type]  # a node
    return shape[-1] if len(shape) else None


def _residual(node: fx.Node, ancestry: Ancestry, carried: _Carried) -> Residual | None:
    """``node`` as a residual sum, or None when it is none."""
    a, b = _operands(node)
    if a is None or b is None or carried.bits[a] & carried.bits[b]:
        return None
    follows = [
        carried.bits[stream] & ancestry.above_product(contribution) != 0 for stream, contribution in ((a, b), (b, a))
    ]
    if follows[0] == follows[1]:
        return None
    return Residual(node, a, b) if follows[0] else Residual(node, b, a)


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | tuple[None, None]:
    """The two values that the sum ``node`` adds, each of its own shape; none when it is no sum of such values."""
    floating = ops.is_tensor(node) and ops.value(node).is_floating_point() and ops.value(node).dim() > 1
    scaled = ops.op(node) == "addcmul"  # a + gate * b
    if not floating or not (scaled or ops.op(node) in ops.ADD):
        return None, None
    given = (node.args[0], node.args[2]) if scaled else node.args[:2]
    operands = [argument for argument in given if isinstance(argument, fx.Node) and ops.is_tensor(argument)]
    if len(operands) < 2 or not (scaled or all(ops.same_shape(operand, node) for operand in operands)):
        return None, None
    return operands[0], operands[1]


def _inside(residual: Residual, other: Residual, ancestry: Ancestry) -> bool:
    """Whether ``residual`` is part of how the contribution of ``other`` is made from its stream."""
    making = ancestry.above(other.contribution) | ancestry.bit(other.contribution)
    return bool(making & ancestry.bit(residual.node)) and bool(
        ancestry.above(residual.node) & ancestry.bit(other.stream)
    )
