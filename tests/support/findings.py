"""Findings about a small model, made by hand."""

from __future__ import annotations

from hicache_compile import HiCache
from hicache_compile.inspection.findings import BlockRow, Findings, ProgramRow, ScopeRow, SiteRow
from hicache_compile.policy.json_codec import to_dict

STEPS = 8
SHAPES = [[3, 1, 4096, 3072]]


def findings(**changes: object) -> Findings:
    """Findings about a model of two blocks, of which the first is cached."""
    given = {
        "model": "a model", "policy": to_dict(HiCache(interval=4)), "scope": "module", "num_steps": STEPS,
        "decisions": "FFF...F.", "graphs": 1, "nodes": 9, "flops_full": 1000, "flops_forecast": 10,
        "flops_speedup": 2.0, "collectives_full": 0, "collectives_forecast": 0, "bytes_sent_full": 0,
        "bytes_sent_forecast": 0, "state_bytes": 2048, "sparsity": None, "sparse": [], "refused": [],
        "blocks": [BlockRow("blocks.0", 4, 500, 500, {"mlp": 500}), BlockRow("blocks.1", 4, 400)],
        "sites": [SiteRow("blocks.0.mlp", "mlp", ["blocks.0"], 4, 500, 0.5, SHAPES, 2048, ["bfloat16"])],
        "scopes": [ScopeRow("module", 1, 1, 10, 2048, 2.0)],
        "programs": [ProgramRow("captured", 9, 1000), ProgramRow("guarded", 4, None)],
    }  # fmt: skip
    return Findings(**{**given, **changes})  # type: ignore[arg-type]  # as Findings takes them
