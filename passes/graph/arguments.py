"""The denoiser argument behind a placeholder, from the source Dynamo recorded for it."""

from __future__ import annotations

from typing import Any

from torch import fx


def argument_of(node: fx.Node) -> str | int | None:
    """The name or positional index of the argument that ``node`` holds; ``None`` if it holds no argument.

    A tensor in a dict or list argument has its path in the name: ``"joint_attention_kwargs.scale"``.
    """
    source = getattr(node, "_dynamo_source", None)
    path: list[Any] = []
    while source is not None:
        if type(source).__name__ == "LocalSource":
            return _in_frame(source.local_name, path)
        if hasattr(source, "index"):
            path.insert(0, source.index)
        elif hasattr(source, "member"):
            path.insert(0, source.member)
        source = getattr(source, "base", None)
    return None


def _in_frame(local: str, path: list[Any]) -> str | int | None:
    if local in ("kwargs", "args") and path:
        return path[0] if len(path) == 1 else ".".join(map(str, path))
    return None if local == "self" else ".".join(map(str, [local, *path]))
