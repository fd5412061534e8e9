"""Find the denoiser's blocks: neighbours in a list of modules, chained through residual streams.

A block is the set of nodes that ran in one numbered child of a module list. It counts when one of its
outputs is a residual sum: one of its inputs, carried by sums, joins, slices, casts and reshapes only,
plus contributions the block computed. Class names are never read.

    Requires   ``capture`` has written module paths
    Ensures    runs of blocks in graph order; in a run each block's streams come from the one before
    Refuses    lists whose children have no residual sum, with that as the reason
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.passes import ops


@dataclass(frozen=True, slots=True)
class Addition:
    """One residual sum in a block: ``node = stream + contribution``."""

    node: fx.Node
    stream: fx.Node
    contribution: fx.Node


@dataclass(slots=True)
class Block:
    """One block: its nodes in graph order, where its streams leave it, and the sums on the way."""

    name: str
    nodes: list[fx.Node]
    exits: list[fx.Node] = field(default_factory=list)
    additions: list[Addition] = field(default_factory=list)
    spine: set[fx.Node] = field(default_factory=set)
    entries: set[fx.Node] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks chained through their residual streams."""

    blocks: list[Block]


class Streams:
    """Where values come from when followed back through carriers only."""

    def __init__(self, inside: set[fx.Node], constants: frozenset[fx.Node] = frozenset()) -> None:
        self.inside = inside
        self.constants = constants
        self._roots: dict[fx.Node, frozenset[fx.Node]] = {}

    def roots(self, node: fx.Node) -> frozenset[fx.Node]:
        """The values from outside that ``node`` carries; empty when it is not on a stream."""
        if node not in self._roots:
            self._roots[node] = self._find(node)
        return self._roots[node]

    def _find(self, node: fx.Node) -> frozenset[fx.Node]:
        if node not in self.inside:
            stream = ops.is_tensor(node) and ops.value(node).is_floating_point() and ops.value(node).dim() > 1
            weight = node.op == "get_attr" or node.meta.get("weight")
            return frozenset() if not stream or weight or node in self.constants else frozenset({node})
        found = [self.roots(carrier) for carrier in self.carriers(node)]
        return frozenset().union(*found)

    def carriers(self, node: fx.Node) -> list[fx.Node]:
        """The carriers of ``node``; of a sum only the operands of its own shape (a bias carries nothing)."""
        carriers = ops.carriers(node)
        if ops.op(node) in ops.ADD:
            return [c for c in carriers if ops.is_tensor(c) and ops.is_tensor(node) and ops.same_shape(c, node)]
        return carriers


def find_runs(captured: fx.GraphModule) -> tuple[list[Run], list[CannotRewrite]]:
    """The runs of blocks of ``captured`` and the candidates that were not blocks, with the reason."""
    blocks: list[Block] = []
    misses: list[CannotRewrite] = []
    taken: set[fx.Node] = set()
    deepest = max((node.meta["path"].count(".") for node in captured.graph.nodes), default=0)
    for level in range(deepest + 1):
        lists = _candidates(captured, level, taken)
        for name, candidates in lists.items():
            found = _accept(candidates)
            blocks += found
            taken.update(node for block in found for node in block.nodes)
            if not found and level == 0 and any(ops.op(n) in ops.HEAVY for c in candidates for n in c.nodes):
                misses.append(CannotRewrite(name, f"no output of {candidates[0].name} is a residual sum of its input"))
    order = {node: index for index, node in enumerate(captured.graph.nodes)}
    blocks.sort(key=lambda block: order[block.nodes[0]])
    return _chain(blocks), misses


def _candidates(captured: fx.GraphModule, level: int, taken: set[fx.Node]) -> dict[str, list[Block]]:
    """List name -> its numbered children as candidate blocks, at the ``level``-th number in module paths."""
    lists: dict[str, dict[str, Block]] = {}
    for node in captured.graph.nodes:
        parts = node.meta["path"].split(".")
        numbered = [i for i, part in enumerate(parts) if part.isdigit()]
        if level < len(numbered) and node not in taken:
            place = numbered[level]
            children = lists.setdefault(".".join(parts[:place]), {})
            name = ".".join(parts[: place + 1])
            children.setdefault(name, Block(name, [])).nodes.append(node)
    return {name: list(children.values()) for name, children in lists.items()}


def _accept(candidates: list[Block]) -> list[Block]:
    """Those candidates of one list that have a residual sum, with their streams filled in."""
    exits = {node for block in candidates for node in _outputs(block)}
    uses: dict[fx.Node, int] = {}
    for block in candidates:
        streams = Streams(set(block.nodes))
        for root in frozenset().union(*(streams.roots(node) for node in _outputs(block))):
            uses[root] = uses.get(root, 0) + 1
    # What enters several blocks unchanged (a position embedding) is added to a stream, it is not one.
    constants = frozenset(root for root, count in uses.items() if count > 1 and root not in exits)
    return [block for block in candidates if _fill(block, Streams(set(block.nodes), constants))]


def _outputs(block: Block) -> list[fx.Node]:
    inside = set(block.nodes)
    return [node for node in block.nodes if any(user not in inside for user in node.users)]


def _fill(block: Block, streams: Streams) -> bool:
    """Follow the block's stream outputs back and write down the sums; False when there is none."""
    block.exits = [node for node in _outputs(block) if ops.is_tensor(node) and streams.roots(node)]
    queue = list(block.exits)
    while queue:
        node = queue.pop()
        if node in block.spine or node not in streams.inside:
            continue
        block.spine.add(node)
        on_stream = [carrier for carrier in streams.carriers(node) if streams.roots(carrier)]
        queue.extend(on_stream)
        contribution = _contribution(node, on_stream)
        if contribution is not None and contribution in streams.inside:
            block.additions.append(Addition(node, on_stream[0], contribution))
    order = {node: index for index, node in enumerate(block.nodes)}
    block.additions.sort(key=lambda addition: order[addition.node])
    block.entries = set().union(*(streams.roots(node) for node in block.exits)) if block.exits else set()
    return bool(block.additions) and any(ops.op(node) in ops.HEAVY for node in block.nodes)


def _contribution(node: fx.Node, on_stream: list[fx.Node]) -> fx.Node | None:
    """The operand of a residual sum that is not the stream; None when ``node`` is no such sum."""
    if len(on_stream) != 1:
        return None
    if ops.op(node) == "addcmul":
        last = node.args[2]
        return last if isinstance(last, fx.Node) else None
    if ops.op(node) not in ops.ADD:
        return None
    others = [argument for argument in node.args[:2] if isinstance(argument, fx.Node) and argument is not on_stream[0]]
    full_shape = [other for other in others if ops.is_tensor(other) and ops.same_shape(other, node)]
    return full_shape[0] if full_shape else None


def _chain(blocks: list[Block]) -> list[Run]:
    """Split blocks, in graph order, into runs: a block joins the run one of its streams comes from."""
    inside = {node for block in blocks for node in block.nodes}
    runs: list[Run] = []
    for block in blocks:
        arriving = set().union(*(_arrives_from(entry, inside) for entry in block.entries)) if block.entries else set()
        home = next((run for run in reversed(runs) if arriving & set(run.blocks[-1].exits)), None)
        if home is None:
            runs.append(Run([block]))
        else:
            home.blocks.append(block)
    return runs


def _arrives_from(entry: fx.Node, inside: set[fx.Node]) -> set[fx.Node]:
    """The block outputs that ``entry`` carries, through sums, joins and slices between blocks."""
    seen: set[fx.Node] = set()
    queue = [entry]
    found: set[fx.Node] = set()
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in inside:
            found.add(node)
        else:
            queue.extend(ops.carriers(node))
    return found
