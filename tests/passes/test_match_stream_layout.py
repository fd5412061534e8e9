"""A stream that enters transposed is laid out like the anchors it is summed with."""

from __future__ import annotations

import torch
from torch import Tensor

from hicache_compile.backends import lower
from hicache_compile.passes import Choice, rewrite
from hicache_compile.passes.graph import ops
from hicache_compile.passes.graph.graphs import copy_graph, placeholders
from hicache_compile.passes.lowering.match_stream_layout import lay_out_streams
from hicache_compile.policy.layout import Layout
from tests.support.captured_graphs import captured
from tests.support.models import ToyDiT, flux_inputs, random_flux


class Patches(ToyDiT):
    """The stream comes from a convolution, channels first, as in DiT, SD3, PixArt and Wan."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 16, 2, stride=2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(self.patch(x).flatten(2).transpose(1, 2), t)


def test_a_transposed_stream_is_laid_out_once_and_stays_the_same() -> None:
    graph = captured(Patches(), torch.randn(2, 3, 8, 8), torch.rand(2))
    program = rewrite(graph, Layout("module", depth=2)).programs[Choice.FORECAST]
    laid, _ = copy_graph(program)
    assert lay_out_streams(laid) == 0  # an embedding comes in between, which hands out its own memory

    class Straight(Patches):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            c = self.time(t[:, None])
            x = self.patch(x).flatten(2).transpose(1, 2)
            for layer in self.layers:
                x = layer(x, c)
            return self.head(x)

    graph = captured(Straight(), torch.randn(2, 3, 8, 8), torch.rand(2))
    program = rewrite(graph, Layout("module", depth=2)).programs[Choice.FORECAST]
    laid, _ = copy_graph(program)
    assert lay_out_streams(laid) == 1
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(ops.value(node).shape, generator=generator) for node in placeholders(program)]
    with torch.no_grad():
        torch.testing.assert_close(laid(*given), program(*given), rtol=0, atol=0)
        torch.testing.assert_close(lower(laid, "aot_eager")(*given), program(*given), rtol=0, atol=0)


def test_a_stream_from_a_linear_layer_stays() -> None:
    graph = captured(random_flux(1, 1), **flux_inputs(), timestep=torch.ones(2))
    assert lay_out_streams(rewrite(graph, Layout("module", depth=2)).programs[Choice.FORECAST]) == 0


def test_a_full_program_stays() -> None:
    graph = captured(Patches(), torch.randn(2, 3, 8, 8), torch.rand(2))
    assert lay_out_streams(rewrite(graph, Layout("stack", depth=2)).programs[Choice.FULL]) == 0
