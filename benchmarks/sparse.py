"""Time of column-sparse deltas (Chipmunk): the two operators, and a whole step of a FLUX with 4096 + 512 tokens.

Dense and sparse alternate in one process.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional

from hicache_compile import Chipmunk, hicache_compile
from hicache_compile.benchmarks.models import Flux
from hicache_compile.benchmarks.record import environment
from hicache_compile.operators.chipmunk import attention, mlp  # noqa: F401  # registers the operators

ROUNDS = 9
STEPS = 12
SHAPE = Flux(2, 6, 8, 128, 4096, 512)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
FLUX_DEV = Flux(
    19, 38, 24, 128, 4096, 512, joint_dim=4096, pooled_dim=768, guidance=True, device="cuda", dtype=torch.bfloat16
)
Line = dict[str, Any]


def measure() -> Iterator[Callable[[], Line]]:
    """One line each for attention, an MLP and whole steps."""
    for part in (_attention, _mlp, _steps):
        yield lambda part=part: {  # type: ignore[misc]
            "measured": "sparse",
            **part(),
            "command": "hicache bench sparse",
            **environment(),
        }


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE, dtype=DTYPE)


def _now() -> float:
    """The time in seconds after all launched work has finished."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _attention(heads: int = 4, tokens: int = 2304, dim: int = 128, fraction: float = 0.17) -> Line:
    """Attention to ``fraction`` of the keys, compared with attention to all."""
    query, key, value = (_normal(1, heads, tokens, dim) for _ in range(3))
    scale, hicache = dim**-0.5, torch.ops.hicache
    _, lse = hicache.attention_dense(query, key, value, None, scale)
    scores = hicache.column_scores(query, key, lse, None, 192, scale, "auto")
    columns = hicache.select_columns(scores, None, fraction, 1, None, 0.0, 0)
    sparse = (columns, None, 192, scale, fraction, "auto")
    return {
        "what": f"attention, {heads} heads, {tokens} tokens, dim {dim}, {fraction:.0%} of the keys",
        **_in_turns(
            {
                "dense": lambda: functional.scaled_dot_product_attention(query, key, value),
                "sparse": lambda: hicache.attention_columns(query, key, value, *sparse),
            }
        ),
    }


def _mlp(tokens: int = 2304, channels: int = 1536, hidden: int = 6144, fraction: float = 0.3) -> Line:
    """Recomputing ``fraction`` of the hidden units, including their selection, compared with computing all."""
    hicache = torch.ops.hicache
    x = _normal(1, tokens, channels)
    w1, w2 = _normal(hidden, channels) / channels**0.5, _normal(channels, hidden) / hidden**0.5
    b1 = _normal(hidden)
    weights = (w1, b1, None, None)
    out, activations, means = hicache.mlp_dense(x, *weights, w2, "gelu_tanh", 128)
    moved = x + 0.1 * torch.randn_like(x)

    def sparse() -> torch.Tensor:
        columns, _ = hicache.mlp_select(moved, *weights, means, fraction, 1, 0.0, 0, 128)
        delta = hicache.mlp_delta(moved, *weights, w2, activations, columns, "gelu_tanh", fraction, "auto")
        return out + delta

    return {
        "what": f"MLP, {tokens} tokens, {channels} to {hidden}, {fraction:.0%} of the units",
        **_in_turns(
            {
                "dense": lambda: functional.linear(
                    functional.gelu(functional.linear(moved, w1, b1), approximate="tanh"), w2
                ),
                "sparse": sparse,
            }
        ),
    }


def _in_turns(contenders: Mapping[str, Callable[[], Any]]) -> Line:
    """Alternate ``dense`` and ``sparse``; their median times and the ratio."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS + 1):
        for name, run in contenders.items():
            began = _now()
            run()
            seconds[name].append(_now() - began)
    dense, sparse = (1e3 * statistics.median(seconds[name][1:]) for name in ("dense", "sparse"))
    return {"dense_ms": dense, "sparse_ms": sparse, "faster": dense / sparse}


@torch.no_grad()
def _steps(shape: Flux = FLUX_DEV if DEVICE == "cuda" else SHAPE) -> Line:
    """Alternate steps of a FLUX with plain ``torch.compile`` and with Chipmunk at its default settings."""
    model = shape.model()
    plain = torch.compile(shape.twin(model))
    sparse = hicache_compile(model, None, sparsity=Chipmunk())
    (branch,) = shape.branches().values()
    x = {"plain": shape.noise(), "sparse": shape.noise()}
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(2):  # the first run compiles
        seconds.clear()
        x = dict.fromkeys(x, shape.noise())
        with sparse.trajectory(STEPS):
            for step in range(STEPS):
                now = torch.tensor([1 - step / STEPS], device=DEVICE)
                for name, denoiser in (("plain", plain), ("sparse", sparse)):
                    began = _now()
                    velocity = denoiser(hidden_states=x[name], timestep=now, **branch, return_dict=False)[0]
                    phase = name if name == "plain" else sparse.report().decisions()[-1]
                    seconds[phase].append(_now() - began)
                    x[name] = x[name] - velocity / STEPS
    report = sparse.report()
    dense_ms, sparse_ms = (1e3 * statistics.median(seconds[name]) for name in ("plain", "S"))
    return {
        "what": f"a step of FLUX, {shape.layers} + {shape.single_layers} blocks, {shape.heads} heads of "
        f"{shape.head_dim}, {shape.image_tokens} + {shape.text_tokens} tokens",
        "dense_ms": dense_ms,
        "sparse_ms": sparse_ms,
        "faster": dense_ms / sparse_ms,
        "refreshing_ms": 1e3 * statistics.median(seconds["F"]),
        "decisions": report.decisions(),
        "trajectory_faster": sum(seconds["plain"]) / sum(seconds["F"] + seconds["S"]),
        "flops_speedup": report.flops_speedup,
        "relative_error": float((x["sparse"] - x["plain"]).norm() / x["plain"].norm()),
        "state_bytes": report.state_bytes,
        "recompiles": report.recompiles,
    }
