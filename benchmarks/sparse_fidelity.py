"""Fidelity of column-sparse deltas on the trained demo model: alone and with forecasts, by the choice of anchors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from hicache_compile import Chipmunk, HiCache, Policy, Uncached, hicache_compile
from hicache_compile.benchmarks.record import environment
from hicache_compile.demo import digits
from hicache_compile.demo.sampling import load_model, sample

STEPS = 50
EACH = 5  # digits per class and seed
SEEDS = (10, 11)
SMALL: dict[str, Any] = {"group": 16, "mlp_block": 16}  # for 64 + 4 tokens
Line = dict[str, Any]


def measure() -> Iterator[Callable[[], Line]]:
    """One line per policy and sparsity: relative error against the uncached samples of the same noise."""
    for case in _cases():
        yield partial(_line, *case)


def _labels() -> torch.Tensor:
    return torch.arange(digits.CLASSES).repeat(EACH)


@functools.cache
def _expected() -> torch.Tensor:
    uncached = hicache_compile(load_model(), Uncached(), backend="eager")
    return torch.cat([sample(uncached, _labels(), STEPS, seed).images for seed in SEEDS])


def _line(name: str, policy: Policy, settings: dict[str, Any] | None) -> Line:
    sparsity = None if settings is None else Chipmunk(**SMALL, **settings)
    denoiser = hicache_compile(load_model(), policy, backend="eager", sparsity=sparsity)
    images = torch.cat([sample(denoiser, _labels(), STEPS, seed).images for seed in SEEDS])
    report = denoiser.report()
    return {
        "measured": "sparse fidelity",
        "policy": name,
        "sparsity": settings,
        "decisions": report.decisions(),
        "flops_speedup": report.flops_speedup,
        "relative_error": float((images - _expected()).norm() / _expected().norm()),
        "accuracy": float((digits.classify(images) == _labels().repeat(len(SEEDS))).float().mean()),
        "digits": len(images),
        "command": "hicache bench sparse-fidelity",
        **environment(),
    }


def _cases() -> Iterator[tuple[str, Policy, dict[str, Any] | None]]:
    """Chipmunk alone, by denominator, fraction and order; HiCache alone; both, by choice and refresh of anchors."""
    for settings in (
        {},
        {"denominator": "own"},
        {"top_keys": None},
        {"mlp_keys": None},
        {"top_keys": 0.3, "mlp_keys": 0.5},
        {"coverage": 0.8},
        {"order": "patches", "grid": (8, 8)},
    ):
        yield "Chipmunk", Uncached(), settings
    for interval in (2, 3, 5):
        yield f"HiCache N={interval}", HiCache(interval=interval), None
        yield f"HiCache N={interval}", HiCache(interval=interval), {}
    for anchors in ("all", "dense", "bridged"):
        for max_age in (10, 20):
            yield "HiCache N=5", HiCache(interval=5), {"anchors": anchors, "max_age": max_age}
    yield "HiCache N=5", HiCache(interval=5), {"denominator": "own"}
