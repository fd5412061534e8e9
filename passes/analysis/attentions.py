"""Arguments of attention nodes, and whether a node is self-attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from hicache_compile.passes.graph import ops


def attentions(graph: fx.Graph) -> list[fx.Node]:
    """Every attention of ``graph``, in graph order."""
    return [node for node in graph.nodes if ops.op(node) in ops.ATTENTION]


def settle_floats(graph: fx.Graph) -> None:
    """Make constants of the numbers that attentions are given. Under ``dynamic=True`` Dynamo hands in every float, a
    ``dropout_p=0.0`` too; reading its value makes Dynamo guard on it.
    """
    for node in attentions(graph):
        for given in node.all_input_nodes:
            if isinstance(ops.value(given), torch.SymFloat):
                node.replace_input_with(given, float(ops.value(given)))  # type: ignore[arg-type]  # any argument


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of an attention by name."""
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}


def scale_of(node: fx.Node) -> float:
    """The factor applied to the products of queries and keys."""
    given = arguments_of(node)
    return float(given["scale"]) if given["scale"] is not None else 1 / math.sqrt(ops.value(given["query"]).shape[-1])


def masks_queries(node: fx.Node) -> bool:
    """Whether its mask differs from query to query. Else it is one of keys, ``[B or 1, H or 1, 1, N]``, or none."""
    mask = arguments_of(node)["attn_mask"]
    return mask is not None and (ops.value(mask).dim() != 4 or ops.value(mask).shape[-2] != 1)


def why_not_its_own(node: fx.Node) -> str | None:
    """The reason ``node`` is not plain self-attention, or ``None`` if it is. The mask is not checked; several heads of
    queries may share those of keys and values."""
    if ops.op(node) != "scaled_dot_product_attention":
        return f"`{ops.op(node)}` gives no log-sum-exp"
    given = arguments_of(node)
    query, key = ops.value(given["query"]), ops.value(given["key"])
    if given["is_causal"]:
        return "its attention is causal"
    if given["dropout_p"]:
        return "its attention drops keys"
    if query.dim() != 4 or query.shape[-2] != key.shape[-2]:
        return "it attends to other keys than its own tokens"
    return None
