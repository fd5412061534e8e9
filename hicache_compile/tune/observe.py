"""Run a denoiser uncached and write down, step by step, what guards would decide by."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.forecasters import Reuse
from hicache_compile.policy.guards import ObserverGuard
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import Free


@dataclass(frozen=True, slots=True)
class Observed:
    """One run of one guidance branch: a value for each step from the second on.

    ``signal`` and ``output``: changes from the step before, ``mean|now - before| / mean|before|``. ``magnitude``: of
    the residual over all blocks, over that of the step before. ``probes``: the change after 1, 2, ... blocks.
    """

    signal: list[float]
    output: list[float]
    magnitude: list[float]
    probes: list[list[float]]

    @property
    def num_steps(self) -> int:
        return len(self.signal) + 1


def observe(
    denoiser: CompiledDenoiser, runs: Sequence[Callable[[], object]], signal: str = "modulated", blocks: int = 5
) -> list[Observed]:
    """What each of ``runs``, which sample with ``denoiser`` once, does when nothing is cached.

    Raises:
        HiCacheError: a run does not call the denoiser, or its measurements are not finite.
    """
    kept = denoiser.policy
    denoiser.policy = Policy(Free(), Reuse(), "stack", (ObserverGuard(signal=signal, blocks=blocks),))
    found: list[Observed] = []
    try:
        for number, run in enumerate(runs):
            run()
            branches = _recorded(denoiser)
            if not branches:
                raise HiCacheError(f"fit.runs[{number}]: must sample at least two steps with the denoiser")
            found += branches
    finally:
        denoiser.policy = kept
        denoiser.reset()
    return found


def _recorded(denoiser: CompiledDenoiser) -> list[Observed]:
    contexts = list(denoiser._session.contexts.values())
    newest = max((context.trajectory for context in contexts), default=-1)
    found = []
    for context in contexts:
        for state in context.states.values():
            seen = getattr(state.decider, "seen", None)
            if context.trajectory != newest or seen is None:
                continue
            if list(seen) != list(range(1, context.step)) or not all(
                map(math.isfinite, itertools.chain(*seen.values()))
            ):
                raise HiCacheError("fit: the denoiser measured what is no finite number: must run without infinities")
            if seen:
                columns = [list(values) for values in zip(*seen.values(), strict=True)]
                found.append(Observed(columns[0], columns[1], columns[2], columns[3:]))
    return found
