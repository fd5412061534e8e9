"""The one counter of FLOPs (two per multiply-add): torch's, with the attention kernel of the CPU."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

# A counter sets a flag and hooks that torch has once for all threads: a frame that Dynamo sees meanwhile in another is
# skipped for good. So no denoiser is called through Dynamo while FLOPs are counted.
NO_DYNAMO = threading.RLock()


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def flop_counter() -> FlopCounterMode:
    """A counter that prints nothing. torch's has only the GPU kernels; the CPU's computes the same products."""
    kernels = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    return FlopCounterMode(display=False, custom_mapping=kernels)
