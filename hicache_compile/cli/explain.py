"""``hicache explain``: an architecture explained from its shapes, and several policies compared on it."""

from __future__ import annotations

import json as plain
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from hicache_compile.architectures import Request, example_inputs, resolve
from hicache_compile.errors import one_of
from hicache_compile.inspection.dump import sources, write
from hicache_compile.inspection.explanation import View, explain
from hicache_compile.inspection.tables import WIDTH, comparison, tables
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.presets import FORA, HiCache, TaylorSeer
from hicache_compile.runtime.replay.capture import capture_call

DTYPES = ("float32", "float16", "bfloat16")
COMPARED = {
    "HiCache N=5": HiCache(interval=5),
    "HiCache N=7": HiCache(interval=7),
    "HiCache N=7, stack": HiCache(interval=7, scope="stack"),
    "TaylorSeer N=6": TaylorSeer(interval=6),
    "FORA N=3": FORA(interval=3),
}


def run(
    name: str, policies: Sequence[str], request: Request, steps: int, dtype: str, out: Path | None, *, as_json: bool
) -> None:
    """Print what the first of ``policies`` makes of the denoiser ``name``, and compare them all.

    Raises:
        HiCacheError: the name, a policy or the request is not what is allowed.
    """
    chosen = [(text, as_policy(text)) for text in policies] or [("HiCache N=6", HiCache())]
    architecture = resolve(name)
    one_of("explain", "dtype", dtype, DTYPES)
    model = architecture.without_weights().to(getattr(torch, dtype))
    call = capture_call(model, example_inputs(model, request), "explain")
    views = [View(call.captured, {})]
    first = explain(architecture.name, views, chosen[0][1], steps)
    others = chosen[1:] or [(text, policy) for text, policy in COMPARED.items() if policy != chosen[0][1]]
    rows = [(chosen[0][0], first)]
    rows += [(text, explain(architecture.name, views, policy, steps, (policy.scope,))) for text, policy in others]
    if out is not None:
        write(out, first, sources(views[0], chosen[0][1], architecture.name), compared=rows)
    if as_json:
        compared = [{"name": text, **plain.loads(each.to_json())} for text, each in rows]
        print(plain.dumps({"explained": plain.loads(first.to_json()), "compared": compared}, indent=1))
        return
    console = Console(width=None if Console().is_terminal else WIDTH)
    console.print(tables(first))
    console.print(comparison(rows))
    if out is not None:
        console.print(f"wrote {out}/index.html")
