"""Frames that Dynamo compiles: functions that call a denoiser, each with a code object of its own."""

from __future__ import annotations

import functools
import itertools
import logging
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hicache_compile import internals
from hicache_compile.internals import GuardOnDataDependentSymNode, TorchDynamoException, dynamo_config
from hicache_compile.operators.flop_counter import NO_DYNAMO

# Whether a break is an error is one setting of Dynamo for all threads; and FLOPs are not counted meanwhile.
BREAKS_SET = NO_DYNAMO
UNTRACED = (TorchDynamoException, GuardOnDataDependentSymNode)  # Dynamo has no graph for a call
_ADVICE = logging.getLogger("torch._dynamo.variables.tensor")
_LIMITS = logging.getLogger("torch._dynamo.convert_frame")
_frames = itertools.count()
DATA_DEPENDENT_OPS = functools.partial(dynamo_config.patch, capture_dynamic_output_shape_ops=True)
# Entries for one piece of code: the sizes of a denoiser, or submodules that break the graph in many denoisers.
MOST_ENTRIES = 256
ENTRIES = functools.partial(
    dynamo_config.patch, recompile_limit=MOST_ENTRIES, accumulated_recompile_limit=8 * MOST_ENTRIES
)


def drop_compiled(code: types.CodeType) -> None:
    """Let Dynamo forget what it compiled for ``code``."""
    if internals.DROPPING:
        internals.remove_from_cache(code)


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


@contextmanager
def no_more_entries() -> Iterator[None]:
    """Inside, Dynamo runs what it has, and raises an error where it would capture more, without a line in the log."""
    with dynamo_config.patch(recompile_limit=1, accumulated_recompile_limit=1), _silent(_LIMITS):
        yield


@contextmanager
def without_advice() -> Iterator[None]:
    """Inside, Dynamo does not tell the user to capture the numbers that are read on the host."""
    with _silent(_ADVICE):
        yield


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
