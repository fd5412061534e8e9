"""A graph as executable, readable Python source.

The first lines name the origin; every value has its dtype and shape beside it; each site is a class with a ``forward``;
weights are arguments.
"""

from __future__ import annotations

import re
import types
from importlib.metadata import version
from typing import Any

import torch
from torch import fx

# Removed from the text: deletions of dead values, empty stack traces, folder names of this machine.
_NOISE = re.compile(
    r";  (?:\w+ = )+None(?:; *$)?|^ *# No stacktrace found for following nodes\n|(?<=# File: )\S*/", re.MULTILINE
)


def source_of(module: fx.GraphModule, title: str) -> str:
    """``module`` as the text of a Python file that defines the class ``Graph``.

    ``Graph()(*inputs)`` computes the same as ``module(*inputs)`` if the graph holds no tensors. Tensors it holds are
    named in a comment and must be set.
    """
    imports: dict[str, str] = {}
    classes: list[str] = []
    _write(module, "Graph", imports, classes)
    header = [
        f"# {title}",
        f"# hicache_compile {version('hicache_compile')}, torch {torch.__version__}; {len(module.graph.nodes)} nodes",
        "import torch",
        *sorted(set(imports.values()) - {"import torch"}),
    ]
    return "\n".join([*header, "", "", "\n\n\n".join(classes), ""])


def printable(module: fx.GraphModule, title: str) -> fx.GraphModule:
    """``module``, modified so that ``print`` shows its source."""
    # Every GraphModule instance has its own class.
    type(module).__str__ = lambda self: source_of(self, title)  # type: ignore[method-assign]
    return module


def _write(module: fx.GraphModule, name: str, imports: dict[str, str], classes: list[str]) -> None:
    code = _renamed(module.graph).python_code("self", verbose=True)
    text = _NOISE.sub("", code.src.strip())
    for alias, value in code.globals.items():
        if re.search(rf"\b{alias}\b", text):
            imports.setdefault(alias, _import(alias, value))
    attributes = []
    for attribute in dict.fromkeys(str(node.target) for node in module.graph.find_nodes(op="get_attr")):
        held = _held(module, attribute)
        if isinstance(held, fx.GraphModule):
            inner = re.sub(r"\W+", "_", f"{name}_{attribute}")
            _write(held, inner, imports, classes)
            attributes.append(f"        self.{attribute} = {inner}()")
        else:
            attributes.append(f"        # self.{attribute} is to be set: {_described(held)}")
    body = "\n".join(f"    {line}".rstrip() for line in text.splitlines())
    start = ["    def __init__(self):", "        super().__init__()", *attributes, ""] if attributes else []
    classes.append("\n".join([f"class {name}(torch.nn.Module):", *start, body]))


def _renamed(graph: fx.Graph) -> fx.Graph:
    """A copy of ``graph`` whose inputs have the denoiser's names."""
    copy = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            env[node] = copy.placeholder(_short(node.name))
            env[node].meta = dict(node.meta)
        else:
            env[node] = copy.node_copy(node, env.__getitem__)
    return copy


def _short(name: str) -> str:
    """``l_model_modules_layers_modules_0_modules_up_parameters_weight_`` -> ``layers_0_up_weight``"""
    bare = re.sub(r"^l_(model|self|kwargs)_|_$", "", name)
    return re.sub(r"(^|_)(modules|parameters|buffers)_", r"\1", bare) or name


def _held(module: fx.GraphModule, attribute: str) -> Any:
    value: Any = module
    for part in attribute.split("."):
        value = getattr(value, part)
    return value


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    return f"a {type(value).__name__}"


def _import(alias: str, value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return (
            f"import {value.__name__}"
            if alias == value.__name__.split(".")[0]
            else f"import {value.__name__} as {alias}"
        )
    home, own = getattr(value, "__module__", None), getattr(value, "__qualname__", getattr(value, "__name__", alias))
    if home in (None, "builtins") or "." in own or "<" in own:
        return f"{alias} = {_literal(value)}"
    return f"from {home} import {own}" + ("" if own == alias else f" as {alias}")


def _literal(value: Any) -> str:
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!r})"
    if isinstance(value, float):
        return f"float({str(value)!r})"
    if value is type(None):
        return "type(None)"
    if isinstance(value, type) and value.__module__ == "builtins":
        return value.__name__
    return str(value)
