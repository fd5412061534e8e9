"""Published values and schedules: TeaCache's polynomials, MagCache, LeMiCa, FlexCache, PAB."""

from __future__ import annotations

from typing import Any

import pytest

from hicache_compile import (
    PAB,
    TEACACHE_MODELS,
    Broadcast,
    FlexCache,
    HiCacheError,
    KeySteps,
    LeMiCa,
    MagCache,
    MagCacheSchedule,
    TeaCache,
    TeaCacheGuard,
)
from hicache_compile.policy.presets.flexcache import from_params, pab_ranges, teacache_threshold
from hicache_compile.policy.run import RunInfo
from hicache_compile.policy.schedules.lemica import lemica_mask
from hicache_compile.policy.schedules.lemica_lists import LISTS
from hicache_compile.policy.schedules.magcache_tables import MAGCACHE_TABLES
from tests.policy.test_guards import computed


def test_every_model_has_a_fit_and_flux_is_as_measured() -> None:
    assert len(TEACACHE_MODELS) >= 34
    for name in TEACACHE_MODELS:
        assert TeaCache(0.1, name).guards[0].probe.before
    flux = TeaCacheGuard(0.4, TEACACHE_MODELS["flux"].coefficients, exact=True)
    assert flux.rescaled(0.0) == pytest.approx(0.264, abs=1e-3)
    places = [i / 1000 for i in range(500)]
    lowest = min(places, key=flux.rescaled)
    assert (lowest, flux.rescaled(lowest)) == (pytest.approx(0.053, abs=1e-3), pytest.approx(0.180, abs=1e-3))


# Where the published polynomials are negative (reference: evaluated on d in [0, .5]).
NEGATIVE = {
    "wan2.1-t2v-14b": [(0.0, 0.130), (0.411, 0.5)],
    "wan2.1-i2v-480p": [(0.0, 0.057), (0.44, 0.5)],
    "wan2.1-t2v-1.3b": [(0.185, 0.31)],
    "flux-kontext": [(0.241, 0.5)],
    "mochi": [(0.1445, 0.5)],
    "hidream-full": [(0.0685, 0.5)],
    "latte": [(0.237, 0.5)],
    "z-image": [(0.2865, 0.5)],
}


@pytest.mark.parametrize("model", NEGATIVE)
def test_the_sign_of_the_published_polynomials(model: str) -> None:
    coefficients = TEACACHE_MODELS[model].coefficients
    exact = TeaCacheGuard(0.1, coefficients, exact=True)
    clamped = TeaCacheGuard(0.1, coefficients)
    for d in [i / 1000 for i in range(1, 500)]:
        edge = any(min(abs(d - a), abs(d - b)) < 0.006 for a, b in NEGATIVE[model])
        inside = any(a <= d <= b for a, b in NEGATIVE[model])
        assert edge or (exact.rescaled(d) < 0) == inside
        assert clamped.rescaled(d) == max(0.0, exact.rescaled(d))


def test_wan_14b_is_far_below_zero() -> None:
    guard = TeaCacheGuard(0.1, TEACACHE_MODELS["wan2.1-t2v-14b"].coefficients, exact=True)
    assert guard.rescaled(0.05) == pytest.approx(-4.09, abs=0.01)


FLUX_28 = [0, 1, 2, 3, 4, 5, 7, 9, 13, 17, 21, 24, 26, 27]
MAGCACHE: list[tuple[MagCacheSchedule, int, list[int]]] = [
    (MagCacheSchedule(0.06, 3, 0.2), 28, FLUX_28),
    (MagCacheSchedule(0.24, 5, 0.1), 28, [0, 1, 2, 5, 9, 15, 21, 26]),
    (MagCacheSchedule(0.24, 5, 0.1, never=11), 28, [0, 1, 2, 5, 9, 11, 17, 23, 26]),
    (MagCacheSchedule(0.24, 5, 0.1), 50, [0, 1, 2, 3, 4, 6, 9, 13, 17, 23, 29, 35, 41, 45, 48]),
    (
        MagCacheSchedule(0.24, 6, 0.2, "hunyuan-video", rounded=False),
        50,
        [*range(10), 14, 18, 23, 29, 34, 41, 46, 48, 49],
    ),
    (
        MagCacheSchedule(0.06, 2, 0.2, "qwen-image", inclusive=False, rounded=False),
        50,
        [*range(16), 17, 18, 19, 21, 23, 25, 27, 29, 31, 34, 37, 39, *range(41, 50)],
    ),
]


@pytest.mark.parametrize(("schedule", "num_steps", "expected"), MAGCACHE)
def test_magcache_computes_the_published_steps(schedule: MagCacheSchedule, num_steps: int, expected: list[int]) -> None:
    assert computed(schedule, num_steps) == expected


def test_magcache_presets_and_tables() -> None:
    assert computed(MagCache().schedule, 28) == FLUX_28
    assert computed(MagCache(0.24, 6, 0.2, "hunyuan-video").schedule, 50) == MAGCACHE[4][2]
    assert computed(MagCache(0.06, 2, 0.2, "qwen-image").schedule, 50) == MAGCACHE[5][2]
    lengths = {name: len(table) for name, table in MAGCACHE_TABLES.items()}
    assert lengths == {"flux": 28, "flux-kontext": 28, "hunyuan-video": 50, "qwen-image": 50}
    assert all(table[0] == 1 for table in MAGCACHE_TABLES.values())
    with pytest.raises(HiCacheError, match="known length"):
        MagCacheSchedule(0.1).computes(3, None)


@pytest.mark.parametrize(("model", "budget"), [(m, b) for m, (_, lists) in LISTS.items() for b in lists])
def test_a_lemica_list_has_its_budget(model: str, budget: int) -> None:
    mask = lemica_mask(model, budget)
    assert (mask.count("1"), len(mask), mask[0], mask[-1]) == (budget, LISTS[model][0], "1", "1")
    assert LeMiCa(budget, model).decisions(len(mask)).count("F") == budget


def test_an_unknown_lemica_list_is_refused() -> None:
    with pytest.raises(HiCacheError, match=r"LeMiCa.budget = 12: must be one of 26, 20, 15, 10 for flux"):
        LeMiCa(12, "flux")


FLEXCACHE = [
    (0.0, 0.040, 0.0800, 0, 0),
    (0.1, 0.056, 0.1070, 1, 2),
    (0.2, 0.072, 0.1340, 2, 3),
    (0.3, 0.088, 0.1610, 3, 5),
    (0.4, 0.104, 0.1880, 4, 7),
    (0.5, 0.120, 0.2150, 5, 8),
    (0.6, 0.136, 0.2420, 6, 10),
    (0.7, 0.152, 0.2690, 7, 12),
    (0.8, 0.168, 0.2960, 8, 13),
    (0.9, 0.184, 0.3230, 9, 15),
    (1.0, 0.200, 0.3500, 10, 17),
]


@pytest.mark.parametrize(("ratio", "large", "small", "own", "cross"), FLEXCACHE)
def test_flexcache_maps_its_knob_as_published(ratio: float, large: float, small: float, own: int, cross: int) -> None:
    assert teacache_threshold(ratio, "Wan2.1-T2V-14B") == pytest.approx(large)
    assert teacache_threshold(ratio, "Wan2.1-T2V-1.3B") == pytest.approx(small)
    assert pab_ranges(ratio) == (own, cross)
    tea = FlexCache("teacache", ratio, model="Wan2.1-T2V-14B")
    pab = FlexCache(" PAB ", ratio)
    if ratio == 0.0:
        assert tea.decisions(20) == pab.decisions(20) == "F" * 20
        return
    (guard,) = tea.guards
    assert isinstance(guard, TeaCacheGuard)
    assert guard.threshold == pytest.approx(large)
    assert (guard.signal, guard.warmup, guard.cooldown) == ("modulation", 5, 5)
    assert guard.coefficients == TEACACHE_MODELS["wan2.1-t2v-14b-ret"].coefficients
    schedules = pab.schedule.schedules  # type: ignore[attr-defined]
    assert (schedules["self-attention"].every, schedules["cross-attention"].every) == (own, cross)


@pytest.mark.parametrize(
    ("ratio", "own", "cross"), [(0.05, 0, 0), (0.15, 2, 3), (0.25, 2, 3), (0.35, 4, 7), (0.45, 4, 7), (0.55, 6, 10)]
)
def test_halves_round_to_even(ratio: float, own: int, cross: int) -> None:
    assert pab_ranges(ratio) == (own, cross)
    FlexCache("pab", ratio)  # a range of 0 means 1


def test_flexcache_pab_computes_the_published_steps() -> None:
    schedules = FlexCache("pab", 0.3).schedule.schedules  # type: ignore[attr-defined]
    assert computed(schedules["self-attention"], 20) == [0, 1, 2, 3, 4, 5, 8, 11, 14, 15, 16, 17, 18, 19]
    assert computed(schedules["cross-attention"], 20) == [0, 1, 2, 3, 4, 5, 10, 15, 16, 17, 18, 19]


@pytest.mark.parametrize("name", [None, "", "none", "off", "Disable", "DISABLED"])
def test_flexcache_off_is_every_step(name: str | None) -> None:
    assert FlexCache(name).decisions(9) == from_params(name).decisions(9) == "F" * 9


def test_flexcache_takes_the_older_styles() -> None:
    assert from_params("teacache") == FlexCache("teacache", 0.5, 5, 5)
    assert from_params({"strategy": "pab", "cache_ratio": "0.3", "warmup": "2"}) == FlexCache("pab", 0.3, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "fora"}, "FlexCache.strategy = 'fora': must be one of teacache, pab"),
        ({"strategy": "pab", "cache_ratio": 1.2}, "FlexCache.cache_ratio = 1.2: must be a number from 0 to 1"),
        ({"strategy": "pab", "cache_ratio": "x"}, "FlexCache.cache_ratio = 'x': must be a number from 0 to 1"),
        ({"strategy": "pab", "warmup": -1}, "FlexCache.warmup = -1: must be an integer >= 0"),
        ({"strategy": "pab", "cooldown": None}, "FlexCache.cooldown = None: must be an integer >= 0"),
        ({"strategy": "pab", "ratio": 1}, "FlexCache.ratio: no such field"),
    ],
)
def test_flexcache_says_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(HiCacheError) as error:
        from_params(fields)
    assert message in str(error.value)


def test_pab_reuses_inside_its_window_only() -> None:
    times = tuple(1000 - 50 * step for step in range(20))
    schedule = Broadcast(3, window=(100, 850)).bind(RunInfo(times=lambda: times))
    skipped = [step for step in range(20) if not schedule.computes(step, 20)]
    assert skipped == [s for s in range(20) if s % 3 and 100 < times[s] < 850]
    assert computed(Broadcast(3, window=(100, 850)), 20) == computed(schedule, 20)  # times fall evenly
    with pytest.raises(HiCacheError, match=r"Broadcast.window: .* length"):
        Broadcast(3, window=(100, 850)).computes(4, None)


def test_mlps_are_broadcast_after_their_key_steps() -> None:
    times = (1000, 864, 788, 676, 500, 300)
    schedule = KeySteps((864, 676), skips=2).bind(RunInfo(times=lambda: times))
    assert [schedule.computes(step, 6) for step in range(6)] == [True, True, False, True, False, True]


def test_pab_kinds() -> None:
    groups = dict(PAB(2, 4, 6, mlp=KeySteps((500,), 3)).layout.groups)
    assert groups["mlp"] == 3
    assert set(groups) >= {"self-attention", "cross-attention", "temporal-attention"}
