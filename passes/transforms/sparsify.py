"""sparsified: the program of a computed step with attention and MLPs as deltas on what a dense step remembered.

before   y = scaled_dot_product_attention(q, k, v)
         z = linear(gelu(linear(x)))
select   y, lse = attention_dense(q, k, v);  columns = select_columns(column_scores(q, k, lse))
         keep(columns_0, columns);  keep(rest_0, y without attention_columns(q, k, v, columns))
         z, activations, means = mlp_dense(x);  keep(out_1, z);  ...
sparse   y = rest_0 with attention_columns(q, k, v, columns_0)
         z = out_1 + mlp_delta(x, activations_1, mlp_select(x, means_1));  keep(out_1, z)

Requires   ``mark`` has said on the captured graph what may be sparse, before anything was made from it
Ensures    one program for each phase, from the same program; new inputs ``memory:...``; each bias is added once
Refuses    attention that is causal, grouped, over other keys than its own tokens, or with a mask for each query;
           attention much shorter than the longest; in each block, an MLP over fewer tokens than another
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.operators.anchors import remember
from hicache_compile.passes.analysis.attentions import arguments_of, attentions, why_not_its_own
from hicache_compile.passes.analysis.blocks import Block, Run, find_runs
from hicache_compile.passes.analysis.mlps import mlp_of
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import copy_graph, drop_dead_code
from hicache_compile.passes.transforms.sparse_attention import write_attention
from hicache_compile.passes.transforms.sparse_mlp import write_mlp
from hicache_compile.passes.transforms.sparse_writer import MARK, SparseWriter
from hicache_compile.passes.transforms.unfuse import unfuse
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.sparsity.phases import Phase

SHORT = 4  # an attention over fewer tokens than the longest one divided by this stays dense


@dataclass(frozen=True, slots=True)
class Marked:
    """What may be sparse, by path, what was refused, and in how many blocks was looked."""

    attentions: list[str]
    mlps: list[str]
    refused: list[CannotRewrite]
    blocks: int

    @property
    def paths(self) -> list[str]:
        return self.attentions + self.mlps


def mark(captured: fx.GraphModule, chipmunk: Chipmunk, first: int = 0, last: int = 0) -> Marked:
    """Mark on ``captured`` what may be sparse: nothing in the first ``chipmunk.first_dense`` blocks, and nothing in
    the ``first`` and ``last`` blocks of a run, which a step that is forecast runs too."""
    runs, _ = find_runs(captured)
    blocks = [set(block.nodes) for run in runs for block in run.blocks]
    found, refused = _attentions(captured.graph) if chipmunk.top_keys is not None else ([], [])
    mlps = _mlps(captured.graph, blocks) if chipmunk.mlp_keys is not None else []
    layers = [nodes for nodes in blocks if any(node in nodes for node in (*found, *mlps))]
    live = [set(block.nodes) for run in runs for block in _live(run, first, last)]
    allowed = {node for nodes in layers[chipmunk.first_dense :] if nodes not in live for node in nodes}
    found, mlps = ([node for node in kind if node in allowed] for kind in (found, mlps))
    for number, node in enumerate((*found, *mlps)):
        node.meta[MARK] = number
    return Marked([_name(node) for node in found], [_name(node) for node in mlps], refused, len(blocks))


def sparsify(program: fx.GraphModule, chipmunk: Chipmunk, phase: Phase) -> fx.GraphModule:
    """``program``, that of a computed step, as it is in ``phase``. What may be sparse in it is marked."""
    made, _ = copy_graph(program)
    for node in [node for node in made.graph.nodes if MARK in node.meta]:
        writer = SparseWriter(made.graph, node, chipmunk)
        mlp = mlp_of(node)
        result = write_attention(writer, node, phase) if mlp is None else write_mlp(writer, mlp, phase)
        node.replace_all_uses_with(result)
        made.graph.erase_node(node)
    if phase.is_sparse and chipmunk.anchors == "dense":
        for node in [node for node in made.graph.nodes if node.target is remember]:
            made.graph.erase_node(node)
    drop_dead_code(made.graph)
    unfuse(made.graph)
    made.graph.lint()
    made.recompile()
    return made


def _name(node: fx.Node) -> str:
    return node.meta.get("path") or node.name


def _live(run: Run, first: int, last: int) -> list[Block]:
    return run.blocks[:first] + run.blocks[len(run.blocks) - last :]


def _attentions(graph: fx.Graph) -> tuple[list[fx.Node], list[CannotRewrite]]:
    """The attentions that may be sparse, and why the others may not."""
    found, refused = [], []
    longest = max((_tokens(node) for node in attentions(graph) if why_not_its_own(node) is None), default=0)
    for node in attentions(graph):
        reason = why_not_its_own(node) or _unfit(node, longest)
        if reason is None:
            found.append(node)
        else:
            refused.append(CannotRewrite(_name(node), f"stays dense: {reason}"))
    return found, refused


def _tokens(node: fx.Node) -> int:
    return _hint(ops.value(arguments_of(node)["query"]).shape[-2])


def _hint(size: Any) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def _unfit(node: fx.Node, longest: int) -> str | None:
    given = arguments_of(node)
    mask = given["attn_mask"]
    if mask is not None and (ops.value(mask).dim() != 4 or ops.value(mask).shape[-2] != 1):
        return "its mask differs from query to query"
    if ops.value(given["query"]).shape[-1] != ops.value(given["value"]).shape[-1]:
        return "its values are wider or narrower than its keys"
    if _tokens(node) * SHORT < longest:
        return f"it is over {_tokens(node)} tokens, the longest over {longest}"
    return None


def _mlps(graph: fx.Graph, blocks: list[set[fx.Node]]) -> list[fx.Node]:
    """The last linears of the MLPs that may be sparse: in each block those over the most tokens."""
    found: set[fx.Node] = set()
    for nodes in blocks:
        ends = {node: _hint(ops.value(mlp.inner.x).shape[1]) for node in nodes if (mlp := mlp_of(node)) is not None}
        found |= {node for node, count in ends.items() if count == max(ends.values())}
    return [node for node in graph.nodes if node in found]
