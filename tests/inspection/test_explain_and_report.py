"""``explain`` and ``report`` of one run agree with each other, and with FLOPs that are counted while it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hicache_compile import FBCache, HiCache, Interval, PerBranch, Uncached, hicache_compile, inspect
from hicache_compile.policy.presets import PRESETS
from tests.support.models import ToyDiT

STEPS = 12
NOT_HERE = ("SCM", "LeMiCa", "DBCache", "SeaCache")  # made for other lengths, more blocks, a grid
DECIDED_IN_THE_RUN = ("DiTango", "FlexCache")


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in NOT_HERE])
def test_of_every_preset(name: str) -> None:
    policy = PRESETS[name]()
    torch.manual_seed(0)
    model, x = ToyDiT(), torch.randn(1, 16, 16)
    with torch.no_grad(), FlopCounterMode(display=False) as once:
        model(x, torch.ones(1))
    compiled = hicache_compile(model, policy, backend="eager")
    with torch.no_grad(), FlopCounterMode(display=False) as counted, compiled.trajectory(STEPS):
        for step in range(STEPS):
            x = x - compiled(x, torch.full((1,), 1 - step / STEPS)) / STEPS
    report, found = compiled.report(), compiled.explain(STEPS)
    assert found.state_bytes == report.state_bytes
    assert found.flops_full == report.flops_full == once.get_total_flops()
    if name not in DECIDED_IN_THE_RUN:  # of attention over partitions a counter does not see what is reused
        uncached = STEPS * once.get_total_flops()
        assert report.flops_speedup == pytest.approx(uncached / counted.get_total_flops(), rel=1e-6)
        if not policy.guards:
            assert found.decisions == report.decisions()
            assert found.flops_speedup == pytest.approx(report.flops_speedup, rel=1e-6)


def test_branches_with_schedules_of_their_own(tmp_path: Path) -> None:
    policy = replace(HiCache(interval=3), schedule=PerBranch({"uncond": Interval(6)}, Interval(3)))
    compiled: Any = hicache_compile(ToyDiT(), policy, backend="eager")
    x = torch.randn(1, 16, 16)
    with torch.no_grad(), compiled.trajectory(STEPS):
        for step in range(STEPS):
            for name in ("cond", "uncond"):
                with compiled.cache_context(name):
                    compiled(x, torch.full((1,), 1 - step / STEPS))
    report, found = compiled.report(), compiled.explain(STEPS)
    (uncond,) = found.branches
    assert {"cond": [found.decisions], uncond.name: [uncond.decisions]} == report.history
    assert 2 / (1 / found.flops_speedup + 1 / uncond.flops_speedup) == pytest.approx(report.flops_speedup, rel=1e-6)
    assert f"{uncond.decisions}  4 in branch uncond" in str(found)
    compiled.dump(tmp_path, STEPS)
    lines = [line.split("\t") for line in (tmp_path / "schedule.uncond.tsv").read_text().splitlines()[1:]]
    computed = {int(step) for step, decision, *_ in lines if decision == "full"}
    assert computed == {step for step, letter in enumerate(uncond.decisions) if letter == "F"}
    assert "The plan of guidance branch <code>uncond</code>" in (tmp_path / "index.html").read_text()


def test_a_sample_of_a_batch_that_decides_for_itself() -> None:
    torch.manual_seed(0)
    model, x, t = ToyDiT(), torch.randn(3, 16, 16), torch.ones(3)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        model(x, t)
    for policy, samples in ((FBCache(0.05), 3), (HiCache(interval=3), 1)):
        compiled = hicache_compile(model, policy, backend="eager")
        with torch.no_grad(), compiled.trajectory(STEPS):
            for _ in range(3):
                compiled(x, t)
        report, found = compiled.report(), compiled.explain(STEPS)
        assert found.flops_full * samples == report.flops_full * samples == counted.get_total_flops()
        assert found.state_bytes * samples == report.state_bytes
        assert found.by_sample == (samples > 1) == ("of one sample" in str(found))


@pytest.mark.parametrize("route", ["hicache_compile", "torch.compile"])
@pytest.mark.parametrize(("scope", "blocks"), [("none", 3), ("module", 0)])
def test_where_nothing_is_cached_every_step_is_computed(route: str, scope: str, blocks: int, tmp_path: Path) -> None:
    """By the policy, and by a denoiser without blocks: on both routes one sees why."""
    policy = Uncached() if scope == "none" else HiCache(interval=3)
    model = ToyDiT() if blocks else Plain()
    if route == "torch.compile":
        compiled: Any = torch.compile(model, backend="hicache", options={"policy": policy, "backend": "eager"})
    else:
        compiled = hicache_compile(model, policy, backend="eager")
    handle = inspect(compiled)
    with torch.no_grad(), handle.trajectory(STEPS):
        for _ in range(2):
            compiled(torch.randn(1, 16, 16), torch.ones(1))
    found = handle.explain(STEPS)
    assert (found.decisions, len(found.blocks), found.flops_speedup) == ("F" * STEPS, blocks, 1.0)
    assert "captured" in handle.graphs
    handle.dump(tmp_path)


def test_a_policy_that_caches_after_one_that_does_not() -> None:
    torch.manual_seed(0)
    options = {"policy": "Uncached", "backend": "eager"}
    compiled: Any = torch.compile(ToyDiT(), backend="hicache", options=options)
    handle, x = inspect(compiled), torch.randn(1, 16, 16)

    def sample() -> str:
        with torch.no_grad(), handle.trajectory(6):
            for step in range(6):
                compiled(x, torch.full((1,), 1 - step / 6))
        return handle.report().decisions()

    assert sample() == "FFFFFF"
    handle.policy = HiCache(interval=3)
    assert sample() == "FFF..F"


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x)) * t
        return x
