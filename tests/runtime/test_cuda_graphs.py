"""``mode="reduce-overhead"``: every static policy replays CUDA graphs from fixed addresses. Needs a GPU."""

from __future__ import annotations

import pytest
import torch

from hicache_compile import FORA, SCM, HiCache, Policy, TaylorSeer, hicache_compile
from tests.support.models import flux_inputs, random_flux

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
STEPS = 20
POLICIES = [
    HiCache(interval=4, scope="module"),
    HiCache(interval=4, scope="stack"),
    TaylorSeer(interval=3, scope="block"),
    FORA(interval=5, scope="output"),
    SCM("1" * 4 + "0010" * 4),
]


def trajectory(denoiser: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    x = inputs["hidden_states"]
    with torch.no_grad():
        for step in range(STEPS):
            time = torch.full((len(x),), 1 - step / STEPS, device=x.device)
            x = x - denoiser(**{**inputs, "hidden_states": x}, timestep=time, return_dict=False)[0] / STEPS
    return x


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{type(policy.forecaster).__name__}-{policy.scope}")
def test_graphs_are_recorded_once_and_say_the_same(policy: Policy) -> None:
    from torch._inductor.cudagraph_trees import get_manager

    model = random_flux(2, 3).cuda()
    inputs = {name: value.cuda() for name, value in flux_inputs().items()}
    graphed = hicache_compile(model, policy, mode="reduce-overhead")
    plain = hicache_compile(model, policy, backend="eager")
    reserved, recorded = [], []
    for _ in range(5):
        with graphed.trajectory(STEPS), plain.trajectory(STEPS):
            torch.testing.assert_close(trajectory(graphed, inputs), trajectory(plain, inputs), rtol=1e-3, atol=1e-4)
        manager = get_manager(0, create_if_none_exists=False)
        assert manager is not None
        recorded.append(manager.new_graph_id().id)
        reserved.append(torch.cuda.memory_reserved())
    assert recorded[-1] - recorded[-2] == 1, "a graph was recorded again"  # our own question takes one number
    assert reserved[-1] == reserved[-2]
    assert graphed.report().recompiles == 0


def test_an_output_outlives_the_next_branch() -> None:
    model = random_flux(1, 1).cuda()
    inputs = {name: value.cuda() for name, value in flux_inputs().items()} | {"timestep": torch.ones(2, device="cuda")}
    compiled = hicache_compile(model, HiCache(interval=2), mode="reduce-overhead")
    other = inputs | {"pooled_projections": torch.randn(2, 10, device="cuda")}
    with torch.no_grad(), compiled.trajectory(8):
        for _ in range(8):
            with compiled.cache_context("cond"):
                first = compiled(**inputs).sample
                kept = first.clone()
            with compiled.cache_context("uncond"):
                compiled(**other)
            assert torch.equal(first, kept)
