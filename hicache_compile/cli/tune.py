"""``hicache tune``: a search for policies that suit a model, or one policy fitted to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from hicache_compile.cli import shared
from hicache_compile.cli.call_options import NOTHING_GIVEN, Call, with_call_options
from hicache_compile.errors import HiCacheError

if TYPE_CHECKING:
    from hicache_compile.tune.recommend import Recommendation


@with_call_options
def tune(
    model: shared.Model,
    method: Annotated[
        str | None,
        typer.Option(
            "--fit",
            help="Only fit: teacache, magcache, dicache, sencache (guards); calibrated, sigma, gates, mean, channels "
            "(forecasts); plan (forecasts and noise levels together, for few steps).",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With --fit the policy file to write (policy.json), else a folder (tuned).")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt to fit to; several are better.")] = None,
    steps: shared.TwoOrMoreSteps = 50,
    computed: Annotated[
        int | None, typer.Option(min=1, max=shared.MOST, help="Steps to compute; default: a third.")
    ] = None,
    signal: Annotated[
        str | None, typer.Option(help="TeaCache's: modulated (default), modulation, time or residual.")
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="Of fitted forecasts: module, block, stack (default) or output.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, max=shared.MOST, help="Runs of each prompt to fit to.")] = None,
    by_slot: Annotated[bool, typer.Option("--by-slot", help="Weights of its own for each slot (calibrated).")] = False,
    evaluations: Annotated[
        int | None,
        typer.Option(
            min=0, max=shared.MOST, help="Schedules tried for forecasts; default: 40, with anneal 220, in a search 12."
        ),
    ] = None,
    search: Annotated[
        str, typer.Option(help="Of schedules: local, or anneal (BudCache), which leaves local minima.")
    ] = "local",
    mask: Annotated[
        str | None, typer.Option(help="Steps to compute, as 1 and 0 (plan); default: every other one.")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--refine",
            min=0,
            max=shared.MOST,
            help="Rounds of refining weights on whole runs; default: 2 with calibrated, else 0.",
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(min=1, max=shared.MOST, help="Of each policy that lasts to the end of the search; default: 16."),
    ] = None,
    errors: Annotated[
        str | None, typer.Option(help="The most error of each recommended policy; default: 0.01,0.02,0.05.")
    ] = None,
    seed: shared.Seed = 0,
    call: Call = NOTHING_GIVEN,
    backend: shared.Backend = "inductor",
    json: shared.AsJson = False,
) -> None:
    """Search for the policies that suit a model, and recommend three; or fit one to it (--fit).

    A search goes on where it was stopped when it is started again with the same folder.
    """
    from hicache_compile.evaluation.subjects import open_subject

    prompts = prompt or []
    of_a_fit = {"computed": computed, "signal": signal, "scope": scope, "samples": samples, "by_slot": by_slot or None}
    of_a_fit |= {"mask": mask, "rounds": rounds}
    for name, value in ({"runs": runs, "errors": errors} if method else of_a_fit).items():
        if value is not None:
            raise HiCacheError(f"tune.{name} = {value!r}: must be {'left out' if method else 'given'} with --fit")
    if method is None:
        from hicache_compile.tune.search import run
        from hicache_compile.tune.tuner import Search

        tried = 12 if evaluations is None else evaluations
        levels = _numbers_of(errors or "0.01,0.02,0.05")
        wanted = Search(
            prompts, steps, runs or 16, seed=seed, backend=backend, errors=levels, evaluations=tried, schedules=search
        )
        folder = out or Path("tuned")
        recommended = run(open_subject(model, prompts, steps, backend, call, "tune"), wanted, folder)
        if json:
            shared.print_json([one.as_data() for one in recommended])
        else:
            _print_recommended(recommended, folder)
        return
    from hicache_compile.tune.fit_subject import Fitting, fit_subject

    usual = 220 if search == "anneal" else 40
    tried = usual if evaluations is None else max(1, evaluations)
    how = (signal or "modulated", scope or "stack")
    fitting = Fitting(method, computed, *how, samples, seed, tried, by_slot, search, mask, rounds)
    subject = open_subject(model, prompts, steps, backend, call, "tune")
    found = fit_subject(subject, fitting, out or Path("policy.json"))
    if json:
        shared.print_json(found)
    else:
        _print_fitted(found)


def _numbers_of(errors: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, errors.split(",")))
    except ValueError:
        raise HiCacheError(f"tune.errors = {errors!r}: must be three rising numbers > 0, like 0.01,0.02,0.05") from None


def _print_recommended(recommended: Sequence[Recommendation], folder: Path) -> None:
    from hicache_compile.tune.recommend import LEVELS

    table = Table(box=None, pad_edge=False)
    for heading in ("", "policy", "steps", "FLOPs", "error", "another measurement"):
        table.add_column(heading, justify="left" if heading in ("", "policy") else "right")
    for one in recommended:
        span = f"{one.error.low:.4f} to {one.error.high:.4f}"
        table.add_row(
            one.level, one.candidate, f"{one.computed:.3g}", f"{one.flops_speedup:.2f}x", f"{one.error.value:.4f}", span
        )
    console = Console(markup=False)
    console.print(table)
    missing = [level for level in LEVELS if level not in {one.level for one in recommended}]
    if missing:
        console.print(f"nothing tried was true enough for: {', '.join(missing)}")
    console.print(f"policies, charts, report.md: {folder}")


def _print_fitted(found: Mapping[str, Any]) -> None:
    count = len(found["computed"])
    if "threshold" in found:
        low, high = min(found["computed"]), max(found["computed"])
        rows = [
            ("fitted", f"{found['fitted']}, {count} uncached runs of {found['steps']} steps"),
            ("explained", f"{100 * found['explained']:.1f} % of the variance"),
            ("threshold", f"{found['threshold']:g}"),
            ("computed", f"{low} steps" if low == high else f"{low} to {high} steps"),
        ]
    else:
        rows = [
            ("fitted", f"{found['fitted']}, scope {found['scope']}"),
            ("computed", f"{count} of {found['steps']} steps"),
            ("steps", found["decisions"]),
            *([("sigmas", ", ".join(f"{level:g}" for level in found["sigmas"]))] if "sigmas" in found else []),
            ("error", f"{found['error']:.4f} on the runs it was fitted to"),
        ]
    Console(markup=False).print(shared.facts([*rows, ("policy", found["policy"])]))
