"""What a batcher did so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts since the start, and how things stand.

    Args:
        waiting, running: requests.
        pages, pages_used: of anchors: a page is what one row of one guidance branch keeps.
        batches: how many calls of the denoiser had so many rows.
        full_rows, forecast_rows: rows that were computed and rows that were forecast.
    """

    waiting: int = 0
    running: int = 0
    pages: int = 0
    pages_used: int = 0
    batches: dict[int, int] = field(default_factory=dict)
    full_rows: int = 0
    forecast_rows: int = 0


@dataclass(slots=True)
class Counts:
    """What is counted."""

    batches: Counter[int] = field(default_factory=Counter)
    full_rows: int = 0
    forecast_rows: int = 0
