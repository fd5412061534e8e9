"""``hicache explain``: an architecture explained from its shapes, and several policies compared on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hicache_compile.cli import shared
from hicache_compile.errors import HiCacheError, one_of
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.presets import FORA, HiCache, TaylorSeer

if TYPE_CHECKING:
    from hicache_compile.architectures import Architecture, Request

DEMO = "demo"  # the emoji model of the package
COMPARED = {
    "HiCache N=5": HiCache(interval=5),
    "HiCache N=7": HiCache(interval=7),
    "HiCache N=7, stack": HiCache(interval=7, scope="stack"),
    "TaylorSeer N=6": TaylorSeer(interval=6),
    "FORA N=3": FORA(interval=3),
}


def explain(
    model: Annotated[
        str, typer.Argument(help="A known name (flux.1-dev, ...), a model or pipeline folder, a config.json, or demo.")
    ],
    policy: shared.Policies = None,
    steps: shared.Steps = 50,
    height: shared.Height = None,
    width: shared.WidthOfSquare = None,
    frames: shared.Frames = None,
    batch: shared.Batch = 1,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "bfloat16",
    dump: Annotated[Path | None, typer.Option(help="Write the graphs and a page into this folder.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page that shows it into this file.")] = None,
    json: shared.AsJson = False,
) -> None:
    """What a policy makes of a denoiser: sites, FLOPs, memory, the speed-up it can reach. Needs no weights."""
    from json import loads

    from rich.console import Console

    from hicache_compile.architectures import example_inputs
    from hicache_compile.generate.pipelines import DTYPES
    from hicache_compile.inspection import explanation
    from hicache_compile.inspection.dump import sources, write
    from hicache_compile.inspection.tables import WIDTH, comparison, tables
    from hicache_compile.policy.files import check_writable
    from hicache_compile.runtime.replay.capture import capture_call

    chosen = [(text, as_policy(text)) for text in policy or ()] or [("HiCache N=6", HiCache())]
    architecture, request = _asked(model, height, width, frames, batch)
    one_of("explain", "dtype", dtype, DTYPES)
    denoiser = architecture.without_weights().to(DTYPES[dtype])
    if dump is not None:
        check_writable(dump / "index.html")
    if html is not None:
        check_writable(html)
    try:
        call = capture_call(denoiser, example_inputs(denoiser, request), "explain")
    except RuntimeError as error:  # torch's: of sizes that do not fit one another, or that no tensor can have
        raise HiCacheError(f"model {architecture.name!r}: cannot be called at this size ({error})") from error
    name, views = architecture.name, [explanation.View(call.captured, {})]
    first = explanation.explain(name, views, chosen[0][1], steps)
    others = chosen[1:] or [(text, one) for text, one in COMPARED.items() if one != chosen[0][1]]
    rows = [(chosen[0][0], first)]
    rows += [(text, explanation.explain(name, views, one, steps, (one.scope,))) for text, one in others]
    graphs = sources(views[0], chosen[0][1], name) if dump is not None or html is not None else {}
    if dump is not None:
        write(dump, first, graphs, compared=rows)
    if html is not None:
        first.html(html, graphs, rows)
    if json:
        compared = [{"name": text, **loads(each.to_json())} for text, each in rows]
        shared.print_json({"explained": loads(first.to_json()), "compared": compared})
        return
    console = Console(markup=False, width=None if Console(markup=False).is_terminal else WIDTH)
    console.print(tables(first))
    console.print(comparison(rows))
    if dump is not None:
        console.print(f"wrote {dump}/index.html")
    if html is not None:
        console.print(f"wrote {html}")


def _asked(
    model: str, height: int | None, width: int | None, frames: int | None, batch: int
) -> tuple[Architecture, Request]:
    """The architecture called ``model``, and the size of its sample."""
    from hicache_compile.architectures import Request, resolve

    if model != DEMO:
        return resolve(model), Request(height, width, frames, batch)
    from importlib.resources import files

    from hicache_compile.demo.emoji import SIZE, TOKENS

    folder = files("hicache_compile.demo.emoji") / "emoji-pipeline"
    return replace(resolve(str(folder)), name=DEMO), Request(height or SIZE, width, frames, batch, TOKENS)
