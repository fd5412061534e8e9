"""What AOTAutograd needs to compile a graph outside of Dynamo: fake inputs and a context of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import fx

from hicache_compile import internals
from hicache_compile.internals import FakeTensor, FakeTensorMode, TracingContext, tracing


def example_inputs(program: fx.GraphModule) -> list[Any]:
    """The fake values of the program's placeholders, in order."""
    return [node.meta["example_value"] for node in program.graph.find_nodes(op="placeholder")]


@contextmanager
def fresh_tracing(program: fx.GraphModule) -> Iterator[None]:
    """A tracing context over the program's own fake mode, whether or not Dynamo is compiling around us.

    Always outside inference mode, inside which AOTAutograd decomposes some ops in another way: the same
    program must come out however the caller runs it.
    """
    modes = [value.fake_mode for value in example_inputs(program) if isinstance(value, FakeTensor)]
    mode = modes[0] if modes else FakeTensorMode()
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        tracing(TracingContext(mode)),
        _absent_floats_settled(program, mode) if internals.FLOATS else nullcontext(),
    ):
        yield


@contextmanager
def _absent_floats_settled(program: fx.GraphModule, mode: FakeTensorMode) -> Iterator[None]:
    """Under dynamic shapes Dynamo makes Python floats inputs, and AOTAutograd asks Dynamo to start over for one
    that the graph does not turn into tensor arithmetic. A forecast program lacks the floats only a site
    reads; there is nothing to start over for, so they are marked as settled while it is compiled.
    """
    known = internals.TensorifyState.force_specializations
    symbols = mode.shape_env.backed_var_to_val if mode.shape_env else ()
    floats = {str(symbol) for symbol in symbols if internals.symbol_is_type(symbol, internals.SymT.FLOAT)}
    for node in program.graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymFloat):
            floats -= {str(symbol) for symbol in value.node.expr.free_symbols}
    added = floats - known
    known |= added
    try:
        yield
    finally:
        known -= added
