"""Sites that can be computed for some of their tokens: what each token becomes does not depend on the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from hicache_compile.errors import HiCacheError
from hicache_compile.internals import statically_known_true
from hicache_compile.passes.analysis.token_rules import follow
from hicache_compile.passes.analysis.tokens import Axis, Tokens
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import fake_mode_of, output_node, placeholders

ALONG = Axis(1)  # tokens are dimension 1 of [B, N, D]
MIXING = ops.ATTENTION | {"softmax", "cumsum", "sort", "roll"}


@dataclass(frozen=True, slots=True)
class TokenSite:
    """How to compute a site for some tokens.

    Args:
        gathered: places of the operands that hold one row a token.
        tokens: how many there are.
    """

    gathered: tuple[int, ...]
    tokens: int


def token_site(full: fx.GraphModule, count: Callable[[int], int]) -> TokenSite | str:
    """The site with the region ``full``, or why its tokens cannot be computed apart; ``count``: how many of all are."""
    slots: Any = output_node(full.graph).args[0]
    operands = placeholders(full)
    shape = tuple(ops.value(slots[0]).shape)
    if len(shape) != 3 or not all(ops.same_shape(slot, slots[0]) for slot in slots):
        return "what it returns is not [batch, tokens, channels]"
    tokens = shape[1]
    if not isinstance(tokens, int):
        return "its number of tokens varies: compile with dynamic=False"
    entries = [node for node in operands if _holds(node, shape)]
    if not entries:
        return "none of its inputs holds its tokens"
    mixed = _why_they_mix(full, entries, tokens)
    if mixed is not None:
        return mixed
    site = TokenSite(tuple(operands.index(node) for node in entries), tokens)
    return site if _runs(full, site, shape, count(tokens)) else "its number of tokens is written out in its code"


def _why_they_mix(full: fx.GraphModule, entries: Sequence[fx.Node], tokens: int) -> str | None:
    """Why a token of what ``full`` returns may depend on others; ``None``: it does not."""
    found = Tokens(tokens, entries[0], ALONG)
    found.axes |= dict.fromkeys(entries, ALONG)
    for node in full.graph.nodes:
        if node.op == "output" or not any(a in found.axes or a in found.lists for a in node.all_input_nodes):
            continue
        try:
            follow(found, node)
        except HiCacheError:
            return f"its tokens cannot be followed through `{ops.op(node)}`"
        lost = ops.is_tensor(node) and node not in found.axes and node not in found.lists
        if lost or ops.op(node) in MIXING or _is_part(found.axes.get(node)):
            return f"its tokens mix in `{ops.op(node)}`"
    if found.meetings:
        return f"`{ops.op(found.meetings[0].user)}` reads something in the order of its tokens"
    slots: Any = output_node(full.graph).args[0]
    apart = all(found.axes.get(slot) == ALONG for slot in slots)
    return None if apart else "what it returns does not have its tokens in dimension 1"


def _holds(node: fx.Node, shape: tuple[Any, ...]) -> bool:
    """Whether the operand ``node`` has a row for each token of a value of ``shape``."""
    if not ops.is_tensor(node):
        return False
    own = ops.value(node).shape
    if len(own) != 3 or shape[1] == 1:
        return False
    return statically_known_true(own[0] == shape[0]) and statically_known_true(own[1] == shape[1])


def _is_part(axis: Axis | None) -> bool:
    return axis is not None and bool(axis.before or axis.after)


def _runs(full: fx.GraphModule, site: TokenSite, shape: tuple[Any, ...], count: int) -> bool:
    """Whether the region makes rows of ``count`` tokens from as many."""
    examples = [ops.value(node) for node in placeholders(full)]
    with fake_mode_of(examples[site.gathered[0]]), torch.no_grad():
        given = [
            torch.empty((value.shape[0], count, *value.shape[2:]), dtype=value.dtype, device=value.device)
            if place in site.gathered
            else value
            for place, value in enumerate(examples)
        ]
        try:
            made = fx.Interpreter(full).run(*given)
        except (RuntimeError, ValueError, TypeError, IndexError):  # a view of another size, ...
            return False
    return all(tuple(value.shape) == (shape[0], count, *shape[2:]) for value in made)
