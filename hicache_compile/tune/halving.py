"""Successive halving (Jamieson & Talwalkar, 1502.07943) on two axes: what is not near the Pareto front goes early."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hicache_compile.evaluation.intervals import Interval95


class Standing(NamedTuple):
    """How a candidate stands: the share of the full FLOPs it takes, and its error."""

    name: str
    cost: float
    error: float


def front(standings: Sequence[Standing]) -> list[Standing]:
    """Those that no other beats in one axis without losing in the other, from the cheapest on."""
    best: list[Standing] = []
    for one in sorted(standings, key=lambda s: (s.cost, s.error)):
        if not best or one.error < best[-1].error:
            best.append(one)
    return best


def survivors(standings: Sequence[Standing], count: int) -> list[str]:
    """The names of ``count`` of them, front by front; of the last front that does not fit whole, those with the least
    product of cost and error. Never fewer than the first front."""
    left, chosen = list(standings), list[str]()
    while left and len(chosen) < count:
        layer = front(left)
        if chosen and len(chosen) + len(layer) > count:
            layer = sorted(layer, key=lambda s: s.cost * s.error)[: count - len(chosen)]
        chosen += [one.name for one in layer]
        left = [one for one in left if one.name not in chosen]
    return chosen


def halve(
    names: Sequence[str],
    measure: Callable[[str, int], None],
    standing: Callable[[str], Standing],
    runs: int,
    rungs: int,
) -> list[str]:
    """Measure all on a few runs, the better half on twice as many, and so on; who is left after ``rungs``.

    Args:
        measure: makes a candidate's run ``0 .. runs - 1``, where it was not made yet.
        standing: of a candidate, from its runs so far.
        runs: of the last rung; each rung before it has half as many.
    """
    left = list(names)
    for rung in range(rungs):
        many = max(1, runs >> (rungs - 1 - rung))
        for name in left:
            for run in range(many):
                measure(name, run)
        if rung < rungs - 1:
            left = survivors([standing(name) for name in left], -(-len(left) // 2))
    return left


def as_standing(name: str, found: dict[str, Interval95]) -> Standing:
    """From what ``summary`` says."""
    return Standing(name, 1.0 / found["flops_speedup"].value, found["relative_error"].value)
