"""What caches do to super-resolution: ``python -m hicache_compile.benchmarks.upscaling OUT``.

``OUT`` is the folder the upscaler was trained in. Pictures of names that it never saw, made four times smaller, are
drawn again under several policies, in turns; ``OUT/upscaling.json`` and ``OUT/upscaling.png`` are what came of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hicache_compile.demo.emoji import icons
from hicache_compile.demo.emoji.train_upscaler import is_unseen
from hicache_compile.demo.emoji.upscaler import enlarged, load_upscaler, shrunk, upscale
from hicache_compile.evaluation.fidelity import fidelity
from hicache_compile.evaluation.intervals import as_data, summary
from hicache_compile.evaluation.sheet import draw_sheet
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.files import write_whole
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets import HiCache, TaylorSeer
from hicache_compile.policy.progress import progress, script

IN_FULL = "in full"
POLICIES: Mapping[str, Policy] = {
    "HiCache N=4": HiCache(interval=4, scope="stack"),
    "HiCache N=6": HiCache(interval=6, scope="stack"),
    "HiCache N=8": HiCache(interval=8, scope="stack"),
    "TaylorSeer N=8": TaylorSeer(interval=8, scope="stack"),
}
AT_ONCE, ROUNDS = 8, 3  # pictures; timed runs of the first of them
SHOWN = 10  # pictures of the sheet


def measure(small: Tensor, truth: Tensor, steps: int, backend: str) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Rows as plain data, and pictures ``[B, 3, 64, 64]``, by policy: in full, by bicubic interpolation, cached."""
    model = load_upscaler()
    denoisers = {name: hicache_compile(model, policy, backend=backend) for name, policy in POLICIES.items()}
    denoisers = {IN_FULL: hicache_compile(model, HiCache(interval=1), backend=backend), **denoisers}
    parts, seconds = small.split(AT_ONCE), {name: list[float]() for name in denoisers}
    with progress(total=len(denoisers) * (len(parts) + ROUNDS), what="drawing", unit="run") as bar:
        drawn: dict[str, list[Tensor]] = {name: [] for name in denoisers}
        for part in parts:  # compiles with the first
            for name, denoiser in denoisers.items():
                drawn[name].append(_drawn(denoiser, name, part, steps))
                bar.update()
        for _ in range(ROUNDS):
            for name, denoiser in denoisers.items():
                began = time.perf_counter()
                _drawn(denoiser, name, parts[0], steps)
                seconds[name].append(time.perf_counter() - began)
                bar.update()
    pictures = {name: torch.cat(found) for name, found in drawn.items()}
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    rows: dict[str, object] = {"bicubic": {"truth": _compared(enlarged(small).clamp(-1, 1), truth)}}
    for name, denoiser in denoisers.items():
        report = denoiser.report()
        rows[name] = {
            "computed": report.computed if name != IN_FULL else steps,
            "flops_speedup": report.flops_speedup if name != IN_FULL else 1.0,
            "clock_speedup": medians[IN_FULL] / medians[name],
            "truth": _compared(pictures[name], truth),
            **({"in_full": _compared(pictures[name], pictures[IN_FULL])} if name != IN_FULL else {}),
        }
    return rows, {"bicubic": enlarged(small).clamp(-1, 1), **pictures, "truth": truth}


def _drawn(denoiser: CompiledDenoiser, name: str, small: Tensor, steps: int) -> Tensor:
    if name == IN_FULL:
        with denoiser.disabled():
            return upscale(denoiser, small, steps)
    with denoiser.trajectory(steps):
        return upscale(denoiser, small, steps)


def _compared(found: Tensor, wanted: Tensor) -> dict[str, dict[str, float]]:
    """PSNR, SSIM and relative error with 95 % intervals over pictures."""
    measured = fidelity(found, wanted)
    return as_data(summary([dict(zip(measured, row, strict=True)) for row in zip(*measured.values(), strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--backend", default="inductor")
    given = parser.parse_args()
    with script():
        subjects, pictures = icons.load(given.out / "icons.safetensors")
        unseen = icons.to_values(pictures[[is_unseen(subject) for subject in subjects]])
        truth = unseen[: len(unseen) // AT_ONCE * AT_ONCE]  # one batch size is compiled
        rows, drawn = measure(shrunk(truth), truth, given.steps, given.backend)
        write_whole(given.out / "upscaling.json", json.dumps(rows, indent=2) + "\n")
        draw_sheet({name: (images[:SHOWN], "") for name, images in drawn.items()}, given.out / "upscaling.png")
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
