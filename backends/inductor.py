"""Compile with TorchInductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx
from torch._inductor import list_mode_options
from torch._inductor.compile_fx import compile_fx

from hicache_compile.backends.tracing import example_inputs, fresh_tracing


def lower(program: fx.GraphModule, mode: str | None) -> Callable[..., Any]:
    inputs = example_inputs(program)
    options = list_mode_options(mode) if mode else None
    with fresh_tracing(program):
        return compile_fx(program, inputs, config_patches=options)  # type: ignore[return-value]  # callable for a GraphModule
