"""``hicache demo``: a progress bar, a table, a picture."""

from __future__ import annotations

import math
import operator
import warnings
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
    caption: Annotated[
        list[str] | None, typer.Option(help='What to draw, as "owl, noto style"; several times for several.')
    ] = None,
    steps: Annotated[int, typer.Option(min=4, max=shared.MOST, help="Sampling steps.")] = 28,
    seed: shared.Seed = 0,
    backend: shared.Backend = "inductor",
    everything: Annotated[bool, typer.Option("--all", help="All twelve policies, in both scopes.")] = False,
    sparse: Annotated[bool, typer.Option("--sparse", help="Also with sparse attention and MLPs (Chipmunk).")] = False,
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("hicache_demo.png"),
    json: shared.AsJson = False,
) -> None:
    """Draw emoji uncached and under several policies, in turns; print a table and write a picture."""
    from hicache_compile.backends import BACKENDS
    from hicache_compile.demo.compare import compare, steps_of
    from hicache_compile.demo.contestants import contestants
    from hicache_compile.demo.emoji.drawing import CAPTIONS, Drawing
    from hicache_compile.demo.picture import draw
    from hicache_compile.inspection.figures import check_picture

    one_of("demo", "backend", backend, BACKENDS)
    check_picture("demo.out", out)
    warnings.filterwarnings("ignore", message="Guards may run slower")  # of torch, on Python 3.13.0 alone
    captions = caption or CAPTIONS
    drawing = Drawing(captions, steps, seed)
    entered = contestants(drawing, backend, everything, sparse)
    with progress(total=steps_of(drawing, entered), what="compiling, then drawing", unit="step") as bar:
        results = compare(drawing, entered, bar.update)
    draw(results, captions, out)
    if json:
        shared.print_json([_finite(result) for result in results])
        return
    console = Console(markup=False)
    console.print(table(results, backend))
    for result in filter(operator.attrgetter("faulty"), results):
        console.print(fault(result), style="red")
    console.print(f"picture: {out}", soft_wrap=True)  # a path is copied whole


def fault(result: Result) -> str:
    """What is wrong with the speed of ``result``, which is faulty."""
    return (
        f"measuring fault: {result.name}, {result.group}: {result.clock_speedup:.2f} by the clock is more than its "
        f"{result.flops_speedup:.2f} by FLOPs; the machine was slower for a while: run it again"
    )


def table(results: Sequence[Result], backend: str) -> Table:
    """The results as a table of at most 80 columns."""
    uncached = results[0]
    made = shared.columns(
        f"{len(uncached.pictures)} x {len(uncached.decisions)} steps with guidance, {backend}",
        "FLOPs and clock: times less than the same model compiled and uncached. PSNR (dB) and error "
        "(relative, 2-norm): against its pictures of the same noise. recomp.: recompiles.",
    )
    made.add_column("policy", no_wrap=True)
    for heading in ("computed", "FLOPs", "clock", "PSNR", "error", "MB", "graphs", "recomp."):
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
    counted = [f"{report.state_bytes / 1e6:.1f}", str(report.programs), str(report.recompiles)] if report else []
    return [
        result.name,
        str(result.computed),
        f"{result.flops_speedup:.2f}",
        f"{result.clock_speedup:.2f}",
        f"{result.psnr:.1f}" if math.isfinite(result.psnr) else "",
        f"{result.relative_error:.3f}",
        *counted,
    ]


def _finite(result: Result) -> dict[str, object]:
    """JSON has no infinity: the PSNR of the uncached pictures against themselves is null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in result.as_data().items()
    }
