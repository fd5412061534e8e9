"""Finding the site whose forecast, or whose rewrite, is to blame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.passes.transforms.fuel import limited


def bisect(
    model: nn.Module, policy: Any, is_good: Callable[[CompiledDenoiser], bool], *, backend: str = "eager"
) -> str | None:
    """The first site without which ``is_good`` holds and with which it does not; ``None`` when it holds with all.

    The same as setting ``HICACHE_FUEL`` by hand: a binary search over how many sites are rewritten, in graph order.

    Args:
        model, policy, backend: as in ``hicache_compile``.
        is_good: samples with the compiled denoiser it is given, and judges the result.

    Raises:
        HiCacheError: ``is_good`` does not hold even with no site rewritten, so no rewrite is to blame.
    """

    def holds(rewrites: int) -> bool:
        with limited(rewrites):
            return is_good(hicache_compile(model, policy, backend=backend))

    everything = hicache_compile(model, policy, backend=backend)
    if is_good(everything):
        return None
    sites = [
        site.name for step in everything._steps for site in step.variant(step.layout(everything.policy)).rewrite.sites
    ]
    if not holds(0):
        raise HiCacheError("bisect.is_good: must hold for the denoiser with no site rewritten")
    good, bad = 0, len(sites)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return sites[bad - 1]
