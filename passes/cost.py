"""FLOPs of a program, counted by torch's own FlopCounterMode on fake tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from hicache_compile.passes import ops
from hicache_compile.passes.graphs import placeholders
from hicache_compile.passes.shapes import Bindings, concrete


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


# FlopCounterMode knows the attention kernels of GPUs; the CPU's does the same products.
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


class _Run(fx.Interpreter):
    """Runs a graph on fake tensors, from which a scalar cannot be read: the one seen at capture stands in."""

    def run_node(self, n: fx.Node) -> Any:
        example = ops.value(n)
        return float(example.node.hint) if isinstance(example, torch.SymFloat) else super().run_node(n)


def count_flops(program: fx.GraphModule, bindings: Bindings) -> int:
    """FLOPs (two for each multiply-add) of one run of ``program`` at the sizes in ``bindings``."""
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter, torch.no_grad():
        _Run(program).run(*(_fake(ops.value(node), bindings) for node in placeholders(program)))
    return int(counter.get_total_flops())


def _fake(example: Any, bindings: Bindings) -> Any:
    """A fresh fake value like ``example``; needs a fake mode around it."""
    if isinstance(example, torch.Tensor):
        return torch.empty(concrete(example.shape, bindings), dtype=example.dtype, device=example.device)
    if isinstance(example, torch.SymInt):
        return concrete((example,), bindings)[0]
    return example
