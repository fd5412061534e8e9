"""A budget for anchors: the finest scope, order and anchor dtype that fit, known from shapes before anything runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.key_partitions import Split
from hicache_compile.policy.guards import Probe
from hicache_compile.policy.policy import SCOPES, Policy
from hicache_compile.policy.sparsity.chipmunk import Chipmunk

log = logging.getLogger(__name__)

_UNITS = {"": 1, "B": 1, **{f"{p}iB": 1 << 10 * i for i, p in enumerate("KMGT", 1)}}
_UNITS |= {f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}
_NARROW = {torch.float32: torch.bfloat16, torch.float64: torch.float32}

SlotShapes = Sequence[tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the sites are cut, how many anchors a ring holds, and in which dtype (``None``: the slot's own)."""

    scope: str
    first: int
    last: int
    depth: int
    dtype: torch.dtype | None = None
    probes: tuple[Probe, ...] = ()
    groups: tuple[tuple[str, int | None], ...] = ()
    split: Split | None = None
    sparsity: Chipmunk | None = None
    by_slot: bool = False

    def nbytes(self, slots: SlotShapes, rows: int | None = None) -> int:
        """Bytes of the rings of ``slots``, at ``rows`` anchors each (by default ``depth``)."""
        row = sum(int(prod(shape)) * (self.dtype or dtype).itemsize for shape, dtype in slots)
        return row * (self.depth if rows is None else rows)

    def __str__(self) -> str:
        kept = f" in {str(self.dtype).removeprefix('torch.')}" if self.dtype else ""
        return f"scope {self.scope}, {self.depth} anchor{'s' * (self.depth > 1)}{kept}"


def layout_of(policy: Policy, sparsity: Chipmunk | None = None) -> Layout:
    """What ``policy`` asks for, over attention and MLPs that are as sparse as ``sparsity`` says."""
    cut = policy.cut
    shape = cut.scope, cut.first, cut.last, policy.depth, None
    return Layout(*shape, cut.probes, cut.groups, cut.split, sparsity, cut.by_slot)


def parse_bytes(value: Any) -> int | None:
    """``"4GiB"``, ``"500 MB"`` or a number of bytes; ``None`` stays ``None``: no budget.

    Raises:
        HiCacheError: it is none of these.
    """
    if value is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(value))
    unit = found.group(2) if found else None
    if found is None or unit not in _UNITS or isinstance(value, bool) or float(found.group(1)) <= 0:
        raise HiCacheError(
            f'hicache_compile.memory_budget = {value!r}: must be bytes as an integer or like "4GiB", "500MB"'
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
    needs = wanted.nbytes(slots_at(wanted.scope), rows)
    least = (needs, wanted)
    for layout in _finest_first(wanted, slots_at):
        nbytes = layout.nbytes(slots_at(layout.scope), rows)
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


def _finest_first(wanted: Layout, slots_at: Callable[[str], SlotShapes]) -> Iterator[Layout]:
    decided = wanted.probes or wanted.groups or wanted.by_slot  # by what is measured or told apart at this scope
    scopes = (wanted.scope,) if decided else SCOPES[SCOPES.index(wanted.scope) :]
    for depths in (range(wanted.depth, 1, -1), range(1, 0, -1)):
        for scope in scopes:
            ends = (wanted.first, wanted.last) if scope in ("block", "stack") else (0, 0)
            own = {dtype for _, dtype in slots_at(scope)}
            narrower = {_NARROW[dtype] for dtype in own if dtype in _NARROW}
            for depth in depths:
                for dtype in (None, *sorted(narrower, key=str)):
                    yield replace(wanted, scope=scope, first=ends[0], last=ends[1], depth=depth, dtype=dtype)
