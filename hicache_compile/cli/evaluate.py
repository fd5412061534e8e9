"""``hicache eval``: policies on a set of prompts, as one table with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hicache_compile.cli import shared
from hicache_compile.cli.call_options import NOTHING_GIVEN, Call, with_call_options
from hicache_compile.errors import HiCacheError
from hicache_compile.policy.files import check_writable, write_whole
from hicache_compile.policy.progress import kept, progress

if TYPE_CHECKING:
    from hicache_compile.evaluation.intervals import Interval95

COLUMNS = {  # metric -> heading, how it is shown
    "computed": ("steps", "{:.3g}"),
    "flops_speedup": ("FLOPs", "{:.2f}x"),
    "clock_speedup": ("clock", "{:.2f}x"),
    "relative_error": ("error", "{:.4f}"),
    "psnr": ("PSNR", "{:.1f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "lpips": ("LPIPS", "{:.3f}"),
    "read": ("read", "{:.1%}"),
    "frechet": ("Frechet", "{:.3f}"),
    "clip": ("CLIP", "{:.2f}"),
    "image_reward": ("reward", "{:.3f}"),
}
NOTHING = "with --out what was drawn would have been kept"
WITHOUT_INTERVAL = ("computed", "flops_speedup", "clock_speedup")


@with_call_options
def evaluate(
    model: shared.Model,
    policy: shared.Policies = None,
    prompt: shared.Prompts = None,
    prompt_file: Annotated[Path | None, typer.Option(help="One prompt a line, or .jsonl with prompt.")] = None,
    samples: Annotated[int, typer.Option(min=1, max=shared.MOST, help="Pictures of each prompt.")] = 10,
    batch: Annotated[int, typer.Option(min=1, max=shared.MOST, help="Pictures drawn together.")] = 1,
    steps: shared.TwoOrMoreSteps = 50,
    seed: shared.Seed = 0,
    call: Call = NOTHING_GIVEN,
    backend: shared.Backend = "inductor",
    sparsity: shared.Sparsity = None,
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP: adds the CLIP score.")] = None,
    image_reward: Annotated[Path | None, typer.Option(help="Checkpoint of ImageReward: adds it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a JSON line for each picture to this file.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw the pictures of the first run side by side.")] = None,
    pack: Annotated[
        Path | None, typer.Option(help="Write the policies with their errors and times: a pack, to promise by.")
    ] = None,
    json: shared.AsJson = False,
) -> None:
    """How far policies are from the pictures in full, and how good theirs are, with 95 % intervals."""
    from hicache_compile.evaluation.comparison import IN_FULL, compare, named_policies
    from hicache_compile.evaluation.intervals import as_data
    from hicache_compile.evaluation.journal import journal_of
    from hicache_compile.evaluation.packing import check_measured, check_pack, pack_of
    from hicache_compile.evaluation.quality import scores_of
    from hicache_compile.evaluation.runs import Judge
    from hicache_compile.evaluation.sheet import draw_sheet
    from hicache_compile.evaluation.subjects import batches_of, open_subject
    from hicache_compile.generate.items import read_prompts
    from hicache_compile.generate.record import json_lines
    from hicache_compile.inspection.figures import check_picture

    if out is not None:
        check_writable(out)
    if sheet is not None:
        check_picture("eval.sheet", sheet)
    if pack is not None:
        check_pack(pack)
        if sparsity is not None:
            raise HiCacheError("eval.sparsity: must be left out where a pack is written, which is of dense steps")
    more = read_prompts(prompt_file, "eval") if prompt_file else []
    prompts = [*(prompt or []), *(line["prompt"] for line in more)]
    named = named_policies(policy or [])
    subject = open_subject(model, prompts, steps, backend, call, "eval", sparsity=sparsity)
    if pack is not None:
        check_measured(samples * len(subject.prompts), named)
    judge = Judge(subject, scores_of(subject, clip, image_reward))
    batches = batches_of(subject, samples, batch, seed)
    how = {"samples": samples, "batch": batch, "seed": seed, "backend": backend, "sparsity": sparsity}
    scorers = {"clip": clip and str(clip), "image_reward": image_reward and str(image_reward)}
    with journal_of(out, {**subject.settings, **how, **scorers}, "eval.out") as journal:
        with (
            kept(f"what was drawn is in {journal.path}; the same command goes on" if journal else NOTHING),
            progress(total=len(batches) * (1 + len(named)), what="runs", unit="run") as bar,
        ):
            compared = compare(judge, named, batches, journal, pictures=sheet is not None, on_run=bar.update)
        if out is not None and journal is not None:
            rows = [{"policy": name, **line} for name, mine in compared.lines.items() for line in mine]
            write_whole(out, json_lines(rows))
            journal.path.unlink()
    if sheet is not None:
        drawn = {name: (images, _caption(compared.found[name])) for name, images in compared.pictures.items()}
        draw_sheet(drawn, sheet)
    if pack is not None:
        pack_of(subject, named, compared.lines).save(pack)
    if json:
        shared.print_json({name: as_data(one) for name, one in compared.found.items()})
        return
    count = f"{len(compared.lines[IN_FULL])} pictures of {len(subject.prompts)} prompts"
    console = Console(markup=False)
    console.print(_table(compared.found, f"{subject.name}: {count}, {steps} steps, {backend}"))
    for what, path in (("pictures", sheet), ("pack", pack)):
        if path is not None:
            console.print(f"{what}: {path}")


def _table(found: Mapping[str, Mapping[str, Interval95]], title: str) -> Table:
    """A row for each policy, that in full first; under a value its 95 % interval."""
    made = shared.columns(
        title,
        "error: relative, 2-norm over all pictures, against the same noise in full; PSNR in dB. Under each its "
        "95 % interval over pictures (bootstrap), half of it. clock: of the run, decoding included.",
    )
    shown = [metric for metric in COLUMNS if any(metric in one for one in found.values())]
    made.add_column("policy", min_width=10)
    for metric in shown:
        made.add_column(COLUMNS[metric][0], justify="right", no_wrap=True)
    for row, (name, one) in enumerate(found.items()):
        made.add_row(name, *(_cell(metric, one.get(metric), in_full=row == 0) for metric in shown))
    return made


def _cell(metric: str, value: Interval95 | None, *, in_full: bool) -> str | Text:
    fidelity = metric in ("relative_error", "psnr", "ssim", "lpips")
    if value is None or (in_full and (fidelity or metric in WITHOUT_INTERVAL[1:])):
        return ""
    form = COLUMNS[metric][1]
    if metric in WITHOUT_INTERVAL:
        return form.format(value.value)
    spread = f"\n±{form.format((value.high - value.low) / 2)}"
    return Text.assemble(form.format(value.value), (spread, "dim"))


def _caption(found: Mapping[str, Interval95]) -> str:
    """A line under a policy's name on a sheet."""
    return f"{found['flops_speedup'].value:.2f}x FLOPs, error {found['relative_error'].value:.4f}"
