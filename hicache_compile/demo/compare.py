"""Sample the same digits uncached and under several policies, and compare speed and quality."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    ``clock_speedup``: the time of the uncached sampling loop divided by the time of this one, without compilation.
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


def trajectories_of(contestants: Sequence[Contestant], sparse: Sequence[Contestant] = ()) -> int:
    """The number of trajectories ``compare`` samples: one per policy, and per group two uncached and one warm-up."""
    return 3 * len(_groups(contestants, sparse)) + len(contestants) + len(sparse)


def compare(
    per_class: int,
    num_steps: int,
    seed: int,
    backend: str,
    contestants: Sequence[Contestant] = CONTESTANTS,
    sparse: Sequence[Contestant] = (),
    on_step: Callable[[], object] = lambda: None,
) -> list[Result]:
    """The result of the uncached sample, of ``contestants`` in order, and of ``sparse`` with ``SPARSITY``.

    The uncached time is that of a denoiser under ``disabled()``, which runs the program of plain ``torch.compile``: the
    median of the uncached runs before and after each group of policies.
    """
    labels = torch.arange(digits.CLASSES).repeat(per_class)
    model = load_model()
    uncached = hicache_compile(model, contestants[0][1], backend=backend)
    baselines: list[Sample] = []
    runs: list[tuple[str, str, bool, Report, Sample]] = []

    def run(denoiser: CompiledDenoiser) -> Sample:
        return sample(denoiser, labels, num_steps, seed, on_step)

    def run_uncached() -> None:
        with uncached.disabled():
            if not baselines:
                sample(uncached, labels, num_steps=1)  # compiles
            baselines.append(run(uncached))

    for sparsity, mine in _groups(contestants, sparse):
        run_uncached()
        deepest = max(mine, key=lambda entry: entry[1].depth)[1]
        compiled = hicache_compile(model, deepest, backend=backend, sparsity=sparsity)
        run(compiled)  # compiles
        for name, policy in mine:
            compiled.policy = policy
            result = run(compiled)
            runs.append((name, policy.scope, sparsity is not None, compiled.report(), result))
        run_uncached()
    baseline = statistics.median(entry.seconds for entry in baselines)
    first = Sample(baselines[0].images, baseline)
    rows = [("uncached", "", False, uncached.report(), first), *runs]
    return [_result(*row, first, labels) for row in rows]


def _groups(
    contestants: Sequence[Contestant], sparse: Sequence[Contestant]
) -> list[tuple[Chipmunk | None, Sequence[Contestant]]]:
    """The policies that share a compiled denoiser: those of each scope, and the sparse ones."""
    scopes = dict.fromkeys(policy.scope for _, policy in contestants)
    groups: list[tuple[Chipmunk | None, Sequence[Contestant]]] = [
        (None, [entry for entry in contestants if entry[1].scope == scope]) for scope in scopes
    ]
    return [*groups, (SPARSITY, sparse)] if sparse else groups


def _result(
    name: str, scope: str, sparse: bool, report: Report, found: Sample, reference: Sample, labels: torch.Tensor
) -> Result:
    difference = found.images - reference.images
    return Result(
        policy=name,
        scope=scope,
        sparse=sparse,
        report=report,
        clock_speedup=reference.seconds / found.seconds,
        psnr=float(psnr(found.images, reference.images).mean()),
        relative_error=float(difference.norm() / reference.images.norm()),
        accuracy=float((digits.classify(found.images) == labels).float().mean()),
        images=found.images,
    )
