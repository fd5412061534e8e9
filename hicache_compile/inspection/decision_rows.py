"""The decision for each site in each step of a run, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FORCED, ANCHOR, COMPUTED, TOKENWISE, REUSED, UNKNOWN = "factr-"
NAMES = {
    FORCED: "forced",
    ANCHOR: "anchor",
    COMPUTED: "computed",
    TOKENWISE: "some tokens",
    REUSED: "forecast or reused",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A site, or a group of keys of an attention.

    ``cells``: one letter per step: ``f`` forced, ``a`` anchor, ``c`` computed, ``t`` some tokens computed, ``r``
    forecast or reused, ``-`` unknown.
    """

    name: str
    kind: str
    cells: str


@dataclass(frozen=True, slots=True)
class DecisionRows:
    """The decisions of a run.

    Args:
        strategy: the deciding method, in one word: ``teacache``, ``pab``, ``ditango``, ``interval``, ...
        rows: from the first site to the last.
        groups: the number of rows per attention (DiTango), else 1.
    """

    strategy: str
    rows: Sequence[Row]
    groups: int = 1

    @property
    def steps(self) -> int:
        return max((len(row.cells) for row in self.rows), default=0)
