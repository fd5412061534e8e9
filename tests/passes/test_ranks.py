"""What graphs of a denoiser over several ranks tell, read in one process: the others do not exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hicache_compile import DiTango, HiCache, HiCacheError, hicache_compile
from hicache_compile.benchmarks.models import Flux
from hicache_compile.operators.collectives import members
from hicache_compile.passes.analysis.ranks import is_collective, ranks_of
from tests.support.parallel import STEPS, build, parallelise, run
from tests.support.record import CASES


@pytest.fixture
def four_ranks() -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    dist.destroy_process_group()
    torch._dynamo.reset()


@pytest.mark.parametrize(("policy", "sent"), [("hicache stack", 1), ("speca", 1 + 4)])
@pytest.mark.usefixtures("four_ranks")
def test_a_forecast_sends_what_leaves_the_denoiser(policy: str, sent: int) -> None:
    """And what verifies a forecast computes the last block: queries, keys, values and what is attended."""
    compiled = hicache_compile(parallelise(build("wan"), "ulysses", 2), CASES[policy][0](0), backend="eager")
    with compiled.trajectory(STEPS):
        run(compiled, "wan", 1)
    report, forecast = compiled.report(), compiled.graphs["forecast"]
    assert report.collectives_full == 3 * 4 + 1
    assert sum(map(is_collective, forecast.graph.nodes)) == sent
    assert report.collectives_forecast == sent + bool(compiled.policy.guards)  # what is measured
    assert "to other ranks: 13 collectives" in str(compiled.explain())
    captured = compiled.graphs["captured"]
    (group,) = ranks_of(captured, None)
    assert members(group) == {0, 1}
    assert ranks_of(captured, False) == ()
    (everyone,) = ranks_of(captured, True)
    assert members(everyone) == {0, 1, 2, 3}


@pytest.mark.usefixtures("four_ranks")
def test_text_keys_would_arrive_once_from_each_rank() -> None:
    compiled = hicache_compile(build("flux"), DiTango(0.5, 2, 2, 2, distributed=True), backend="eager")
    refused = pytest.raises(HiCacheError, match="attends to 2 streams of tokens at once")
    with compiled.trajectory(STEPS), refused:
        run(compiled, "flux", 1)


@pytest.mark.parametrize("scope", ["module", "stack"])
@pytest.mark.usefixtures("four_ranks")
def test_a_forecast_of_ring_attention_sends_what_leaves_the_denoiser(
    scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of a GPU, so shapes alone are run."""
    from diffusers import ContextParallelConfig
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Kernels

    shape = Flux(2, 2, 4, 32, 64, 32, device="meta")
    model: Any = shape.model()
    monkeypatch.setattr(Kernels, "_active_backend", Kernels._active_backend)  # the next line is for the whole process
    model.set_attention_backend("_native_flash")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    model.enable_parallelism(config=ContextParallelConfig(ring_degree=4))
    compiled = hicache_compile(model, HiCache(3, scope=scope), backend="eager")
    (branch,) = shape.branches().values()
    with compiled.trajectory(8), torch.no_grad():
        for step in range(4):
            now = torch.full((1,), 1 - step / 8, device="meta")
            compiled(hidden_states=shape.noise(), timestep=now, **branch, return_dict=False)
    report = compiled.report()
    assert report.decisions() == "FFF."
    assert (report.graph_breaks, report.recompiles, report.refused) == (0, 0, [])
    assert report.collectives_full == 4 + 1  # keys and values of each attention, and the output
    assert report.collectives_forecast == 1
