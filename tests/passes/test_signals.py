"""What a guard measures is found where the noisy input enters."""

from __future__ import annotations

import pytest
import torch

from hicache_compile import FBCache, Policy, StepMask, hicache_compile
from tests.zoo import CASES


@pytest.mark.parametrize("name", ["HunyuanVideoTransformer3DModel", "Krea2Transformer2DModel"])
def test_blocks_that_refine_the_text_are_not_measured(name: str) -> None:
    """They come first, and the noisy input does not enter them; the blocks after the measured one are forecast."""
    case = next(case for case in CASES if case.name == name)
    guarded = FBCache(threshold=1e9, max_skips=2)
    model, made = case.build(3), []
    for policy in (guarded, Policy(StepMask("100100"), guarded.forecaster, "stack", first=1)):
        compiled = hicache_compile(model, policy, backend="eager")
        x = case.noise()
        with compiled.trajectory(6), torch.no_grad():
            for step in range(6):
                x = x - case.call(compiled, x, 1 - step / 6) / 6
        assert compiled.report().decisions() == "F..F.."
        made.append(x)
    torch.testing.assert_close(*made, rtol=1e-5, atol=1e-6)


def test_a_run_is_measured_from_where_the_noisy_input_enters() -> None:
    """MiniMax-H3 refines the text in the first block of its only run: that and the block after it are computed."""
    case = next(case for case in CASES if case.name == "MiniMaxH3Transformer3DModel")
    compiled = hicache_compile(case.build(3), FBCache(threshold=1e9, max_skips=2), backend="eager")
    with compiled.trajectory(3), torch.no_grad():
        for time in (1.0, 0.7, 0.4):
            case.call(compiled, case.noise(), time)
    report = compiled.report()
    assert report.decisions() == "F.."
    (site,) = compiled._graphs[0].session.live[compiled._graphs[0]].programs.rewrite.sites
    assert site.name == "transformer_blocks.1..transformer_blocks.2"
