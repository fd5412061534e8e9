"""``hicache presets``: the published methods by name, what each is for, and what can be set."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from hicache_compile.cli import shared
from hicache_compile.errors import named
from hicache_compile.policy.presets import PRESETS
from hicache_compile.policy.presets.description import Description, describe


def presets(
    names: Annotated[list[str] | None, typer.Argument(help="Only these; in any spelling.")] = None,
    json: shared.AsJson = False,
) -> None:
    """List the presets: what each does, when to use it, its parameters and their defaults."""
    chosen = [named("presets", "names", name, PRESETS) for name in names or PRESETS]
    found = [describe(PRESETS[name]) for name in chosen]
    if json:
        shared.print_json([asdict(each) for each in found])
    else:
        Console(markup=False).print(table(found))


def table(found: list[Description]) -> Table:
    """A row for each preset."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_lines=True)
    made.add_column("preset", no_wrap=True, style="bold")
    made.add_column("what it does, when to use it", ratio=3)
    made.add_column("parameters", ratio=2)
    for each in found:
        parameters = ", ".join(f"{name}={value}" for name, value in each.parameters.items())
        made.add_row(each.name, f"{each.does} {each.when}", parameters)
    made.caption = "None: the method's own value, or what is published for the model. --policy takes these names."
    made.caption_justify = "left"
    return made
