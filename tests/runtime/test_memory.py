"""A budget for anchors, their dtype, and anchors on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import HiCache, HiCacheError, hicache_compile
from hicache_compile.policy.layout import Layout
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.storage.budget import choose, parse_bytes
from tests.support.models import flux_inputs, random_flux, sample

STEPS = 14
SLOTS = {
    "module": [((2, 16, 32), torch.float32)] * 11,
    "block": [((2, 16, 32), torch.float32)],
    "stack": [((2, 16, 32), torch.float32)],
    "output": [((2, 16, 32), torch.float32)],
}


@pytest.fixture(scope="module")
def flux() -> nn.Module:
    return random_flux()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GiB", 4 << 30), ("500MB", 500_000_000), ("1.5 KiB", 1536), (1000, 1000), ("7", 7), (None, None)],
)
def test_bytes(text: str | int | None, expected: int | None) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["4 gigs", "-1", "0", "GiB", True, 0, [], "4iB"])
def test_not_bytes(text: object) -> None:
    with pytest.raises(HiCacheError, match=r"memory_budget = .*: must be bytes"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (135_168, Layout("module", depth=3)),
        (135_167, Layout("module", depth=3, anchors="bfloat16")),
        (67_583, Layout("module", depth=3, anchors="int8")),  # 11 slots with 3 scales of 4 bytes each
        (33_923, Layout("module", depth=2, anchors="int8")),
        (22_615, Layout("block", depth=3)),  # order 1 before a finer scope
        (12_287, Layout("block", depth=3, anchors="bfloat16")),
        (6_143, Layout("block", depth=3, anchors="int8")),
        (2_056, Layout("block", depth=2, anchors="int8")),
        (2_055, Layout("block", depth=1, anchors="bfloat16")),
    ],
)
def test_the_finest_layout_that_fits(budget: int, expected: Layout) -> None:
    layout, why = choose(HiCache(interval=4).layout, budget, None, SLOTS.__getitem__)
    assert layout == expected
    assert f"of {budget:,} bytes" in why


def test_too_small_a_budget_says_the_least_that_would_do() -> None:
    with pytest.raises(HiCacheError, match="must be at least 1,028"):
        choose(HiCache(interval=4).layout, 1027, None, SLOTS.__getitem__)


def test_a_coarse_policy_is_not_made_finer() -> None:
    layout, _ = choose(HiCache(interval=4, scope="stack").layout, 10**9, None, SLOTS.__getitem__)
    assert layout.scope == "stack"


@pytest.mark.parametrize("budget", ["100KB", "40KB", "8KB", "4KB"])
def test_the_state_stays_within_the_budget(flux: nn.Module, budget: str) -> None:
    expected = sample(flux, flux_inputs(), STEPS)
    compiled = hicache_compile(flux, HiCache(interval=4), backend="eager", memory_budget=budget)
    with compiled.trajectory(STEPS):
        cached = sample(compiled, flux_inputs(), STEPS)
    report = compiled.report()
    assert 0 < report.state_bytes <= (parse_bytes(budget) or 0)
    assert f"{report.state_bytes:,} of" in report.memory
    assert (cached - expected).norm() / expected.norm() < 0.03
    assert report.decisions() == "FFF...F...F..."


def test_a_second_branch_halves_the_room(flux: nn.Module) -> None:
    compiled = hicache_compile(flux, HiCache(interval=4), backend="eager", memory_budget="140000")
    inputs = flux_inputs()
    with torch.no_grad(), compiled.trajectory(6):
        for step in range(6):
            for branch in ("cond", "uncond"):
                with compiled.cache_context(branch):
                    compiled(**inputs, timestep=torch.full((2,), 1 - step / 6))
    assert compiled.report().state_bytes <= 140_000
    assert "bfloat16" in compiled.report().memory


def test_an_impossible_budget_is_one_clear_error(flux: nn.Module) -> None:
    compiled = hicache_compile(flux, HiCache(interval=4), backend="eager", memory_budget="1KB")
    with pytest.raises(HiCacheError, match="must be at least 1,028"):
        sample(compiled, flux_inputs(), 4)


@pytest.mark.parametrize(("scope", "backend"), [("module", "eager"), ("stack", "aot_eager")])
def test_offloaded_anchors_give_the_same_run(flux: nn.Module, scope: str, backend: str) -> None:
    results: list[Tensor] = []
    bytes_on_device = []
    for offload in (False, True):
        compiled = hicache_compile(flux, HiCache(interval=4, scope=scope), backend=backend, offload=offload)
        with compiled.trajectory(STEPS):
            results.append(sample(compiled, flux_inputs(), STEPS))
        bytes_on_device.append(compiled.report().state_bytes)
    assert torch.allclose(*results, atol=1e-6, rtol=1e-5)
    assert bytes_on_device[0] == 3 * bytes_on_device[1]


def test_offloaded_policies_share_programs(flux: nn.Module) -> None:
    compiled = hicache_compile(flux, HiCache(interval=4, order=1), backend="eager", offload=True)
    for order in (1, 3):
        compiled.policy = HiCache(interval=4, order=order)
        with compiled.trajectory(STEPS):
            sample(compiled, flux_inputs(), STEPS)
    assert compiled.report().programs == 2


def test_anchors_in_bfloat16_are_the_rounded_ones(flux: nn.Module) -> None:
    """The oracle: reuse returns exactly the last anchor, rounded once."""
    from hicache_compile.operators.anchors import forecast, remember

    ring = torch.zeros(2, 3, dtype=torch.bfloat16)
    value = torch.tensor([1.001, -2.5, 3e-3])
    remember(ring, torch.tensor([1]), value)
    assert torch.equal(forecast(ring, torch.tensor([0.0, 1.0]), torch.float32), value.bfloat16().float())


def test_depth_limits_the_order() -> None:
    policy: Policy = HiCache(interval=4, order=2)
    assert len(policy.weights([0, 1, 2], 3, 2)) == 2
