"""The modules that are blocks, and the one a node ran in: from module paths, never from class names."""

from __future__ import annotations

from os.path import commonprefix

from torch import fx

from hicache_compile.passes.analysis.residuals import Residual


def home_of(residual: Residual) -> str:
    """The path of the module that contains the sum; of its contribution where the sum is in the denoiser itself."""
    return str(residual.node.meta["path"] or _made_in(residual.contribution).meta["path"])


def _made_in(node: fx.Node) -> fx.Node:
    """``node``, or its nearest ancestor that ran in a module below the denoiser."""
    seen: set[fx.Node] = set()
    queue = [node]
    for current in queue:
        if current.meta["path"]:
            return current
        queue += [argument for argument in current.all_input_nodes if argument not in seen]
        seen.update(queue)
    return node


def contribution_of(node: fx.Node, residuals: list[Residual]) -> fx.Node:
    """Where the contribution of the sum ``node`` was made; ``node`` itself where it is no residual sum."""
    return next((_made_in(residual.contribution) for residual in residuals if residual.node is node), node)


def units_of(homes: set[str]) -> set[str]:
    """The paths of the blocks: each path in ``homes`` up to the first number below their common prefix. A path without
    a number is a block itself.
    """
    split = [home.split(".") for home in homes]
    shared = len(commonprefix(split)) if len(split) > 1 else 0
    units = set()
    for parts in split:
        number = next((i for i in range(shared, len(parts)) if parts[i].isdigit()), len(parts) - 1)
        units.add(".".join(parts[: number + 1]))
    return {unit for unit in units if not any(unit.startswith(f"{other}.") for other in units)}


def unit_of(path: str, units: set[str]) -> str | None:
    """The one of ``units`` that contains ``path``, if any does."""
    parts = path.split(".")
    return next((unit for end in range(1, len(parts) + 1) if (unit := ".".join(parts[:end])) in units), None)


def call_number(node: fx.Node, unit: str) -> int:
    """The number of calls of the module ``unit`` before the one in which ``node`` ran."""
    return next((call for path, call in node.meta["calls"] if path == unit), 0)
