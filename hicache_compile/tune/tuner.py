"""A search: what is tried, what is measured of it, and where that is kept."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError, one_of
from hicache_compile.evaluation.intervals import Interval95, summary
from hicache_compile.evaluation.journal import Journal
from hicache_compile.evaluation.quality import real_features, scores_of
from hicache_compile.evaluation.runs import Judge
from hicache_compile.evaluation.subjects import DEMO, Subject, batches_of
from hicache_compile.policy.json_codec import as_policy, write_policy
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.progress import progress
from hicache_compile.tune.calibrated import SEARCHES, fit_forecasts
from hicache_compile.tune.fit import fit
from hicache_compile.tune.grid import Candidate, grid
from hicache_compile.tune.halving import Standing, as_standing, halve
from hicache_compile.tune.measured import Measured, measure
from hicache_compile.tune.recommend import LEVELS, Recommendation, promise

TIMES = (2, 3, 4, 5.5, 7, 10)  # fewer computed steps, of what is calibrated
FRESH = 1_000_000  # added to the seed of pictures by which nothing is chosen
FITTING = 2_000_000  # and of those that are fitted to
Found = dict[str, dict[str, Interval95]]


@dataclass(frozen=True, slots=True)
class Search:
    """How to search.

    Args:
        prompts, steps, seed, backend: what is sampled, and how.
        runs: of each candidate that is left in the last rung.
        rungs: of the halving; each has twice the runs of the one before.
        batch: pictures a run draws; guards decide for all of them.
        errors: the most relative error of each level that is recommended.
        evaluations: schedules tried for each that is calibrated; 0: none is.
        scopes: of intervals and calibrated forecasts.
        schedules: how they are searched, ``"local"`` or ``"anneal"``; see ``fit_forecasts``.
    """

    prompts: Sequence[str]
    steps: int = 50
    runs: int = 16
    rungs: int = 3
    batch: int = 1
    seed: int = 0
    backend: str = "inductor"
    errors: tuple[float, ...] = (0.01, 0.02, 0.05)
    evaluations: int = 12
    scopes: tuple[str, ...] = ("stack", "module")
    schedules: str = "local"

    def __post_init__(self) -> None:
        rising = all(0 < low <= high < math.inf for low, high in itertools.pairwise(self.errors))
        if len(self.errors) != len(LEVELS) or not rising:
            raise HiCacheError(f"tune.errors = {list(self.errors)}: must be three rising numbers > 0")
        one_of("tune", "search", self.schedules, SEARCHES)


class Tuner:
    """One search: what is measured, and where it is kept."""

    def __init__(self, subject: Subject, search: Search, folder: Path) -> None:
        self.subject = subject
        self.wanted = search
        self.folder = folder
        self.judge = Judge(subject, scores_of(subject))
        samples = -(-search.runs * search.batch // len(subject.prompts))
        self.runs = batches_of(subject, samples, search.batch, search.seed)[: search.runs]
        self.real = real_features(subject)
        settings = {**subject.settings, "batch": search.batch, "seed": search.seed, "backend": search.backend}
        self.journal = Journal(folder / "results.jsonl", settings)

    def candidates(self) -> dict[str, Candidate]:
        """The grid, with TeaCache's polynomial and calibrated forecasts fitted to the model."""
        search, subject = self.wanted, self.subject
        fitting = subject.runs(search.seed + FITTING)
        tea = self._kept("teacache", lambda: fit(subject.denoiser, fitting, "teacache", -(-search.steps // 3)).policy)
        found = grid(tea.guards[0].coefficients, search.scopes)  # type: ignore[attr-defined]  # a TeaCacheGuard
        together = subject.name == DEMO
        runs = subject.runs(search.seed + FITTING, 3 if together else 1, together)
        wanted = [(scope, times) for scope in search.scopes for times in TIMES] if search.evaluations else []
        measured: dict[str, Measured] = {}
        for scope, times in progress(wanted, what="fitting", unit="policy"):
            computed = max(1, round(search.steps / times))
            name = f"calibrated_{scope}_{computed}"
            if not self._file(name).exists():
                if scope not in measured:
                    measured = {scope: measure(subject.denoiser, runs, scope)}  # of one scope at a time: it is large
                how: Any = {"search": search.schedules, "seed": search.seed}
                fitted = fit_forecasts(measured[scope], "calibrated", computed, search.evaluations, **how)
                write_policy(self._file(name), fitted.policy)
            found.append(Candidate(f"calibrated, {scope}", computed, as_policy(self._file(name))))
        return {candidate.name: candidate for candidate in found}

    def search(self, candidates: Mapping[str, Candidate]) -> tuple[Found, list[str]]:
        """What was measured of each candidate, and who is left."""
        with progress(what="runs", unit="run") as bar:

            def measured(name: str, run: int) -> None:
                if not self.journal.has(name, run):
                    numbers, seed = self.runs[run]
                    lines = self.judge.lines(candidates[name].policy, numbers, seed)
                    self.journal.add(name, run, lines)
                bar.update()

            def standing(name: str) -> Standing:
                return as_standing(name, self._summary(name))

            left = halve(list(candidates), measured, standing, len(self.runs), self.wanted.rungs)
        return {name: self._summary(name) for name in candidates}, left

    def promised(self, level: str, policy: Policy, name: str) -> Recommendation:
        """``policy`` measured on fresh noise, and kept as the policy file of ``level``."""
        for place, (numbers, _) in enumerate(self.runs):
            key = f"fresh {name}"
            if not self.journal.has(key, place):
                self.journal.add(key, place, self.judge.lines(policy, numbers, self.wanted.seed + FRESH + place))
        lines = self.journal.of(f"fresh {name}")
        found = summary(lines, self.real)
        write_policy(self.folder / f"{level}.json", policy)
        most = dict(zip(LEVELS, self.wanted.errors, strict=True))[level]
        error, speed = promise(found["relative_error"]), found["flops_speedup"].value
        return Recommendation(level, most, name, error, speed, found["computed"].value)

    def _summary(self, name: str) -> dict[str, Interval95]:
        return summary(self.journal.of(name), self.real)

    def _file(self, name: str) -> Path:
        search = self.wanted
        of = json.dumps([self.subject.settings, search.seed, search.evaluations, search.schedules])
        return self.folder / "fitted" / f"{name}_{hashlib.sha256(of.encode()).hexdigest()[:8]}.json"

    def _kept(self, name: str, make: Callable[[], Policy]) -> Policy:
        """The policy that an earlier search fitted, or now."""
        if not self._file(name).exists():
            write_policy(self._file(name), make())
        return as_policy(self._file(name))
