"""``hicache eval``: policies on a set of prompts, as one table with intervals."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from hicache_compile.errors import HiCacheError
from hicache_compile.evaluation.intervals import Interval95, summary
from hicache_compile.evaluation.quality import Score, clip_score, digit_quality, image_reward
from hicache_compile.evaluation.runs import Judge, Line
from hicache_compile.evaluation.sheet import draw_sheet
from hicache_compile.evaluation.subjects import DEMO, Subject, open_subject
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.policy import Policy

IN_FULL = "in full"
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
WITHOUT_INTERVAL = ("computed", "flops_speedup", "clock_speedup")


def run(
    model: str,
    policies: Sequence[str],
    prompts: Sequence[str],
    samples: int,
    batch: int,
    steps: int,
    seed: int,
    backend: str,
    arguments: Mapping[str, Any],
    *,
    clip: Path | None = None,
    reward: Path | None = None,
    out: Path | None = None,
    sheet: Path | None = None,
    as_json: bool = False,
) -> None:
    """Draw, measure, print the table (or JSON).

    Raises:
        HiCacheError: an option is not what is allowed, or ``model`` is no folder of a pipeline.
    """
    named = named_policies(policies)
    subject = open_subject(model, prompts, steps, backend, arguments)
    judge = Judge(subject, scores_of(subject, clip, reward))
    lines: dict[str, list[Line]] = {}
    pictures: dict[str, torch.Tensor] = {}
    batches = batches_of(subject, samples, batch, seed)
    with tqdm(total=len(batches) * (1 + len(named)), desc="runs", unit="run", file=sys.stderr) as bar:
        for name, policy in {IN_FULL: None, **named}.items():
            for numbers, at in batches:
                lines.setdefault(name, []).extend(judge.lines(policy, numbers, at))
                bar.update()
            if sheet is not None:
                judge_policy = judge.in_full(*batches[0]) if policy is None else _again(subject, policy, *batches[0])
                pictures[name] = _images(judge_policy)
    real = real_features(subject)
    found = {name: summary(rows, real) for name, rows in lines.items()}
    if out is not None:
        rows = [{"policy": name, **line} for name, mine in lines.items() for line in mine]
        out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if sheet is not None:
        draw_sheet({name: (images, caption(found[name])) for name, images in pictures.items()}, sheet)
    if as_json:
        print(json.dumps({name: as_data(one) for name, one in found.items()}, indent=2))
        return
    title = (
        f"{subject.name}: {len(lines[IN_FULL])} pictures of {len(subject.prompts)} prompts, {steps} steps, {backend}"
    )
    console = Console()
    console.print(table(found, title))
    if sheet is not None:
        console.print(f"pictures: {sheet}")


def named_policies(policies: Sequence[str]) -> dict[str, Policy]:
    """Policies by a short name: a preset's, a file's, or what was given.

    Raises:
        HiCacheError: one is no policy, or there is none.
    """
    if not policies:
        raise HiCacheError("eval.policy: must be given, once or several times")
    found: dict[str, Policy] = {}
    for given in policies:
        policy = as_policy(given)
        name = _name(given)
        found[name if name not in found else given] = policy
    return found


def _name(given: str) -> str:
    if given.endswith(".json"):
        return Path(given).stem
    if not given.lstrip().startswith("{"):
        return given
    fields = json.loads(given)
    if "preset" not in fields:
        return given
    return " ".join([fields.pop("preset"), *(f"{key}={value}" for key, value in fields.items())])


def scores_of(subject: Subject, clip: Path | None = None, reward: Path | None = None) -> list[Score]:
    """What can be said of the pictures of ``subject`` by themselves."""
    scores: list[Score] = [digit_quality] if subject.name == DEMO else []
    scores += [clip_score(clip)] if clip is not None else []
    scores += [image_reward(reward)] if reward is not None else []
    return scores


def real_features(subject: Subject) -> np.ndarray | None:
    """The features of real pictures, for the demo: of the digits it was trained on that are among its prompts."""
    if subject.name != DEMO:
        return None
    from hicache_compile.demo import digits

    images, labels = digits.dataset()
    asked = torch.tensor(sorted({int(prompt) for prompt in subject.prompts}))
    found: np.ndarray = digits.decisions(images[torch.isin(labels, asked)]).numpy()
    return found


def batches_of(subject: Subject, samples: int, batch: int, seed: int) -> list[tuple[list[int], int]]:
    """Which prompts are drawn together, and the seed of each run: every prompt ``samples`` times."""
    numbers = [number for _ in range(samples) for number in range(len(subject.prompts))]
    parts = [numbers[start : start + batch] for start in range(0, len(numbers), batch)]
    return [(part, seed + place) for place, part in enumerate(parts)]


def table(found: Mapping[str, Mapping[str, Interval95]], title: str) -> Table:
    """A row for each policy; under a value its 95 % interval."""
    made = Table(
        title=title,
        caption="error: relative, 2-norm over all pictures, against the same noise in full; PSNR in dB. Under each its "
        "95 % interval over pictures (bootstrap), half of it. clock: of the run, decoding included.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    shown = [metric for metric in COLUMNS if any(metric in one for one in found.values())]
    made.add_column("policy", min_width=10)
    for metric in shown:
        made.add_column(COLUMNS[metric][0], justify="right", no_wrap=True)
    for name, one in found.items():
        made.add_row(name, *(_cell(metric, one.get(metric), name == IN_FULL) for metric in shown))
    return made


def _cell(metric: str, value: Interval95 | None, in_full: bool) -> str:
    fidelity = metric in ("relative_error", "psnr", "ssim", "lpips")
    if value is None or (in_full and (fidelity or metric in WITHOUT_INTERVAL[1:])):
        return ""
    form = COLUMNS[metric][1]
    if metric in WITHOUT_INTERVAL:
        return form.format(value.value)
    return f"{form.format(value.value)}\n[dim]±{form.format((value.high - value.low) / 2)}[/dim]"


def caption(found: Mapping[str, Interval95]) -> str:
    """A line under a policy's name on a sheet."""
    return f"{found['flops_speedup'].value:.2f}x FLOPs, error {found['relative_error'].value:.4f}"


def as_data(found: Mapping[str, Interval95]) -> dict[str, dict[str, float]]:
    """The same as plain data."""
    return {metric: value._asdict() for metric, value in found.items()}


def _again(subject: Subject, policy: Policy, numbers: Sequence[int], seed: int) -> Any:
    subject.denoiser.policy = policy
    return subject.draw(numbers, seed)


def _images(drawn: Any) -> torch.Tensor:
    assert drawn.images is not None
    images: torch.Tensor = drawn.images
    return images
