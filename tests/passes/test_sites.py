"""What is found in a graph, at which scope, and what is declined with which reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import HiCacheError
from hicache_compile.passes.graph import ops
from hicache_compile.passes.work import Work
from hicache_compile.policy.layout import Layout
from tests.support.captured_graphs import captured, cut
from tests.support.models import ToyBlock, ToyDiT, flux_inputs, random_flux

TOY_INPUTS = (torch.zeros(2, 5, 16), torch.zeros(2))


@pytest.fixture(scope="module")
def flux() -> torch.fx.GraphModule:
    return captured(random_flux(3, 5), **flux_inputs(), timestep=torch.ones(2))


def kinds(found: Work) -> list[tuple[str, str, int]]:
    return [(site.name, site.kind, len(site.slots)) for site in found.sites]


def test_module_scope_finds_the_published_slots_of_flux(flux: torch.fx.GraphModule) -> None:
    found = cut(flux, Layout("module"))
    double = [
        site
        for i in range(3)
        for site in (
            (f"transformer_blocks.{i}.attn", "joint-attention", 2),
            (f"transformer_blocks.{i}.ff", "mlp", 1),
            (f"transformer_blocks.{i}.ff_context", "mlp", 1),
        )
    ]
    single = [(f"single_transformer_blocks.{i}.proj_out", "parallel", 1) for i in range(5)]
    assert kinds(found) == double + single  # 4 slots a double block and 1 a single one: 114 on FLUX.1-dev
    assert found.refused == []
    assert all(slot.carried is None for site in found.sites for slot in site.slots)


def test_a_module_slot_is_taken_before_its_gate(flux: torch.fx.GraphModule) -> None:
    for site in cut(flux, Layout("module")).sites:
        for slot in site.slots:
            (reader,) = slot.node.users
            assert ops.op(reader) == "mul"


def test_block_scope_finds_one_residual_a_stream(flux: torch.fx.GraphModule) -> None:
    found = cut(flux, Layout("block"))
    names = [f"transformer_blocks.{i}" for i in range(3)] + [f"single_transformer_blocks.{i}" for i in range(5)]
    assert [site.name for site in found.sites] == names
    assert [len(site.slots) for site in found.sites] == [2] * 7 + [1]  # the last text stream is never read
    for site in found.sites:
        for slot in site.slots:
            assert slot.carried is not None
            assert slot.carried.meta["example_value"].shape == slot.node.meta["example_value"].shape


def test_stack_scope_is_carried_from_the_embedders(flux: torch.fx.GraphModule) -> None:
    (site,) = cut(flux, Layout("stack")).sites
    (slot,) = site.slots
    assert slot.carried is not None
    assert slot.carried.meta["path"] == "x_embedder"


def test_first_and_last_blocks_stay_live(flux: torch.fx.GraphModule) -> None:
    (site,) = cut(flux, Layout("stack", first=1, last=2)).sites
    assert site.name == "transformer_blocks.1..single_transformer_blocks.2"
    assert len(site.slots) == 2  # the live blocks at the end read the text stream too
    paths = {node.meta["path"] for node in site.region}
    assert not any(path.startswith(("transformer_blocks.0", "single_transformer_blocks.3")) for path in paths)


def test_output_scope_caches_the_hidden_state_itself(flux: torch.fx.GraphModule) -> None:
    (site,) = cut(flux, Layout("output")).sites
    (slot,) = site.slots
    assert slot.carried is None
    (reader,) = slot.node.users
    assert reader.meta["path"] == "norm_out.norm"


def test_leaving_no_block_to_cache_is_an_error(flux: torch.fx.GraphModule) -> None:
    with pytest.raises(HiCacheError, match=r"first \+ Policy.last = 8: must be less than the 8 blocks"):
        cut(flux, Layout("stack", first=4, last=4))


def test_user_written_blocks_are_found_without_a_name() -> None:
    found = cut(captured(ToyDiT(depth=2), *TOY_INPUTS), Layout("module"))
    expected = [
        (f"layers.{i}.{part}", kind, 1)
        for i in range(2)
        for part, kind in (("proj", "self-attention"), ("down", "mlp"))
    ]
    assert kinds(found) == expected


class InPlaceBlock(ToyBlock):
    """Written with ``+=`` on the stream it is given."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x += self.proj(self.norm(x))
        x += self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x


def test_sums_in_place_are_found_too() -> None:
    found = cut(captured(toy(InPlaceBlock), *TOY_INPUTS), Layout("block"))
    assert [site.name for site in found.sites] == ["layers.0", "layers.1"]
    assert found.refused == []


class FillsABuffer(ToyBlock):
    """Runs a part in a larger buffer, which it fills through a view of a view."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        buffer = x.new_zeros(len(x), 8, 16)
        made = self.proj(self.norm(x))
        buffer[:, :5].view(len(x), 5, 4, 4)[:, :, :3] = made.view(len(x), 5, 4, 4)[:, :, :3]
        return x + self.down(nn.functional.gelu(self.up(buffer)))[:, :5]


@pytest.mark.parametrize("scope", ["block", "stack"])
def test_what_fills_a_buffer_of_the_site_is_of_the_site(scope: str) -> None:
    module = captured(toy(FillsABuffer), *TOY_INPUTS)
    found = cut(module, Layout(scope))
    assert found.refused == []
    region = {node for site in found.sites for node in site.region}
    written = [node for node in found.module.graph.nodes if ops.op(node) == "setitem"]
    assert len(written) == 2
    assert region.issuperset(written)
    assert region.issuperset(node for node in found.module.graph.nodes if ops.op(node) == "new_zeros")


class NoisyBlock(ToyBlock):
    """Draws noise inside the block."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x + self.proj(self.norm(x) + torch.randn_like(x))


class DropoutBlock(ToyBlock):
    """Dropout that is active."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x + nn.functional.dropout(self.proj(x), 0.5, training=True)


class WritesItsInput(ToyBlock):
    """Scales the conditioning it is given, in place: a later reader would miss it."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return x + self.proj(x) * c.mul_(0.5).unsqueeze(1)


def toy(block: type[nn.Module]) -> ToyDiT:
    return type("Toy", (ToyDiT,), {"block": block})(depth=2)


@pytest.mark.parametrize("scope", ["module", "block", "stack"])
@pytest.mark.parametrize("block", [NoisyBlock, DropoutBlock])
def test_random_numbers_are_declined(scope: str, block: type[nn.Module]) -> None:
    found = cut(captured(toy(block), *TOY_INPUTS), Layout(scope))
    assert found.sites == []
    assert found.refused
    assert all("draws random numbers, which a forecast step would skip" in entry.reason for entry in found.refused)


class MultiheadBlock(ToyBlock):
    """torch's own module of attention, which is one function in the graph."""

    rate = 0.0

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.attention = nn.MultiheadAttention(dim, 2, dropout=self.rate, batch_first=True)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y)[0]
        return x + self.down(nn.functional.gelu(self.up(self.norm(x) + c.unsqueeze(1))))


class DroppingMultiheadBlock(MultiheadBlock):
    rate = 0.1


@pytest.mark.parametrize("block", [MultiheadBlock, DroppingMultiheadBlock])
@pytest.mark.parametrize("training", [False, True])
def test_a_multihead_attention_is_a_site_unless_it_drops(block: type[MultiheadBlock], training: bool) -> None:
    found = cut(captured(toy(block).train(training), *TOY_INPUTS), Layout("module"))
    assert [site.kind for site in found.sites].count("self-attention") == (0 if block.rate and training else 2)
    assert bool(found.refused) == bool(block.rate and training)


def test_a_site_that_writes_to_its_input_is_declined() -> None:
    found = cut(captured(toy(WritesItsInput), *TOY_INPUTS), Layout("block"))
    reasons = [entry.reason for entry in found.refused]
    assert any("writes in place to" in reason for reason in reasons), reasons


def test_expensive_values_read_elsewhere_are_declined() -> None:
    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Reader() for _ in range(2))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            kept = x
            for layer in self.layers:
                x, kept = layer(x, kept)
            return x * kept

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
            inner = self.up(x)
            return x + self.down(inner), inner.flip(1)

    found = cut(captured(Leaky(), *TOY_INPUTS), Layout("module"))
    assert [entry.site for entry in found.refused] == ["layers.1.down"]
    assert "is also read by" in found.refused[0].reason


def test_lists_without_a_residual_sum_are_a_near_miss() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    found = cut(captured(Chain(), *TOY_INPUTS), Layout("block"))
    assert found.sites == []
    assert [str(entry) for entry in found.refused] == ["layers: no output of layers.0 is a residual sum of its input"]
