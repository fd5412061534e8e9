"""Find MLPs by structure: ``linear(act(linear(x)))``, or gated, ``linear(act(linear(x)) * linear(x))``.

One linear may compute both halves of a gate, and other outputs too (the queries of a fused block). The input of the
last linear may be joined with other values (the attention of a fused block).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from hicache_compile.passes.graph import ops


@dataclass(frozen=True, slots=True)
class Projection:
    """Outputs ``start`` to ``stop`` of the linear ``node``; ``None``: all of them."""

    node: fx.Node
    start: int | None = None
    stop: int | None = None

    @property
    def x(self) -> fx.Node:
        return ops.argument(self.node, 0, "input")

    @property
    def weight(self) -> fx.Node:
        return ops.argument(self.node, 1, "weight")

    @property
    def bias(self) -> fx.Node | None:
        return ops.argument(self.node, 2, "bias")

    def part(self, start: int, stop: int) -> Projection:
        """Outputs ``start`` to ``stop`` of this projection."""
        offset = self.start or 0
        return replace(self, start=offset + start, stop=offset + stop)


@dataclass(frozen=True, slots=True)
class MLP:
    """One MLP. ``up``: the projection by which the activation is multiplied, if any.

    ``last``: its last linear. Inputs ``start`` to ``stop`` of it are the hidden units (``stop`` is ``None``: all
    inputs); the rest are ``others``, which come first if ``others_first``.
    """

    inner: Projection
    up: Projection | None
    activation: str
    last: fx.Node
    start: int = 0
    stop: int | None = None
    others: tuple[fx.Node, ...] = ()
    others_first: bool = True


def mlp_of(last: fx.Node) -> MLP | None:
    """The MLP that ends in the linear ``last``, if there is one."""
    if ops.op(last) != "linear":
        return None
    hidden = _through(ops.argument(last, 0, "input"))
    if not ops.is_tensor(hidden) or ops.value(hidden).dim() != 3:
        return None
    if ops.op(hidden) not in ops.JOIN:
        return _gated(hidden, last)
    parts: Sequence[fx.Node] = list(hidden.args[0])  # type: ignore[arg-type]  # a list of nodes
    along = ops.argument(hidden, 1, "dim", 0)
    if along not in (-1, 2) or len(parts) != 2:
        return None
    widths = [int(ops.value(part).shape[-1]) for part in parts]
    found = [(place, mlp) for place, part in enumerate(parts) if (mlp := _gated(_through(part), last)) is not None]
    if len(found) != 1:
        return None
    place, mlp = found[0]
    start = sum(widths[:place])
    other = parts[1 - place]
    return replace(mlp, start=start, stop=start + widths[place], others=(other,), others_first=place == 1)


def _gated(hidden: fx.Node, last: fx.Node) -> MLP | None:
    """The MLP with the hidden units ``hidden``."""
    if ops.op(hidden) in ops.MUL and len(hidden.all_input_nodes) == 2:
        for first, second in (hidden.all_input_nodes, reversed(hidden.all_input_nodes)):
            activated, up = _activated(_through(first)), _projection(second)
            if activated is not None and up is not None and _alike(activated[0], up):
                return MLP(activated[0], up, activated[1], last)
        return None
    activated = _activated(hidden)
    return None if activated is None else MLP(activated[0], None, activated[1], last)


def _alike(one: Projection, other: Projection) -> bool:
    """Whether both projections have the same input."""
    return one.x is other.x


def _activated(node: fx.Node) -> tuple[Projection, str] | None:
    """The projection that ``node`` activates, and the name of the activation."""
    name = ops.op(node)
    if name == "gelu":
        approximate = ops.argument(node, 1, "approximate", "none")
        name = "gelu_tanh" if approximate == "tanh" else "gelu"
    if name not in ("gelu", "gelu_tanh", "silu", "relu"):
        return None
    source = _projection(ops.argument(node, 0, "input"))
    return None if source is None else (source, name)


def _projection(node: fx.Node | None) -> Projection | None:
    """``node`` as a linear, or as a part of one."""
    if node is None:
        return None
    node = _through(node)
    if ops.op(node) == "linear":
        x = ops.argument(node, 0, "input")
        return Projection(node) if ops.is_tensor(x) and ops.value(x).dim() == 3 else None
    bounds = part_of(node)
    if bounds is None:
        return None
    source, start, stop = bounds
    whole = _projection(source)
    return None if whole is None else whole.part(start, stop)


def part_of(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """``(source, start, stop)`` if ``node`` is the channels ``start`` to ``stop`` of ``source``."""
    if ops.op(node) != "getitem" or not isinstance(node.args[0], fx.Node):
        return None
    source, place = node.args[0], node.args[1]
    if ops.is_tensor(source):
        return _sliced(source, place)
    if ops.op(source) in ("chunk", "split", "split_with_sizes", "tensor_split") and isinstance(place, int):
        return _piece(source, place)
    return None


def _sliced(source: fx.Node, place: Any) -> tuple[fx.Node, int, int] | None:
    """``source[..., start:stop]``"""
    if not (isinstance(place, tuple) and len(place) == 2 and place[0] is Ellipsis and isinstance(place[1], slice)):
        return None
    start, stop, step = place[1].indices(ops.value(source).shape[-1])
    return (source, start, stop) if step == 1 else None


def _piece(pieces: fx.Node, place: int) -> tuple[fx.Node, int, int] | None:
    """One of several ``pieces`` along the channels."""
    whole = ops.argument(pieces, 0, "input")
    along = ops.argument(pieces, 2, "dim", 0)
    if along not in (-1, ops.value(whole).dim() - 1) or ops.value(pieces) is None:
        return None
    widths = [int(part.shape[-1]) for part in ops.value(pieces)]
    start = sum(widths[:place])
    return whole, start, start + widths[place]


def _through(node: fx.Node) -> fx.Node:
    """``node`` without operations that change no value except by rounding: inactive dropout, casts, copies."""
    while True:
        idle = ops.op(node) in ops.DROPOUT and not ops.is_random(node)
        if not (idle or ops.op(node) in ops.CAST) or not isinstance(node.args[0], fx.Node):
            return node
        node = node.args[0]
