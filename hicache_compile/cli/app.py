"""The command line: ``hicache demo``, ``explain``, ``export``, ``generate``, ``tune``, ``eval`` and ``bench``."""

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
    sparse: Annotated[bool, typer.Option("--sparse", help="Also with sparse attention and MLPs (Chipmunk).")] = False,
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("hicache_demo.png"),
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Sample digits uncached and under several policies; print a table and draw a picture."""
    from hicache_compile.cli.demo import run

    try:
        run(steps, per_class, seed, backend, out, sparse=sparse, as_json=json)
    except HiCacheError as error:
        typer.secho(f"hicache demo: {error}", err=True, fg="red")
        raise typer.Exit(2) from None


@app.command()
def explain(
    model: Annotated[
        str, typer.Argument(help="A known name (flux.1-dev, ...), a model or pipeline folder, a config.json.")
    ],
    policy: Annotated[
        list[str] | None, typer.Option(help="A preset name, a .json file or JSON; several are compared.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 50,
    height: Annotated[int | None, typer.Option(min=1, help="Pixels; default: what the model was made for.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Pixels; default: the height.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip.")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "bfloat16",
    dump: Annotated[Path | None, typer.Option(help="Write the graphs and a page into this folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON.")] = False,
) -> None:
    """What a policy makes of a denoiser: sites, FLOPs, memory, the speed-up it can reach. Needs no weights."""
    from hicache_compile.architectures import Request
    from hicache_compile.cli.explain import run

    try:
        run(model, policy or [], Request(height, width, frames, batch), steps, dtype, dump, as_json=json)
    except HiCacheError as error:
        typer.secho(f"hicache explain: {error}", err=True, fg="red")
        raise typer.Exit(2) from None


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Folder of a diffusers model or pipeline, with its weights.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    policy: Annotated[str, typer.Option(help="A preset name, a .json file or JSON.")] = "HiCache",
    format: Annotated[str, typer.Option(help="onnx, pt2 (torch.export) or aoti (AOTInductor).")] = "onnx",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the run whose plan goes along.")] = 50,
    height: Annotated[int | None, typer.Option(min=1)] = None,
    width: Annotated[int | None, typer.Option(min=1)] = None,
    frames: Annotated[int | None, typer.Option(min=1)] = None,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    dynamic: Annotated[str, typer.Option(help="Which sizes may vary: none, batch or all.")] = "none",
) -> None:
    """Write a denoiser with its cache as one graph that needs neither this library nor Python."""
    from hicache_compile.architectures import Request
    from hicache_compile.cli.export import run

    try:
        run(model, policy, Request(height, width, frames, batch), format, out, steps, dynamic)
    except HiCacheError as error:
        typer.secho(f"hicache export: {error}", err=True, fg="red")
        raise typer.Exit(2) from None


@app.command()
def generate(
    model: Annotated[Path, typer.Option(help="Folder of a diffusers pipeline (save_pretrained).")],
    policy: Annotated[str, typer.Option(help="A preset name, a .json file, JSON, or env (TS_CACHE_INTERVAL, ...).")],
    output_dir: Annotated[Path, typer.Option(help="Where pictures or videos and results.jsonl go.")],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="One prompt a line, or .jsonl with prompt, image.")] = None,
    metadata_file: Annotated[Path | None, typer.Option(help="GenEval's evaluation_metadata.jsonl; its layout.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Pictures of each prompt; GenEval takes 4.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the first picture.")] = 0,
    height: Annotated[int | None, typer.Option(min=1)] = None,
    width: Annotated[int | None, typer.Option(min=1)] = None,
    num_frames: Annotated[int | None, typer.Option(min=1)] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    true_cfg_scale: Annotated[float | None, typer.Option()] = None,
    negative_prompt: Annotated[str | None, typer.Option()] = None,
    max_sequence_length: Annotated[int | None, typer.Option(min=1)] = None,
    image: Annotated[str | None, typer.Option(help="Picture to edit.")] = None,
    backend: Annotated[str, typer.Option(help="eager, aot_eager or inductor.")] = "inductor",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: a GPU if any.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    memory_budget: Annotated[str | None, typer.Option(help='Bytes of anchors, like "4GiB".')] = None,
    offload: Annotated[bool, typer.Option(help="Keep the anchors on the CPU.")] = False,
    sparsity: Annotated[str | None, typer.Option(help="Chipmunk, a YAML file of it, or JSON of its fields.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Generate pictures or videos with a pipeline from a folder; skips what is there already.

    Under torchrun the prompts are shared out among the processes.
    """
    from hicache_compile.generate.options import run

    given = {
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "guidance_scale": guidance_scale,
        "true_cfg_scale": true_cfg_scale,
        "negative_prompt": negative_prompt,
        "max_sequence_length": max_sequence_length,
    }
    try:
        failed = run(
            model=model,
            policy=policy,
            folder=output_dir,
            prompts=prompt or [],
            prompt_file=prompt_file,
            metadata_file=metadata_file,
            samples=samples,
            steps=steps,
            seed=seed,
            image=image,
            backend=backend,
            device=device,
            dtype=dtype,
            memory_budget=memory_budget,
            offload=offload,
            sparsity=sparsity,
            arguments={name: value for name, value in given.items() if value is not None},
            as_json=json,
        )
    except HiCacheError as error:
        typer.secho(f"hicache generate: {error}", err=True, fg="red")
        raise typer.Exit(2) from None
    raise typer.Exit(1 if failed else 0)


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help="Folder of a diffusers pipeline with its weights, or demo.")],
    method: Annotated[
        str | None,
        typer.Option(
            "--fit", help="Only fit: teacache, magcache, dicache (guards); calibrated, sigma, gates (forecasts)."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With --fit the policy file to write (policy.json), else a folder (tuned).")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt to fit to; several are better.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Sampling steps.")] = 50,
    computed: Annotated[int | None, typer.Option(min=1, help="Steps to compute; default: a third.")] = None,
    signal: Annotated[str, typer.Option(help="TeaCache's: modulated, modulation, time or residual.")] = "modulated",
    scope: Annotated[str, typer.Option(help="Of fitted forecasts: module, block, stack or output.")] = "stack",
    samples: Annotated[int | None, typer.Option(min=1, help="Runs of each prompt to fit to.")] = None,
    by_slot: Annotated[bool, typer.Option("--by-slot", help="Weights of its own for each slot (calibrated).")] = False,
    evaluations: Annotated[
        int | None, typer.Option(min=0, help="Schedules tried for calibrated forecasts; default: 40, in a search 12.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Of each policy that lasts to the end of the search.")] = 16,
    errors: Annotated[str, typer.Option(help="The most error of each recommended policy.")] = "0.01,0.02,0.05",
    seed: Annotated[int, typer.Option(help="Seed of the first run.")] = 0,
    height: Annotated[int | None, typer.Option(min=1)] = None,
    width: Annotated[int | None, typer.Option(min=1)] = None,
    num_frames: Annotated[int | None, typer.Option(min=1)] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    backend: Annotated[str, typer.Option(help="eager, aot_eager or inductor.")] = "inductor",
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Search for the policies that suit a model, and recommend three; or fit one to it (--fit).

    A search goes on where it was stopped when it is started again with the same folder.
    """
    from hicache_compile.cli.fit import run
    from hicache_compile.tune.search import run as search
    from hicache_compile.tune.tuner import Search

    sizes = {"height": height, "width": width, "num_frames": num_frames, "guidance_scale": guidance_scale}
    given = {name: value for name, value in sizes.items() if value is not None}
    try:
        if method is None:
            levels = _numbers_of(errors)
            tried = 12 if evaluations is None else evaluations
            wanted = Search(prompt or [], steps, runs, seed=seed, backend=backend, errors=levels, evaluations=tried)
            search(model, wanted, out or Path("tuned"), given, as_json=json)
            return
        run(
            model,
            method,
            prompt or [],
            steps,
            computed,
            signal,
            seed,
            out or Path("policy.json"),
            backend,
            given,
            scope=scope,
            samples=samples,
            evaluations=40 if evaluations is None else max(1, evaluations),
            by_slot=by_slot,
            as_json=json,
        )
    except HiCacheError as error:
        typer.secho(f"hicache tune: {error}", err=True, fg="red")
        raise typer.Exit(2) from None


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder of a diffusers pipeline with its weights, or demo.")],
    policy: Annotated[list[str] | None, typer.Option(help="A preset name, a .json file or JSON; once or more.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="One prompt a line.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn together; guards decide for all of them.")] = 1,
    steps: Annotated[int, typer.Option(min=2, help="Sampling steps.")] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the first run.")] = 0,
    height: Annotated[int | None, typer.Option(min=1)] = None,
    width: Annotated[int | None, typer.Option(min=1)] = None,
    num_frames: Annotated[int | None, typer.Option(min=1)] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    backend: Annotated[str, typer.Option(help="eager, aot_eager or inductor.")] = "inductor",
    clip: Annotated[Path | None, typer.Option(help="Folder of a CLIP: adds the CLIP score.")] = None,
    image_reward: Annotated[Path | None, typer.Option(help="Checkpoint of ImageReward: adds it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a JSON line for each picture to this file.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Draw the pictures of the first run side by side.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """How far policies are from the pictures in full, and how good theirs are, with 95 % intervals."""
    from hicache_compile.cli.evaluate import run

    sizes = {"height": height, "width": width, "num_frames": num_frames, "guidance_scale": guidance_scale}
    given = {name: value for name, value in sizes.items() if value is not None}
    try:
        prompts = [*(prompt or []), *(_lines_of(prompt_file) if prompt_file else [])]
        extra = {"clip": clip, "reward": image_reward, "out": out, "sheet": sheet, "as_json": json}
        run(model, policy or [], prompts, samples, batch, steps, seed, backend, given, **extra)  # type: ignore[arg-type]
    except HiCacheError as error:
        typer.secho(f"hicache eval: {error}", err=True, fg="red")
        raise typer.Exit(2) from None


def _numbers_of(errors: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, errors.split(",")))
    except ValueError:
        raise HiCacheError(f"tune.errors = {errors!r}: must be three rising numbers > 0, like 0.01,0.02,0.05") from None


def _lines_of(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise HiCacheError(f"prompt_file = {str(file)!r}: must be a readable file ({error})") from None


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Scenarios, or host, compile, memory, growth, onnx, guards, study-stack and its kin (docs/study.md)."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Trajectories of each contender.")] = 3,
    only: Annotated[
        str | None, typer.Option(help="Only contenders with this in their name, and torch.compile.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Append one JSON line for each result to this file.")] = None,
    charts: Annotated[Path | None, typer.Option(help="Draw the results into this folder.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Fail where a committed expectation does not hold.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON lines.")] = False,
) -> None:
    """Race the caches of this and other libraries on the same weights, in turns; by default flux-70m."""
    from hicache_compile.benchmarks.command import run

    try:
        holds = run(names or ["flux-70m"], rounds, only, out, charts, checking=check, as_json=json)
    except HiCacheError as error:
        typer.secho(f"hicache bench: {error}", err=True, fg="red")
        raise typer.Exit(2) from None
    raise typer.Exit(0 if holds else 1)
