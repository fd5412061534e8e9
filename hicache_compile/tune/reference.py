"""Runs in full to calibrate by: what went into every call and came out, and how far apart the features of steps are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.schedules.base import Interval
from hicache_compile.runtime.call_arguments import as_number, time_argument
from hicache_compile.runtime.session import Call
from hicache_compile.runtime.step import Step
from hicache_compile.runtime.storage.rings import Rings
from hicache_compile.runtime.structure import flatten
from hicache_compile.tune.sketch import Sketches

BUCKETS = 4096  # of a sketch
EXPLAINED = 0.95  # of what a sampler does in a step, below which it is not corrected for

Runs = Sequence[Callable[[], object]]


@dataclass(frozen=True, slots=True)
class Reference:
    """One run in full.

    ``outputs`` and ``samples``: by context, of each step, float32; a sample is the argument that is shaped like the
    output, ``None`` where there is none. ``gains``: by how much the next sample moves with the output of a step, by
    context (under guidance of scale 3 these are as 3 to -2); empty where that is not known. ``slots``: how many there
    are at the cut. ``result``: what the run returned, where that is a tensor. ``times``: what the denoiser was called
    with, of each step, where these fall.
    """

    outputs: dict[str, list[torch.Tensor]]
    samples: dict[str, list[torch.Tensor | None]]
    gains: list[dict[str, float]]
    slots: int
    result: torch.Tensor | None = None
    times: tuple[float, ...] | None = None

    @property
    def num_steps(self) -> int:
        return len(self.gains)


@dataclass(slots=True)
class Difference:
    """How far tensors are from those they should be, over all that were added: ``relative``, in the 2-norm."""

    left: float = 0.0
    size: float = 0.0

    def add(self, found: torch.Tensor, wanted: torch.Tensor) -> None:
        self.left += float((found.float() - wanted).square().sum())
        self.size += float(wanted.square().sum())

    @property
    def relative(self) -> float:
        return float((self.left / max(self.size, 1e-300)) ** 0.5)


def record(denoiser: CompiledDenoiser, runs: Runs, policy: Policy) -> tuple[list[Reference], np.ndarray]:
    """What each of ``runs`` does in full, and the squared distances between steps ``[T, T]`` at the cut of ``policy``.

    Distances are of sketches: each slot is folded into ``BUCKETS`` sums under random signs, which keeps them within a
    few percent, so that no features are kept.

    Raises:
        HiCacheError: a run does not call the denoiser, or the runs differ in length.
    """
    kept = denoiser.policy
    denoiser.policy = replace(policy, schedule=Interval(1))
    references, distances = [], []
    try:
        for number, run in enumerate(runs):
            recorder = _Recorder()
            with denoiser.observed(recorder):
                result = run()
            if max(map(len, recorder.outputs.values()), default=0) < 2:
                raise HiCacheError(f"runs[{number}]: must sample at least two steps with the denoiser")
            references.append(recorder.reference(result))
            distances += recorder.distances()
    finally:
        denoiser.policy = kept
        denoiser.reset()
    lengths = {one.num_steps for one in references}
    if len(lengths) > 1:
        raise HiCacheError(f"runs: must be equally long, they have {', '.join(map(str, sorted(lengths)))} steps")
    return references, np.mean(distances, axis=0)


def output_of(value: Any) -> torch.Tensor:
    """The denoiser's output: the first floating tensor it returns."""
    found = next((v for v in flatten(value)[0] if isinstance(v, torch.Tensor) and v.is_floating_point()), None)
    if found is None:
        raise HiCacheError("runs: the denoiser must return a floating-point tensor")
    return found


def sample_of(arguments: Mapping[str, Any], output: torch.Tensor) -> torch.Tensor | None:
    """The argument that is shaped like the output: what is being denoised."""
    alike = (v for v in arguments.values() if isinstance(v, torch.Tensor) and v.shape == output.shape)
    return next((value for value in alike if value.is_floating_point()), None)


@dataclass(slots=True)
class _Recorder:
    outputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    samples: dict[str, list[torch.Tensor | None]] = field(default_factory=dict)
    sketches: dict[str, list[list[torch.Tensor]]] = field(default_factory=dict)
    sketch: Sketches = field(default_factory=lambda: Sketches(BUCKETS))
    times: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, step: Step, call: Call, run: Callable[[], Any]) -> Any:
        value = run()
        output = output_of(value)
        sample = sample_of(call.arguments(), output)
        name = step.context.name
        self.outputs.setdefault(name, []).append(output.float().clone())
        self.samples.setdefault(name, []).append(None if sample is None else sample.float().clone())
        _, moment = time_argument(call.arguments())
        self.times.setdefault(name, []).append(math.nan if moment is None else as_number(moment)[0])
        states = step.context.states.values()
        self.sketches.setdefault(name, []).append([self.sketch(row) for state in states for row in newest(state, step)])
        return value

    def distances(self) -> list[np.ndarray]:
        """By context: squared, each slot's as a share of its mean square, summed over slots."""
        found = []
        for steps in self.sketches.values():
            total = np.zeros((len(steps), len(steps)))
            for slot in zip(*steps, strict=True):
                features = torch.stack(slot).double()
                size = features.square().sum(1).mean().clamp_min(1e-300)
                total += (
                    (torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist") ** 2 / size)
                    .cpu()
                    .numpy()
                )
            found.append(total)
        return found

    def reference(self, result: object) -> Reference:
        final = result.detach().float().clone() if isinstance(result, torch.Tensor) else None
        slots = len(next(iter(self.sketches.values()))[0])
        times = tuple(next(iter(self.times.values())))
        falling = all(now > then for now, then in itertools.pairwise(times))
        gains = _gains(self.outputs, self.samples, final)
        return Reference(self.outputs, self.samples, gains, slots, final, times if falling else None)


def newest(state: Rings, step: Step) -> list[torch.Tensor]:
    """What the step wrote into each ring."""
    rows: Any = state.decider.rows  # type: ignore[union-attr]  # of a schedule
    positions = rows.steps[step.index].positions
    return [ring[positions[place]] for ring, place in zip(state.anchors, rows.spec.group_of, strict=True)]


def _gains(
    outputs: Mapping[str, Sequence[torch.Tensor]],
    samples: Mapping[str, Sequence[torch.Tensor | None]],
    result: torch.Tensor | None,
) -> list[dict[str, float]]:
    """How the sampler moved: ``x' = a x + sum_c b_c v_c`` by least squares at each step; the ``b_c``.

    Exact for samplers of first order (Euler, DDIM), guidance included. After the last step the sample is ``result``,
    where that is shaped like one.
    """
    first = [*next(iter(samples.values())), result]
    count = min(len(steps) for steps in outputs.values())
    gains: list[dict[str, float]] = []
    for step in range(count):
        now, after = first[step], first[step + 1]
        if now is None or after is None or now.shape != after.shape:
            gains.append({})
            continue
        columns = torch.stack([now.flatten(), *(steps[step].flatten() for steps in outputs.values())], 1).double()
        moved = after.flatten().double()
        solved = torch.linalg.lstsq(columns.T @ columns, columns.T @ moved).solution
        left = (columns @ solved - moved).square().sum()
        explained = 1.0 - float(left / (moved - now.flatten()).square().sum().clamp_min(1e-300))
        gains.append(dict(zip(outputs, solved[1:].tolist(), strict=True)) if explained >= EXPLAINED else {})
    return gains
