"""What a search shows: charts, a sheet of pictures, a page with tables."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hicache_compile.evaluation.intervals import as_data
from hicache_compile.evaluation.sheet import draw_sheet
from hicache_compile.evaluation.subjects import batches_of
from hicache_compile.policy.files import write_whole
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.session import Call
from hicache_compile.runtime.step import Step
from hicache_compile.tune import charts
from hicache_compile.tune.grid import Candidate
from hicache_compile.tune.recommend import Recommendation
from hicache_compile.tune.reference import output_of, sample_of
from hicache_compile.tune.tuner import FRESH, Found, Tuner

BATCHES = (1, 2, 4, 8)


def show(
    tuner: Tuner,
    candidates: Mapping[str, Candidate],
    found: Found,
    chosen: Mapping[str, str],
    recommended: Sequence[Recommendation],
) -> None:
    """Charts, a sheet of pictures, and a page with tables."""
    folder, policies = tuner.folder, {level: candidates[name].policy for level, name in chosen.items()}
    charts.pareto(found, chosen, folder / "pareto.png")
    charts.thresholds(list(candidates.values()), found, folder / "thresholds.png")
    profiles = {level: _profile(tuner, policy) for level, policy in policies.items()}
    if profiles:
        charts.error_profile(profiles, folder / "error_profile.png")
        _memory(tuner, {**_guards(candidates), **policies}, folder / "memory.png")
        _batches(tuner, policies, folder / "batch.png")
    numbers, seed = batches_of(tuner.subject, 1, len(tuner.subject.prompts), tuner.wanted.seed + FRESH)[0]
    rows = {"in full": (_drawn(tuner, None, numbers, seed), "every step computed")}
    for one in recommended:
        text = f"{one.flops_speedup:.2f}x FLOPs, error {one.error.value:.4f}"
        rows[one.level] = _drawn(tuner, policies[one.level], numbers, seed), text
    draw_sheet(rows, folder / "pictures.png")
    write_whole(folder / "report.md", _page(tuner, candidates, found, recommended))
    data = {name: as_data(one) for name, one in found.items()}
    write_whole(folder / "summary.json", json.dumps(data, indent=2) + "\n")


def _guards(candidates: Mapping[str, Candidate]) -> dict[str, Policy]:
    """One policy with each guard, and one with both."""
    last = {c.family.partition(",")[0]: c.policy for c in candidates.values() if len(c.policy.guards) == 1}
    both = [c.policy for c in candidates.values() if len(c.policy.guards) == 2]
    return {**last, "both": both[-1]} if both else last


def _drawn(tuner: Tuner, policy: Policy | None, numbers: Sequence[int], seed: int) -> torch.Tensor:
    if policy is None:
        images = tuner.judge.in_full(numbers, seed).images
    else:
        tuner.subject.denoiser.policy = policy
        images = tuner.subject.draw(numbers, seed).images
    assert images is not None
    return images


def _profile(tuner: Tuner, policy: Policy) -> tuple[list[float], str]:
    """How far the sample is from that in full, before each step of the first run."""
    denoiser, (numbers, seed) = tuner.subject.denoiser, tuner.runs[0]
    seen: list[list[torch.Tensor]] = []

    def watch(step: Step, call: Call, make: Callable[[], Any]) -> Any:
        value = make()
        output = output_of(value)
        sample = sample_of(call.arguments(), output)
        if step.context is next(iter(denoiser._session.contexts.values()), step.context):
            seen[-1].append((output if sample is None else sample).float().clone())
        return value

    denoiser.policy = policy
    for uncached in (True, False):
        seen.append([])
        with denoiser.observed(watch):
            if uncached:
                with denoiser.disabled():
                    tuner.subject.draw(numbers, seed, images=False)
            else:
                tuner.subject.draw(numbers, seed, images=False)
    errors = [float((a - b).norm() / a.norm()) for a, b in zip(*seen, strict=True)]
    return errors, denoiser.report().decisions()


def _memory(tuner: Tuner, policies: Mapping[str, Policy], path: Path) -> None:
    """Bytes of anchors and of what guards remember, with one guidance branch and with two."""
    mb: dict[str, list[float]] = {"one guidance branch": [], "two": []}
    for policy in policies.values():
        tuner.subject.denoiser.policy = policy
        tuner.subject.draw([0], tuner.wanted.seed, images=False)
        report = tuner.subject.denoiser.report()
        branches = max(1, len(report.rows))
        for count, heights in zip((1, 2), mb.values(), strict=True):
            heights.append(count * report.state_bytes / branches / 1e6)
    charts.bars(mb, list(policies), "MB kept for one picture", path)


def _batches(tuner: Tuner, policies: Mapping[str, Policy], path: Path) -> None:
    """Seconds for each picture, in full and cached, at several batch sizes; medians of three runs."""
    denoiser, seconds = tuner.subject.denoiser, dict[str, list[float]]()
    level = "balanced" if "balanced" in policies else next(iter(policies))
    for size in BATCHES:
        numbers = [n % len(tuner.subject.prompts) for n in range(size)]
        for name, policy in (("in full", None), (level, policies[level])):
            took = []
            for again in range(4):  # the first compiles
                if policy is None:
                    with denoiser.disabled():
                        took.append(tuner.subject.draw(numbers, again, images=False).seconds)
                else:
                    denoiser.policy = policy
                    took.append(tuner.subject.draw(numbers, again, images=False).seconds)
            seconds.setdefault(name, []).append(statistics.median(took[1:]) / size)
    charts.bars(seconds, [f"batch {size}" for size in BATCHES], "seconds for each picture", path)


def _page(
    tuner: Tuner, candidates: Mapping[str, Candidate], found: Found, recommended: Sequence[Recommendation]
) -> str:
    search = tuner.wanted
    text = [f"# {tuner.subject.name}: {len(candidates)} policies, {search.steps} steps\n"]
    text.append("| level | policy | steps | FLOPs | error on fresh noise | another measurement |")
    text.append("|---|---|---|---|---|---|")
    for r in recommended:
        span = f"{r.error.low:.4f} to {r.error.high:.4f}"
        cost = f"{r.computed:.3g} | {r.flops_speedup:.2f}x"
        text.append(f"| {r.level} | {r.candidate} | {cost} | {r.error.value:.4f} | {span} |")
    for name in ("pareto", "thresholds", "error_profile", "memory", "batch", "pictures"):
        if (tuner.folder / f"{name}.png").exists():
            text.append(f"\n![{name}]({name}.png)")
    text.append("\n## Both guards at once\n")
    text.append("Share of steps that the outer guard (TeaCache) skipped, that the inner one (FBCache) did, neither.\n")
    text.append("| policy | TeaCache | FBCache | neither | error |")
    text.append("|---|---|---|---|---|")
    for name, candidate in candidates.items():
        if len(candidate.policy.guards) == 2:
            letters = "".join(line["decisions"] for line in tuner.journal.of(name))
            shares = [letters.count(letter) / len(letters) for letter in ".sF"]
            cells = " | ".join(f"{share:.1%}" for share in shares)
            text.append(f"| {name} | {cells} | {found[name]['relative_error'].value:.4f} |")
    return "\n".join(text) + "\n"
