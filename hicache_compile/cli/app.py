"""The typer application: the commands under their names."""

from __future__ import annotations

import typer

from hicache_compile.cli.bench import bench
from hicache_compile.cli.demo import demo
from hicache_compile.cli.evaluate import evaluate
from hicache_compile.cli.explain import explain
from hicache_compile.cli.export import export
from hicache_compile.cli.generate import generate
from hicache_compile.cli.shared import reporting
from hicache_compile.cli.tune import tune

app = typer.Typer(help="Make diffusion transformers sample several times faster.", no_args_is_help=True)

app.command("demo")(reporting("demo")(demo))
app.command("explain")(reporting("explain")(explain))
app.command("export")(reporting("export")(export))
app.command("generate")(reporting("generate")(generate))
app.command("tune")(reporting("tune")(tune))
app.command("eval")(reporting("eval")(evaluate))
app.command("bench")(reporting("bench")(bench))
