"""Sample the same digits uncached and under several policies, in turns, and compare speed and quality.

All advance by one step after another, so that a machine which is slower for a while is so for all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from hicache_compile.demo import digits
from hicache_compile.demo.sampling import Sample, load_model, psnr, sample_by_steps
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.inspection.report import Report
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets import FORA, HiCache, TaylorSeer, Uncached
from hicache_compile.policy.sparsity.chipmunk import Chipmunk

Contestant = tuple[str, Policy]
CONTESTANTS: tuple[Contestant, ...] = tuple(
    (name, policy)
    for scope in ("module", "stack")
    for name, policy in (
        ("HiCache N=4", HiCache(interval=4, scope=scope)),
        ("HiCache N=6", HiCache(interval=6, scope=scope)),
        ("HiCache N=7", HiCache(interval=7, scope=scope)),
        ("HiCache N=8", HiCache(interval=8, scope=scope)),
        ("TaylorSeer N=6", TaylorSeer(interval=6, scope=scope)),
        ("FORA N=6", FORA(interval=6, warmup=3, scope=scope)),
    )
)
FEW: tuple[Contestant, ...] = tuple(
    entry for entry in CONTESTANTS if entry[1].scope == "stack" and entry[0] != "HiCache N=7"
)
ROUNDS = 5
MOST_CLOCK = 1.03  # times the FLOPs that the clock may save: noise
WARM_UP = 8  # steps, among which every policy here has a computed one and a forecast
SPARSITY = Chipmunk(group=16, mlp_block=16)  # for the 64 + 4 tokens of the demo model
SPARSE: tuple[Contestant, ...] = (
    ("Chipmunk", Uncached()),
    ("+ HiCache N=2", HiCache(interval=2)),
    ("+ HiCache N=3", HiCache(interval=3)),
    ("+ HiCache N=5", HiCache(interval=5)),
)


@dataclass(frozen=True, slots=True)
class Result:
    """One policy's run, with sparse steps if ``sparse``.

    ``psnr`` (dB over a range of 2, mean over images) and ``relative_error`` (2-norm) are against the uncached sample of
    the same seed. ``accuracy``: fraction of images that the classifier recognizes as the requested digit.
    ``clock_speedup``: the time of the uncached steps divided by the time of these, without compilation; of each step
    the median over rounds.
    """

    policy: str
    scope: str
    sparse: bool
    report: Report
    clock_speedup: float
    psnr: float
    relative_error: float
    accuracy: float
    images: torch.Tensor

    @property
    def faulty(self) -> bool:
        """Whether the clock saves more than the FLOPs, which cannot be: the machine was slower in the meantime."""
        return self.clock_speedup > MOST_CLOCK * self.report.flops_speedup

    @property
    def group(self) -> str:
        """The heading of its rows."""
        return "sparse steps" if self.sparse else f"{self.scope} scope" if self.scope else ""

    def as_data(self) -> dict[str, Any]:
        """The row as plain data, with the field names of ``report()``."""
        own = {name: getattr(self, name) for name in ("policy", "scope", "sparse", *MEASURED)}
        counted = {name: getattr(self.report, name) for name in COUNTED}
        return {**own, **counted, "decisions": self.report.decisions()}


MEASURED = ("clock_speedup", "psnr", "relative_error", "accuracy")
COUNTED = ("computed", "forecast", "flops_speedup", "state_bytes", "programs", "recompiles", "graph_breaks")


def steps_of(num_steps: int, contestants: Sequence[Contestant], sparse: Sequence[Contestant] = ()) -> int:
    """The number of steps ``compare`` makes: of the uncached sample and each policy, to warm up and in every round."""
    return (WARM_UP + ROUNDS * num_steps) * (1 + len(contestants) + len(sparse))


def compare(
    per_class: int,
    num_steps: int,
    seed: int,
    backend: str,
    contestants: Sequence[Contestant] = FEW,
    sparse: Sequence[Contestant] = (),
    on_step: Callable[[], object] = lambda: None,
) -> list[Result]:
    """The result of the uncached sample, of ``contestants`` in order, and of ``sparse`` with ``SPARSITY``.

    The uncached sample is that of a denoiser under ``disabled()``, which runs the program of plain ``torch.compile``.
    """
    labels = torch.arange(digits.CLASSES).repeat(per_class)
    model = load_model()
    runners = [_Runner("uncached", hicache_compile(model, Uncached(), backend=backend), cached=False)]
    for mine, sparsity in ((contestants, None), (sparse, SPARSITY)):
        for name, policy in mine:
            compiled = hicache_compile(model, policy, backend=backend, sparsity=sparsity)
            runners.append(_Runner(name, compiled, sparse=sparsity is not None))
    for runner in runners:
        for _ in runner.by_steps(labels, WARM_UP, seed):  # compiles
            on_step()
    for _ in range(ROUNDS):
        turns = [_told(runner.by_steps(labels, num_steps, seed), on_step) for runner in runners]
        *_, ended = zip(*turns, strict=True)
        for runner, drawn in zip(runners, ended, strict=True):
            runner.samples.append(drawn)
    return [_result(runner, runners[0], labels) for runner in runners]


@dataclass(slots=True)
class _Runner:
    """A compiled denoiser, used with its cache or without, and its samples of all rounds."""

    name: str
    denoiser: CompiledDenoiser
    cached: bool = True
    sparse: bool = False
    samples: list[Sample] = field(default_factory=list)

    def by_steps(self, labels: torch.Tensor, num_steps: int, seed: int) -> Iterator[Sample]:
        with nullcontext() if self.cached else self.denoiser.disabled():
            yield from sample_by_steps(self.denoiser, labels, num_steps, seed)

    @property
    def seconds(self) -> float:
        """Of all steps, each the median over rounds."""
        return sum(map(statistics.median, zip(*(drawn.step_seconds for drawn in self.samples), strict=True)))


def _told(samples: Iterator[Sample], on_step: Callable[[], object]) -> Iterator[Sample]:
    for drawn in samples:
        on_step()
        yield drawn


def _result(runner: _Runner, uncached: _Runner, labels: torch.Tensor) -> Result:
    found, reference = runner.samples[0].images, uncached.samples[0].images
    difference = found - reference
    return Result(
        policy=runner.name,
        scope=runner.denoiser.policy.scope if runner.cached else "",
        sparse=runner.sparse,
        report=runner.denoiser.report(),
        clock_speedup=uncached.seconds / runner.seconds,
        psnr=float(psnr(found, reference).mean()),
        relative_error=float(difference.norm() / reference.norm()),
        accuracy=float((digits.classify(found) == labels).float().mean()),
        images=found,
    )
