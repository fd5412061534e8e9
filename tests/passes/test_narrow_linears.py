"""Linear layers of a forecast program make only the columns that are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hicache_compile.passes import Choice, rewrite
from hicache_compile.passes.graph import ops
from hicache_compile.passes.transforms.narrow_linears import narrow_linears
from hicache_compile.policy.layout import Layout
from tests.support.captured_graphs import captured
from tests.support.models import flux_inputs, random_flux

D = 8


class Modulated(nn.Module):
    """``read`` says which of six parts of a modulation are used, and how they are cut out."""

    def __init__(self, read: str) -> None:
        super().__init__()
        self.read = read
        self.linear = nn.Linear(D, 6 * D)

    def forward(self, x: Tensor, c: Tensor) -> Any:
        made = self.linear(c)
        if self.read == "two":
            parts = made.chunk(6, dim=-1)
            return x * parts[2] + parts[5]
        if self.read == "nested":
            _, second = made.chunk(2, dim=1)
            shift, _, gate = second.chunk(3, dim=-1)
            return x * gate + shift
        if self.read == "split":
            first, _, third = made.split([D, 3 * D, 2 * D], dim=-1)
            return x * first + third.sum()
        if self.read == "whole":
            return x * made.chunk(6, dim=-1)[2] + made.sum()
        if self.read == "all":
            return x + sum(made.chunk(6, dim=-1))
        return x * made.chunk(1, dim=0)[0][:, :D]


@pytest.mark.parametrize(
    ("read", "widths"),
    [
        ("two", [D, D]),
        ("nested", [D, D]),
        ("split", [D, 2 * D]),
        ("whole", [6 * D]),
        ("all", [6 * D]),
        ("other dim", [6 * D]),
    ],
)
def test_only_the_columns_that_are_read(read: str, widths: list[int]) -> None:
    model, x, c = Modulated(read), torch.randn(1, D), torch.randn(1, D)
    program = captured(model, x, c)
    assert narrow_linears(program) == (widths != [6 * D])
    program.graph.lint()
    linears = [node for node in program.graph.nodes if ops.op(node) == "linear"]
    assert sorted(ops.value(node).shape[-1] for node in linears) == widths
    given = {
        node: x if node.name.startswith("l_args_0") else c if node.name.startswith("l_args_1") else None
        for node in program.graph.find_nodes(op="placeholder")
    }
    weights = iter([model.linear.weight, model.linear.bias])
    arguments = [next(weights) if value is None else value for value in given.values()]
    with torch.no_grad():
        torch.testing.assert_close(program(*arguments)[0], model(x, c), rtol=1e-6, atol=1e-6)


def test_a_forecast_of_flux_makes_its_gates_only() -> None:
    model = random_flux(2, 3)
    graph = captured(model, **flux_inputs(), timestep=torch.ones(2), return_dict=False)
    forecasting = rewrite(graph, Layout("module", depth=3)).programs[Choice.FORECAST]
    made = [
        ops.value(n).shape[-1] for n in forecasting.graph.nodes if ops.op(n) == "linear" and "blocks" in n.meta["path"]
    ]
    assert made == [32] * (2 * 2 + 3)  # two gates of a double block's image stream, one of a single block
