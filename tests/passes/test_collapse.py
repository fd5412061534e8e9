"""Collapse: one slot a stream instead of one a block, the same result; and why it sometimes must not."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import HiCache, hicache_compile
from hicache_compile.errors import CannotRewrite
from hicache_compile.passes import rewrite
from hicache_compile.passes.analysis.sites import Site
from hicache_compile.passes.transforms.collapse import collapse, obstacle
from hicache_compile.passes.work import Work
from hicache_compile.policy.layout import Layout
from hicache_compile.runtime import compiled_graph
from tests.coverage import examine
from tests.support.captured_graphs import captured, cut
from tests.support.models import ToyBlock, ToyDiT, flux_inputs, random_flux, sample
from tests.zoo import CASES

TOY_INPUTS = (torch.zeros(2, 5, 16), torch.zeros(2))


@pytest.fixture(scope="module")
def flux() -> torch.fx.GraphModule:
    return captured(random_flux(3, 5), **flux_inputs(), timestep=torch.ones(2))


def collapsed(work: Work) -> tuple[list[Site], list[CannotRewrite]]:
    return collapse(work.module.graph, work.sites)


def test_block_sites_become_one_with_one_slot_a_stream(flux: torch.fx.GraphModule) -> None:
    found = cut(flux, Layout("block"))
    (site,), apart = collapsed(found)
    assert apart == []
    assert len(site.slots) == 1  # the text stream is not read after the last block
    assert {node.name for node in site.region} >= {node.name for other in found.sites for node in other.region}


def test_with_live_blocks_behind_it_each_stream_has_a_slot(flux: torch.fx.GraphModule) -> None:
    (site,), _ = collapsed(cut(flux, Layout("block", first=1, last=1)))
    assert site.name == "transformer_blocks.1..single_transformer_blocks.3"
    assert len(site.slots) == 2


def test_collapsed_equals_uncollapsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both run the same trajectory; they differ by the rounding of a sum of 8 residuals."""
    model, inputs, steps = random_flux(3, 5), flux_inputs(), 20
    results, slots = [], []
    for collapsing in (True, False):
        without = () if collapsing else ("collapse",)
        monkeypatch.setattr(compiled_graph, "rewrite", partial(rewrite, without=without))
        compiled = hicache_compile(model, HiCache(interval=4, scope="block"), backend="aot_eager")
        with compiled.trajectory(steps):
            results.append(sample(compiled, inputs, steps))
        slots.append(compiled.report().state_bytes)
        monkeypatch.undo()
    assert slots[1] == 8 * slots[0]
    assert float((results[0] - results[1]).norm() / results[1].norm()) < 1e-5


def test_it_says_what_it_did(flux: torch.fx.GraphModule, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hicache_compile.passes"):
        rewrite(flux, Layout("block", depth=2))
    assert "8 block sites became 1" in caplog.text


def test_live_gates_forbid_it(flux: torch.fx.GraphModule) -> None:
    first, second = cut(flux, Layout("module")).sites[:2]
    assert "not a residual: the gate it is multiplied with is computed live" in (obstacle(first, second) or "")


def test_a_reader_between_two_blocks_forbids_it() -> None:
    class Listener(ToyDiT):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            c = self.time(t[:, None])
            x = self.layers[0](self.embed(x), c)
            heard = self.head(x)
            return self.head(self.layers[1](x, c)) + heard

    sites, apart = collapsed(cut(captured(Listener(depth=2), *TOY_INPUTS), Layout("block")))
    assert [site.name for site in sites] == ["layers.0", "layers.1"]
    assert "is read by" in apart[0].reason


def test_blocks_on_another_stream_are_not_merged() -> None:
    class TwoStreams(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ModuleList(ToyBlock(16) for _ in range(2))
            self.second = nn.ModuleList(ToyBlock(16) for _ in range(2))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            c = t[:, None].expand(-1, 16)
            y = x.flip(1)
            for a, b in zip(self.first, self.second, strict=True):
                x = a(x, c)
                y = b(y, c)
            return x + y

    sites, apart = collapsed(cut(captured(TwoStreams(), *TOY_INPUTS), Layout("block")))
    assert [site.name for site in sites] == ["first.0..first.1", "second.0..second.1"]
    (entry,) = apart
    assert "which first.0..first.1 does not hand out" in entry.reason


def test_a_hundred_blocks_collapse_to_one_site() -> None:
    """Following everything a residual feeds would take as many frames of the interpreter as the graph is deep."""
    graph = captured(ToyDiT(depth=100), torch.zeros(2, 5, 16), torch.zeros(2))
    assert len(rewrite(graph, Layout("block", depth=2)).sites) == 1


@pytest.mark.parametrize("layers", [2, 3])
def test_casts_that_read_a_dtype_off_the_stream(layers: int) -> None:
    """Wan sums in float32 and casts back with ``type_as``."""
    case = next(case for case in CASES if case.name == "WanTransformer3DModel")
    found = examine(case, ("block", "stack"), layers=layers, backend="eager")
    assert found["block"].identical
    assert found["block"].sites == 1
    assert found["block"].flops_forecast == found["stack"].flops_forecast
    assert found["block"].error == pytest.approx(found["stack"].error, rel=1e-3)


def test_a_stream_that_begins_within_a_block() -> None:
    """A down block of a UNet makes its stream with a convolution, and hands that out too."""
    case = next(case for case in CASES if case.name == "UNet2DModel")
    found = examine(case, ("block",), layers=3, backend="eager")["block"]
    assert found.identical
    assert found.sites > 1
