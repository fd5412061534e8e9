"""Frames that Dynamo compiles: functions that call a denoiser, each with a code object of its own."""

from __future__ import annotations

import functools
import itertools
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

# Whether a break is an error is one setting of Dynamo for all threads.
BREAKS_SET = threading.RLock()
UNTRACED = (TorchDynamoException, GuardOnDataDependentSymNode)  # Dynamo has no graph for a call
_frames = itertools.count()
DATA_DEPENDENT_OPS = functools.partial(torch._dynamo.config.patch, capture_dynamic_output_shape_ops=True)
# Entries for one piece of code: the sizes of a denoiser, or submodules that break the graph in many denoisers.
MOST_ENTRIES = 256
ENTRIES = functools.partial(
    torch._dynamo.config.patch, recompile_limit=MOST_ENTRIES, accumulated_recompile_limit=8 * MOST_ENTRIES
)


def own_frame(model: Callable[..., Any]) -> types.FunctionType:
    """A function that calls ``model``, with a code object of its own."""

    def denoise(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    return with_own_code(denoise)


def with_own_code(function: Any) -> types.FunctionType:
    """``function`` with a code object of its own.

    Dynamo counts recompiles by code object, and all models of one class share that of ``forward``: many
    compiled denoisers in a process would use up one another's limit and silently run eagerly. It has a name of its
    own too, by which Dynamo remembers the sizes it saw: they would make another denoiser's sizes dynamic.
    """
    name = f"{function.__name__}_{next(_frames)}"
    return types.FunctionType(
        function.__code__.replace(co_name=name), function.__globals__, name, None, function.__closure__
    )
