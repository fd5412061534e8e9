"""What commands share: types of options, how an error ends a command, how data and tables look."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ParamSpec

import typer
from rich import box
from rich.table import Table

from hicache_compile.errors import HiCacheError, one_line

Arguments = ParamSpec("Arguments")

Model = Annotated[str, typer.Argument(help="Folder of a diffusers pipeline with its weights, or demo.")]
Policies = Annotated[
    list[str] | None, typer.Option("--policy", help="A preset name, a .json file or JSON; several are compared.")
]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; may be given several times.")]
EXTRAS = {
    "export": "onnx",
    "explain": "generate",
    "collect-env": "generate",
    "tune": "eval",
}  # of commands; others have one of their own name
MOST = 10_000  # steps, samples, frames, ...: more is a slip of the hand, and would not end
MOST_PIXELS = 65_536  # of an edge
Steps = Annotated[int, typer.Option(min=1, max=MOST, help="Sampling steps.")]
TwoOrMoreSteps = Annotated[int, typer.Option(min=2, max=MOST, help="Sampling steps.")]
Seed = Annotated[int, typer.Option(min=-(2**62), max=2**62, help="Seed of the noise of the first run.")]
Height = Annotated[
    int | None, typer.Option(min=1, max=MOST_PIXELS, help="Pixels; default: what the model was made for.")
]
Width = Height
WidthOfSquare = Annotated[int | None, typer.Option(min=1, max=MOST_PIXELS, help="Pixels; default: the height.")]
Frames = Annotated[int | None, typer.Option(min=1, max=MOST, help="Frames of a clip.")]
Batch = Annotated[int, typer.Option(min=1, max=MOST)]
GuidanceScale = Annotated[float | None, typer.Option(min=0, max=1000)]
TrueCfgScale = Annotated[
    float | None,
    typer.Option(min=0, max=1000, help="Of pipelines that have guidance of their own besides."),
]
NegativePrompt = Annotated[str | None, typer.Option()]
MaxSequenceLength = Annotated[int | None, typer.Option(min=1, max=MOST, help="Tokens of a prompt.")]
Backend = Annotated[str, typer.Option(help="What compiles the programs, by its name in torch.compile.")]
Sparsity = Annotated[str | None, typer.Option(help="Chipmunk, a YAML file of it, or JSON of its fields.")]
Anchors = Annotated[str | None, typer.Option(help="The dtype anchors are kept in: bfloat16, int8, ...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the same as JSON.")]


def reporting(name: str, *, models: bool = True) -> Callable[[Callable[Arguments, None]], Callable[Arguments, None]]:
    """The decorator of the command ``name``: a ``HiCacheError`` becomes one red line on stderr, and exit status 2.

    So does what the system says of a file: that is none of ours, but no fault of the program either; and a package of
    an extra that is not installed. Ctrl-C becomes one line too, that says what is kept and where, and exit status 130.
    ``models``: whether the command needs diffusers.
    """

    def decorate(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
        @functools.wraps(command)
        def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            try:
                if models:
                    _import_diffusers()
                command(*args, **kwargs)
            except BrokenPipeError:  # whoever read it has enough
                raise
            except (HiCacheError, OSError) as error:
                typer.secho(f"hicache {name}: {one_line(str(error))}", err=True, fg="red")
                raise typer.Exit(2) from None
            except KeyboardInterrupt as interrupt:
                typer.secho(f"\nhicache {name}: interrupted; {str(interrupt) or 'nothing was kept'}", err=True)
                raise typer.Exit(130) from None
            except ModuleNotFoundError as error:
                if error.name is None or error.name.startswith("hicache_compile"):
                    raise
                extra = f"hicache_compile[{EXTRAS.get(name, name)}]"
                typer.secho(
                    f"hicache {name}: {error.name} is not installed: must be; pip install '{extra}'", err=True, fg="red"
                )
                raise typer.Exit(2) from None

        return run

    return decorate


def _import_diffusers() -> None:
    """Import it, where it is installed, without what it logs of packages that it would use if they fitted."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.suppress(ModuleNotFoundError):  # the command says so itself, if it needs it
            import diffusers.models.modeling_utils  # noqa: F401
    finally:
        logging.disable(logging.NOTSET)


def print_json(data: Any) -> None:
    """Print ``data`` on stdout."""
    print(json.dumps(data, indent=2))


def columns(title: str, caption: str) -> Table:
    """An empty table of results, as narrow as it can be."""
    return Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )


def facts(rows: Sequence[tuple[str, str]]) -> Table:
    """A table of names and what is said of each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table
