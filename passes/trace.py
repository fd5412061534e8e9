"""Graphs in ``TORCH_TRACE``, where tlparse shows them as ``hicache_captured``, ``hicache_guarded`` and so on."""

from __future__ import annotations

from functools import partial

from hicache_compile import internals
from hicache_compile.passes import Rewrite
from hicache_compile.passes.graph.source import source_of


def trace_rewrite(rewrite: Rewrite, scope: str) -> None:
    """Record every level of ``rewrite``; costs nothing while no trace is written."""
    if not internals.TRACES:
        return
    levels = rewrite.levels()
    for name, module in levels.items():
        internals.trace_structured(
            "artifact",
            metadata_fn=partial(dict, name=f"hicache_{name}", encoding="string"),
            payload_fn=partial(source_of, module, f"{name} graph, scope {scope}"),
            expect_trace_id=False,
        )
