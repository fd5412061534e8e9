"""Models that read numbers on the host: what reads them is one operator of one graph, and a forecast skips it."""

from __future__ import annotations

import gc
import json
import pickle
import re
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from hicache_compile import HiCache, hicache_compile
from hicache_compile.operators.recorded_call import RecordedCall

WIDTH, STEPS = 16, 9
CALLS: Counter[str] = Counter()  # of code that Dynamo cannot trace


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()
    CALLS.clear()


class Experts(nn.Module):
    """An MLP for the tokens of each sign; how many there are is read on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        CALLS["experts"] += not torch.compiler.is_compiling()
        flat = x.flatten(0, -2)
        order = (flat[:, 0] > 0).long().argsort(stable=True)
        first = int((flat[:, 0] <= 0).sum())
        parts = flat[order].split([first, len(flat) - first])
        made = torch.cat([gelu(layer(part)) for layer, part in zip(self.layers, parts, strict=True)])
        return torch.empty_like(made).index_copy(0, order, made).view_as(x)


class Mixture(nn.Module):
    """A block whose MLP is a mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.experts = Experts()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, dim=-1)
        x = x + self.proj(scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + self.experts(self.norm(x))


class Routed(Mixture):
    """A block that reads a number on the host itself."""

    def forward(self, x: Tensor) -> Tensor:
        CALLS["block"] += not torch.compiler.is_compiling()
        x = x + self.proj(self.norm(x).flip(1))
        return x if int((x.mean(-1) > 9).sum()) else x + self.qkv(self.norm(x))[..., :WIDTH]


class Pair(Mixture):
    """Two streams, and arguments that are no tensors."""

    def forward(self, x: Tensor, y: Tensor, scale: float, swap: bool = True) -> tuple[Tensor, Tensor]:
        if swap or int((x > 99).sum()):
            return x, x[:, :3]
        return x + scale * self.proj(x + y.mean(1, keepdim=True)), y + self.proj(y)


class Toy(nn.Module):
    """A denoiser of ``[batch, tokens, 16]``."""

    def __init__(self, block: type[nn.Module], depth: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time, self.head = nn.Linear(1, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(depth))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = x + self.time(t[:, None])[:, None]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class TwoStreams(Toy):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = x + self.time(t[:, None])[:, None]
        y = x[:, :3].clone()
        for block in self.blocks:
            x, y = block(x, y, 0.5, swap=False)
        return self.head(x) + y.mean(1, keepdim=True)


class ConvertsInALoop(Toy):
    """Its own ``forward`` hands tensors to another library, in a loop: Dynamo compiles its blocks only."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        rows = []
        for row in x:
            rows.append(pickle.loads(pickle.dumps(row)))
        return super().forward(torch.stack(rows), t)


MODELS = {"experts": lambda: Toy(Mixture), "blocks": lambda: Toy(Routed), "streams": lambda: TwoStreams(Pair)}


def run(model: Any, batch: int = 1, tokens: int = 7, steps: int = STEPS) -> Tensor:
    x = torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(steps):
            x = x - model(x, torch.full((batch,), 1 - step / steps)) / steps
    return x


def trajectory(model: Any, **sizes: int) -> Tensor:
    with model.trajectory(STEPS):
        return run(model, **sizes)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "cond_eager"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_one_graph_and_exact_at_interval_one(name: str, backend: str) -> None:
    model = MODELS[name]()
    compiled = hicache_compile(model, HiCache(interval=1), backend=backend)
    assert torch.equal(trajectory(compiled), run(model))
    assert compiled.report().graph_breaks == 0
    assert torch.equal(trajectory(compiled, batch=2, tokens=9), run(model, batch=2, tokens=9))
    assert compiled.report().graph_breaks == 0


@pytest.mark.parametrize("scope", ["module", "block", "stack", "output"])
@pytest.mark.parametrize("name", MODELS)
def test_a_forecast_step_skips_it(name: str, scope: str) -> None:
    model = MODELS[name]()
    compiled = hicache_compile(model, HiCache(interval=3, scope=scope), backend="eager")
    sampled = trajectory(compiled)
    CALLS.clear()
    assert torch.equal(trajectory(compiled), sampled)
    assert compiled.report().decisions() == "FFF..F..F"
    assert set(CALLS.values()) <= {5 * 6}  # five computed steps of six blocks
    exact = run(model)
    assert 0 < (sampled - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_an_eager_run(name: str) -> None:
    model = MODELS[name]()
    compiled = hicache_compile(model, HiCache(interval=3, scope="stack"), backend="eager")
    trajectory(compiled)
    with FlopCounterMode(display=False) as counter:
        run(model, steps=1)
    report = compiled.report()
    assert report.flops_full == counter.get_total_flops()
    assert report.flops_forecast < (0.11 if name == "streams" else 0.05) * report.flops_full  # the head and the time


def test_inductor_compiles_what_is_around_it_and_what_is_in_it() -> None:
    model = Toy(Mixture, depth=2)
    compiled = hicache_compile(model, HiCache(interval=1))
    torch.testing.assert_close(trajectory(compiled), run(model))
    assert compiled.report().graph_breaks == 0


class Counting(Routed):
    """Counts its calls in a buffer, and makes another one anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.scale = torch.ones(()) + 0 * x.mean()
        return super().forward(x) * self.scale


def test_what_it_writes_itself_is_no_change_of_weights() -> None:
    model = Toy(Counting, depth=2)
    compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
    trajectory(compiled)
    assert compiled.report().decisions() == "FFF..F..F"
    assert [block.count.item() for block in model.blocks] == [5, 5]  # and looking at it counts for none


def test_changed_weights_in_it_start_the_anchors_over() -> None:
    model = Toy(Mixture)
    compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
    x, t = torch.randn(1, 7, WIDTH), torch.ones(1)
    with torch.no_grad(), compiled.trajectory(STEPS):
        for step in range(5):
            if step == 4:
                model.blocks[0].experts.layers[0].weight.mul_(2)
            got = compiled(x, t)
        assert torch.equal(got, model(x, t))
    assert compiled.report().decisions() == "FFF.F"


class Filtered(nn.Module):
    """Its output has as many tokens as are positive."""

    def forward(self, x: Tensor) -> Tensor:
        kept = x[0][x[0].mean(-1) > 0]
        return kept if int(kept.shape[0]) else x[0][:1]


class Sized(Toy):
    def __init__(self, block: type[nn.Module] = Mixture) -> None:
        super().__init__(block)
        self.filtered = Filtered()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        kept = self.filtered(x)
        return super().forward(x + kept.sum(0) / len(kept), t)  # the size is a number of the graph


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_an_output_of_another_size_is_never_wrong(backend: str) -> None:
    model = Sized()
    compiled = hicache_compile(model, HiCache(interval=1), backend=backend)
    sizes = {len(model.filtered(x)) for x in (torch.randn(1, 7, WIDTH).roll(i) for i in range(20))}
    assert len(sizes) > 1
    torch.manual_seed(0)
    with torch.no_grad(), compiled.trajectory(12):
        for _ in range(12):
            x = torch.randn(1, 7, WIDTH)
            assert torch.equal(compiled(x, torch.ones(1)), model(x, torch.ones(1)))


def test_the_model_is_left_as_it_was() -> None:
    model = Toy(Routed)
    compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
    seen: list[bool] = []
    handle = model.head.register_forward_hook(lambda *_: seen.append(any("forward" in vars(b) for b in model.blocks)))
    trajectory(compiled)
    handle.remove()
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(run(model), run(Toy(Routed)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", [Toy, ConvertsInALoop])
def test_a_deleted_denoiser_keeps_none_of_its_weights(kind: type[Toy], backend: str) -> None:
    model = kind(Mixture, depth=2)
    compiled = hicache_compile(model, HiCache(interval=3), backend=backend)
    trajectory(compiled)
    weights = [weakref.ref(parameter) for parameter in model.parameters()]
    del model, compiled
    gc.collect()
    assert not any(weight() is not None for weight in weights)


def test_threads_that_call_it_first_all_get_what_one_gets() -> None:
    model = Toy(Mixture, depth=2)
    expected = trajectory(hicache_compile(model, HiCache(interval=3), backend="eager"))
    for _ in range(3):
        torch._dynamo.reset()
        compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: trajectory(compiled), range(4)))  # noqa: B023  # within the loop
        assert all(torch.equal(each, expected) for each in found)


def test_where_its_own_forward_breaks_each_block_is_forecast() -> None:
    model = ConvertsInALoop(Mixture)
    compiled = hicache_compile(model, HiCache(interval=3, scope="stack"), backend="eager")
    trajectory(compiled)
    report = compiled.report()
    assert report.decisions() == "FFF..F..F"
    assert report.flops_forecast < 0.1 * report.flops_full
    assert {row.name for row in report.rows["default"]} == {"blocks.0"}  # the path of the first, for all of the class
    exact = hicache_compile(model, HiCache(interval=1), backend="eager")
    assert torch.equal(trajectory(exact), run(model))


def test_sizes_of_outputs_follow_those_of_inputs() -> None:
    call = RecordedCall(((2, 7, 16), (2, 3)), (((2, 7, 16), torch.float32, torch.device("cpu")),), 0)
    assert call.outputs([(4, 9, 16), (4, 3)])[0][0] == [4, 9, 16]
    fixed = RecordedCall(((2, 7),), (((5, 7), torch.float32, torch.device("cpu")),), 0)
    assert fixed.outputs([(3, 8)])[0][0] == [5, 8]


def test_the_report_says_what_is_one_operator_and_why() -> None:
    compiled = hicache_compile(Toy(Mixture), HiCache(interval=3), backend="eager")
    trajectory(compiled)
    opaque = compiled.report().opaque
    assert [path for path, _ in opaque] == [f"blocks.{place}.experts" for place in range(6)]
    (why,) = {why for _, why in opaque}
    assert re.fullmatch(rf"{Path(__file__).name}:\d+ `.*\bfirst\b.*`", why), why
    (line,) = [line for line in str(compiled.report()).splitlines() if "opaque" in line]
    assert line.startswith("6 opaque operators (own Python in computed steps): blocks.0.experts, ")
    assert line.endswith(f"; Dynamo cannot trace {why}")
    assert line in " ".join(str(compiled.explain(STEPS)).split())
    assert json.loads(compiled.explain(STEPS).to_json())["opaque"] == [list(each) for each in opaque]
    plain = hicache_compile(ConvertsInALoop(Mixture).blocks[0], HiCache(interval=3), backend="eager")
    assert "opaque" not in str(plain.report())


def test_an_explanation_has_a_line_for_each_graph() -> None:
    compiled = hicache_compile(ConvertsInALoop(Mixture), HiCache(interval=3, scope="stack"), backend="eager")
    trajectory(compiled)
    found = compiled.explain(STEPS)
    assert len(found.parts) == found.graphs > 1
    assert sum(part.flops_full for part in found.parts) == found.flops_full
    table = str(found).split("the graphs of a call, in order")[1].split("the same policy at each scope")[0]
    rows = [line.split() for line in table.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == [str(number) for number in range(len(found.parts))]
    one = hicache_compile(Toy(Mixture), HiCache(interval=3), backend="eager")
    trajectory(one)
    assert "the graphs of a call" not in str(one.explain(STEPS))
