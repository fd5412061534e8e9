"""Compile with TorchInductor, each kind of block once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import fx

from hicache_compile.backends.tracing import example_inputs, fresh_tracing
from hicache_compile.internals import inductor, list_mode_options
from hicache_compile.passes.lowering.match_stream_layout import lay_out_streams
from hicache_compile.passes.lowering.outline import outline

log = logging.getLogger(__name__)


def lower(program: fx.GraphModule, mode: str | None) -> Callable[..., Any]:
    inductor.INDUCTOR.require()
    inputs = example_inputs(program)
    program, calls = outline(program)
    streams = lay_out_streams(program)
    log.info("%d blocks outlined, %d streams laid out like their anchors", calls, streams)
    options = list_mode_options(mode) if mode else None
    with fresh_tracing(program):
        return inductor.compile_fx(program, inputs, config_patches=options)  # type: ignore[return-value]  # callable for a GraphModule
