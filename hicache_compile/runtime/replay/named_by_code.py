"""What the code of a model names outside of the model: globals, settings in other files, context variables.

A function that the code calls is read too, in whatever depth, where it is the user's. Code of libraries is taken for
fixed.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "peft", "builtins")  # whose classes and globals stay
_FIXED = {*_LIBRARIES, *sys.stdlib_module_names, "hicache_compile"} - {"__main__"}
_INSTALLED = ("site-packages", "dist-packages")
_ENVIRONMENT = ("environ", "getenv")
_PLAIN = (bool, int, float, str, type(None))
_WRAPPED = (staticmethod, classmethod)

Names = tuple[Mapping[str, Any], tuple[str, ...]]  # of values in a dict


def is_plain(value: Any) -> bool:
    """Whether ``value`` is compared by itself, and not by its identity."""
    return isinstance(value, _PLAIN)


class NamedByCode:
    """What the code of ``classes`` names, and of what it calls.

    Args:
        names: values that are looked up by name.
        held: objects and containers among them.
        variables: context variables among them.
    """

    def __init__(self, classes: Collection[type]) -> None:
        self.names: list[Names] = []
        self.held: list[Any] = []
        self.variables: list[ContextVar[Any]] = []
        self._own = {_package(kind.__module__) for kind in classes}
        self._seen: set[int] = set()
        self._looked_up: set[tuple[int, frozenset[str]]] = set()  # modules, and which of their names
        self.read(classes)

    def read(self, waiting: Iterable[Any]) -> None:
        """Read the code of classes and functions, and of what they name."""
        queue = list(waiting)
        while queue:
            value = queue.pop()
            if id(value) in self._seen:
                continue
            self._seen.add(id(value))
            if isinstance(value, type):
                queue += [part for kind in value.__mro__ if self._follows(kind) for part in self._class(kind)]
            elif isinstance(value, types.FunctionType) and self._follows(value):
                queue += self._function(value)

    def _follows(self, code: Any) -> bool:
        """Whether the class or function ``code`` is the user's."""
        return self._are_the_users(code.__module__, sys.modules.get(code.__module__))

    def _are_the_users(self, name: str | None, module: types.ModuleType | None) -> bool:
        package = _package(name)
        return package not in _FIXED and (package in self._own or not _is_installed(module))

    def _class(self, kind: type) -> Iterator[Any]:
        held = vars(kind)
        plain = (name for name, value in held.items() if is_plain(value) and not name.startswith("__"))
        self.names.append((held, tuple(plain)))
        for value in list(held.values()):
            if isinstance(value, property):
                yield value.fget
            yield value.__func__ if isinstance(value, _WRAPPED) else value

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        named = set(_names(function.__code__))
        yield from self._values(function.__globals__, named)
        self.held += [function, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]

    def _values(self, known: dict[str, Any], named: set[str]) -> Iterator[Any]:
        """The functions and classes among what is ``named`` in ``known``."""
        found = {name: known[name] for name in named if name in known}
        self.names.append((known, tuple(found)))
        for value in found.values():
            if isinstance(value, types.ModuleType):
                yield from self._module(value, named)
            elif isinstance(value, ContextVar):
                self.variables.append(value)
            elif isinstance(value, types.FunctionType | type):
                yield value
            else:
                self.held.append(value)

    def _module(self, module: types.ModuleType, named: set[str]) -> Iterator[Any]:
        if module is os and named.intersection(_ENVIRONMENT):
            self.held.append(os.environ._data)  # type: ignore[attr-defined]  # the dict behind it
        looked_up = id(module), frozenset(named)
        if self._are_the_users(module.__name__, module) and looked_up not in self._looked_up:
            self._looked_up.add(looked_up)
            yield from self._values(vars(module), named)


def _package(name: str | None) -> str:
    return (name or "").partition(".")[0]


def _is_installed(module: types.ModuleType | None) -> bool:
    file = getattr(module, "__file__", None) or ""
    return any(folder in file for folder in _INSTALLED)


def _names(code: types.CodeType) -> Iterator[str]:
    """The names in ``code`` and in the functions that are made in it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
