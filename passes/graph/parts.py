"""The parts that slots are forecast in, as ``forecast`` takes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.operators.parts import Parts
from hicache_compile.policy.forecasters.parts import Bands, Channels
from hicache_compile.policy.layout import Layout


def parts_of(layout: Layout, slot: int) -> Parts | None:
    """The parts of ``slot``; of one that ``ByChannel`` does not name, the first part alone."""
    parts = layout.parts
    if parts is None or isinstance(parts, Bands):
        return None if parts is None else (parts.cutoff, parts.grid)
    return parts.chosen[slot] if slot < len(parts.chosen) else ""


def check_parts(layout: Layout, slots: Sequence[torch.Tensor], ranks: Sequence[str]) -> None:
    """Raise unless ``slots``, by their example values, have the parts of ``layout``.

    Raises:
        HiCacheError: ``ByChannel`` has other slots, or a slot has other channels; or bands are wanted over ``ranks``,
            or of a slot without tokens.
    """
    parts = layout.parts
    if parts is None:
        return
    if isinstance(parts, Bands):
        if ranks:
            raise HiCacheError(
                "ByBand: frequencies are of all tokens, and each rank may have a part of them: use another forecaster, "
                "or decide_together=False where every rank has all tokens"
            )
        flat = [tuple(value.shape) for value in slots if value.dim() < 3]
        if flat:
            raise HiCacheError(
                f"ByBand: a slot of shape {flat[0]} has no dimension of tokens between batch and channels: must be "
                "[B, N, C]; use another scope or forecaster"
            )
        return
    if len(parts.chosen) > len(slots):
        raise HiCacheError(
            f"ByChannel.chosen: of {len(parts.chosen)} slots, must be at most {len(slots)}, the slots of this graph at "
            f"scope {layout.scope!r}; fit it to this model, which must be captured as one graph"
        )
    for number, (chosen, value) in enumerate(zip(parts.chosen, slots, strict=False)):
        if chosen and value.shape[-1] != len(chosen):
            raise HiCacheError(
                f"ByChannel.chosen: {len(chosen)} channels of slot {number}, must be {value.shape[-1]}; fit it again"
            )


def check_read(layout: Layout, read: Iterable[int]) -> None:
    """Raise where ``ByChannel`` names no channels of a slot that forecasts ``read``."""
    if isinstance(layout.parts, Channels):
        missing = [slot for slot in sorted(read) if not parts_of(layout, slot)]
        if missing:
            raise HiCacheError(
                f"ByChannel.chosen: nothing of slot {missing[0]}, which forecasts read: must name the forecasters of "
                "its channels; fit it to this model"
            )


def how(dtype: Any, parts: Any) -> tuple[Any, ...]:
    """The last arguments of ``forecast``: the slot's dtype and its parts, as far as they are given."""
    return (dtype, parts) if parts is not None else (dtype,) if dtype is not None else ()
