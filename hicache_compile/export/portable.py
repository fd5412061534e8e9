"""A captured call in ops that any torch has: without this library's operators, and constants as inputs.

before   t = torch.tensor([1, 2]); n = hicache.of_size(x[mask], [5, 8]); e = hicache.expect(y, "3")
after    t: an input of the graph; n = of_size(x[mask], [5, 8]); e = expected(y, [3]), plain functions
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from hicache_compile.errors import HiCacheError
from hicache_compile.internals import pytree
from hicache_compile.operators.readings import MOST_SHOWN
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import copy_graph, drop_dead_code, placeholders
from hicache_compile.runtime.replay.capture import CapturedCall

DIFFERS = "what the denoiser reads of its inputs differs from what it read when exported"
MAKES_CONSTANTS = (torch.tensor, torch.as_tensor, torch.scalar_tensor)


def of_size(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """``tensor``, of which the program checks that it has ``sizes``; to torch they are constant from here on."""
    for dim, wanted in enumerate(sizes):
        size = tensor.shape[dim]
        if not isinstance(size, int):
            torch._check(size == wanted)
            padding = tensor.new_zeros([wanted if at == dim else n for at, n in enumerate(tensor.shape)])
            tensor = torch.cat([tensor, padding], dim=dim).narrow(dim, 0, wanted)
    return tensor


def picked(tensor: Tensor, mask: Tensor, sizes: Sequence[int]) -> Tensor:
    """``tensor[mask]`` of ``sizes``, which the program checks."""
    torch._assert_async(mask.sum() == sizes[0], DIFFERS)
    # Of the mask's ones the first scores highest: ONNX has no `nonzero` of a fixed size.
    scores = mask.reshape(-1).long() * mask.numel() - torch.arange(mask.numel(), device=mask.device)
    first = torch.topk(scores, sizes[0]).indices
    return tensor.flatten(0, mask.dim() - 1)[first]


def expected(tensor: Tensor, values: Sequence[Any]) -> Tensor:
    """Whether ``tensor`` holds ``values``, in its order."""
    return torch.stack([tensor.reshape(-1)[i] == value for i, value in enumerate(values)]).all()


def tied(output: Tensor, holds: Sequence[Tensor]) -> Tensor:
    """``output`` of a program that ends where one of ``holds`` does not."""
    for each in holds:
        torch._assert_async(each, DIFFERS)
    return output


def portable(call: CapturedCall) -> CapturedCall:
    """``call`` with a graph that can be exported.

    Raises:
        HiCacheError: the denoiser read more numbers on the host than a program can check.
    """
    captured, _ = copy_graph(call.captured)
    made = _Constants(captured, list(call.inputs))
    for node in list(captured.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in MAKES_CONSTANTS and not node.all_input_nodes:
            node.replace_all_uses_with(made.input(node.name, node.target(*node.args, **node.kwargs), ops.value(node)))
            captured.graph.erase_node(node)
        elif node.target is operator.setitem and isinstance(node.args[2], int | float):
            like = ops.value(node.args[0])
            value = torch.tensor(node.args[2], dtype=like.dtype, device=like.device)
            node.update_arg(2, made.input(f"{node.name}_value", value, like.new_empty(())))
        elif node.target is torch.ops.hicache.of_size.default:
            node.target = of_size
            taken: Any = node.args[0]
            mask: Any = taken.args[1] if taken.target is operator.getitem else None
            if ops.is_tensor(mask) and ops.value(mask).dtype == torch.bool:
                node.target, node.args = picked, (*taken.args, node.args[1])
                _erase(taken)  # what still uses it are assertions about its size
        elif node.target is torch.ops.hicache.expect.default:
            node.target, node.args = expected, (node.args[0], _values(str(node.args[1])))
        elif node.target is torch.ops.hicache.tied.default:
            node.target = tied
    drop_dead_code(captured.graph)
    captured.recompile()
    return replace(call, captured=captured, inputs=made.inputs)


def _erase(node: fx.Node) -> None:
    """Remove ``node`` and all that uses it."""
    for user in list(node.users):
        _erase(user)
    node.graph.erase_node(node)


class _Constants:
    """Constants that become inputs of a graph: a branch of a program may hold none."""

    def __init__(self, captured: fx.GraphModule, inputs: list[Any]) -> None:
        self.inputs = inputs
        self._graph = captured.graph
        self._last = placeholders(captured)[-1]

    def input(self, name: str, value: Tensor, example: Tensor) -> fx.Node:
        with self._graph.inserting_after(self._last):
            self._last = self._graph.placeholder(name)
        self._last.meta = {
            "input": len(self.inputs),
            "weight": False,
            "example_value": example,
            "calls": (),
            "path": "",
        }
        self.inputs.append(value)
        return self._last


def _values(described: str) -> list[Any]:
    """The values that ``hicache.expect`` spells out."""
    try:
        values = ast.literal_eval(described)
    except SyntaxError:
        raise HiCacheError(
            f"export.model reads {described.partition(',')[0]} of one tensor on the host: must read no more than "
            f"{MOST_SHOWN}, which a program can check; or hand it what it reads as plain numbers"
        ) from None
    return pytree.tree_leaves(values)
