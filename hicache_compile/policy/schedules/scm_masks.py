"""The common named steps-computation masks (SCM of cache-dit), from their bins."""

from __future__ import annotations

from hicache_compile.errors import HiCacheError, whole_number

# Lengths of the alternating runs of computed and of cached steps, for 28 steps.
BINS = {
    "slow": ([8, 3, 3, 2, 1, 1], [1, 2, 2, 2, 3]),
    "medium": ([6, 2, 2, 2, 2, 1], [1, 3, 3, 3, 3]),
    "fast": ([6, 1, 1, 1, 1, 1], [1, 3, 4, 5, 4]),
    "ultra": ([4, 1, 1, 1, 1], [2, 5, 6, 7]),
}
SPEEDS = tuple(BINS)
BASE_STEPS = 28

# Below 28 steps the published masks follow no rule; these are all of them.
SHORT = {
    4: dict.fromkeys(SPEEDS, "1101"),
    8: {"slow": "11111011", "medium": "11110101", "fast": "11101001", "ultra": "11001001"},
    20: {
        "slow": "11111111011100111001",
        "medium": "11111101100011000101",
        "fast": "11111101000000000001",
        "ultra": "11110000000000000001",
    },
}


MOST_STEPS = 10_000  # more is a slip of the hand, and takes long


def steps_mask(speed: str, num_steps: int) -> str:
    """The mask named ``speed`` for ``num_steps`` steps, as a string of ``1`` and ``0``.

    From 28 steps on, the bins grow in turn, each by ``max(int(bin * num_steps / 28 / 2), 1)``, until they cover the
    trajectory. The surplus is taken off the last bins, computed steps first, and at least one step is left in each bin.

    Raises:
        HiCacheError: fewer than 28 steps, and no mask is published for that number.
    """
    whole_number("SCM", "num_steps", num_steps, 1, MOST_STEPS)
    if num_steps < BASE_STEPS:
        if num_steps not in SHORT:
            known = ", ".join(map(str, sorted(SHORT)))
            raise HiCacheError(
                f"SCM.num_steps = {num_steps}: must be {known} or at least {BASE_STEPS} for a named mask; "
                "pass the mask as a string of 1 and 0"
            )
        return SHORT[num_steps][speed]
    computed, cached = (list(bins) for bins in BINS[speed])
    growth = [[max(int(size * num_steps / BASE_STEPS * 0.5), 1) for size in bins] for bins in BINS[speed]]
    places = [(computed, growth[0], i) for i in range(len(computed))]
    places += [(cached, growth[1], i) for i in range(len(cached))]
    total = BASE_STEPS
    turn = 0
    while total < num_steps:
        bins, grow, i = places[turn % len(places)]
        bins[i] += grow[i]
        total += grow[i]
        turn += 1
    for i in reversed(range(len(cached))):
        for bins, place in ((computed, i + 1), (cached, i)):
            surplus = min(total - num_steps, bins[place] - 1)
            bins[place] -= surplus
            total -= surplus
    runs = ["1" * computed[0]]
    for skip, run in zip(cached, computed[1:], strict=True):
        runs += ["0" * skip, "1" * run]
    return "".join(runs)
