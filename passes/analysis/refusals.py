"""Reasons a site cannot be rewritten. Each declined site is reported with one of them."""

from __future__ import annotations

import torch
from torch import fx

from hicache_compile.internals import free_unbacked_symbols
from hicache_compile.passes.analysis.scopes import Draft
from hicache_compile.passes.graph import ops


def refusal(draft: Draft, region: set[fx.Node], dependent: set[fx.Node]) -> str | None:
    """The reason ``draft`` is declined, naming the offending node, or None.

    Args:
        draft: a site as cut by its scope.
        region: the nodes that are dead while its slots are forecast.
        dependent: every node computed from the streams.
    """
    return (
        _has_a_size_from_data(draft)
        or _draws_random_numbers(draft.zone | region)
        or _writes_in_place(draft, region)
        or _hands_out_a_view(draft, region)
        or _is_read_elsewhere(draft, region, dependent)
        or _is_not_worth_it(region)
    )


def _has_a_size_from_data(draft: Draft) -> str | None:
    for slot in draft.slots:
        sizes = [size for size in ops.value(slot.node).shape if isinstance(size, torch.SymInt)]
        if any(free_unbacked_symbols(size) for size in sizes):
            return f"the size of `{slot.node.name}` depends on data"
    return None


def _draws_random_numbers(nodes: set[fx.Node] | frozenset[fx.Node]) -> str | None:
    found = sorted(node.name for node in nodes if ops.is_random(node))
    return f"`{found[0]}` draws random numbers, which a forecast step would skip" if found else None


def _writes_in_place(draft: Draft, region: set[fx.Node]) -> str | None:
    for node in sorted(region, key=lambda node: node.name):
        for target in ops.mutated(node):
            if target not in region:
                return f"`{node.name}` ({ops.op(node)}) writes in place to `{target.name}`, which the site did not make"
            alias = next((n for n in node.graph.nodes if n not in region and ops.shares_storage(n, target)), None)
            if alias is not None:
                return f"`{node.name}` ({ops.op(node)}) writes in place to memory of `{alias.name}`, outside the site"
    for slot in draft.slots:
        writer = next((user for user in slot.node.users if slot.node in ops.mutated(user)), None)
        if writer is not None:
            return f"`{slot.node.name}` is written in place by `{writer.name}` after it leaves the site"
    return None


def _hands_out_a_view(draft: Draft, region: set[fx.Node]) -> str | None:
    inputs = {argument for node in region for argument in node.all_input_nodes} - region
    for slot in draft.slots:
        if slot.carried is None and any(ops.shares_storage(slot.node, given) for given in inputs):
            return f"`{slot.node.name}` is a view of the site's own input"
    return None


def _is_read_elsewhere(draft: Draft, region: set[fx.Node], dependent: set[fx.Node]) -> str | None:
    escaping = {n for n in draft.zone if ops.op(n) in ops.HEAVY and n in dependent} - region
    if not escaping:
        return None
    node = min(escaping, key=lambda node: node.name)
    reader = next((user for user in node.users if user not in region), node)
    return f"`{node.name}` ({ops.op(node)}) is also read by `{reader.name}`, outside the site"


def _is_not_worth_it(region: set[fx.Node]) -> str | None:
    if any(ops.op(node) in ops.HEAVY for node in region):
        return None
    return "nothing in it is worth caching: no matrix product, convolution or attention"
