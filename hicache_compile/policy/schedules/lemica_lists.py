"""LeMiCa's published step lists (2511.00090): the computed steps for each model and budget."""

from __future__ import annotations

from hicache_compile.errors import HiCacheError, one_of

_FLUX_10 = "0,1,3,7,14,21,28,35,42,49"
LISTS: dict[str, tuple[int, dict[int, str]]] = {
    "flux": (
        50,
        {
            26: "0-10,12,15,18,20,25,30,35,39,42,44-49",
            20: "0-7,9,12,15,19,24,31,38,43,46-49",
            15: "0-5,7,10,15,20,27,34,41,47,49",
            10: _FLUX_10,
        },
    ),
    "wan2.1-t2v-1.3b": (
        50,
        {
            25: "0-12,14,16,18,21,24,29,35,40,44,47-49",
            20: "0-9,11,13,16,20,26,33,40,45,48,49",
            17: "0-8,10,13,18,25,32,39,46,49",
            14: "0-5,7,10,16,23,30,37,44,49",
        },
    ),
    "wan2.1-t2v-14b": (
        50,
        {
            25: "0-11,13,15,18,21,25,29,34,38,42,45,47-49",
            20: "0-9,11,14,18,23,29,36,42,46,48,49",
            17: "0-7,9,12,16,22,29,36,43,47,49",
            14: "0-5,7,10,17,24,31,38,45,49",
        },
    ),
    "wan2.1-i2v": (
        40,
        {
            25: "0-10,12,14,16,18,21,24,27,30,32,34,36-39",
            20: "0-6,8,10,12,15,18,21,25,29,32,35,37-39",
            17: "0-5,7,9,12,15,19,24,29,33,36,38,39",
            14: "0-4,6,8,11,15,22,29,34,37,39",
        },
    ),
    "qwen-image": (50, {25: "0-19,26,33,36,42,49", 17: "0-10,15,22,29,36,42,49", 10: _FLUX_10}),
    "z-image": (10, {8: "0-3,5,7,8,9", 7: "0,1,2,4,6,8,9", 6: "0,1,2,5,8,9"}),
}


def lemica_mask(model: str, budget: int) -> str:
    """The mask of ``model`` with ``budget`` computed steps, as a string of ``1`` and ``0``.

    Raises:
        HiCacheError: no list is published for ``model`` and ``budget``.
    """
    one_of("LeMiCa", "model", model, LISTS)
    num_steps, lists = LISTS[model]
    if budget not in lists:
        known = ", ".join(map(str, lists))
        raise HiCacheError(f"LeMiCa.budget = {budget!r}: must be one of {known} for {model}")
    computed: set[int] = set()
    for part in lists[budget].split(","):
        first, _, last = part.partition("-")
        computed.update(range(int(first), int(last or first) + 1))
    return "".join("1" if step in computed else "0" for step in range(num_steps))
