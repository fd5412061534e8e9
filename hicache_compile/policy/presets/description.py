"""What a preset does, when to use it and what can be set: read off its docstring and its signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Description:
    """A preset: its name, what it does, when to use it, and its parameters with their defaults as plain data."""

    name: str
    does: str
    when: str
    parameters: dict[str, Any]


def describe(preset: Callable[..., Any]) -> Description:
    """The description of ``preset``: the first paragraph of its docstring, and the one that says when to use it."""
    paragraphs = [" ".join(part.split()).replace("``", "") for part in (inspect.getdoc(preset) or "").split("\n\n")]
    when = next((part for part in paragraphs if part.startswith("Use it ")), "")
    parameters = {name: _default(one.default) for name, one in inspect.signature(preset).parameters.items()}
    return Description(preset.__name__, paragraphs[0], when, parameters)


def _default(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_default(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
