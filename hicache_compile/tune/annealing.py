"""Which steps to compute, by simulated annealing on the error of whole runs, then by climbing: BudCache (2606.13496).

A move takes one computed step to a place that is not computed. A worse mask is gone on from with the probability
``exp(-rise / temperature)``; the temperature falls geometrically and is a share of the error at the start, for errors
have no scale of their own. So masks are left again that no small move improves, at which ``planning.search`` ends.
Climbing then makes single moves from the best mask, where the error falls.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from hicache_compile.errors import whole_number

HOT, COLD = 0.3, 0.01  # the first and the last temperature, as shares of the error at the start

Steps = tuple[int, ...]


def anneal(
    start: Sequence[int],
    num_steps: int,
    error: Callable[[Sequence[int]], float],
    trials: int = 200,
    climbs: int = 20,
    seed: int = 0,
) -> tuple[list[int], float]:
    """The best found of as many computed steps as ``start`` has, the first among them, and its error.

    Args:
        start: the computed steps to start from, in order; step 0 is the first.
        num_steps: of a run.
        error: of a run that computes these steps; called once for ``start`` and at most ``trials + climbs`` times more,
            never twice with the same steps.
        trials: moves of the annealing; one to steps that were tried before is decided by the error known of them.
        climbs: moves of the climbing.
        seed: of the moves; the same seed gives the same result.

    Raises:
        HiCacheError: ``trials`` or ``climbs`` is no integer from 0 on.
    """
    whole_number("anneal", "trials", trials, 0)
    whole_number("anneal", "climbs", climbs, 0)
    known: dict[Steps, float] = {}

    def cost(steps: Steps) -> float:
        if steps not in known:
            known[steps] = error(list(steps))
        return known[steps]

    draw = random.Random(seed)
    here = best = tuple(start)
    scale = cost(here)
    for trial in range(trials if _moves(here, num_steps) else 0):
        other = draw.choice(_moves(here, num_steps))
        temperature = scale * HOT * (COLD / HOT) ** (trial / max(1, trials - 1))
        if _is_taken(cost(other) - cost(here), temperature, draw.random()):
            here = other
        best = min(best, here, key=cost)
    for _ in range(climbs):
        untried = [other for other in _moves(best, num_steps) if other not in known]
        if not untried:
            break
        best = min(best, draw.choice(untried), key=cost)
    return list(best), cost(best)


def _moves(steps: Steps, num_steps: int) -> list[Steps]:
    """``steps`` with one of them, but not the first, at a place that is not computed."""
    free = [place for place in range(num_steps) if place not in steps]
    return [tuple(sorted({*steps, place} - {left})) for left in steps[1:] for place in free]


def _is_taken(rise: float, temperature: float, drawn: float) -> bool:
    return rise <= 0 or (temperature > 0 and drawn < math.exp(-rise / temperature))
