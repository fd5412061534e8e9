"""The typer application: the commands under their names."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from hicache_compile.cli.bench import bench
from hicache_compile.cli.collect_env import collect_env
from hicache_compile.cli.demo import demo
from hicache_compile.cli.doctor import doctor
from hicache_compile.cli.evaluate import evaluate
from hicache_compile.cli.explain import explain
from hicache_compile.cli.export import export
from hicache_compile.cli.generate import generate
from hicache_compile.cli.presets import presets
from hicache_compile.cli.ray_option import RayCommand
from hicache_compile.cli.serve import serve
from hicache_compile.cli.shared import reporting
from hicache_compile.cli.tune import tune
from hicache_compile.errors import one_line

UsageError: Any = typer.BadParameter.__mro__[1]  # typer's own or click's, as its release has it


@contextmanager
def _in_one_line() -> Iterator[None]:
    """What is said of wrong usage repeats what was given, which may be long."""
    try:
        yield
    except UsageError as error:
        error.message = one_line(error.message)
        raise


class Commands(TyperGroup):
    """The commands; usage errors are as short as others."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):  # of an encoding that has not all letters of a help text
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            return super().main(*args, **kwargs)
        except OSError as error:  # of the terminal itself: what commands raise is told by `reporting`
            typer.secho(f"hicache: {one_line(str(error))}", err=True, fg="red")
            sys.exit(2)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _in_one_line():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with _in_one_line():
            return super().invoke(ctx)


app = typer.Typer(cls=Commands, help="Make diffusion transformers sample several times faster.", no_args_is_help=True)

app.command("demo")(reporting("demo")(demo))
app.command("explain")(reporting("explain")(explain))
app.command("doctor")(reporting("doctor", models=False)(doctor))
app.command("collect-env")(reporting("collect-env")(collect_env))
app.command("presets")(reporting("presets", models=False)(presets))
app.command("export")(reporting("export")(export))
app.command("generate", cls=RayCommand)(reporting("generate")(generate))
app.command("serve", cls=RayCommand)(reporting("serve")(serve))
app.command("tune")(reporting("tune")(tune))
app.command("eval")(reporting("eval")(evaluate))
app.command("bench")(reporting("bench")(bench))
