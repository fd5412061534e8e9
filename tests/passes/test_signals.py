"""What a guard measures is found where the noisy input enters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hicache_compile import DBCache, FBCache, HiCacheError, Policy, StepMask, hicache_compile
from tests.support.models import ToyDiT
from tests.zoo import CASES


@torch.library.custom_op("hicache_tests::logged", mutates_args=())
def logged(x: Tensor) -> Tensor:
    """An operation of a user's own, which the graph cannot look into."""
    return x.clone()


@logged.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize("policy", [FBCache(0.1), DBCache(1, threshold=0.1, warmup=2)])
def test_a_block_may_begin_with_an_operation_of_its_own(policy: Policy) -> None:
    """What is measured is the sum that the blocks before made, so all is as without the operation."""
    made = []
    for begins in (None, lambda module, arguments: (logged(arguments[0]), *arguments[1:])):
        model = ToyDiT(depth=4).eval()
        for layer in model.layers if begins is not None else ():
            layer.register_forward_pre_hook(begins)
        compiled = hicache_compile(model, policy, backend="eager")
        x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
        with compiled.trajectory(10), torch.no_grad():
            for step in range(10):
                x = x - compiled(x, torch.full((2,), 1 - step / 10)) / 10
        report = compiled.report()
        made.append((report.decisions(), report.decisions("default[1]"), report.nonfinite_probes, x))
    (*said, x), (*expected, wanted) = reversed(made)
    assert said == expected
    assert "." in said[0]
    assert said[2] == 0
    torch.testing.assert_close(x, wanted, rtol=1e-6, atol=1e-6)


def test_a_stream_that_is_cut_between_measured_blocks_is_refused() -> None:
    model = ToyDiT(depth=4).eval()
    model.layers[1].register_forward_pre_hook(lambda module, arguments: (logged(arguments[0]), *arguments[1:]))
    compiled = hicache_compile(model, DBCache(2, threshold=0.1), backend="eager")
    with pytest.raises(
        HiCacheError, match=r"a guard measures a residual over layers\.0\.\.layers\.1: .* none was found"
    ):
        compiled(torch.randn(2, 5, 16), torch.ones(2))


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
