"""``hicache tune --fit``: fit a policy to a model, print how well, write it to a file."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from hicache_compile.errors import one_of
from hicache_compile.evaluation.subjects import DEMO, Subject, open_subject
from hicache_compile.policy.json_codec import to_json
from hicache_compile.tune.calibrated import FITS, fit_forecasts, measure
from hicache_compile.tune.fit import METHODS, fit

SAMPLES = 3  # of each prompt, to fit forecasts to


def run(
    model: str,
    method: str,
    prompts: Sequence[str],
    steps: int,
    computed: int | None,
    signal: str,
    seed: int,
    out: Path,
    backend: str,
    arguments: dict[str, Any],
    *,
    scope: str = "stack",
    samples: int | None = None,
    evaluations: int = 40,
    by_slot: bool = False,
    as_json: bool,
) -> None:
    """Fit, write the policy, and print how it went as a table (or JSON).

    Raises:
        HiCacheError: an option is not what is allowed, or ``model`` is no folder of a pipeline.
    """
    one_of("fit", "method", method, (*METHODS, *FITS))
    subject = open_subject(model, prompts, steps, backend, arguments)
    budget = computed or -(-steps // 3)
    if method in METHODS:
        data = _fit_guard(subject, method, budget, signal, seed, samples or 1, out)
    else:
        data = _fit_forecasts(subject, method, budget, scope, seed, samples, evaluations, by_slot, out)
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        _tell(data)


def _fit_guard(
    subject: Subject, method: str, computed: int, signal: str, seed: int, samples: int, out: Path
) -> dict[str, Any]:
    runs = subject.runs(seed, samples)
    with tqdm(total=len(runs), desc="uncached runs", unit="run", file=sys.stderr) as bar:
        fitted = fit(subject.denoiser, _counted(runs, bar), method, computed, signal=signal)
    out.write_text(to_json(fitted.policy) + "\n", encoding="utf-8")
    decider: Any = fitted.policy.guards[0] if fitted.policy.guards else fitted.policy.schedule
    return {
        "fitted": method,
        "steps": fitted.num_steps,
        "explained": fitted.explained,
        "threshold": decider.threshold,
        "computed": fitted.computed,
        "policy": str(out),
    }


def _fit_forecasts(
    subject: Subject,
    method: str,
    computed: int,
    scope: str,
    seed: int,
    samples: int | None,
    evaluations: int,
    by_slot: bool,
    out: Path,
) -> dict[str, Any]:
    together = subject.name == DEMO  # small enough for one batch
    runs = subject.runs(seed, samples or (SAMPLES if together else 1), together)
    with tqdm(desc="runs", unit="run", file=sys.stderr) as bar:
        measured = measure(subject.denoiser, _counted(runs, bar), scope)
        found = fit_forecasts(measured, method, computed, evaluations, by_slot=by_slot)
    out.write_text(to_json(found.policy) + "\n", encoding="utf-8")
    decisions = found.policy.decisions(measured.num_steps)
    return {
        "fitted": method,
        "steps": measured.num_steps,
        "scope": scope,
        "error": found.error,
        "computed": [step for step, letter in enumerate(decisions) if letter == "F"],
        "decisions": decisions,
        "policy": str(out),
    }


def _counted(runs: Sequence[Callable[[], Any]], bar: Any) -> list[Callable[[], Any]]:
    def count(one: Callable[[], Any]) -> Any:
        found = one()
        bar.update()
        return found

    return [functools.partial(count, one) for one in runs]


def _tell(data: Mapping[str, Any]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    if "threshold" in data:
        low, high = min(data["computed"]), max(data["computed"])
        table.add_row("fitted", f"{data['fitted']}, {len(data['computed'])} uncached runs of {data['steps']} steps")
        table.add_row("explained", f"{100 * data['explained']:.1f} % of the variance")
        table.add_row("threshold", f"{data['threshold']:g}")
        table.add_row("computed", f"{low} steps" if low == high else f"{low} to {high} steps")
    else:
        table.add_row("fitted", f"{data['fitted']}, scope {data['scope']}")
        table.add_row("computed", f"{len(data['computed'])} of {data['steps']} steps")
        table.add_row("steps", data["decisions"])
        table.add_row("error", f"{data['error']:.4f} on the runs it was fitted to")
    table.add_row("policy", data["policy"])
    Console().print(table)
