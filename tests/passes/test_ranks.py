"""What graphs of a denoiser over several ranks tell, read in one process: the others do not exist."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from hicache_compile import hicache_compile
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
