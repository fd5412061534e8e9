"""Not a decision: every step is computed, and what guards would decide by is written down to fit them to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hicache_compile.errors import one_of, whole_number
from hicache_compile.policy.guards.base import Guard, Measure, Probe, Signal, Watcher
from hicache_compile.policy.guards.teacache import SIGNALS


@dataclass(frozen=True, slots=True)
class ObserverGuard(Guard):
    """Measure each step of an uncached run against the step before.

    Of each step but the first: the change of the signal; the change of the stream that leaves the blocks; the ratio of
    the magnitudes of the residual over all blocks; then the change of the stream after each of the first ``blocks``.

    Args:
        signal: see ``TeaCacheGuard``.
        blocks: how many blocks are looked into.
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

    def watch(self, num_steps: int | None) -> Watcher:
        return Recorder()

    def forces(self, step: int, num_steps: int | None) -> bool:
        return True


class Recorder(Watcher):
    """Keeps all that was measured, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, list[float]] = {}

    def skips(self, step: int, measured: Sequence[float]) -> bool:
        return False  # every step is forced

    def after_full(self, step: int, measured: Sequence[float]) -> None:
        if measured:
            self.seen[step] = list(measured)
