"""Sample the same digits uncached and under several policies, in turns, and compare speed and quality."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from hicache_compile.demo import digits
from hicache_compile.demo.sampling import Sample, load_model, psnr, sample
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
ROUNDS = 3
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
    ``clock_speedup``: the time of the uncached sampling loop divided by the time of this one, without compilation; the
    median over rounds, in each of which all policies are sampled one after another.
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
    """The number of steps ``compare`` makes: of the uncached sample and each policy in every round, and to warm up."""
    warm_ups = 1 + len(_groups(contestants, sparse))
    return warm_ups * WARM_UP + ROUNDS * num_steps * (1 + len(contestants) + len(sparse))


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
    plain = hicache_compile(model, Uncached(), backend=backend)
    runners = [_Runner("uncached", plain, None)]
    for sparsity, mine in _groups(contestants, sparse):
        deepest = max(mine, key=lambda entry: entry[1].depth)[1]
        compiled = hicache_compile(model, deepest, backend=backend, sparsity=sparsity)
        runners += [_Runner(name, compiled, policy, sparsity is not None) for name, policy in mine]
    for denoiser in dict.fromkeys(runner.denoiser for runner in runners):
        with nullcontext() if denoiser is not plain else plain.disabled():
            sample(denoiser, labels, WARM_UP, seed, on_step)  # compiles
    for _ in range(ROUNDS):
        for runner in runners:
            runner.run(labels, num_steps, seed, on_step)
    return [_result(runner, runners[0], labels) for runner in runners]


@dataclass(slots=True)
class _Runner:
    """A policy (``None``: no cache) on a denoiser, which others may share, and its samples of all rounds."""

    name: str
    denoiser: CompiledDenoiser
    policy: Policy | None
    sparse: bool = False
    samples: list[Sample] = field(default_factory=list)
    report: Report | None = None

    def run(self, labels: torch.Tensor, num_steps: int, seed: int, on_step: Callable[[], object]) -> None:
        if self.policy is not None:
            self.denoiser.policy = self.policy
        with self.denoiser.disabled() if self.policy is None else nullcontext():
            self.samples.append(sample(self.denoiser, labels, num_steps, seed, on_step))
        self.report = self.report or self.denoiser.report()


def _groups(
    contestants: Sequence[Contestant], sparse: Sequence[Contestant]
) -> list[tuple[Chipmunk | None, Sequence[Contestant]]]:
    """The policies that share a compiled denoiser: those of each scope, and the sparse ones."""
    scopes = dict.fromkeys(policy.scope for _, policy in contestants)
    groups: list[tuple[Chipmunk | None, Sequence[Contestant]]] = [
        (None, [entry for entry in contestants if entry[1].scope == scope]) for scope in scopes
    ]
    return [*groups, (SPARSITY, sparse)] if sparse else groups


def _result(runner: _Runner, uncached: _Runner, labels: torch.Tensor) -> Result:
    found, reference = runner.samples[0].images, uncached.samples[0].images
    difference = found - reference
    assert runner.report is not None  # it ran
    return Result(
        policy=runner.name,
        scope="" if runner.policy is None else runner.policy.scope,
        sparse=runner.sparse,
        report=runner.report,
        clock_speedup=statistics.median(
            theirs.seconds / mine.seconds for mine, theirs in zip(runner.samples, uncached.samples, strict=True)
        ),
        psnr=float(psnr(found, reference).mean()),
        relative_error=float(difference.norm() / reference.norm()),
        accuracy=float((digits.classify(found) == labels).float().mean()),
        images=found,
    )
