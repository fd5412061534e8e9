"""Classify sites by the operations in their region."""

from __future__ import annotations

from collections.abc import Sequence, Set

from torch import fx

from hicache_compile.passes.graph import ops


def kind_of(region: Sequence[fx.Node], streams: set[fx.Node], zone: Set[fx.Node] = frozenset()) -> str:
    """The kind of a site, from the operations in its region.

    ``self-attention``, ``cross-attention`` or ``joint-attention``, by the origin of the keys; ``parallel``: attention
    and an activation between two linears (FLUX's single blocks); ``moe``: a top-k selection (a mixture of experts);
    ``mlp``: an activation only; ``blocks``: several attentions or activations; ``other``: none of these.

    Args:
        region: the nodes of the site.
        streams: the values that blocks hand on.
        zone: nodes that belong to the site whether or not they are read elsewhere too, as what a probe measures is.
    """
    attentions = [node for node in region if ops.op(node) in ops.ATTENTION]
    activations = [node for node in region if ops.op(node) in ops.ACTIVATIONS and _fed_by_product(node)]
    if not attentions and any(ops.op(node) == "topk" for node in region):
        return "moe"
    if len(attentions) > 1 or len(activations) > 1:
        return "blocks"
    if not attentions:
        return "mlp" if activations else "other"
    if activations:
        return "parallel"
    query, key = ops.argument(attentions[0], 0, "query"), ops.argument(attentions[0], 1, "key")
    inside = set(region) | (zone - streams)
    queried, keyed = _reads(query, inside, streams), _reads(key, inside, streams)
    if not keyed & queried:
        return "cross-attention"
    return "joint-attention" if len(keyed) > 1 else "self-attention"


def temporal(regions: Sequence[Sequence[fx.Node]]) -> list[bool]:
    """For each self-attention region, whether it attends over time.

    A video model attends either within a frame (batch = frames) or across frames at one position (batch = positions).
    Batch x length is the same for both; the one with the shorter sequences is temporal.
    """
    cuts = [_batch_and_length(region) for region in regions]
    return [
        any(own[0] * own[1] == other[0] * other[1] and own[1] < other[1] for other in cuts if other and own)
        for own in cuts
    ]


def _batch_and_length(region: Sequence[fx.Node]) -> tuple[int, int] | tuple[()]:
    attention = next((node for node in region if ops.op(node) == "scaled_dot_product_attention"), None)
    if attention is None:
        return ()
    batch, *_, length, _ = ops.value(ops.argument(attention, 0, "query")).shape
    return (batch, length) if isinstance(batch, int) and isinstance(length, int) else ()


def _fed_by_product(node: fx.Node) -> bool:
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    while source is not None and ops.op(source) in ops.SELECT | ops.CAST and source.all_input_nodes:
        source = source.all_input_nodes[0]
    return source is not None and ops.op(source) == "linear" and ops.value(node).dim() > 2


def _reads(node: fx.Node, inside: set[fx.Node], streams: set[fx.Node]) -> set[fx.Node]:
    """The streams outside the region from which ``node`` is computed within it."""
    seen: set[fx.Node] = set()
    queue = [node]
    while queue:
        current = queue.pop()
        if current not in seen:
            seen.add(current)
            if current in inside:
                queue.extend(current.all_input_nodes)
    return {found for found in seen - inside if found in streams}
