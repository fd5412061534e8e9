"""The denoiser argument behind a placeholder, from the source Dynamo recorded for it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import fx, nn


@dataclass(frozen=True, slots=True)
class Signature:
    """How the frame that Dynamo compiled names the arguments of the denoiser.

    Args:
        owner: the name of the denoiser; empty: it is the first of ``args``, or there is none.
        args, kwargs: of the arguments that have no names of their own; empty: there are none.
    """

    owner: str
    args: str
    kwargs: str

    @classmethod
    def of(cls, code: CodeType, local: Mapping[str, Any]) -> Signature:
        """``local``: the values of the frame's arguments. A decorated ``forward`` may name them as it likes."""
        named = code.co_argcount + code.co_kwonlyargcount
        rest = list(code.co_varnames[named:])
        args = rest.pop(0) if code.co_flags & inspect.CO_VARARGS else ""
        kwargs = rest.pop(0) if code.co_flags & inspect.CO_VARKEYWORDS else ""
        own = (*code.co_varnames[: code.co_argcount], *code.co_freevars)  # torch calls a decorated module in a closure
        modules = [name for name in own if isinstance(local.get(name), nn.Module)]
        return cls(modules[0] if modules else "", args, kwargs)

    def module(self, local: Mapping[str, Any]) -> Any:
        """The denoiser, or what else has the frame; ``None``: it is a function."""
        first = local.get(self.owner) if self.owner else next(iter(local.get(self.args, ())), None)
        return first if isinstance(first, nn.Module) else None

    def name(self, local: str, path: list[Any]) -> str | int | None:
        """The argument at ``path`` in the ``local`` variable."""
        if local == self.owner:
            return None
        if path and local == self.args and not self.owner:
            path = [path[0] - 1, *path[1:]]
            if path[0] < 0:
                return None
        if path and local in (self.args, self.kwargs):
            return path[0] if len(path) == 1 else ".".join(map(str, path))
        return ".".join(map(str, [local, *path]))


def argument_of(node: fx.Node, signature: Signature) -> str | int | None:
    """The name or positional index of the argument that ``node`` holds; ``None`` if it holds no argument.

    A tensor in a dict or list argument has its path in the name: ``"joint_attention_kwargs.scale"``.
    """
    source = getattr(node, "_dynamo_source", None)
    path: list[Any] = []
    while source is not None:
        if type(source).__name__ == "LocalSource":
            return signature.name(source.local_name, path)
        if hasattr(source, "index"):
            path.insert(0, source.index)
        elif hasattr(source, "member"):
            path.insert(0, source.member)
        source = getattr(source, "base", None)
    return None
