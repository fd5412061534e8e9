"""``hicache demo``: a progress bar, a table, a picture."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hicache_compile.cli import shared
from hicache_compile.errors import one_of
from hicache_compile.policy.progress import progress

if TYPE_CHECKING:
    from hicache_compile.demo.compare import Result


def demo(
    steps: Annotated[int, typer.Option(min=4, max=shared.MOST, help="Sampling steps.")] = 50,
    per_class: Annotated[int, typer.Option(min=1, max=shared.MOST, help="Digits sampled of each class.")] = 3,
    seed: shared.Seed = 0,
    backend: shared.Backend = "inductor",
    everything: Annotated[bool, typer.Option("--all", help="All twelve policies, in both scopes.")] = False,
    sparse: Annotated[bool, typer.Option("--sparse", help="Also with sparse attention and MLPs (Chipmunk).")] = False,
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("hicache_demo.png"),
    json: shared.AsJson = False,
) -> None:
    """Sample digits uncached and under several policies, in turns; print a table and draw a picture."""
    from hicache_compile.backends import BACKENDS
    from hicache_compile.demo.compare import CONTESTANTS, FEW, SPARSE, compare, steps_of
    from hicache_compile.demo.picture import draw
    from hicache_compile.inspection.figures import check_picture

    one_of("demo", "backend", backend, BACKENDS)
    check_picture("demo.out", out)
    contestants, others = CONTESTANTS if everything else FEW, SPARSE if sparse else ()
    total = steps_of(steps, contestants, others)
    with progress(total=total, what="compiling, then sampling", unit="step") as bar:
        results = compare(per_class, steps, seed, backend, contestants, others, bar.update)
    draw(results, out)
    if json:
        shared.print_json([_finite(result) for result in results])
        return
    console = Console(markup=False)
    console.print(table(results, backend))
    for result in filter(operator.attrgetter("faulty"), results):
        console.print(fault(result), style="red")
    console.print(f"picture: {out}")


def fault(result: Result) -> str:
    """What is wrong with the speed of ``result``, which is faulty."""
    return (
        f"measuring fault: {result.policy}, {result.group}: {result.clock_speedup:.2f} by the clock is more than its "
        f"{result.report.flops_speedup:.2f} by FLOPs; the machine was slower for a while: run it again"
    )


def table(results: Sequence[Result], backend: str) -> Table:
    """The results as a table of at most 80 columns."""
    uncached = results[0]
    made = shared.columns(
        f"{uncached.report.computed} steps, {len(uncached.images)} digits, {backend}",
        "FLOPs and clock: times less than the same model compiled and uncached. PSNR (dB) and error "
        "(relative, 2-norm): against its samples of the same noise. read: digits a classifier reads right. "
        "recomp.: recompiles.",
    )
    made.add_column("policy", no_wrap=True)
    for heading in ("full", "FLOPs", "clock", "PSNR", "error", "read", "MB", "graphs", "recomp."):
        made.add_column(heading, justify="right", no_wrap=True)
    group = uncached.group
    for result in results:
        if result.group != group:
            group = result.group
            made.add_row()
            made.add_row(Text(group, style="bold"))
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
