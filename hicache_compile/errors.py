"""The package's only exception, the record of a declined rewrite, and validation helpers."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 400  # characters of a message
_VALUE = re.compile(r"( = .{60}).{20,}(.{40}: (?:must|no) )", re.DOTALL)


class HiCacheError(ValueError):
    """Every error this package raises. The message names the field, its value and the allowed values.

    A value that is long is shown by its beginning and its end; the whole is one line of at most 400 characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(_VALUE.sub(r"\1...\2", message)))


def one_line(message: str) -> str:
    """``message`` in one line of at most 400 characters."""
    line = " ".join(message.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


@dataclass(frozen=True, slots=True)
class CannotRewrite:
    """A site that was not rewritten, with the reason."""

    site: str
    reason: str

    def __str__(self) -> str:
        return f"{self.site}: {self.reason}"


def plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as Python's numbers and lists, also inside of lists; all else as it is."""
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value.tolist() if hasattr(value, "dtype") and callable(getattr(value, "tolist", None)) else value


def whole_number(owner: str, field: str, value: object, least: int, most: int | None = None) -> None:
    """Raise unless ``value`` is an integer in ``[least, most]``."""
    allowed = f"an integer >= {least}" if most is None else f"an integer from {least} to {most}"
    wrong_type = isinstance(value, bool) or not isinstance(value, int)
    if wrong_type or value < least or (most is not None and value > most):  # type: ignore[operator]  # checked first
        raise HiCacheError(f"{owner}.{field} = {value!r}: must be {allowed}")


def real_number(owner: str, field: str, value: object, low: float, high: float) -> None:
    """Raise unless ``value`` is a finite number in ``(low, high]``."""
    wrong_type = isinstance(value, bool) or not isinstance(value, int | float)
    if wrong_type or not low < value <= high:  # type: ignore[operator]  # checked first
        raise HiCacheError(f"{owner}.{field} = {value!r}: must be a number in ({low:g}, {high:g}]")


def numbers(owner: str, field: str, value: object, least: float | None = None) -> tuple[float, ...]:
    """``value`` as a tuple of one or more finite numbers, none below ``least``; raises ``HiCacheError`` otherwise."""
    array = plain(value)
    given = tuple(array) if isinstance(array, list | tuple) else ()
    real = all(map(is_real, given))
    if not given or not real or (least is not None and min(given) < least):
        allowed = "one or more numbers" + ("" if least is None else f" >= {least:g}")
        raise HiCacheError(f"{owner}.{field} = {value!r}: must be {allowed}")
    return given


def is_real(value: object) -> bool:
    """Whether ``value`` is a number that a float can hold, and finite."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def true_or_false(owner: str, field: str, value: object) -> None:
    """Raise unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise HiCacheError(f"{owner}.{field} = {value!r}: must be true or false")


def one_of(owner: str, field: str, value: object, allowed: Iterable[str]) -> None:
    """Raise unless ``value`` is one of the strings ``allowed``."""
    names = list(allowed)
    if not isinstance(value, str) or value not in names:
        raise HiCacheError(f"{owner}.{field} = {value!r}: must be one of {', '.join(names)}{nearest(value, names)}")


def named(owner: str, field: str, value: object, allowed: Iterable[str]) -> str:
    """The one of the names ``allowed`` that ``value`` is, in any case, with ``-``, ``_`` or nothing between words.

    Raises:
        HiCacheError: it is none of them; the message names the nearest.
    """
    names = list(allowed)
    found = find_name(value, names)
    if found is None:
        one_of(owner, field, value, names)
        raise AssertionError  # it was one of them
    return found


def find_name(value: object, allowed: Iterable[str]) -> str | None:
    """As ``named``; ``None`` where it is none of them."""
    plain = _plain_name(value) if isinstance(value, str) else ""
    return next((name for name in allowed if _plain_name(name) == plain), None)


def _plain_name(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


def nearest(value: object, names: Iterable[str]) -> str:
    """A question for the end of a message: the name that ``value`` is near to, if there is one."""
    if not isinstance(value, str) or len(value) > LONGEST:
        return ""
    plain = {_plain_name(name): name for name in names}
    near = difflib.get_close_matches(_plain_name(value), plain, 1)
    return f" (did you mean {plain[near[0]]}?)" if near else ""


_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def switched_on(name: str, environ: Mapping[str, str] = os.environ, default: str = "0") -> bool:
    """Whether the environment variable ``name`` holds a true switch value; raises ``HiCacheError`` if it holds no
    switch value."""
    text = (environ.get(name, "").strip() or default).lower()
    if text not in _SWITCH:
        raise HiCacheError(f"{name} = {text!r}: must be one of {', '.join(_SWITCH)}")
    return _SWITCH[text]
