"""``hicache bench``: the caches of this and other libraries, raced against one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hicache_compile.cli import shared


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Scenarios, or host, compile, memory, growth, onnx, guards, ranks, serving, study-stack, ... "
            "(docs/study.md)."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=shared.MOST, help="Trajectories of each contender.")] = 3,
    only: Annotated[
        str | None, typer.Option(help="Only contenders with this in their name, and torch.compile.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Append one JSON line for each result to this file.")] = None,
    charts: Annotated[Path | None, typer.Option(help="Draw the results into this folder.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Fail where a committed expectation does not hold.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON lines.")] = False,
) -> None:
    """Race the caches of this and other libraries on the same weights, in turns; by default flux-70m."""
    from hicache_compile.benchmarks.command import run

    holds = run(names or ["flux-70m"], rounds, only, out, charts, checking=check, as_json=json)
    raise typer.Exit(0 if holds else 1)
