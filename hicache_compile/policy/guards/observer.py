"""Measures what guards are fitted by; every step is computed."""

from __future__ import annotations

from collections.abc import Sequence

from hicache_compile.errors import one_of, whole_number
from hicache_compile.policy.guards.arithmetic import Arithmetic, Number, Numbers, Truth
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal
from hicache_compile.policy.guards.teacache import SIGNALS
from hicache_compile.policy.plain_data import plain_data


@plain_data
class ObserverGuard(Guard):
    """Measure each step of an uncached run against the step before.

    Of each step but the first: the change of the signal; the change of the stream that leaves the blocks; the ratio of
    the magnitudes of the residual over all blocks; then the change of the stream after each of the first ``blocks``.

    Args:
        signal: see ``TeaCacheGuard``.
        blocks: how many of the first blocks are measured.
    """

    signal: str = "modulated"
    blocks: int = 5

    def __post_init__(self) -> None:
        self.check()
        one_of("ObserverGuard", "signal", self.signal, SIGNALS)
        whole_number("ObserverGuard", "blocks", self.blocks, 1)

    @property
    def probe(self) -> Probe:
        return Probe(Measure.OBSERVE, Signal(self.signal), self.blocks)

    def ask(self, m: Arithmetic, p: Numbers, s: Numbers, step: Number, seen: Sequence[Number]) -> tuple[Truth, Numbers]:
        return False, s  # every step is forced

    def forces(self, step: int, num_steps: int | None) -> bool:
        return True
