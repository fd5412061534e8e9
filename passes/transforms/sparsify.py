"""sparsified: the program of a computed step with attention and MLPs as deltas on what a dense step remembered.

before   y = scaled_dot_product_attention(q, k, v)
         z = linear(gelu(linear(x)))
select   y, lse = attention_dense(q, k, v);  columns = select_columns(column_scores(q, k, lse))
         keep(columns_0, columns);  keep(rest_0, y without attention_columns(q, k, v, columns))
         z, activations, means = mlp_dense(x);  keep(out_1, z);  ...
sparse   y = rest_0 with attention_columns(q, k, v, columns_0)
         z = out_1 + mlp_delta(x, activations_1, mlp_select(x, means_1));  keep(out_1, z)

Requires   ``mark_sparse`` has said on the captured graph what may be sparse, before anything was made from it
Ensures    one program for each phase, from the same program; new inputs ``memory:...``; each bias is added once
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from hicache_compile.operators.anchors import remember
from hicache_compile.passes.analysis.mlps import mlp_of
from hicache_compile.passes.graph.choices import Choice
from hicache_compile.passes.graph.graphs import copy_graph, drop_dead_code
from hicache_compile.passes.transforms.narrow_linears import narrow_linears
from hicache_compile.passes.transforms.sparse_attention import write_attention
from hicache_compile.passes.transforms.sparse_mlp import write_mlp
from hicache_compile.passes.transforms.sparse_writer import MARK, SparseWriter
from hicache_compile.passes.work import Work
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from hicache_compile.policy.sparsity.phases import Phase, phases_of


def sparsify_steps(work: Work) -> int:
    """Make the program of each phase of a computed step; returns how many."""
    sparsity = work.layout.sparsity
    if sparsity is None or not work.sparse or work.layout.groups:
        return 0
    for phase in phases_of(sparsity):
        choice = Choice.FULL.with_phases((("", phase),))
        work.programs[choice] = sparsify(work.programs[Choice.FULL], sparsity, {"": phase})
    return len(phases_of(sparsity))


def sparsify(program: fx.GraphModule, chipmunk: Chipmunk, phases: Mapping[str, Phase]) -> fx.GraphModule:
    """``program``, that of a computed step, with what may be sparse in it in the phase of its group.

    ``phases``: by group; ``""`` is what belongs to no group that is decided by itself.
    """
    made, _ = copy_graph(program)
    sparse = False
    for node in [node for node in made.graph.nodes if MARK in node.meta]:
        phase = phases.get(node.meta.get("group", ""), Phase.DENSE)
        if phase is Phase.DENSE:
            continue
        sparse = sparse or phase.is_sparse
        writer = SparseWriter(made.graph, node, chipmunk)
        mlp = mlp_of(node)
        result = write_attention(writer, node, phase) if mlp is None else write_mlp(writer, mlp, phase)
        node.replace_all_uses_with(result)
        made.graph.erase_node(node)
    if sparse and chipmunk.anchors == "dense":
        for node in list(made.graph.nodes):
            if node.target is remember or ("tokens" in node.meta and "side_effect" in node.meta):
                made.graph.erase_node(node)
        drop_dead_code(made.graph)
    narrow_linears(made)
    made.graph.lint()
    made.recompile()
    return made
