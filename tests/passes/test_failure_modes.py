"""What goes wrong with other caches, as measured on diffusers 0.42 and cache-dit 1.5: none of it does here."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from hicache_compile import FORA, SCM, HiCache, Newton, Policy, StepMask, Taylor, hicache_compile
from tests.coverage import examine
from tests.support.models import ToyDiT, flux_inputs, random_flux, sample
from tests.zoo import CASES


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_with_a_cache_everything_is_compiled() -> None:
    """MagCache under ``torch.compile``: 91 of 5252 ops are compiled, or none."""
    model = random_flux(2, 2)
    torch.compile(model, backend="eager", fullgraph=True)(**flux_inputs(), timestep=torch.ones(2))
    uncached = counters["stats"]["calls_captured"]
    torch._dynamo.reset()
    counters.clear()
    compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
    with compiled.trajectory(6):
        sample(compiled, flux_inputs(), 6)
    assert counters["stats"]["calls_captured"] == uncached
    assert not counters["graph_break"]
    assert graphs() == 1


def test_steps_are_data() -> None:
    """PAB under ``torch.compile``: a recompile every step, and from the ninth on silently nothing is compiled."""
    compiled = hicache_compile(ToyDiT(), FORA(interval=2), backend="aot_eager")
    for _ in range(3):
        with torch.no_grad(), compiled.trajectory(40):
            for step in range(40):
                compiled(torch.ones(1, 8, 16), torch.full((1,), 1 - step / 40))
    assert graphs() == 1
    assert compiled.report().decisions() == FORA(interval=2).decisions(40)


def test_a_new_shape_costs_one_capture() -> None:
    """TaylorSeer in diffusers: 13 more graphs for a resolution, 11 for a batch, beyond the recompile limit."""
    compiled = hicache_compile(ToyDiT(), HiCache(interval=2), backend="aot_eager", dynamic=False)
    for count, (batch, tokens) in enumerate([(1, 8), (1, 12), (2, 12), (1, 8), (2, 12)], 1):
        with torch.no_grad(), compiled.trajectory(6):
            for step in range(6):
                compiled(torch.ones(batch, tokens, 16), torch.full((batch,), 1 - step / 6))
        assert graphs() == min(count, 3)
        assert "." in compiled.report().decisions()


@pytest.mark.parametrize("name", ["WanTransformer3DModel", "LTXVideoTransformer3DModel", "CogVideoXTransformer3DModel"])
def test_nothing_is_missed_without_a_word(name: str) -> None:
    """TaylorSeer's default in diffusers hooks no module of these three, and does not say so."""
    found = examine(next(case for case in CASES if case.name == name))["module"]
    assert found.sites >= 4
    assert found.flops_forecast < 0.3 * found.flops_full


def test_a_model_without_blocks_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layer(x) * t[:, None, None]

    compiled = hicache_compile(Plain(), HiCache(), backend="eager")
    with caplog.at_level(logging.WARNING), torch.no_grad(), compiled.trajectory(2):
        compiled(torch.ones(1, 8, 16), torch.ones(1))
    assert "nothing is cached" in caplog.text
    assert compiled.report().decisions() == "F"


def test_a_kernel_that_writes_to_its_input_spoils_no_anchor() -> None:
    """cache-dit on MiniMax-H3: an in-place kernel overwrote the retained input, and nothing was ever skipped."""

    class Overwriting(ToyDiT):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            y = super().forward(x, t)
            return y.mul_(0.5).add_(1)

    model = Overwriting()
    x = torch.randn(1, 8, 16)
    compiled = hicache_compile(model, Policy(FORA(2).schedule, Newton(1)), backend="aot_eager")
    with torch.no_grad(), compiled.trajectory(4):
        outputs = [compiled(x, torch.ones(1)).clone() for _ in range(4)]
    for output in outputs:  # the same input at every step: every forecast is exact
        assert torch.allclose(output, model(x, torch.ones(1)), atol=1e-5)


def test_a_mask_does_not_rotate() -> None:
    """cache-dit's mask moves on by one step at each generation, and image 2 starts from image 1's cache."""
    mask = "110001000010"
    model = ToyDiT()
    compiled = hicache_compile(model, Policy(StepMask(mask), Taylor(1)), backend="aot_eager")
    images = []
    for seed in range(3):
        x = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad(), compiled.trajectory(12):
            for step in range(12):
                x = x - compiled(x, torch.full((1,), 1 - step / 12)) / 12
        images.append(x)
        assert compiled.report().decisions() == mask.replace("1", "F").replace("0", ".")
    alone = hicache_compile(model, Policy(StepMask(mask), Taylor(1)), backend="aot_eager")
    x = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), alone.trajectory(12):
        for step in range(12):
            x = x - alone(x, torch.full((1,), 1 - step / 12)) / 12
    assert torch.equal(x, images[2])


def test_named_masks_have_the_length_of_the_run() -> None:
    assert len(SCM("fast", num_steps=28).decisions(28)) == 28
