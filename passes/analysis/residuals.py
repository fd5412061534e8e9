"""Find the residual sums: ``y = x + f(x)``, where ``f`` contains a matrix product, a convolution or an attention.

``x - f(x)`` and ``lerp(x, f(x), weight)`` are such sums too.

``f`` may start from any earlier value of the stream ``x``, since ``x`` may pass through other sums, joins, slices and
casts. The path through ``f`` contains no residual sum of another stream; so a shift that is added in every block is not
a stream, although all later values depend on it. A sum merges two streams, and adds no contribution, if its operands
carry the same value, if each depends on the other's stream, or if both are streams with residual sums. Class names,
module lists and argument names are never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from hicache_compile.internals import statically_known_true
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.ancestry import Ancestry, Bits


@dataclass(frozen=True, slots=True)
class Residual:
    """One residual sum: ``node = stream + contribution``; the contribution of an opaque block is ``node`` itself."""

    node: fx.Node
    stream: fx.Node
    contribution: fx.Node

    @property
    def opaque(self) -> bool:
        """Whether the sum is made inside an operator, and what is added cannot be seen."""
        return self.contribution is self.node


def find_residuals(graph: fx.Graph, ancestry: Ancestry) -> list[Residual]:
    """The residual sums of ``graph``, in graph order."""
    finder = _Finder(ancestry)
    for node in graph.nodes:
        finder.visit(node)
    return finder.found


class _Finder:
    """Visits nodes in graph order and records the residual sums found so far."""

    def __init__(self, ancestry: Ancestry) -> None:
        self.ancestry = ancestry
        self.found: list[Residual] = []
        self.sums: Bits = 0
        self.carried: dict[fx.Node, Bits] = {}  # the node and its ancestors through carriers

    def visit(self, node: fx.Node) -> None:
        self.carried[node] = self.ancestry.bit(node)
        for carrier in stream_carriers(node):
            self.carried[node] |= self.carried[carrier]
        whole = _opaque_block(node)
        if whole is not None:
            self.carried[node] |= self.carried[whole.stream]
            self.found.append(whole)
            self.sums |= self.ancestry.bit(node)
            return
        a, b = _operands(node)
        if a is None or b is None or self.carried[a] & self.carried[b]:
            return
        forth = self._is_made_from(b, a)
        back = ops.op(node) not in ops.SUBTRACT and self._is_made_from(a, b)
        if forth == back:
            return
        residual = Residual(node, a, b) if forth else Residual(node, b, a)
        if not self.carried[residual.contribution] & self.sums:
            self.found.append(residual)
            self.sums |= self.ancestry.bit(node)

    def _is_made_from(self, contribution: fx.Node, stream: fx.Node) -> bool:
        """Whether a path leads from ``stream``, or from a value it carries, to ``contribution``, with an expensive op
        on it and no residual sum of another stream.
        """
        stream_bits = self.carried[stream]
        if not stream_bits & self.ancestry.above(contribution):
            return False
        seen: set[tuple[fx.Node, bool]] = set()
        queue = [(contribution, False)]
        while queue:
            node, product = queue.pop()
            bit = self.ancestry.bit(node)
            if product and bit & stream_bits:
                return True
            foreign = bit & self.sums and not self.carried[node] & stream_bits
            if (node, product) in seen or foreign:
                continue
            seen.add((node, product))
            through = product or ops.op(node) in ops.HEAVY
            queue += [(argument, through) for argument in self.ancestry.inputs[node]]
        return False


def _opaque_block(node: fx.Node) -> Residual | None:
    """The sum that an output of an opaque block stands for: of the stream it was given, and what it adds inside.

    A block is a numbered child of a module list. Its outputs belong to its arguments of the same shape, in order.
    """
    call = node.args[0] if ops.op(node) == "getitem" else None
    if not isinstance(call, fx.Node) or ops.op(call) != ops.OPAQUE or not call.meta["path"].split(".")[-1].isdigit():
        return None
    streams = [given for given in call.all_input_nodes if can_be_stream(given)]
    for user in sorted(call.users, key=lambda user: int(user.args[1])):  # type: ignore[arg-type]  # a number
        stream = next((s for s in streams if can_be_stream(user) and ops.same_shape(s, user)), None)
        if user is node:
            return Residual(node, stream, node) if stream is not None else None
        streams = [other for other in streams if other is not stream]
    return None


def can_be_stream(node: fx.Node) -> bool:
    return ops.is_tensor(node) and ops.value(node).dim() > 1 and no_stream_because(node) is None


def no_stream_because(node: fx.Node) -> str | None:
    """What of the tensor ``node`` a ring cannot keep, or a forecast not weigh."""
    value = ops.value(node)
    if value.is_nested:
        return "is a nested tensor: must be a tensor with padding"
    return None if value.is_floating_point() else f"is {str(value.dtype).removeprefix('torch.')}: must be real numbers"


def stream_carriers(node: fx.Node) -> list[fx.Node]:
    """The carriers of ``node`` that can be the stream.

    Of a sum, only operands of its own shape: a bias carries nothing. Of a selection, only a source with as many
    channels: a part of the channels (a shift of a modulation, a query) is not the stream.
    """
    carriers = ops.carriers(node)
    if ops.op(node) in ops.SUMS:
        return [c for c in carriers if ops.is_tensor(c) and ops.is_tensor(node) and ops.same_shape(c, node)]
    if ops.op(node) in ops.SELECT and ops.is_tensor(node):
        width = _channels(node)
        return [c for c in carriers if _channels(c) is None or statically_known_true(_channels(c) == width)]
    return carriers


def _channels(node: fx.Node) -> Any:
    """The last size of ``node``, or of the tensor it splits; None when it has none."""
    source = node if ops.is_tensor(node) else node.args[0] if node.args else None
    if not ops.is_tensor(source):
        return None
    shape = ops.value(source).shape  # type: ignore[arg-type]  # a node
    return shape[-1] if len(shape) else None


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | tuple[None, None]:
    """The two operands of the sum ``node``, each of the shape of ``node``; (None, None) if it is not such a sum.

    Of ``addcmul`` (``a + gate * b``), ``a`` and ``b`` of any shape.
    """
    scaled = ops.op(node) == "addcmul"  # a + gate * b
    if not can_be_stream(node) or not (scaled or ops.op(node) in ops.SUMS):
        return None, None
    given = (node.args[0], node.args[2]) if scaled else node.args[:2]
    operands = [argument for argument in given if isinstance(argument, fx.Node) and ops.is_tensor(argument)]
    if len(operands) < 2 or not (scaled or all(ops.same_shape(operand, node) for operand in operands)):
        return None, None
    return operands[0], operands[1]
