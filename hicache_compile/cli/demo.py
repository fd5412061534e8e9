"""``hicache demo``: a progress bar, a table, a picture."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from hicache_compile.backends import BACKENDS
from hicache_compile.demo.compare import CONTESTANTS, SPARSE, Result, compare, trajectories_of
from hicache_compile.demo.picture import draw
from hicache_compile.errors import one_of


def run(steps: int, per_class: int, seed: int, backend: str, out: Path, *, sparse: bool = False, as_json: bool) -> None:
    """Compare the policies, print the table (or JSON) and draw the picture."""
    one_of("demo", "backend", backend, BACKENDS)
    others = SPARSE if sparse else ()
    total = steps * trajectories_of(CONTESTANTS, others)
    with tqdm(total=total, desc="sampling", unit="step", file=sys.stderr) as bar:
        results = compare(per_class, steps, seed, backend, sparse=others, on_step=bar.update)
    draw(results, out)
    if as_json:
        print(json.dumps([_finite(result) for result in results], indent=2))
        return
    console = Console()
    console.print(table(results, backend))
    console.print(f"picture: {out}")


def table(results: Sequence[Result], backend: str) -> Table:
    """The results as a table of at most 80 columns."""
    uncached = results[0]
    made = Table(
        title=f"{uncached.report.computed} steps, {len(uncached.images)} digits, {backend}",
        caption="FLOPs and clock: times less than the same model compiled and uncached. PSNR (dB) and error "
        "(relative, 2-norm): against its samples of the same noise. read: digits a classifier reads right. "
        "recomp.: recompiles.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    made.add_column("policy", no_wrap=True)
    for heading in ("full", "FLOPs", "clock", "PSNR", "error", "read", "MB", "graphs", "recomp."):
        made.add_column(heading, justify="right", no_wrap=True)
    group = uncached.group
    for result in results:
        if result.group != group:
            group = result.group
            made.add_row()
            made.add_row(f"[bold]{group}[/bold]")
        made.add_row(*_cells(result))
    return made


def _cells(result: Result) -> list[str]:
    report = result.report
    return [
        result.policy,
        str(report.computed),
        f"{report.flops_speedup:.2f}",
        f"{result.clock_speedup:.2f}",
        f"{result.psnr:.1f}" if math.isfinite(result.psnr) else "",
        f"{result.relative_error:.3f}",
        f"{100 * result.accuracy:.0f}%",
        f"{report.state_bytes / 1e6:.1f}",
        str(report.programs),
        str(report.recompiles),
    ]


def _finite(result: Result) -> dict[str, object]:
    """JSON has no infinity: the PSNR of the uncached sample against itself is null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in result.as_data().items()
    }
