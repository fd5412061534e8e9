"""Simulated annealing over masks: against all masks, and what it may ask for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from hicache_compile import HiCacheError
from hicache_compile.tune.annealing import anneal
from hicache_compile.tune.planning import search

T, COMPUTED = 10, 4
MASKS = [(0, *rest) for rest in itertools.combinations(range(1, T), COMPUTED - 1)]
START = (0, 3, 4, 6)


class Valleys:
    """Two valleys: a wide one with its floor at .05 around the start, and a deep one elsewhere, behind a ridge."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, steps: Sequence[int]) -> float:
        self.asked.append(tuple(steps))
        return self.of(tuple(steps))

    @staticmethod
    def of(steps: tuple[int, ...]) -> float:
        wide = 0.05 + 0.02 * sum(abs(a - b) for a, b in zip(steps, (0, 1, 2, 4), strict=True))
        deep = 0.02 * sum(abs(a - b) for a, b in zip(steps, (0, 6, 8, 9), strict=True))
        return min(wide, deep)


def test_it_leaves_the_minimum_at_which_single_small_moves_end() -> None:
    """From nearly every seed."""
    least = min(MASKS, key=Valleys.of)
    stuck, error = search(START, T, Valleys(), 1000)
    assert (tuple(stuck), error) == ((0, 1, 2, 4), 0.05)
    found = [anneal(START, T, Valleys(), seed=seed) for seed in range(20)]
    assert least == (0, 6, 8, 9)
    assert found.count((list(least), 0.0)) >= 16


def test_a_seed_says_everything() -> None:
    asked = []
    for seed in (3, 3, 4):
        error = Valleys()
        anneal(START, T, error, 30, 5, seed)
        asked.append(error.asked)
    assert asked[0] == asked[1] != asked[2]


@pytest.mark.parametrize(("trials", "climbs"), [(200, 20), (12, 0), (0, 8), (0, 0), (1, 1)])
def test_no_mask_is_run_twice_nor_more_than_asked_for(trials: int, climbs: int) -> None:
    error = Valleys()
    found, least = anneal(START, T, error, trials, climbs)
    assert error.asked[0] == START
    assert len(set(error.asked)) == len(error.asked) <= 1 + trials + climbs
    assert set(error.asked) <= set(MASKS)
    assert least == min(map(Valleys.of, error.asked)) == Valleys.of(tuple(found))
    if not trials:
        assert len(error.asked) == 1 + climbs


def test_where_no_rise_is_taken_it_ends_in_a_minimum_of_single_moves() -> None:
    found, _ = anneal(START, T, lambda steps: 1e6 ** sum(steps[1:]), 300, 0)
    assert found == [0, 1, 2, 3]


@pytest.mark.parametrize("computed", [1, T])
def test_where_nothing_can_move_the_start_is_run_once(computed: int) -> None:
    asked: list[Sequence[int]] = []
    start = list(range(computed))

    def error(steps: Sequence[int]) -> float:
        asked.append(steps)
        return 0.3

    assert anneal(start, T, error) == (start, 0.3)
    assert asked == [start]


def test_what_is_perfect_stays() -> None:
    assert anneal(START, T, lambda steps: float(tuple(steps) != START)) == (list(START), 0.0)


@pytest.mark.parametrize("field", ["trials", "climbs"])
@pytest.mark.parametrize("value", [-1, 2.5, True])
def test_numbers_of_moves_are_whole(field: str, value: float) -> None:
    with pytest.raises(HiCacheError, match=rf"anneal\.{field} = {value}: must be an integer >= 0"):
        anneal(START, T, Valleys(), **{field: value})  # type: ignore[arg-type]  # the point
