"""``--ray [ADDRESS]``, of commands whose work a Ray cluster can do."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hicache_compile.generate.cluster import HERE

Ray = Annotated[str | None, typer.Option(help="Make pictures on a Ray cluster: its address, or none: here.")]


class RayCommand(TyperCommand):
    """A command whose ``--ray`` may stand without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        bare = [
            at for at, text in enumerate(args) if text == "--ray" and (args[at + 1 : at + 2] or ["-"])[0][:1] == "-"
        ]
        for at in reversed(bare):
            args = [*args[: at + 1], HERE, *args[at + 1 :]]
        return super().parse_args(ctx, args)
