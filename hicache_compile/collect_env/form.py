"""The form of JSON data, as data, and whether a value has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hicache_compile.errors import HiCacheError

Form = Any  # a type; an object's required keys and their forms; a list of one form, or of any; ``Each``; ``Maybe``
_NAMES = {str: "a text", int: "a whole number", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class Each:
    """An object whose values all have the form ``value``."""

    value: Form


@dataclass(frozen=True, slots=True)
class Maybe:
    """``value``, or null."""

    value: Form


def check_form(where: str, value: Any, form: Form) -> None:
    """Raise ``HiCacheError`` unless ``value`` has the ``form``. ``where``: what it is, for messages."""
    if isinstance(form, Maybe):
        if value is not None:
            check_form(where, value, form.value)
    elif isinstance(form, type):
        _check(where, value, type(value) is form, _NAMES[form])
    elif isinstance(form, list):
        _check(where, value, isinstance(value, list), "a list")
        for number, one in enumerate(value if form else ()):
            check_form(f"{where}[{number}]", one, form[0])
    else:
        _check(where, value, isinstance(value, dict), "an object")
        wanted = dict.fromkeys(value, form.value) if isinstance(form, Each) else form
        for key, one in wanted.items():
            _check(where, value, key in value, f"an object with {key!r}")
            check_form(f"{where}: {key}", value[key], one)


def _check(where: str, value: Any, holds: bool, allowed: str) -> None:
    if not holds:
        raise HiCacheError(f"rerun.path: {where} = {value!r:.80}: must be {allowed}, as collect-env wrote it")
