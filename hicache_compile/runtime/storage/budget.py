"""A budget for anchors: the finest scope, order and anchor dtype that fit, known from shapes before anything runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.layout import NOWHERE, QUANTISED, SCOPES, Layout

log = logging.getLogger(__name__)

_UNITS = {"": 1, "B": 1, **{f"{p}iB": 1 << 10 * i for i, p in enumerate("KMGT", 1)}}
_UNITS |= {f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}
_NARROW = {torch.float32: "bfloat16", torch.float64: "float32"}

SlotShapes = Sequence[tuple[tuple[int, ...], torch.dtype]]


def bytes_of(layout: Layout, slots: SlotShapes, rows: int | None = None) -> int:
    """Bytes of the rings of ``slots``, at ``rows`` anchors each (by default the layout's depth)."""
    stored = getattr(torch, layout.anchors) if layout.anchors else None
    scale = torch.float32.itemsize if layout.anchors in QUANTISED else 0
    row = sum(int(prod(shape)) * (stored or dtype).itemsize + scale for shape, dtype in slots)
    return row * (layout.depth if rows is None else rows)


def parse_bytes(value: Any, owner: str = "hicache_compile") -> int | None:
    """``"4GiB"``, ``"500 MB"`` or a number of bytes; ``None`` stays ``None``: no budget.

    Raises:
        HiCacheError: it is none of these.
    """
    if value is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([KMGT]?i?B?)\s*", str(value)[:40])
    unit = found.group(2) if found else None
    if found is None or unit not in _UNITS or isinstance(value, bool) or float(found.group(1)) <= 0:
        raise HiCacheError(
            f'{owner}.memory_budget = {str(value)[:40]!r}: must be bytes as an integer or like "4GiB", "500MB"'
        )
    return int(float(found.group(1)) * _UNITS[unit])


def choose(wanted: Layout, budget: int, rows: int | None, slots_at: Callable[[str], SlotShapes]) -> tuple[Layout, str]:
    """The finest layout whose rings take at most ``budget`` bytes, and a sentence that says why.

    Order 1 is kept before a finer scope, because reuse loses more than a coarser cut does; then comes the finest
    scope, then the highest order, then the widest dtype.

    Args:
        wanted: the layout without a budget.
        budget: bytes for one context.
        rows: anchors that are on the device at a time, where that is not all of them (offloading).
        slots_at: the shapes and dtypes of the slots a scope keeps anchors of.

    Raises:
        HiCacheError: nothing fits; the message has the least that would do.
    """
    if wanted.scope == NOWHERE:
        return wanted, "nothing is kept"
    needs = bytes_of(wanted, slots_at(wanted.scope), rows)
    least = (needs, wanted)
    for layout in _finest_first(wanted, slots_at, quantise=rows is None):
        nbytes = bytes_of(layout, slots_at(layout.scope), rows)
        least = min(least, (nbytes, layout), key=lambda entry: entry[0])
        if nbytes and nbytes <= budget:
            why = f"{layout}: {nbytes:,} of {budget:,} bytes"
            if layout != wanted:
                why += f"; {wanted} would take {needs:,}"
            return layout, why
    raise HiCacheError(
        f"hicache_compile.memory_budget leaves {budget:,} bytes for the anchors of a context: must be at least "
        f"{least[0]:,} ({least[1]})"
    )


def _finest_first(wanted: Layout, slots_at: Callable[[str], SlotShapes], quantise: bool) -> Iterator[Layout]:
    if wanted.partitions is not None:  # their states are what they are
        yield wanted
        return
    scopes = (wanted.scope,) if wanted.fixed_scope else SCOPES[SCOPES.index(wanted.scope) :]
    for depths in (range(wanted.depth, 1, -1), range(1, 0, -1)):
        for scope in scopes:
            own = {dtype for _, dtype in slots_at(scope)}
            narrower = sorted({_NARROW[dtype] for dtype in own if dtype in _NARROW}) + ["int8"] * quantise
            for depth in depths:
                for dtype in (None, *narrower) if wanted.anchors is None else (wanted.anchors,):
                    yield replace(wanted.at(scope), depth=depth, anchors=dtype)
