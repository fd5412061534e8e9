"""FlexCache's knob on the trained demo model: more of it never computes more steps."""

from __future__ import annotations

import pytest
import torch

from hicache_compile import FlexCache, HiCache, hicache_compile
from hicache_compile.demo.sampling import load_model, sample

STEPS = 30
RATIOS = (0.0, 0.05, 0.2, 0.35, 0.5, 0.75, 1.0)


@pytest.mark.parametrize("strategy", ["teacache", "pab", "ditango"])
def test_a_higher_ratio_never_computes_more_steps(strategy: str) -> None:
    denoiser = hicache_compile(load_model(), HiCache(scope="stack"), backend="eager")
    computed = []
    for ratio in RATIOS:
        denoiser.policy = FlexCache(strategy, ratio)
        sample(denoiser, torch.tensor([3]), STEPS)
        computed.append(denoiser.report().computed)
    assert computed == sorted(computed, reverse=True)
    assert computed[0] == STEPS  # off
    assert computed[-1] < 0.7 * STEPS
