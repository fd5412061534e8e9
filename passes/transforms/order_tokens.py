"""ordered: inside the blocks the tokens are in an order in which neighbours in the image or video are neighbours.

before   x = embed(latents);  x = blocks(x, cos, sin);  y = project(x)
after    x = embed(latents);  x_1 = x[order];  x_1 = blocks(x_1, cos[order], sin[order]);  y = project(x_1[order back])

Requires   a captured graph; a grid, given or read off where the graph flattens one
Ensures    the same values up to the order of sums: tokens are treated alike, and what meets them one by one
           (rotary embeddings, masks) comes in their order; tokens beside the grid (text) stay where they are.
           Every attention has ``meta["grid"]``: tokens before the grid, the grid, tokens after it
Raises     HiCacheError where there is no such grid, or the tokens cannot be followed
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.operators.chipmunk import orders as _operators  # noqa: F401  # registers them
from hicache_compile.passes.analysis.attentions import arguments_of, attentions
from hicache_compile.passes.analysis.blocks import Run, find_runs
from hicache_compile.passes.analysis.residuals import stream_carriers
from hicache_compile.passes.analysis.token_rules import follow_tokens
from hicache_compile.passes.analysis.tokens import Axis, Meeting, Tokens
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.ancestry import Ancestry
from hicache_compile.passes.graph.graphs import copy_node, drop_dead_code, fake_mode_of
from hicache_compile.passes.work import Work
from hicache_compile.policy.sparsity.chipmunk import ORDERS, Chipmunk

Grid = tuple[int, ...]


def order_grid_tokens(work: Work) -> int:
    """Write the order of the layout's sparsity into the working copy."""
    assert work.layout.sparsity is not None
    order_tokens(work.module, work.layout.sparsity)
    return 1


def order_tokens(captured: fx.GraphModule, chipmunk: Chipmunk) -> None:
    """Write the order of ``chipmunk`` into ``captured``, if there is one, and mark where the grid is in attentions."""
    runs, _ = find_runs(captured)
    if not runs:
        return
    grid, entry, axis = _entry(captured.graph, runs, chipmunk)
    ancestry = Ancestry(captured.graph)
    zone = ancestry.between(ancestry.bits(node for run in runs for block in run.blocks for node in block.nodes))
    zone.discard(entry)
    nodes = [node for node in captured.graph.nodes if node in zone]
    tokens = follow_tokens(entry, axis, math.prod(grid), nodes)
    for node in attentions(captured.graph):
        found = tokens.axes.get(arguments_of(node)["query"]) if node in zone else None
        if found is not None:
            node.meta["grid"] = (found.before, grid, found.after)
    if chipmunk.order is not None:
        _Orderer(captured.graph, tokens, grid, chipmunk.order).write(entry, zone)
        drop_dead_code(captured.graph)  # the views that were written anew in order
        captured.graph.lint()
        captured.recompile()


def _entry(graph: fx.Graph, runs: list[Run], chipmunk: Chipmunk) -> tuple[Grid, fx.Node, Axis]:
    """The grid, the value that enters the blocks with its tokens, and where in it they are."""
    inside = {node for run in runs for block in run.blocks for node in block.nodes}
    entering = [
        e for run in runs for block in run.blocks for e in block.entries if e not in inside and ops.is_tensor(e)
    ]
    wanted = dict.fromkeys(entry for entry in entering if ops.value(entry).dim() == 3)
    for entry in sorted(wanted, key=lambda node: -_length(node)):
        for source, before, after in _sources(entry):
            count = _length(entry) - before - after
            grid = chipmunk.grid if chipmunk.grid is not None else _grid_of(source, count, chipmunk)
            if grid is not None and math.prod(grid) == count:
                return grid, entry, Axis(1, before, after)
    sizes = ", ".join(str(_length(entry)) for entry in wanted) or "none"
    if chipmunk.grid is None:
        raise HiCacheError(
            "Chipmunk.grid = None: must be given, as (H, W) or (T, H, W) in tokens; the graph of this denoiser does "
            f"not show it (tokens of its streams: {sizes})"
        )
    raise HiCacheError(f"Chipmunk.grid = {chipmunk.grid!r}: must have as many tokens as a stream has: {sizes}")


def _length(node: fx.Node) -> int:
    size = ops.value(node).shape[1]
    if not isinstance(size, int):
        raise HiCacheError("Chipmunk.order, window: must be left out with dynamic shapes, a grid has a size")
    return size


def _sources(entry: fx.Node) -> list[tuple[fx.Node, int, int]]:
    """``entry``, and what was joined along its tokens to make it, with how many tokens are on both sides."""
    found = [(entry, 0, 0)]
    for node, before, after in found:
        if ops.op(node) in ops.JOIN and _along(node) == 1:
            parts = [part for part in node.args[0] if isinstance(part, fx.Node)]  # type: ignore[union-attr]  # a list
            sizes = [int(ops.value(part).shape[1]) for part in parts]
            for place, part in enumerate(parts):
                found.append((part, before + sum(sizes[:place]), after + sum(sizes[place + 1 :])))
        elif len(found) < 64:
            found += [(c, before, after) for c in stream_carriers(node) if ops.is_tensor(c) and ops.same_shape(c, node)]
    return found


def _along(node: fx.Node) -> int:
    dim = ops.argument(node, 1, "dim", 0)
    return int(dim) % ops.value(node).dim()


def _grid_of(source: fx.Node, count: int, chipmunk: Chipmunk) -> Grid | None:
    """The grid that was flattened into the ``count`` tokens of ``source``."""
    ranks = (ORDERS[chipmunk.order],) if chipmunk.order is not None else tuple(ORDERS.values())
    seen: set[fx.Node] = set()
    queue = [source]
    for node in queue:
        grid = _flattened(node)
        if grid is not None and len(grid) in ranks and math.prod(grid) == count:
            return grid
        new = [a for a in node.all_input_nodes if a not in seen and not a.meta.get("weight")]
        seen.update(new)
        queue += new
    return None


def _flattened(node: fx.Node) -> Grid | None:
    """The dimensions between batch and channels that ``node`` makes one of, channels first or last."""
    if ops.op(node) not in ("flatten", "reshape", "view") or not ops.is_tensor(node):
        return None
    old, new = tuple(ops.value(node.all_input_nodes[0]).shape), tuple(ops.value(node).shape)
    if len(new) != 3 or not all(isinstance(size, int) for size in (*old, *new)):
        return None
    for grid, flat in ((old[2:], (*old[:2], math.prod(old[2:]))), (old[1:-1], (old[0], math.prod(old[1:-1]), old[-1]))):
        if flat == new and len(grid) > 1:
            return grid
    return None


class _Orderer:
    """Writes the order into a graph."""

    def __init__(self, graph: fx.Graph, tokens: Tokens, grid: Grid, order: str) -> None:
        self.graph = graph
        self.tokens = tokens
        self.grid = grid
        self.order = order
        self._ordered: dict[tuple[fx.Node, Axis], fx.Node] = {}
        self._indices: dict[tuple[int, int, bool], fx.Node] = {}

    def write(self, entry: fx.Node, zone: set[fx.Node]) -> None:
        """Order ``entry`` and what meets its tokens, and order back what leaves ``zone``."""
        followed = list(self.tokens.axes.items())
        for meeting in self.tokens.meetings:
            self._meet(meeting)
        inside = self._picked(entry, self.tokens.axes[entry], inverse=False)
        self._redirect(entry, inside, lambda user: user in zone)
        for node, axis in followed:
            leaving = [user for user in node.users if user not in zone]
            if node is not entry and leaving:
                self._redirect(node, self._picked(node, axis, inverse=True), lambda user: user not in zone)

    def _redirect(self, node: fx.Node, to: fx.Node, wanted: Callable[[fx.Node], bool]) -> None:
        node.replace_all_uses_with(to, delete_user_cb=lambda user: user is not to and wanted(user))

    def _meet(self, meeting: Meeting) -> None:
        meeting.user.replace_input_with(meeting.operand, self._in_order(meeting.operand, meeting.axis))

    def _in_order(self, operand: fx.Node, axis: Axis) -> fx.Node:
        """``operand`` with its tokens in order: where it is only a view of something, that is put in order."""
        if (operand, axis) not in self._ordered:
            source = _seen_through(operand, axis)
            if source is None:
                self._ordered[operand, axis] = self._picked(operand, axis, inverse=False)
            else:
                below, at = source
                ordered = self._in_order(below, at)
                with self.graph.inserting_after(operand):
                    view = copy_node(self.graph, operand, lambda node: ordered if node is below else node)
                self._ordered[operand, axis] = view
        return self._ordered[operand, axis]

    def _picked(self, node: fx.Node, axis: Axis, *, inverse: bool) -> fx.Node:
        """``node`` with its tokens in order, or back, right after it."""
        index = self._index(node, axis, inverse)
        with self.graph.inserting_after(max(node, index, key=self._place)):
            made = self.graph.call_function(torch.index_select, (node, axis.dim, index))
        return _described(made, node, ops.value(node))

    def _place(self, node: fx.Node) -> int:
        return next(place for place, other in enumerate(self.graph.nodes) if other is node)

    def _index(self, like: fx.Node, axis: Axis, inverse: bool) -> fx.Node:
        key = (axis.before, axis.after, inverse)
        if key not in self._indices:
            inputs = self.graph.find_nodes(op="placeholder")
            source = next(node for node in inputs if ops.is_tensor(node) and not isinstance(ops.value(node), bool))
            args = (source, list(self.grid), self.order, axis.before, axis.after, inverse)
            with self.graph.inserting_after(inputs[-1]):
                made = self.graph.call_function(torch.ops.hicache.token_order.default, args)
            with fake_mode_of(ops.value(source)), torch.no_grad():
                example = torch.ops.hicache.token_order(ops.value(source), *args[1:])
            self._indices[key] = _described(made, source, example)
        return self._indices[key]


def _described(made: fx.Node, like: fx.Node, example: object) -> fx.Node:
    made.meta = {"path": "", "calls": (), "example_value": example}
    return made


def _seen_through(node: fx.Node, axis: Axis) -> tuple[fx.Node, Axis] | None:
    """What ``node`` is a view or a cast of, and where the tokens are in that."""
    sources = [argument for argument in node.all_input_nodes if ops.is_tensor(argument)]
    if node.op == "placeholder" or len(sources) != 1 or node.all_input_nodes != sources:
        return None
    name, source = ops.op(node), sources[0]
    shape = ops.value(source).shape
    if name in ops.CAST and shape == ops.value(node).shape:
        return source, axis
    views = {"getitem", "unsqueeze", "reshape", "view", "flatten", "unflatten", "transpose", "permute"}
    if name not in views:
        return None
    for dim, size in enumerate(shape):
        at = Axis(dim, axis.before, axis.after)
        if size == ops.value(node).shape[axis.dim] and _leads_to(node, source, at, axis):
            return source, at
    return None


def _leads_to(node: fx.Node, source: fx.Node, at: Axis, axis: Axis) -> bool:
    """Whether tokens at ``at`` in ``source`` are at ``axis`` in ``node``."""
    try:
        count = int(ops.value(source).shape[at.dim]) - at.before - at.after
        return follow_tokens(source, at, count, [node]).axes.get(node) == axis
    except HiCacheError:
        return False
