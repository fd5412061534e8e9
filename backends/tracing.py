"""What AOTAutograd needs to compile a graph outside of Dynamo: fake inputs and a context of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._guards import TracingContext, detect_fake_mode, tracing


def example_inputs(program: fx.GraphModule) -> list[Any]:
    """The fake values of the program's placeholders, in order."""
    return [node.meta["example_value"] for node in program.graph.find_nodes(op="placeholder")]


@contextmanager
def fresh_tracing(inputs: list[Any]) -> Iterator[None]:
    """A tracing context over the inputs' own fake mode, whether or not Dynamo is compiling around us."""
    fakes = [value for value in inputs if isinstance(value, torch.Tensor)]
    with tracing(TracingContext(detect_fake_mode(fakes))):
        yield
