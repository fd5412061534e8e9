"""A call that the model's caller does not know of: what counts is put back, what is cached stays."""

from __future__ import annotations

import functools
from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import HiCache, hicache_compile
from hicache_compile.runtime.replay.state_kept import state_kept
from tests.support.models import ToyBlock, ToyDiT


class Counter:
    """An object of the user's."""

    def __init__(self) -> None:
        self.calls = 0
        self.last: Tensor | None = None


class Counting(nn.Module):
    """Counts its calls in every way there is, and keeps a table that its first call makes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("times", torch.zeros(1))
        self.seen: list[float] = []
        self.names = {"a"}
        self.newest: deque[int] = deque(maxlen=2)
        self.mean: Tensor | None = None
        self.counter = Counter()
        self.by_size: dict[int, Any] = {}
        self.table: Tensor | None = None
        self.late: Any = None
        self.generator = torch.Generator().manual_seed(3)
        self.register_forward_hook(_hook(self.counter, []))

    def forward(self, x: Tensor) -> Tensor:
        self.times += 1
        self.seen.append(float(x.sum()))
        self.names.add(str(len(self.seen)))
        self.newest.append(len(self.seen))
        self.mean = x if self.mean is None else (self.mean + x) / 2
        if self.table is None:
            self.table, self.by_size[len(x)] = torch.arange(3.0), [0]
            self.late = []
        self.late.append(1)
        self.by_size[len(x)][0] += 1
        noise = torch.rand(3, generator=self.generator)
        return self.weight * x + self.table + self.times + noise + torch.rand(3)


def _hook(counter: Counter, log: list[int]) -> Any:
    total = 0

    def count(counter: Counter, *_: Any) -> None:
        nonlocal total
        total += 1
        counter.calls += 1
        log.append(total)

    return functools.partial(count, counter)


def of_two_calls(model: Counting) -> list[Tensor]:
    torch.manual_seed(0)
    return [model(torch.ones(3)), model(torch.full((3,), 2.0)), torch.tensor(model.seen)]


def test_what_counts_is_put_back_and_what_is_cached_stays() -> None:
    alone, kept = Counting(), Counting()
    with state_kept(kept, lambda: kept(torch.ones(3))):
        kept(torch.ones(3))
    assert kept.table is not None
    assert (kept.seen, kept.names, list(kept.newest)) == ([], {"a"}, [])
    assert (kept.late, kept.by_size) == (None, {})  # what is made once, and then counts
    kept.table = None  # else its table is not made again, nor what is made with it
    assert all(map(torch.equal, of_two_calls(kept), of_two_calls(alone)))
    assert vars(kept.counter) == vars(alone.counter)
    hooks = [next(iter(model._forward_hooks.values())) for model in (kept, alone)]
    totals = [[cell.cell_contents for cell in hook.func.__closure__] for hook in hooks]  # type: ignore[attr-defined]
    assert totals[0] == totals[1] == [[1, 2], 2]


def test_after_an_exception_everything_is_put_back() -> None:
    model = Counting()
    model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), state_kept(model, lambda: None):
        model(torch.ones(3))
    assert (model.table, model.seen, model.times.item(), model.counter.calls) == (None, [], 0, 0)


class Ema(ToyBlock):
    """Reads a number on the host, which breaks the graph, and keeps a mean of what it has returned."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.mean: Tensor | None = None
        self.seen: list[float] = []

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        y = super().forward(x, c)
        self.seen.append(float(y.abs().max()))
        self.mean = y if self.mean is None else 0.5 * self.mean + y
        return y - 0.05 * self.mean


class EmaDiT(ToyDiT):
    block = Ema


@torch.no_grad()
def test_blocks_that_break_the_graph_and_have_state_advance_once_a_step() -> None:
    def run(compiled: bool) -> tuple[Tensor, list[float]]:
        torch.manual_seed(0)
        model: Any = EmaDiT()
        called = hicache_compile(model, HiCache(interval=1), backend="eager") if compiled else model
        x = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1))
        for step in range(5):
            x = x - called(x, torch.full((1,), 1 - step / 5)) / 5
        return x, model.layers[0].seen

    (sample, seen), (expected, wanted) = run(True), run(False)
    assert torch.equal(sample, expected)
    assert seen == wanted
