"""divided: every attention over its own tokens becomes one call that attends to partitions of the keys.

before   y = scaled_dot_product_attention(q, k, v)
after    y = divided_attention(q, k, v, plan, out_0, lse_0, ...)

Requires   a captured graph
Ensures    with every group computed the numbers are those of the captured graph, up to rounding; new inputs ``plan``
           and ``memory:...``; nothing else is changed
Refuses    attention with a mask, causal or grouped, over other keys than its queries (cross-attention), or over fewer
           tokens than partitions
"""

from __future__ import annotations

import torch
from torch import fx

from hicache_compile.errors import CannotRewrite
from hicache_compile.key_partitions import Split
from hicache_compile.operators.partitioned_attention import new_states
from hicache_compile.passes.analysis.attentions import arguments_of, attentions, scale_of, why_not_its_own
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import copy_graph, fake_mode_of, placeholders

DIVIDED = "divided_attention"  # how the nodes are called


def divide(captured: fx.GraphModule, split: Split) -> tuple[fx.GraphModule, list[str], list[CannotRewrite]]:
    """``captured`` with its attentions divided, their names, and what was refused."""
    module, _ = copy_graph(captured)
    found, refused = [], []
    for node in attentions(module.graph):
        reason = _refusal(node, split)
        if reason is None:
            found.append(node)
        else:
            refused.append(CannotRewrite(node.meta.get("path") or node.name, reason))
    if found:
        _write(module, found, split)
    return module, [node.meta.get("path") or node.name for node in found], refused


def _refusal(node: fx.Node, split: Split) -> str | None:
    reason = why_not_its_own(node)
    if reason is not None:
        return reason
    given = arguments_of(node)
    if given["attn_mask"] is not None:
        return "its attention is masked"
    count = ops.value(given["query"]).shape[-2]
    if not split.distributed and isinstance(count, int) and count < split.partitions:
        return f"it has fewer tokens than {split.partitions} partitions"
    return None


def _write(module: fx.GraphModule, found: list[fx.Node], split: Split) -> None:
    like = ops.value(arguments_of(found[0])["query"])
    with fake_mode_of(like), torch.no_grad():
        plan = torch.empty(len(found), split.groups, dtype=torch.int64)
        measured = torch.empty(len(found), split.groups + 1, device=like.device, dtype=torch.float32)
    plan_node = _input(module, "plan", "plan", plan)
    measured_node = _input(module, "measured", "memory:measured_0", measured)
    for layer, node in enumerate(found):
        given = arguments_of(node)
        query = ops.value(given["query"])
        with fake_mode_of(query), torch.no_grad():
            states = new_states(query, split)
        kept = [_input(module, f"{name}_{layer}", f"memory:{name}_{layer}", made) for name, made in states.items()]
        data = (given["query"], given["key"], given["value"], plan_node, *kept, measured_node)
        with module.graph.inserting_before(node):
            call = module.graph.create_node(
                "call_function",
                torch.ops.hicache.divided_attention.default,
                (*data, layer, scale_of(node), split.groups, split.partitions, split.distributed),
                name=f"{DIVIDED}_{layer}",
            )
        call.meta = {**node.meta, "side_effect": True}
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()


def _input(module: fx.GraphModule, name: str, state: str, example: torch.Tensor) -> fx.Node:
    with module.graph.inserting_after(placeholders(module)[-1]):
        node = module.graph.placeholder(name)
    node.meta = {"path": "", "calls": (), "example_value": example, "state": state}
    if state != "plan":
        node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
    node._dynamo_source = None  # see Note [Dynamo marks] in graphs
    return node
