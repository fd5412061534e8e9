"""``hicache generate``: a folder of prompts in, a folder of pictures or videos out, resumable."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hicache_compile.cli import shared
from hicache_compile.cli.call_options import NOTHING_GIVEN, Call, with_call_options
from hicache_compile.cli.ray_option import Ray
from hicache_compile.errors import HiCacheError

if TYPE_CHECKING:
    from hicache_compile.generate.run import Outcome
    from hicache_compile.generate.settings import Settings
    from hicache_compile.generate.workers import Workers


@with_call_options
def generate(
    model: Annotated[Path, typer.Option(help="Folder of a diffusers pipeline (save_pretrained).")],
    policy: Annotated[str, typer.Option(help="A preset name, a .json file, JSON, or env (TS_CACHE_INTERVAL, ...).")],
    output_dir: Annotated[Path, typer.Option(help="Where pictures or videos and results.jsonl go.")],
    prompt: shared.Prompts = None,
    prompt_file: Annotated[Path | None, typer.Option(help="One prompt a line, or .jsonl with prompt, image.")] = None,
    metadata_file: Annotated[Path | None, typer.Option(help="GenEval's evaluation_metadata.jsonl; its layout.")] = None,
    samples: Annotated[int, typer.Option(min=1, max=shared.MOST, help="Pictures of each prompt; GenEval takes 4.")] = 1,
    steps: shared.Steps = 50,
    seed: shared.Seed = 0,
    call: Call = NOTHING_GIVEN,
    image: Annotated[str | None, typer.Option(help="Picture to edit.")] = None,
    backend: shared.Backend = "inductor",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if any.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    memory_budget: Annotated[str | None, typer.Option(help='Bytes of anchors, like "4GiB".')] = None,
    offload: Annotated[bool, typer.Option(help="Keep the anchors on the CPU.")] = False,
    anchors: shared.Anchors = None,
    sparsity: shared.Sparsity = None,
    ray: Ray = None,
    workers: Annotated[int, typer.Option(min=1, max=shared.MOST, help="With --ray, pipelines there.")] = 1,
    ulysses: Annotated[
        int, typer.Option(min=1, max=shared.MOST, help="Under torchrun, ranks with parts of the tokens.")
    ] = 1,
    ring: Annotated[int, typer.Option(min=1, max=shared.MOST, help="The same, with ring attention.")] = 1,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, max=shared.MOST, help="Under torchrun, ranks with parts of the weights.")
    ] = 1,
    json: shared.AsJson = False,
) -> None:
    """Generate pictures or videos with a pipeline from a folder; skips what is there already.

    --ray shares the prompts out; under torchrun all processes make each picture together.
    """
    from hicache_compile.generate import run
    from hicache_compile.generate.items import items_of
    from hicache_compile.generate.settings import Settings
    from hicache_compile.generate.spread import Spread

    settings = Settings(
        model=model,
        policy=policy,
        steps=steps,
        backend=backend,
        device=device or "",
        dtype=dtype or "",
        memory_budget=memory_budget,
        offload=offload,
        anchors=anchors,
        sparsity=sparsity,
        spread=Spread(ulysses=ulysses, ring=ring, tensor_parallel=tensor_parallel),
        arguments=dict(call),
    )
    items = items_of(prompt or [], prompt_file, metadata_file, samples, seed, image)
    with _workers(settings, ray, workers) as makers:
        if makers.follow():
            return
        outcome = run.generate(items, output_dir, settings, makers)
    if json:
        shared.print_json(outcome.as_data())
    else:
        _print(outcome)
    raise typer.Exit(1 if outcome.failed else 0)


def _workers(settings: Settings, ray: str | None, count: int) -> AbstractContextManager[Workers]:
    from hicache_compile.generate.ray_workers import ray_workers
    from hicache_compile.generate.workers import processes, workers_of_this_process

    if ray is None:
        if count > 1:
            raise HiCacheError(f"generate.workers = {count}: must be 1 without --ray")
        return workers_of_this_process(settings)
    if settings.spread.ranks > 1 or processes() > 1:
        raise HiCacheError(
            "generate.ray: must be without torchrun and its options (--ulysses, --ring, --tensor-parallel): on Ray one "
            "worker makes a picture"
        )
    return ray_workers(settings, ray, count)


def _print(outcome: Outcome) -> None:
    new = max(0, outcome.items - outcome.skipped)
    rows = [("items", f"{outcome.items} in place, {outcome.skipped} of them from before, {new} new")]
    if outcome.items:
        rows.append(("seconds", f"{outcome.seconds_median} an item (median)"))
    for denoiser, contexts in outcome.decisions.items():
        rows += [(f"{denoiser}, {context}", letters) for context, letters in contexts.items()]
    console = Console(markup=False, width=min(100, shutil.get_terminal_size().columns))
    console.print(shared.facts(rows))
    for one in outcome.errors:
        console.print(f"{one['item']}, {one['worker']}: {one['error']}", style="red")
    if outcome.failed:
        again = "run the same command again to try them again"
        console.print(f"{outcome.failed} items could not be made; {again}", style="red")
