"""Find the denoiser's blocks: the modules that contain residual sums, chained through their streams.

A block is one call of a numbered child of a module list, or of a module beside such lists, that contains at least one
residual sum; where a denoiser has none, ``whole_blocks`` says what stands for them. Class names are never read.

    Requires   module paths, written by ``capture``
    Ensures    runs of blocks in graph order; every stream of a block comes from an earlier block of the same run,
               except in the run's first block
    Refuses    a module list with expensive children but no residual sum, with that as the reason
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.passes.analysis.residuals import (
    Residual,
    can_be_stream,
    find_residuals,
    no_stream_because,
    stream_carriers,
)
from hicache_compile.passes.analysis.units import call_number, contribution_of, home_of, unit_of, units_of
from hicache_compile.passes.analysis.whole_blocks import whole_blocks
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.ancestry import Ancestry, Bits
from hicache_compile.passes.graph.graphs import numel


@dataclass(slots=True)
class Block:
    """One block: its nodes in graph order, its residual sums, the nodes on its streams (``spine``) and the values at
    which those streams start (``entries``, in graph order).

    An entry comes from outside the block, or is computed in it by an operation that is not a carrier: a projection that
    merges a long skip, a convolution that changes the resolution.
    """

    name: str
    nodes: list[fx.Node]
    residuals: list[Residual]
    spine: set[fx.Node] = field(default_factory=set)
    entries: list[fx.Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks chained through their residual streams."""

    blocks: list[Block]


class Streams:
    """The values a node carries, found by following carriers backwards.

    Args:
        inside: the nodes that are followed through; any node outside is a root.
        starts: nodes inside that are roots nevertheless.
        constants: nodes outside that are not roots. A value that enters several blocks unchanged (a position embedding)
            is added to a stream but is not one.
    """

    def __init__(self, inside: set[fx.Node], starts: Iterable[fx.Node] = (), constants: Iterable[fx.Node] = ()) -> None:
        self.inside = inside - set(starts)
        self.constants = set(constants)
        self._roots: dict[fx.Node, frozenset[fx.Node]] = {}

    def roots(self, node: fx.Node) -> frozenset[fx.Node]:
        """The roots that ``node`` carries; empty when it is not on a stream."""
        if node not in self._roots:
            self._roots[node] = self._find(node)
        return self._roots[node]

    def _find(self, node: fx.Node) -> frozenset[fx.Node]:
        if node not in self.inside:
            weight = node.op == "get_attr" or node.meta.get("weight")
            root = can_be_stream(node) and not weight and node not in self.constants
            return frozenset({node} if root else ())
        return frozenset().union(*(self.roots(carrier) for carrier in stream_carriers(node)))

    def carriers(self, node: fx.Node) -> list[fx.Node]:
        """The carriers of ``node`` that are on a stream."""
        return [carrier for carrier in stream_carriers(node) if self.roots(carrier)]


def find_runs(captured: fx.GraphModule) -> tuple[list[Run], list[CannotRewrite]]:
    """The runs of blocks in ``captured``, and the module lists without one, each with the reason."""
    ancestry = Ancestry(captured.graph)
    residuals = find_residuals(captured.graph, ancestry) or whole_blocks(captured.graph)
    blocks = _blocks(captured, residuals, ancestry)
    runs = _chain(blocks, ancestry)
    idle = [run for run in runs if not _follows_from_a_sample(run, ancestry)]
    refused = [CannotRewrite(run.blocks[0].name, "it follows from the time alone: cheap, and steep") for run in idle]
    return [run for run in runs if run not in idle], refused + _misses(captured, blocks)


def _blocks(captured: fx.GraphModule, residuals: list[Residual], ancestry: Ancestry) -> list[Block]:
    """The modules that contain residual sums, one block per call, in graph order."""
    home = {residual: home_of(residual) for residual in residuals}
    units = units_of(set(home.values()))
    of_sum = {residual.node: unit_of(home[residual], units) for residual in residuals}
    blocks: dict[tuple[str, int], Block] = {}
    for node in captured.graph.nodes:
        unit = of_sum.get(node) or unit_of(node.meta["path"], units)
        if unit is not None:
            called_in = node if node.meta["path"].startswith(unit) else contribution_of(node, residuals)
            call = call_number(called_in, unit)
            block = blocks.setdefault((unit, call), Block(f"{unit}@{call}" if call else unit, [], []))
            block.nodes.append(node)
            block.residuals += [residual for residual in residuals if residual.node is node]
    found = [block for block in blocks.values() if block.residuals]
    _follow_streams(found, ancestry)
    return sorted(found, key=lambda block: ancestry.index[block.residuals[0].node])


def _follow_streams(blocks: list[Block], ancestry: Ancestry) -> None:
    """Fill in the spine and the entries of ``blocks``."""
    uses: dict[fx.Node, int] = {}
    only: list[frozenset[fx.Node]] = []
    for block in blocks:
        streams = Streams(set(block.nodes), _bases(block))
        for root in frozenset().union(*(streams.roots(residual.node) for residual in block.residuals)):
            uses[root] = uses.get(root, 0) + 1
        only += [streams.roots(residual.stream) for residual in block.residuals]
    made_inside = {node for block in blocks for node in block.nodes}
    constants = {root for root, count in uses.items() if count > 1 and root not in made_inside}
    constants -= {root for roots in only for root in roots if roots <= constants}  # two towers share one stream
    for block in blocks:
        bases = _bases(block)
        streams = Streams(set(block.nodes), bases, constants)
        queue = [residual.node for residual in block.residuals]
        while queue:
            node = queue.pop()
            if node not in block.spine and node in streams.inside:
                block.spine.add(node)
                stream = next((r.stream for r in block.residuals if r.node is node), None)
                queue += streams.carriers(node) if stream is None else [stream]
        block.spine |= bases
        entries = frozenset().union(*(streams.roots(residual.stream) for residual in block.residuals))
        block.entries = sorted(entries, key=ancestry.index.__getitem__)


def _bases(block: Block) -> set[fx.Node]:
    """Nodes in ``block`` that are not computed by a carrier and from which one of its streams starts."""
    inside = set(block.nodes)
    sums = {residual.node: residual.stream for residual in block.residuals}
    bases: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    queue = list(sums.values())
    while queue:
        node = queue.pop()
        if node in seen or node not in inside:
            continue
        seen.add(node)
        carriers = [sums[node]] if node in sums else stream_carriers(node)
        queue += carriers
        if not carriers:
            bases.add(node)
    return bases


def _chain(blocks: list[Block], ancestry: Ancestry) -> list[Run]:
    """Split blocks, in graph order, into runs.

    A block joins the run that passes it a stream, or else the newest run it depends on. A block with a stream that
    depends on no earlier block starts a run.
    """
    runs: list[Run] = []
    inside: list[Bits] = []  # the nodes of each run
    taken = {node for block in blocks for node in block.nodes}
    for block in blocks:
        streams = Streams(set(block.nodes), _bases(block))
        handed, above = 0, []
        for residual in block.residuals:
            sources = {source for root in streams.roots(residual.stream) for source in _sources(root, taken)}
            main = max(sources, key=lambda source: (numel(source), ancestry.index[source]), default=residual.stream)
            handed |= ancestry.bit(main)
            above.append(ancestry.bit(main) | ancestry.above(main))
        follows = all(any(bits & nodes for nodes in inside) for bits in above)
        newest_first = list(reversed(range(len(runs))))
        home = next((i for i in newest_first if handed & inside[i]), None)
        if home is None:
            home = next((i for i in newest_first if any(bits & inside[i] for bits in above)), None)
        if not follows or home is None:
            runs.append(Run([]))
            inside.append(0)
            home = len(runs) - 1
        runs[home].blocks.append(block)
        inside[home] |= ancestry.bits(block.nodes)
    return runs


def _follows_from_a_sample(run: Run, ancestry: Ancestry) -> bool:
    """Whether ``run`` depends on an input with more than one number per sample. A tower of modulations does not."""
    entries = {entry for block in run.blocks for entry in block.entries}
    above = ancestry.bits(entries) | ancestry.above_all(entries)
    inputs = [node for node in ancestry.within(above) if node.op == "placeholder" and not node.meta["weight"]]
    return any(ops.is_tensor(node) and ops.value(node).dim() > 1 for node in inputs)


def _sources(root: fx.Node, taken: set[fx.Node]) -> set[fx.Node]:
    """The values ``root`` carries, followed backwards through joins and sums between the blocks."""
    carriers = [] if root in taken else stream_carriers(root)
    return set().union(*(_sources(carrier, taken) for carrier in carriers)) if carriers else {root}


def _misses(captured: fx.GraphModule, blocks: list[Block]) -> list[CannotRewrite]:
    """The outermost module lists with an expensive child and no block, the most expensive first."""
    taken = {node for block in blocks for node in block.nodes}
    lists: dict[str, fx.Node] = {}  # with the first expensive node of each
    layers: Counter[str] = Counter()
    for node in captured.graph.nodes:
        parts = node.meta["path"].split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if number is not None and ops.op(node) in ops.HEAVY and node not in taken:
            name = ".".join(parts[:number])
            lists.setdefault(name, node)
            layers[name] += 1
    homes = {".".join(block.name.split(".")[:-1]) for block in blocks}
    ordered = sorted((name for name in lists if name not in homes), key=lambda name: -layers[name])
    return [CannotRewrite(name, _why_none(name, lists[name])) for name in ordered]


def _why_none(name: str, node: fx.Node) -> str:
    """Why the list ``name``, in which ``node`` is expensive, has no block."""
    child = ".".join(node.meta["path"].split(".")[: name.count(".") + 2])
    why = no_stream_because(node) if ops.is_tensor(node) else None
    return f"what {child} computes {why}" if why else f"no output of {child} is a residual sum of its input"
