"""``hicache bench``: run the declared measurements, print them, write them down, draw them, check them."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from hicache_compile.benchmarks import (
    compile_time,
    growth,
    guards,
    host,
    memory,
    onnx,
    ranks,
    rivals,
    rivals_tables,
    serving,
    sparse,
    sparse_fidelity,
    study_sections,
    study_tables,
    tokens,
)
from hicache_compile.benchmarks.charts import draw
from hicache_compile.benchmarks.contenders import BASELINES, OURS, WITH_GRAPHS
from hicache_compile.benchmarks.expectations import check, with_best_peer
from hicache_compile.benchmarks.lockstep import race
from hicache_compile.benchmarks.measurement import Line, Measurement
from hicache_compile.benchmarks.peers import PEERS
from hicache_compile.benchmarks.record import records
from hicache_compile.benchmarks.scenarios import SCENARIOS
from hicache_compile.benchmarks.study import EVALUATIONS
from hicache_compile.errors import HiCacheError
from hicache_compile.evaluation.journal import journal_of, once
from hicache_compile.generate.record import json_lines
from hicache_compile.policy.files import add_line, check_writable
from hicache_compile.policy.progress import kept

NOTHING = "with --out what was measured would have been kept"
OTHERS = {
    "host": Measurement(host.measure),
    "compile": Measurement(compile_time.measure, compile_time.compare),
    "memory": Measurement(memory.measure, memory.compare),
    "growth": Measurement(growth.measure),
    "guards": Measurement(guards.measure),
    "onnx": Measurement(onnx.measure),
    "ranks": Measurement(ranks.measure),
    "rivals": Measurement(rivals.parts, rivals_tables.compare),
    "serving": Measurement(serving.measure),
    "sparse": Measurement(sparse.measure),
    "sparse-fidelity": Measurement(sparse_fidelity.measure),
    "tokens": Measurement(tokens.measure),
    **{f"study-{scope}": Measurement(partial(study_sections.methods, scope)) for scope in EVALUATIONS},
    "study-cost": Measurement(study_sections.cost),
    "study-ablations": Measurement(study_sections.ablations),
    "study-transfer": Measurement(study_sections.transfer),
}


def run(
    names: Sequence[str],
    rounds: int,
    only: str | None,
    out: Path | None,
    charts: Path | None,
    checking: bool,
    as_json: bool,
) -> bool:
    """Run the measurements ``names``; whether every expectation checked holds.

    What is measured stands in a journal beside ``out`` until all is; the same command goes on from there.

    Raises:
        HiCacheError: there is no measurement of such a name, or it needs a GPU and there is none.
    """
    for name in names:
        if name not in SCENARIOS and name not in OTHERS:
            raise HiCacheError(f"bench {name!r}: must be one of {', '.join([*SCENARIOS, *OTHERS])}")
    for place in (out, charts and charts / "chart.png"):
        if place is not None:
            check_writable(place)
    lines: list[Line] = []
    with journal_of(out, {"names": names, "rounds": rounds, "only": only}, "bench.out") as journal:
        with kept(f"what was measured is in {journal.path}; the same command goes on" if journal else NOTHING):
            for name in names:
                if name in SCENARIOS:
                    measured = once(journal, name, 0, partial(_race, name, rounds, only))
                else:
                    measured = OTHERS[name].run(name, journal)
                lines += measured
                if as_json:
                    print(json_lines(measured), end="", flush=True)
                else:
                    _print(name, measured)
        if out is not None and journal is not None:
            add_line(out, json_lines(lines))
            journal.path.unlink()
    if charts is not None:
        raced = [line for line in lines if "contender" in line]
        paths = (draw(raced, charts) if raced else []) + growth.draw(
            [line for line in lines if line.get("measured") == "growth"], charts
        )
        paths += guards.draw([line for line in lines if line.get("measured") == "guards"], charts)
        paths += rivals_tables.draw([line for line in lines if line.get("measured") == "rivals"], charts)
        paths += study_tables.draw([line for line in lines if line.get("measured") == "study"], charts)
        print("\n".join(map(str, paths)), file=sys.stderr)
    return not checking or _check(lines)


def _race(name: str, rounds: int, only: str | None) -> list[Line]:
    scenario = SCENARIOS[name]
    if scenario.needs_gpu and not torch.cuda.is_available():
        raise HiCacheError(f"bench {name!r}: must be run on a machine with a GPU; there is none")
    field = (*BASELINES, *OURS, *(WITH_GRAPHS if scenario.needs_gpu else ()), *PEERS)
    contenders = [c for c in field if only is None or c.name == "torch.compile" or only in c.name]
    command = ["hicache", "bench", name, "--rounds", str(rounds), *(["--only", only] if only else [])]
    return with_best_peer(records(race(scenario, contenders, rounds), shlex.join(command)))


def _print(name: str, lines: Sequence[Line]) -> None:
    console = Console(markup=False, width=None if sys.stdout.isatty() else 160)
    if name == "guards":
        for cost in ("computed", "equivalents"):
            console.print(f"errors by {cost} of {guards.STEPS} steps\n{guards.table(lines, cost)}")
        return
    if name.startswith("study"):
        console.print(study_tables.tables(lines), soft_wrap=True)
        return
    if name == "rivals":
        console.print(rivals_tables.tables(lines), soft_wrap=True)
        return
    if name not in SCENARIOS:
        for line in lines:
            console.print_json(json.dumps(line))
        return
    raced = sorted((line for line in lines if "refused" not in line), key=lambda line: line["trajectory_ms"])
    about = raced[0]
    computed = f"{about['computed']} of {about['steps']} steps computed"
    title = f"{name}: {about['parameters'] / 1e6:.1f} M parameters, {computed}, {about['hardware']}"
    table = Table(title=title, title_justify="left")
    for heading in ("contender", "kind of cache"):
        table.add_column(heading)
    for heading in ("full, ms", "forecast, ms", "trajectory, s", "faster", "clock / FLOPs", "error"):
        table.add_column(heading, justify="right")
    for line in raced:
        cached = line["forecast_step_ms"]
        table.add_row(
            line["contender"],
            line["kind"],
            f"{line['full_step_ms']:.2f}",
            "" if cached is None else f"{cached:.2f}",
            f"{line['trajectory_ms'] / 1e3:.2f}",
            f"{line['clock_speedup']:.2f}x",
            f"{line['clock_over_flops']:.3f}" if "clock_over_flops" in line else "",
            f"{line['relative_error']:.4f}",
            style="bold" if line["contender"].startswith("ours") else None,
        )
    console.print(table)
    for line in lines:
        if "refused" in line:
            console.print(f"{line['contender']}: {line['refused']}", style="dim", highlight=False)


def _check(lines: Sequence[Line]) -> bool:
    outcome = check(lines)
    for expectation, value, holds in outcome:
        print(f"{'holds ' if holds else 'FAILS '} {expectation}: {value:.4g}", file=sys.stderr)
    return all(holds for _, _, holds in outcome)
