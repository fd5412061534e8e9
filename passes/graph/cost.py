"""FLOPs of a program, counted by torch's FlopCounterMode on fake tensors, and what it sends to other ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from hicache_compile.internals import DynamicOutputShapeException, FakeTensorMode
from hicache_compile.operators.collectives import is_dtensor, like_dtensor, local_part
from hicache_compile.operators.flop_counter import NO_DYNAMO, Sent
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.contexts import under
from hicache_compile.passes.graph.graphs import placeholders
from hicache_compile.passes.graph.shapes import Bindings, concrete


class _Run(fx.Interpreter):
    """Runs a graph on fake tensors.

    A scalar cannot be read from a fake tensor: the value seen at capture is used. Flex attention does not run on fake
    tensors outside a compiler: its FLOPs are those of full attention, whatever its mask excludes.
    """

    attention_flops = 0

    def __init__(self, program: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(program)
        self.by_node: dict[str, int] = {}
        self._counter = counter

    @property
    def flops(self) -> int:
        return int(self._counter.get_total_flops()) + self.attention_flops

    def run_node(self, n: fx.Node) -> Any:
        before = self.flops
        value = self._value_of(n)
        self.by_node[n.name] = self.flops - before
        return value

    def _value_of(self, n: fx.Node) -> Any:
        example = ops.value(n)
        if isinstance(example, torch.SymFloat):
            return float(example.node.hint)
        if n.op == "call_function" and ops.op(n) == "flex_attention":
            query, key, value = (self.env[argument] for argument in n.args[:3])  # type: ignore[index]  # nodes
            self.attention_flops += int(sdpa_flop_count(query.shape, key.shape, value.shape))
            return tuple(torch.empty(e.shape, dtype=e.dtype, device=e.device) for e in example)
        try:
            return super().run_node(n)
        except DynamicOutputShapeException:
            return _largest(n, self.env)


def _largest(node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    """The largest possible output of an op whose output size depends on data."""
    source = env[node.all_input_nodes[0]]
    if ops.op(node) == "nonzero":
        return torch.empty(source.numel(), source.dim(), dtype=torch.int64, device=source.device)
    if ops.op(node) == "where":
        return tuple(torch.empty(source.numel(), dtype=torch.int64, device=source.device) for _ in source.shape)
    mask = env[node.all_input_nodes[-1]]  # source[mask], masked_select(source, mask)
    return torch.empty(mask.numel(), *source.shape[mask.dim() :], dtype=source.dtype, device=source.device)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a program costs this rank.

    Args:
        flops: of each node, by name; two per multiply-add.
        collectives: calls of operators that communicate.
        bytes_sent: what this rank puts into them.
    """

    flops: dict[str, int]
    collectives: int
    bytes_sent: int


def cost_of(program: fx.GraphModule, bindings: Bindings) -> Cost:
    """The cost of ``program`` at the sizes in ``bindings``; nothing where it has nested tensors, whose lengths are no
    sizes: nothing of it is cached."""
    examples = [ops.value(node) for node in placeholders(program)]
    if any(isinstance(example, torch.Tensor) and example.is_nested for example in examples):
        return Cost({}, 0, 0)
    around = next((node.meta["autocast"] for node in placeholders(program) if "autocast" in node.meta), ())
    fake, counted = FakeTensorMode(), FlopCounterMode(display=False)
    with NO_DYNAMO, under(around), fake, counted as counter, Sent() as sent, torch.no_grad():
        run = _Run(program, counter)
        run.run(*(_fake(example, bindings) for example in examples))
    return Cost(run.by_node, sent.calls, sent.bytes)


def _fake(example: Any, bindings: Bindings) -> Any:
    """A new fake value like ``example``. Requires an active fake mode."""
    if is_dtensor(example):
        return like_dtensor(example, _fake(local_part(example), bindings))
    if isinstance(example, torch.Tensor):
        return torch.empty(concrete(example.shape, bindings), dtype=example.dtype, device=example.device)
    if isinstance(example, torch.SymInt):
        return concrete((example,), bindings)[0]
    return example
