"""What calls write to in place, and which draw random numbers: told by what they do, not by their names."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from hicache_compile import HiCache, hicache_compile, internals
from hicache_compile.passes.graph import ops

WIDTH = 16


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@torch.library.custom_op("hicache_tests::scaled", mutates_args={"x"})
def scaled(x: Tensor, by: float) -> None:
    x.mul_(by)


@torch.library.custom_op("hicache_tests::counted", mutates_args={"count"})
def counted(x: Tensor, count: Tensor) -> Tensor:
    count.add_(1)
    return x * 1.5


@counted.register_fake
def _(x: Tensor, count: Tensor) -> Tensor:
    return torch.empty_like(x)


def calls(function: Callable[..., Any], *inputs: Tensor) -> list[fx.Node]:
    """The calls in the graph of ``function``."""
    found: list[fx.Node] = []

    def keep(program: fx.GraphModule, _: Any) -> Callable[..., Any]:
        found.extend(node for node in program.graph.nodes if node.op.startswith("call"))
        return program.forward  # type: ignore[no-any-return]

    torch.compile(function, backend=keep)(*inputs)
    return found


@pytest.mark.parametrize(
    ("function", "written"),
    [
        (lambda x, y: x.add_(y), ["x"]),
        (lambda x, y: x.add(y), []),
        (lambda x, y: torch.add(x, y, out=y), ["y"]),
        (lambda x, y: functional.relu(x, True), ["x"]),
        (lambda x, y: functional.leaky_relu(x, 0.1, True), ["x"]),
        (lambda x, y: functional.leaky_relu(x, 0.1, False), []),
        (lambda x, y: functional.hardtanh(x, -0.1, 0.1, True), ["x"]),
        (lambda x, y: functional.elu(x, 1.0, True), ["x"]),
        (lambda x, y: nn.Threshold(0.1, 0.2, inplace=True)(x), ["x"]),
        (lambda x, y: torch._foreach_mul_([x, y], 0.5), ["x", "y"]),
        (lambda x, y: torch._foreach_mul([x, y], 0.5), []),
        (lambda x, y: scaled(x, 0.5), ["x"]),
        (lambda x, y: counted(x + 1, y), ["y"]),
        (lambda x, y: functional.batch_norm(x, y[0], y[1], training=True), ["getitem", "getitem_1"]),
        (lambda x, y: functional.batch_norm(x, y[0], y[1].abs()), []),
        (lambda x, y: functional.layer_norm(x, (WIDTH,)), []),
        (lambda x, y: functional.embedding(x[0].long().abs(), y.clone(), max_norm=0.5), ["clone"]),
    ],
)
def test_what_is_written(function: Callable[..., Any], written: list[str]) -> None:
    x, y = torch.randn(8, WIDTH), torch.rand(8, WIDTH)
    y = y[:, :WIDTH]
    found = [target.name for node in calls(function, x, y) for target in ops.mutated(node)]
    assert [name.removeprefix("l_").removesuffix("_") for name in found] == written


@pytest.mark.parametrize(
    ("function", "draws"),
    [
        (lambda x: functional.gumbel_softmax(x, dim=-1), True),
        (lambda x: functional.softmax(x, -1), False),
        (lambda x: functional.rrelu(x, training=True), True),
        (lambda x: functional.rrelu(x, training=False), False),
        (lambda x: functional.fractional_max_pool2d(x[None, None], 2, output_size=(3, 3)), True),
        (lambda x: functional.max_pool2d(x[None, None], 2), False),
        (lambda x: functional.alpha_dropout(x, 0.3, True), True),
        (lambda x: functional.dropout(x, 0.3, False), False),
        (lambda x: torch.empty_like(x).exponential_(), True),
        (lambda x: torch.bernoulli(x.abs().clamp(0, 1)), True),
    ],
)
def test_what_draws_random_numbers(function: Callable[..., Any], draws: bool) -> None:
    assert any(map(ops.is_random, calls(function, torch.randn(8, WIDTH)))) is draws


def test_a_triton_kernel_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU its code is not compiled, so it counts as writing to all that it is given."""
    triton = pytest.importorskip("triton")
    from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table, triton_kernel_wrapper_mutation

    def kernel(x_ptr: Any, y_ptr: Any, n: Any) -> None:
        triton.language.store(y_ptr, triton.language.load(x_ptr))

    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    with FakeTensorMode():
        x.meta["example_value"], y.meta["example_value"] = torch.ones(8), torch.ones(8)
    call = graph.call_function(
        triton_kernel_wrapper_mutation,
        kwargs={
            "kernel_idx": kernel_side_table.add_kernel(kernel),
            "constant_args_idx": kernel_side_table.add_constant_args({"n": 8}),
            "grid": [(1, 1, 1)],
            "tma_descriptor_metadata": {},
            "kwargs": {"x_ptr": x, "y_ptr": y},
        },
    )
    assert ops.mutated(call) == [x, y]
    assert not ops.is_pure(call)
    monkeypatch.setattr(internals, "get_mutated_tensors", lambda *_: ["y_ptr"])  # as it finds where there is a GPU
    assert ops.mutated(call) == [y]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.register_buffer("count", torch.zeros(1))

    def branch(self, h: Tensor) -> Tensor:
        return h

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.branch(self.up(x)))


class Foreach(Block):
    def branch(self, h: Tensor) -> Tensor:
        torch._foreach_mul_([h], 0.5)
        return h


class Part(Block):
    def branch(self, h: Tensor) -> Tensor:
        functional.leaky_relu(h[..., :5], 0.1, True)
        return h


class Custom(Block):
    def branch(self, h: Tensor) -> Tensor:
        scaled(h, 0.5)
        return h


class Counts(Block):
    def branch(self, h: Tensor) -> Tensor:
        return counted(h, self.count)


class Normed(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2 * WIDTH)

    def branch(self, h: Tensor) -> Tensor:
        return self.norm(h.transpose(1, 2)).transpose(1, 2)


class Gumbel(Block):
    def branch(self, h: Tensor) -> Tensor:
        return functional.gumbel_softmax(h, dim=-1)


class Python(Block):
    def branch(self, h: Tensor) -> Tensor:
        return h * random.uniform(0.5, 1)


class NumPy(Block):
    def branch(self, h: Tensor) -> Tensor:
        return h * float(np.random.rand())


class Denoiser(nn.Module):
    def __init__(self, block: type[Block]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(block() for _ in range(3))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def sampled(model: Any, steps: int = 9) -> tuple[Tensor, list[Any]]:
    """The sample after ``steps``, and where the generators are after each."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    x, places = torch.randn(2, 6, WIDTH), []
    with torch.no_grad():
        for step in range(steps):
            x = x - model(x, torch.full((2,), 1 - step / steps)) / steps
            places.append((torch.get_rng_state().tolist(), random.getstate(), np.random.rand()))
    return x, places


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("block", [Foreach, Part, Custom, Counts, Normed, Gumbel, Python, NumPy])
@pytest.mark.parametrize("scope", ["module", "stack"])
def test_nothing_that_a_step_does_is_lost(block: type[Block], interval: int, scope: str) -> None:
    """At interval 1 the sample, buffers and generators are those of the model; where a step is forecast, what it writes
    elsewhere and draws is still written and drawn."""
    plain = Denoiser(block)
    expected, places = sampled(plain)
    compiled = hicache_compile(Denoiser(block), HiCache(interval=interval, scope=scope), backend="eager")
    with compiled.trajectory(9):
        found, after = sampled(compiled)
    assert after == places
    counts = [buffer for name, buffer in plain.named_buffers() if name.endswith(("count", "num_batches_tracked"))]
    mine = [buffer for name, buffer in compiled.named_buffers() if name.endswith(("count", "num_batches_tracked"))]
    assert all(map(torch.equal, mine, counts))
    if interval == 1 or "." not in compiled.report().decisions():
        assert torch.equal(found, expected)
