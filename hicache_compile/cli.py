"""The command line: ``hicache demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hicache_compile.errors import HiCacheError

app = typer.Typer(help="Make diffusion transformers sample several times faster.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Make diffusion transformers sample several times faster."""


@app.command()
def demo(
    steps: Annotated[int, typer.Option(min=4, help="Sampling steps.")] = 50,
    per_class: Annotated[int, typer.Option(min=1, help="Digits sampled of each class.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    backend: Annotated[str, typer.Option(help="eager, aot_eager or inductor.")] = "inductor",
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("hicache_demo.png"),
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Sample digits uncached and under several policies; print a table and draw a picture."""
    from hicache_compile.demo.command import run

    try:
        run(steps, per_class, seed, backend, out, as_json=json)
    except HiCacheError as error:
        typer.secho(f"hicache demo: {error}", err=True, fg="red")
        raise typer.Exit(2) from None
