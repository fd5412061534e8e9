"""The arithmetic that rules of guards are written in: floats on the host, float64 tensors in a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

Number = Any  # a float, or a float64 tensor of no dimension
Truth = Any  # a bool, or a bool tensor of no dimension


class Arithmetic(Protocol):
    """What a rule may do with numbers besides ``+ - * / **`` and comparisons. Truths combine with ``&`` and ``|``."""

    def where(self, truth: Truth, yes: Number, no: Number) -> Number:
        """``yes`` where ``truth`` holds, else ``no``. Both are computed."""
        ...

    def maximum(self, a: Number, b: Number) -> Number: ...

    def minimum(self, a: Number, b: Number) -> Number: ...

    def isfinite(self, a: Number) -> Truth: ...

    def isnan(self, a: Number) -> Truth: ...

    def negate(self, truth: Truth) -> Truth: ...


class HostArithmetic:
    """On Python floats."""

    def where(self, truth: Truth, yes: Number, no: Number) -> Number:
        return yes if truth else no

    def maximum(self, a: Number, b: Number) -> Number:
        return max(a, b)

    def minimum(self, a: Number, b: Number) -> Number:
        return min(a, b)

    def isfinite(self, a: Number) -> Truth:
        return math.isfinite(a)

    def isnan(self, a: Number) -> Truth:
        return math.isnan(a)

    def negate(self, truth: Truth) -> Truth:
        return not truth


class Numbers:
    """Numbers by name, as attributes: the parameters of a rule, or what it remembers."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None

    def replace(self, **changed: Number) -> Numbers:
        """The same with some numbers changed."""
        return Numbers({**self._values, **changed})

    def as_dict(self) -> dict[str, Any]:
        return dict(self._values)
