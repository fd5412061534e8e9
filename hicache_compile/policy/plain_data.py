"""How the parts of a policy are declared: schedules, forecasters, guards, tokens, sparsity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

from typing_extensions import dataclass_transform

from hicache_compile.errors import plain

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")


def plain_arguments(made: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """``made`` with arguments that may be numbers and arrays of numpy and torch."""

    @wraps(made)
    def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return made(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})

    return called


@dataclass_transform(frozen_default=True)
def plain_data(cls: type[Result]) -> type[Result]:
    """A frozen dataclass of plain data, whose fields may be given as numbers and arrays of numpy and torch."""
    made = dataclass(frozen=True, slots=True)(cls)
    made.__init__ = plain_arguments(made.__init__)  # type: ignore[method-assign]  # as dataclass itself sets it
    return made
