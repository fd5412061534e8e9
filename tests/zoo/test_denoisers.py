"""Denoisers a user wrote: no class, list or argument has a name that could be known."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import HiCache, hicache_compile
from hicache_compile.passes import rewrite
from hicache_compile.policy.layout import Layout
from tests.support.captured_graphs import captured
from tests.support.denoisers import AfterNorm, Duet, Hourglass, Painter

X = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
Y = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
SCOPES = ("module", "block", "stack", "output")
MODELS = [Painter, Hourglass, Duet, AfterNorm]


def inputs(model: nn.Module) -> dict[str, Tensor]:
    return {"y": Y} if isinstance(model, Duet) else {}


def run(model: nn.Module, kind: nn.Module, steps: int = 12) -> Tensor:
    x = X
    for step in range(steps):
        with torch.no_grad():
            x = x - model(x=x, t=torch.full((2,), 1 - step / steps), **inputs(kind)) / steps
    return x


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("cls", MODELS)
def test_equal_at_interval_1_and_near_at_interval_4(cls: type[nn.Module], scope: str) -> None:
    model = cls()
    expected = run(model, model)
    compiled = hicache_compile(
        model, HiCache(interval=1, scope=scope), backend="aot_eager" if scope == "module" else "eager"
    )
    with compiled.trajectory(12):
        assert torch.equal(run(compiled, model), expected)
    compiled.policy = HiCache(interval=4, scope=scope)
    with compiled.trajectory(12):
        cached = run(compiled, model)
    report = compiled.report()
    assert report.decisions() == "FFF...F...F."
    assert (cached - expected).norm() / (expected - X).norm() < 0.1
    assert report.flops_forecast < 0.15 * report.flops_full
    assert (report.programs, report.recompiles, report.graph_breaks) == (2, 0, 0)


@pytest.mark.parametrize(
    ("cls", "kinds"),
    [
        (Painter, {"self-attention": 3, "mlp": 3}),
        (Hourglass, {"self-attention": 5, "mlp": 5}),
        # the last pair's second stream reaches nothing
        (Duet, {"joint-attention": 3, "self-attention": 1, "mlp": 7}),
        (AfterNorm, {"self-attention": 3, "mlp": 3}),
    ],
)
def test_sites_by_kind(cls: type[nn.Module], kinds: dict[str, int]) -> None:
    model = cls()
    graph = captured(model, x=X, t=torch.ones(2), **inputs(model))
    found = rewrite(graph, Layout("module"))
    assert Counter(site.kind for site in found.sites) == kinds
    assert found.refused == []


def test_calls_of_a_shared_block_are_told_apart() -> None:
    graph = captured(Duet(), x=X, t=torch.ones(2), y=Y)
    names = [site.name for site in rewrite(graph, Layout("block"), without=("collapse",)).sites]
    assert names == ["pairs.0", "pairs.1", "pairs.0@1", "pairs.1@1"]


def test_the_outer_blocks_of_an_hourglass_stay_live() -> None:
    """``stack`` with a first and a last block: what DeepCache does to a UNet."""
    model = Hourglass()
    compiled = hicache_compile(model, {"preset": "HiCache", "interval": 4, "scope": "stack"}, backend="eager")
    policy = compiled.policy
    compiled.policy = type(policy)(policy.schedule, policy.forecaster, "stack", first=1, last=1)
    expected = run(model, model)
    with compiled.trajectory(12):
        cached = run(compiled, model)
    site = compiled._session.live[compiled._graphs[0]].programs.rewrite.sites[0]
    assert site.name == "going_in.1..coming_out.0"
    assert (cached - expected).norm() / (expected - X).norm() < 0.01


def test_modulations_are_not_streams() -> None:
    """A shift as large as the tokens is added to a product in every block; it carries nothing."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Linear(16, 32)
            self.steps = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            scale, shift = self.shift(x * t[:, None, None]).chunk(2, dim=-1)
            for step in self.steps:
                x = x + step(torch.layer_norm(x, (16,)) * (1 + scale) + shift)
            return x

    found = rewrite(captured(Shifted(), x=X, t=torch.ones(2)), Layout("module"))
    assert [site.name for site in found.sites] == ["steps.0", "steps.1", "steps.2"]


def test_writes_into_a_value_the_site_made_belong_to_it() -> None:
    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            for block in self.blocks:
                y = block(x)
                out = torch.empty_like(y)
                out[..., 0::2] = y[..., 0::2] * t[:, None, None] - y[..., 1::2]
                out[..., 1::2] = y[..., 1::2] * t[:, None, None] + y[..., 0::2]
                x = x + block(out)
            return x

    model = Rotated()
    assert len(rewrite(captured(model, x=X, t=torch.ones(2)), Layout("module")).sites) == 2
    compiled = hicache_compile(model, HiCache(interval=1), backend="aot_eager")
    with compiled.trajectory(12):
        assert torch.equal(run(compiled, model), run(model, model))


def test_a_tower_of_modulations_is_left_live() -> None:
    class Towered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
            self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            c = t[:, None, None].expand(-1, 1, 16)
            for layer in self.tower:
                c = c + layer(c).relu()
            for block in self.blocks:
                x = x + block(x * c)
            return x

    found = rewrite(captured(Towered(), x=X, t=torch.ones(2)), Layout("module"))
    assert [site.name for site in found.sites] == ["blocks.0", "blocks.1"]
    assert ("tower.0", "it follows from the time alone: cheap, and steep") in [
        (entry.site, entry.reason) for entry in found.refused
    ]


def test_a_batch_of_four_equals_four_runs_of_one() -> None:
    """Static schedules decide for every sample alike."""
    model = Painter()
    x = torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(2))
    compiled = hicache_compile(model, HiCache(interval=3), backend="aot_eager")

    def sampled(start: Tensor) -> Tensor:
        state = start
        with torch.no_grad(), compiled.trajectory(10):
            for step in range(10):
                state = state - compiled(state, torch.full((len(state),), 1 - step / 10)) / 10
        return state

    together = sampled(x)
    apart = torch.cat([sampled(one) for one in x.split(1)])
    assert torch.allclose(together, apart, atol=1e-5, rtol=1e-5)
