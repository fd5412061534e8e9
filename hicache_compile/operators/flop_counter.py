"""What is counted: FLOPs (two per multiply-add) by torch's ``FlopCounterMode``, and what ranks send.

Formulas that torch lacks are registered with it, so that a counter of the user's own counts the same.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_flop_count

from hicache_compile.internals import TorchDispatchMode, pytree
from hicache_compile.operators.collectives import COLLECTIVES, is_dtensor_type

# A counter sets a flag and hooks that torch has once for all threads: a frame that Dynamo sees meanwhile in another is
# skipped for good. So no denoiser is called through Dynamo while FLOPs are counted.
NO_DYNAMO = threading.RLock()


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _encoder_layer(tokens: Any, width: int, heads: int, *weights: Any, **_: Any) -> int:
    """Of the layer that ``nn.TransformerEncoderLayer`` runs outside training: shapes, in the operator's order."""
    batch, length, _ = tokens
    linears = sum(shape[0] * shape[1] for shape in weights if isinstance(shape, torch.Size | tuple) and len(shape) == 2)
    scores = (batch, heads, length, width // heads)
    return int(2 * batch * length * linears + sdpa_flop_count(scores, scores, scores))


# The kernel of the CPU computes the same products as those of the GPU; the layer of an encoder may run as one operator.
for _operator, _flops in (
    (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, _attention),
    (torch.ops.aten._transformer_encoder_layer_fwd, _encoder_layer),
):
    if _operator not in flop_registry:  # a newer torch may count it
        register_flop_formula(_operator)(_flops)


class Sent(TorchDispatchMode):
    """Counts collectives and the bytes that this rank puts into them. An operator on ``DTensor`` is taken for those
    that it makes on this rank's parts, also by a counter outside of this one."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(is_dtensor_type(kind) for kind in types):
            return NotImplemented
        if str(func).startswith(COLLECTIVES) and "wait_tensor" not in str(func):
            self.calls += 1
            given = pytree.tree_leaves(args[0])
            self.bytes += sum(value.numel() * value.element_size() for value in given if isinstance(value, Tensor))
        return func(*args, **(kwargs or {}))
