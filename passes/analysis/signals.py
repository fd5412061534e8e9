"""Find the values a guard measures, from the operations of the graph and never from class names.

Requires   runs of blocks on a working copy of the captured graph
Raises     HiCacheError where a model has no such value
"""

from __future__ import annotations

import re

from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.passes.analysis.blocks import Block, Run, Streams
from hicache_compile.passes.analysis.carried_stream import carry
from hicache_compile.passes.analysis.residuals import can_be_stream
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.ancestry import Ancestry, Bits
from hicache_compile.passes.graph.graphs import numel, output_node, placeholders, reachable_from
from hicache_compile.policy.guards import Signal

_TIME = re.compile(r"(^|_)(timesteps?|sigmas?|time|t)_*$")
_NOISE = re.compile(r"(^|_)(hidden_states|sample|x|latents?|z)_*$")


class Signals:
    """The signals of a denoiser with ``runs`` of blocks. Measured is the longest that the noisy input enters: short
    runs before it refine the text or the input. ``runs``: the same, cut where the noisy input enters later."""

    def __init__(self, module: fx.GraphModule, runs: list[Run]) -> None:
        if not runs:
            raise HiCacheError("a guard measures blocks: the denoiser must have a run of blocks; none was found")
        self.module = module
        self.ancestry = Ancestry(module.graph)
        self.inside = {node for run in runs for block in run.blocks for node in block.nodes}
        given = [node for node in placeholders(module) if not node.meta.get("weight") and "input" in node.meta]
        self.tensors = [node for node in given if ops.is_tensor(node)]
        self.inputs = [node for node in self.tensors if ops.value(node).is_floating_point()]
        self.runs = [part for run in runs for part in self._parts(run)]
        entered = [run for run in self.runs if self._entries(run.blocks[0])] or runs
        self.blocks = max(entered, key=lambda run: len(run.blocks)).blocks

    def output(self) -> fx.Node:
        """The denoiser's output: the first tensor it returns."""
        return next(node for node in output_node(self.module.graph).all_input_nodes if ops.is_tensor(node))

    def read(self, count: int) -> list[Run]:
        """Those of ``runs`` that the first ``count`` blocks of the measured one read."""
        above = self.ancestry.above_all(node for block in self.blocks[:count] for node in block.nodes)
        return [run for run in self.runs if run.blocks != self.blocks and self._nodes(run) & above]

    def _nodes(self, run: Run) -> Bits:
        return self.ancestry.bits(node for block in run.blocks for node in block.nodes)

    def _parts(self, run: Run) -> list[Run]:
        """``run``, or its blocks before the first that the noisy input enters and those after."""
        start = next((place for place, block in enumerate(run.blocks) if self._entries(block)), 0)
        return [Run(run.blocks[:start]), Run(run.blocks[start:])] if start else [run]

    def _entries(self, block: Block) -> list[fx.Node]:
        """The streams of the noisy input as they enter ``block``."""
        noise = self._noise()
        if noise is None:
            return []
        bit = self.ancestry.bit(noise)
        return [entry for entry in block.entries if entry is noise or self.ancestry.above(entry) & bit]

    def noise(self) -> fx.Node:
        """The noisy input: the input with the shape of the output, else one with the usual name of a noisy input, else
        the first with more than two dimensions.
        """
        found = self._noise()
        if found is None:
            raise _missing("the noisy input")
        return found

    def _noise(self) -> fx.Node | None:
        result = self.output()
        large = [node for node in self.inputs if ops.value(node).dim() > 2]
        alike = [node for node in large if ops.same_shape(node, result)]
        named = [node for node in large if _NOISE.search(node.name)]
        found = [node for node in alike if node in named] or alike or named or large
        return found[0] if found else None

    def entry(self) -> fx.Node:
        """The stream of the noisy input as it enters block 0."""
        entries = self._entries(self.blocks[0])
        if not entries:
            raise _missing("a stream of the noisy input in the first block")
        return max(entries, key=numel)

    def modulated(self) -> fx.Node:
        """The operand, in the first matrix product of block 0 that depends on the stream, that depends on the
        stream."""
        following = reachable_from([self.entry()])
        for node in self.blocks[0].nodes:
            if ops.op(node) in ops.HEAVY and node in following:
                return next(argument for argument in ops.data_inputs(node) if argument in following)
        raise _missing("a matrix product on the stream in the first block")

    def named_times(self) -> list[fx.Node]:
        """The inputs with a usual name of the time."""
        return [node for node in self.tensors if _TIME.search(node.name)]

    def times(self) -> list[fx.Node]:
        """The inputs that tell the time: by name, else the small ones (given in order, they have no names)."""
        return self.named_times() or [node for node in self.inputs if ops.value(node).dim() < 2]

    def modulation(self) -> fx.Node:
        """The largest value read by block 0 that depends on the time and on no stream."""
        streams = reachable_from(entry for block in self.blocks for entry in block.entries)
        after_time = reachable_from(self.times()) - streams
        own = set(self.blocks[0].nodes)
        read = [a for node in self.blocks[0].nodes for a in ops.data_inputs(node) if a not in own]
        found = [a for a in dict.fromkeys(read) if a in after_time and can_be_stream(a)]
        if not found:
            raise _missing("a value that follows from the time in the first block")
        return max(found, key=numel)

    def time(self) -> fx.Node:
        """The time embedding that the final layer also reads and from which the blocks' modulation is computed."""
        projected = self.modulation()
        above = self.ancestry.within(self.ancestry.above(projected)) | {projected}
        times = reachable_from(self.named_times()) or above
        nearest_first = sorted(above & times, key=self.ancestry.index.__getitem__, reverse=True)
        for node in nearest_first:
            elsewhere = [user for user in node.users if user not in above and user not in self.inside]
            if can_be_stream(node) and elsewhere:
                return node
        return projected

    def after(self, count: int) -> tuple[fx.Node, fx.Node]:
        """The stream after the first ``count`` blocks, and its value at the entry of block 0."""
        if count >= len(self.blocks):
            raise HiCacheError(f"a guard measures {count} blocks: must be fewer than the {len(self.blocks)} in the run")
        entry = self.entry()
        stream = [e for e in self.blocks[count].entries if e is entry or self._follows(e, entry)]
        if not stream:
            raise _missing(f"a stream of the noisy input in block {count}")
        return self._residual(self._made_by(max(stream, key=numel), count), self.blocks[:count])

    def _made_by(self, entry: fx.Node, count: int) -> list[fx.Node]:
        """What the first ``count`` blocks make of the stream that is ``entry`` in the next one. Where that one begins
        with an operation on the stream, or one is between them, it is the sum before it."""
        sums = [r.node for r in self.blocks[count - 1].residuals if self._follows(entry, r.node)]
        before = sorted(sums, key=lambda node: (numel(node), self.ancestry.index[node]))[-1:]
        return before if entry in self.blocks[count].nodes else [entry, *before]

    def last(self, count: int) -> tuple[fx.Node, fx.Node]:
        """The stream after the last block, and its value at the entry of the last ``count`` blocks."""
        inside = set(self.blocks[-1].nodes)
        leaving = [r.node for r in self.blocks[-1].residuals if any(user not in inside for user in r.node.users)]
        ends = leaving or [residual.node for residual in self.blocks[-1].residuals]
        return self._residual([max(ends, key=numel)], self.blocks[-count:])

    def _residual(self, nodes: list[fx.Node], blocks: list[Block]) -> tuple[fx.Node, fx.Node]:
        """The first of ``nodes`` that is a residual over ``blocks``, and the stream that it is a residual to."""
        zone = self.ancestry.between(self.ancestry.bits(n for block in blocks for n in block.nodes))
        begun = {entry for entry in blocks[0].entries if entry in zone}  # by an operation of the first block
        before = self.ancestry.within(self.ancestry.above_all(begun)) | begun if begun else set()
        for node in nodes:
            start = carry(self.module.graph, node, Streams(zone - before), blocks)
            if start is not None and start is not node and ops.same_shape(start, node):
                return node, start
        raise _missing(f"a residual over {blocks[0].name}..{blocks[-1].name}")

    def _follows(self, node: fx.Node, source: fx.Node) -> bool:
        return bool(self.ancestry.above(node) & self.ancestry.bit(source))

    def find(self, signal: Signal) -> fx.Node:
        """The node of a signal that consists of one value."""
        finders = {
            Signal.MODULATED: self.modulated,
            Signal.MODULATION: self.modulation,
            Signal.TIME: self.time,
            Signal.INPUT: self.noise,
        }
        return finders[signal]()


def _missing(what: str) -> HiCacheError:
    return HiCacheError(f"a guard measures {what}: the denoiser must have one; none was found in its graph")
