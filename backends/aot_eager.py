"""Trace to functional ATen with AOTAutograd, then run that: what Inductor sees, without Inductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from hicache_compile.backends.tracing import example_inputs, fresh_tracing
from hicache_compile.internals import lookup_backend


def lower(program: fx.GraphModule, mode: str | None) -> Callable[..., Any]:
    inputs = example_inputs(program)
    with fresh_tracing(program):
        return lookup_backend("aot_eager")(program, inputs)
