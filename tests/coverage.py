"""What the compiler makes of a denoiser: run it full and cached, and write down what was found and what it did.

``python -m tests.coverage`` runs every denoiser of diffusers and rewrites ``docs/coverage.md``.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hicache_compile import HiCache, hicache_compile
from hicache_compile.denoiser import CompiledDenoiser
from hicache_compile.dispatch import CapturedStep
from tests.zoo import Case

STEPS = 12


@dataclass(slots=True)
class Coverage:
    """What was measured of one denoiser at one scope."""

    blocks: int = 0
    sites: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    graphs: int = 0
    recompiles: int = 0  # captures after the first run
    identical: bool = False
    error: float = float("nan")
    flops_full: int = 0
    flops_forecast: int = 0
    state_bytes: int = 0
    decisions: str = ""
    refused: list[tuple[str, str]] = field(default_factory=list)


def trajectory(case: Case, model: nn.Module, x: Tensor, size: int = 0) -> Tensor:
    """Euler steps from t=1 to 0; returns the last state."""
    run = model.trajectory(STEPS) if isinstance(model, CompiledDenoiser) else contextlib.nullcontext()
    with torch.no_grad(), run:
        for step in range(STEPS):
            velocity = case.call(model, x, 1 - step / STEPS, size)
            x = x - velocity / STEPS
    return x


def examine(
    case: Case, scope: str = "module", layers: int = 2, size: int = 0, dtype: torch.dtype = torch.float32
) -> Coverage:
    """Run ``case`` uncached, with interval 1 and with interval 4 (order 1), from the same noise, in ``aot_eager``."""
    torch._dynamo.reset()
    model = case.build(layers).to(dtype)
    x = case.noise(size=size).to(dtype)
    expected = trajectory(case, model, x, size)
    compiled = hicache_compile(model, HiCache(interval=1, order=1, scope=scope), backend="aot_eager")
    identical = torch.equal(trajectory(case, compiled, x, size), expected)
    captured = len(compiled._steps)
    compiled.policy = HiCache(interval=4, order=1, scope=scope)
    cached = trajectory(case, compiled, x, size)
    report = compiled.report()
    used = [step for step in compiled._session.last_graphs if isinstance(step, CapturedStep)]
    rewrites = [step.current.rewrite for step in used if step.current]
    sites = [site for rewrite in rewrites for site in rewrite.sites]
    moved = (expected - x).float().norm()
    return Coverage(
        blocks=sum(rewrite.blocks for rewrite in rewrites),
        sites=len(sites),
        kinds=Counter(site.kind for site in sites),
        graphs=report.graph_breaks + 1,
        recompiles=len(compiled._steps) - captured,
        identical=identical,
        error=float((cached - expected).float().norm() / moved),
        flops_full=report.flops_full,
        flops_forecast=report.flops_forecast,
        state_bytes=report.state_bytes,
        decisions=report.decisions(),
        refused=list(report.refused),
    )
