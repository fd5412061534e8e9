"""Run the graph as it is, op by op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx


def lower(program: fx.GraphModule, mode: str | None) -> Callable[..., Any]:
    return program.forward
