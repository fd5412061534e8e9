"""``hicache tune``: fit a policy to a model, print how well, write it to a file."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from hicache_compile.compile import hicache_compile
from hicache_compile.denoiser import CompiledDenoiser
from hicache_compile.errors import HiCacheError
from hicache_compile.presets import HiCache
from hicache_compile.serialize import to_json
from hicache_compile.tune.fit import Fitted, fit

DEMO = "demo"
Runs = list[Callable[[], object]]


def run(
    model: str,
    method: str,
    prompts: Sequence[str],
    steps: int,
    computed: int | None,
    signal: str,
    seed: int,
    out: Path,
    backend: str,
    arguments: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Fit, write the policy, and print how it went as a table (or JSON).

    Raises:
        HiCacheError: an option is not what is allowed, or ``model`` is no folder of a pipeline.
    """
    prepare = _demo if model == DEMO else functools.partial(_pipeline, Path(model), arguments)
    denoiser, runs = prepare(prompts, steps, seed, backend)
    with tqdm(total=len(runs), desc="uncached runs", unit="run", file=sys.stderr) as bar:
        counted = [functools.partial(_count, one, bar) for one in runs]
        fitted = fit(denoiser, counted, method, computed or -(-steps // 3), signal=signal)
    out.write_text(to_json(fitted.policy) + "\n", encoding="utf-8")
    data = as_data(fitted, method, out)
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        _tell(data)


def _count(one: Callable[[], object], bar: Any) -> None:
    one()
    bar.update()


def _demo(prompts: Sequence[str], steps: int, seed: int, backend: str) -> tuple[CompiledDenoiser, Runs]:
    """The demo model; a prompt is a digit."""
    from hicache_compile.demo import digits
    from hicache_compile.demo.sampling import load_model, sample

    wanted = prompts or [str(digit) for digit in range(digits.CLASSES)]
    if not all(prompt.isdigit() and int(prompt) < digits.CLASSES for prompt in wanted):
        raise HiCacheError(f"tune.prompt = {list(wanted)!r}: must be digits, for the demo model")
    denoiser = hicache_compile(load_model(), HiCache(scope="stack"), backend=backend)
    runs: Runs = [
        functools.partial(sample, denoiser, torch.tensor([int(prompt)]), steps, seed + number)
        for number, prompt in enumerate(wanted)
    ]
    return denoiser, runs


def _pipeline(
    folder: Path, arguments: dict[str, Any], prompts: Sequence[str], steps: int, seed: int, backend: str
) -> tuple[CompiledDenoiser, Runs]:
    """A diffusers pipeline from its folder; its first denoiser is fitted."""
    from diffusers import DiffusionPipeline

    if not (folder / "model_index.json").exists():
        raise HiCacheError(
            f"tune.model = {str(folder)!r}: must be {DEMO!r} or a folder that save_pretrained wrote, with a "
            "model_index.json in it"
        )
    if not prompts:
        raise HiCacheError("tune.prompt: must be given, once or several times: the runs to fit to")
    on_gpu = torch.cuda.is_available()
    loaded = DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16 if on_gpu else torch.float32)
    loaded.to("cuda" if on_gpu else "cpu")
    loaded.set_progress_bar_config(disable=True)
    pipeline = hicache_compile(loaded, HiCache(scope="stack"), backend=backend)
    denoiser = next(part for part in pipeline.components.values() if isinstance(part, CompiledDenoiser))

    def once(prompt: str, number: int) -> None:
        generator = torch.Generator().manual_seed(seed + number)
        pipeline(prompt=prompt, num_inference_steps=steps, generator=generator, output_type="latent", **arguments)

    return denoiser, [functools.partial(once, prompt, number) for number, prompt in enumerate(prompts)]


def as_data(fitted: Fitted, method: str, out: Path) -> dict[str, Any]:
    """What was found, as plain data."""
    decider: Any = fitted.policy.guards[0] if fitted.policy.guards else fitted.policy.schedule
    return {
        "fitted": method,
        "steps": fitted.num_steps,
        "explained": fitted.explained,
        "threshold": decider.threshold,
        "computed": fitted.computed,
        "policy": str(out),
    }


def _tell(data: Mapping[str, Any]) -> None:
    low, high = min(data["computed"]), max(data["computed"])
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("fitted", f"{data['fitted']}, {len(data['computed'])} uncached runs of {data['steps']} steps")
    table.add_row("explained", f"{100 * data['explained']:.1f} % of the variance")
    table.add_row("threshold", f"{data['threshold']:g}")
    table.add_row("computed", f"{low} steps" if low == high else f"{low} to {high} steps")
    table.add_row("policy", data["policy"])
    Console().print(table)
