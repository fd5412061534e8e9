"""A policy fitted to a subject, written to a file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError, one_of, whole_number
from hicache_compile.evaluation.subjects import DEMO, Subject
from hicache_compile.policy.files import check_writable
from hicache_compile.policy.json_codec import write_policy
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.progress import progress
from hicache_compile.tune.calibrated import FITS, SEARCHES, fit_forecasts
from hicache_compile.tune.fit import METHODS, fit
from hicache_compile.tune.grid_plan import fit_grid
from hicache_compile.tune.measured import measure

SAMPLES = 3  # of each prompt, to fit forecasts to
PLAN = "plan"  # the method that plans noise levels too


@dataclass(frozen=True, slots=True)
class Fitting:
    """What to fit, and to what.

    Args:
        method: one of ``METHODS`` (guards) or ``FITS`` (forecasts), or ``"plan"`` (noise levels and forecasts).
        computed: full steps; by default a third of a run.
        signal: TeaCache's.
        scope: of forecasts.
        samples: runs of each prompt.
        evaluations: schedules tried for forecasts.
        by_slot: whether each slot gets weights of its own (calibrated forecasts).
        search: of schedules of forecasts, ``"local"`` or ``"anneal"``.
        mask: of the run whose noise levels are planned; see ``fit_grid``.
        rounds: of refining forecasts; see ``fit_forecasts``.

    Raises:
        HiCacheError: there is no such method, or it takes no mask or rounds.
    """

    method: str
    computed: int | None = None
    signal: str = "modulated"
    scope: str = "stack"
    samples: int | None = None
    seed: int = 0
    evaluations: int = 40
    by_slot: bool = False
    search: str = "local"
    mask: str | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        one_of("fit", "method", self.method, (*METHODS, *FITS, PLAN))
        one_of("fit", "search", self.search, SEARCHES)
        if self.search != SEARCHES[0] and self.method not in FITS:
            raise HiCacheError(f"fit.search = {self.search!r}: must be {SEARCHES[0]} with method {self.method!r}")
        if self.mask is not None and (self.method != PLAN or self.computed is not None):
            raise HiCacheError(f"fit.mask = {self.mask!r}: must be given with method 'plan', without computed")
        if self.by_slot and self.method != "calibrated":
            raise HiCacheError(f"fit.by_slot = True: must be left out with method {self.method!r}")
        if self.rounds is not None and self.method not in FITS:
            raise HiCacheError(f"fit.rounds = {self.rounds}: must be left out with method {self.method!r}")


def fit_subject(subject: Subject, fitting: Fitting, out: Path) -> dict[str, Any]:
    """Fit to runs of ``subject`` and write the policy to ``out``; how it went, as plain data.

    Raises:
        HiCacheError: a setting is not what is allowed, or the pipeline has several denoisers.
    """
    check_writable(out)
    if len(subject.denoisers) > 1:
        raise HiCacheError(
            f"fit.model: {len(subject.denoisers)} denoisers share out the steps of a run, must be one: a fit is of the "
            "steps of one denoiser; sample with a preset, or search with `hicache tune` without --fit"
        )
    if fitting.computed is not None:
        whole_number("fit", "computed", fitting.computed, 1, subject.steps)
    computed = fitting.computed or -(-subject.steps // 3)
    fitted = _guard if fitting.method in METHODS else _plan if fitting.method == PLAN else _forecasts
    policy, found = fitted(subject, fitting, computed)
    write_policy(out, policy)
    return {"fitted": fitting.method, **found, "policy": str(out)}


def _guard(subject: Subject, fitting: Fitting, computed: int) -> tuple[Policy, dict[str, Any]]:
    runs = subject.runs(fitting.seed, fitting.samples or 1)
    with progress(total=len(runs), what="uncached runs", unit="run") as bar:
        fitted = fit(subject.denoiser, _counted(runs, bar), fitting.method, computed, signal=fitting.signal)
    decider: Any = fitted.policy.guards[0] if fitted.policy.guards else fitted.policy.schedule
    return fitted.policy, {
        "steps": fitted.num_steps,
        "explained": fitted.explained,
        "threshold": decider.threshold,
        "computed": fitted.computed,
    }


def _forecasts(subject: Subject, fitting: Fitting, computed: int) -> tuple[Policy, dict[str, Any]]:
    together = subject.name == DEMO  # small enough for one batch
    runs = subject.runs(fitting.seed, fitting.samples or (SAMPLES if together else 1), together)
    with progress(what="runs", unit="run") as bar:
        measured = measure(subject.denoiser, _counted(runs, bar), fitting.scope)
        found = fit_forecasts(
            measured,
            fitting.method,
            computed,
            fitting.evaluations,
            by_slot=fitting.by_slot,
            search=fitting.search,
            seed=fitting.seed,
            rounds=fitting.rounds,
        )
    decisions = found.policy.decisions(measured.num_steps)
    return found.policy, {
        "steps": measured.num_steps,
        "scope": fitting.scope,
        "error": found.error,
        "computed": _computed(decisions),
        "decisions": decisions,
    }


def _plan(subject: Subject, fitting: Fitting, computed: int) -> tuple[Policy, dict[str, Any]]:
    runs = subject.runs(fitting.seed, fitting.samples or 1, together=True)
    with progress(what="runs", unit="run") as bar:
        planned = computed if fitting.mask is None else fitting.mask
        found = fit_grid(subject.denoiser, _counted(runs, bar), planned, subject.times, fitting.scope)
    assert found.policy.sigmas is not None
    steps = len(found.policy.sigmas)
    decisions = found.policy.decisions(steps)
    return found.policy, {
        "steps": steps,
        "scope": fitting.scope,
        "error": found.error,
        "computed": _computed(decisions),
        "decisions": decisions,
        "sigmas": [round(level, 4) for level in found.policy.sigmas],
        "runs": found.runs,
    }


def _computed(decisions: str) -> list[int]:
    return [step for step, letter in enumerate(decisions) if letter == "F"]


def _counted(runs: Sequence[Callable[..., Any]], bar: Any) -> list[Callable[..., Any]]:
    def count(one: Callable[..., Any], **how: Any) -> Any:
        found = one(**how)
        bar.update()
        return found

    return [functools.partial(count, one) for one in runs]
