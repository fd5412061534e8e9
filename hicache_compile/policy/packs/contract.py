"""A promise, and whether it is kept: runs that are also made in full say so, and the policy steps back where not."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.packs.pack import IN_FULL, SHARE, Entry, Pack

BETS = (2.0, 5.0, 12.0)  # how much a run beyond the promise counts: for small, middling and large shares of them
BROKEN = 1e4  # evidence at which the promise counts as broken
KEPT = 64  # of the newest checked runs


@dataclass(frozen=True, slots=True)
class ContractReport:
    """How a promise has been kept.

    ``policy``: in force, by its name in the pack. ``checked``: runs that were also made in full, under every policy so
    far. ``beyond``: those of them whose error was more than ``max_error``. ``errors``: the newest, under ``policy``.
    ``evidence``: that it is broken, from 1; at 10,000 the policy steps back. ``stepped_back``: from which policies.
    """

    policy: str
    max_error: float | None
    promised: float
    checked: int
    beyond: int
    errors: tuple[float, ...]
    evidence: float
    stepped_back: tuple[str, ...]


class Contract:
    """A promise on runs of one model, and the policy of a pack that keeps it.

    Checked runs are bets against the promise that at most 5 of 100 are beyond ``max_error``: each multiplies what was
    won so far by ``1 + bet (beyond - .05)``, never below 1; evidence is the mean over three bets (an e-detector,
    2203.03532). While at most 5 of 100 are beyond it takes 10,000 checked runs or more, in the mean, until the promise
    is called broken; where every run is beyond it, five. A promise on errors outlasts one on seconds: the policy may
    step back to one that takes longer.

    Args:
        max_error, max_seconds: see ``Pack.pick``.

    Raises:
        HiCacheError: see ``Pack.pick``.
    """

    def __init__(self, pack: Pack, max_error: float | None = None, max_seconds: float | None = None) -> None:
        self.pack = pack
        self.asked = max_error, max_seconds
        self.max_error = max_error
        self.max_seconds = max_seconds
        self.entry = pack.pick(max_error, max_seconds)
        self._errors = deque[float](maxlen=KEPT)
        self._checked = self._beyond = 0
        self._won = [1.0] * len(BETS)
        self._stepped_back: list[str] = []

    @property
    def promised(self) -> float:
        """The error that 95 of 100 runs stay within: what was asked for, else what was measured of the policy."""
        return self.max_error if self.max_error is not None else self.entry.bound

    @property
    def evidence(self) -> float:
        """That the promise is broken, from 1."""
        return sum(self._won) / len(BETS)

    def observe(self, error: float) -> Entry | None:
        """A checked run had ``error``; returns the entry that the policy steps back to, if it does.

        Runs in full are not counted: what they differ by is rounding.

        Raises:
            HiCacheError: ``error`` is no number >= 0.
        """
        if not error >= 0:
            raise HiCacheError(f"Contract.observe: error = {error!r}: must be a number >= 0")
        if self.entry.name == IN_FULL:
            return None
        beyond = error > self.promised
        self._errors.append(error)
        self._checked += 1
        self._beyond += beyond
        odds = (1.0 + bet * (beyond - (1.0 - SHARE)) for bet in BETS)
        self._won = [max(1.0, won * factor) for won, factor in zip(self._won, odds, strict=True)]
        return self._step_back() if self.evidence >= BROKEN else None

    def _step_back(self) -> Entry:
        """To the fastest entry that keeps the promise if all errors have grown as those of the present one."""
        promised, ordered = self.promised, sorted(self._errors)
        seen = ordered[math.ceil(SHARE * len(ordered)) - 1]
        grown = max(1.0, seen / self.entry.bound) if 0 < self.entry.bound < math.inf else math.inf
        truer = [one for one in self.pack.entries if one.bound < self.entry.bound and one.bound * grown <= promised]
        self._stepped_back.append(self.entry.name)
        self.max_error = promised
        self.entry = min(truer, key=lambda one: one.seconds, default=self.pack.in_full)
        self._errors.clear()
        self._won = [1.0] * len(BETS)
        return self.entry

    def report(self) -> ContractReport:
        """How the promise has been kept so far."""
        return ContractReport(
            self.entry.name,
            self.max_error,
            self.promised,
            self._checked,
            self._beyond,
            tuple(self._errors),
            self.evidence,
            tuple(self._stepped_back),
        )
