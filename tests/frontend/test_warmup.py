"""``warmup`` compiles everything up front and leaves nothing else behind."""

from __future__ import annotations

import pytest
import torch

from hicache_compile import HiCache, HiCacheError, hicache_compile, inspect
from tests.support.models import ToyDiT


def inputs() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(2, 5, 16), "t": torch.rand(2)}


@pytest.mark.parametrize("how", [dict, tuple])
def test_everything_is_compiled_and_nothing_remembered(how: type) -> None:
    compiled = hicache_compile(ToyDiT(), HiCache(interval=3, warmup=2, order=1), backend="aot_eager")
    compiled.warmup(inputs() if how is dict else tuple(inputs().values()))
    report = compiled.report()
    assert (report.programs, report.recompiles, report.state_bytes, report.history) == (2, 0, 0, {})
    with torch.no_grad(), compiled.trajectory(6):
        for _ in range(6):
            compiled(**inputs()) if how is dict else compiled(*inputs().values())
    report = compiled.report()
    assert (report.programs, report.recompiles, report.decisions()) == (2, 0, "FF..F.")
    assert compiled.policy == HiCache(interval=3, warmup=2, order=1)


def test_not_inside_a_trajectory() -> None:
    compiled = hicache_compile(ToyDiT(), HiCache(interval=3), backend="eager")
    with compiled.trajectory(6), pytest.raises(HiCacheError, match="inside a trajectory"):
        compiled.warmup(inputs())


def test_not_a_lone_tensor() -> None:
    compiled = hicache_compile(ToyDiT(), HiCache(interval=3), backend="eager")
    with pytest.raises(HiCacheError, match=r"example_inputs is a Tensor: must be a dict, a tuple or a list"):
        compiled.warmup(torch.randn(2, 5, 16))


def test_through_torch_compile() -> None:
    policy = HiCache(interval=3, warmup=2, order=1)
    model = torch.compile(ToyDiT(), backend="hicache", options={"policy": policy, "backend": "aot_eager"})
    compiled = inspect(model)
    with torch.no_grad():
        compiled.warmup(inputs())
    report = compiled.report()
    assert (report.programs, report.recompiles, report.state_bytes, report.history) == (2, 0, 0, {})
    with torch.no_grad(), compiled.trajectory(6):
        for _ in range(6):
            model(**inputs())
    report = compiled.report()
    assert (report.programs, report.recompiles, report.decisions()) == (2, 0, "FF..F.")
