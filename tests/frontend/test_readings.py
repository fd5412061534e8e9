"""Denoisers whose own forward reads data on the host: one graph for each of what it read, and never a wrong one."""

from __future__ import annotations

import contextlib
import logging
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from hicache_compile import HiCache, hicache_compile
from hicache_compile.frontend.traced import MOST_READINGS
from hicache_compile.operators.readings import described

WIDTH, STEPS, TOKENS = 16, 9, 6


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, dim=-1)
        return x + self.proj(scaled_dot_product_attention(q, k, v).squeeze(1))


class Prompted(nn.Module):
    """A denoiser of ``[batch, tokens, 16]`` that takes the tokens of a prompt, and which of them are valid."""

    def __init__(self, depth: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.time, self.text, self.head = nn.Linear(1, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def read(self, text: Tensor, valid: Tensor) -> Tensor:
        """The prompt ``[batch, tokens, 16]`` as the blocks see it."""
        return text

    def forward(self, x: Tensor, t: Tensor, text: Tensor, valid: Tensor) -> Tensor:
        prompt = self.read(self.text(text), valid)
        x = torch.cat([prompt, x + self.time(t[:, None])[:, None]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, prompt.shape[1] :])


class ValidFirst(Prompted):
    """Tokens are taken apart by a mask and put together again: as many as before."""

    def read(self, text: Tensor, valid: Tensor) -> Tensor:
        return torch.stack([torch.cat([row[mask], row[~mask]]) for row, mask in zip(text, valid, strict=True)])


class ValidOnly(Prompted):
    """The prompt is cut where its longest row ends, a number that is read."""

    def read(self, text: Tensor, valid: Tensor) -> Tensor:
        longest = valid.sum(dim=1).max().item()
        return text[:, :longest] if longest > 1 else text


class Switched(Prompted):
    """A branch on data, and a part of a tensor whose size depends on data."""

    def read(self, text: Tensor, valid: Tensor) -> Tensor:
        if torch.all(valid):
            return text
        return text * valid[..., None] + text[valid].mean(0)


class Written(Prompted):
    """What is read is written to before and after."""

    def read(self, text: Tensor, valid: Tensor) -> Tensor:
        count = torch.zeros((), dtype=torch.long)
        count += valid.sum()
        kept = text[:, : int(count) % TOKENS + 1]
        count.zero_()
        places = valid.new_zeros(valid.shape)
        places.view(-1)[: valid.numel() // 2] = True
        return kept + places.sum().item()


MODELS: dict[str, type[Prompted]] = {cls.__name__: cls for cls in (ValidFirst, ValidOnly, Switched, Written)}


def prompt(*counts: int) -> dict[str, Tensor]:
    """A prompt of rows with so many valid tokens each."""
    text = torch.randn(len(counts), TOKENS, WIDTH, generator=torch.Generator().manual_seed(sum(counts)))
    return {"text": text, "valid": torch.stack([torch.arange(TOKENS).flip(0) < count for count in counts])}


def run(model: Any, conditions: dict[str, Tensor], steps: int = STEPS) -> Tensor:
    batch = len(conditions["text"])
    x = torch.randn(batch, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(steps):
            x = x - model(x, torch.full((batch,), 1 - step / steps), **conditions) / steps
    return x


def sampled(compiled: Any, conditions: dict[str, Tensor]) -> Tensor:
    with compiled.trajectory(STEPS):
        return run(compiled, conditions)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "cond_eager"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_one_graph_and_exact_at_interval_one_for_every_prompt(name: str, backend: str) -> None:
    model = MODELS[name]()
    compiled = hicache_compile(model, HiCache(interval=1), backend=backend)
    for counts in ((3, 5), (6, 6), (2, 4), (3, 5)):
        assert torch.equal(sampled(compiled, prompt(*counts)), run(model, prompt(*counts))), counts
        assert len(compiled._session.last_graphs) == 1, counts


@pytest.mark.parametrize("name", MODELS)
def test_a_forecast_skips_the_blocks(name: str) -> None:
    model = MODELS[name]()
    compiled = hicache_compile(model, HiCache(interval=3, scope="stack"), backend="aot_eager")
    sampled(compiled, prompt(3, 5))
    report = compiled.report()
    assert report.decisions() == "FFF..F..F"
    assert report.flops_forecast < 0.2 * report.flops_full
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 7, WIDTH), torch.ones(2), **prompt(3, 5))
    assert report.flops_full == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_inductor() -> None:
    model = ValidOnly(depth=2)
    compiled = hicache_compile(model, HiCache(interval=1))
    for counts in ((3, 5), (1, 2), (3, 5)):
        torch.testing.assert_close(sampled(compiled, prompt(*counts)), run(model, prompt(*counts)))


def test_masks_that_leave_as_many_tokens_share_a_graph() -> None:
    model = ValidFirst()
    compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
    for counts in ((3, 5), (2, 6), (1, 1), (6, 6)):
        sampled(compiled, prompt(*counts))
    assert len(compiled._graphs) == 1
    assert compiled.report().recompiles == 0


def test_guidance_branches_keep_a_graph_each() -> None:
    model = ValidOnly()
    conditions = {"cond": prompt(5, 5), "uncond": prompt(2, 2)}

    def guided(model: Any, contexts: Any) -> Tensor:
        x = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            for step in range(STEPS):
                t = torch.full((2,), 1 - step / STEPS)
                for name, condition in conditions.items():
                    with contexts(name):
                        x = x - model(x, t, **condition) / STEPS
        return x

    compiled = hicache_compile(model, HiCache(interval=1), backend="eager")
    with compiled.trajectory(STEPS):
        assert torch.equal(guided(compiled, compiled.cache_context), guided(model, lambda _: contextlib.nullcontext()))
    assert len(compiled._graphs) == 2
    cached = hicache_compile(model, HiCache(interval=3), backend="eager")
    for _ in range(2):
        with cached.trajectory(STEPS):
            guided(cached, cached.cache_context)
    assert {name: runs[-1] for name, runs in cached.report().history.items() if name != "default"} == {
        "cond": "FFF..F..F",
        "uncond": "FFF..F..F",
    }
    assert len(cached._graphs) == 2


def test_data_that_change_within_a_run_start_the_anchors_over(caplog: pytest.LogCaptureFixture) -> None:
    model = ValidOnly()
    compiled = hicache_compile(model, HiCache(interval=3, scope="stack"), backend="eager")
    x = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(0))
    changed = prompt(2, 2)
    with torch.no_grad(), compiled.trajectory(STEPS):
        for step in range(STEPS):
            conditions = prompt(5, 5) if step < 4 else changed
            t = torch.full((2,), 1 - step / STEPS)
            found = compiled(x, t, **conditions)
            if step in (0, 1, 2, 4):  # the fourth would have been forecast
                assert torch.equal(found, model(x, t, **conditions)), step
            x = x - found / STEPS
    assert caplog.text.count("data that forward reads changed") == 1


def test_beyond_so_many_readings_it_has_several_graphs_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Counted(Prompted):
        def read(self, text: Tensor, valid: Tensor) -> Tensor:
            return text * int(valid.sum())

    model = Counted(depth=2)
    compiled = hicache_compile(model, HiCache(interval=1), backend="eager")
    with caplog.at_level(logging.WARNING):
        for count in range(MOST_READINGS + 3):
            conditions = prompt(min(count, TOKENS), max(count - TOKENS, 0))
            assert torch.equal(sampled(compiled, conditions), run(model, conditions)), count
    assert [record.message for record in caplog.records if "several graphs" in record.message] != []


def test_what_differs_in_each_step_is_no_constant(caplog: pytest.LogCaptureFixture) -> None:
    class Noisy(Prompted):
        def forward(self, x: Tensor, t: Tensor, text: Tensor, valid: Tensor) -> Tensor:
            return super().forward(x * (1 + x.abs().max().item()), t, text, valid)

    model = Noisy(depth=2)
    compiled = hicache_compile(model, HiCache(interval=1), backend="eager")
    with caplog.at_level(logging.WARNING):
        assert torch.equal(sampled(compiled, prompt(3, 5)), run(model, prompt(3, 5)))
    assert [record.message for record in caplog.records if "differs between steps" in record.message] != []
    cached = hicache_compile(model, HiCache(interval=3, scope="stack"), backend="eager")
    for _ in range(2):
        sampled(cached, prompt(3, 5))
    assert cached.report().decisions() == "FFF..F..F"


def test_a_first_call_that_fills_in_what_dynamo_cannot_trace_is_made_eagerly() -> None:
    class Filled(Prompted):
        table: ClassVar[dict[int, Tensor]] = {}

        def read(self, text: Tensor, valid: Tensor) -> Tensor:
            if text.shape[1] not in self.table:
                self.table[text.shape[1]] = torch.from_numpy(text.sum(-1, keepdim=True).numpy().copy()) * 0 + 2
            return text * self.table[text.shape[1]]

    model = Filled(depth=2)
    compiled = hicache_compile(model, HiCache(interval=1), backend="eager")
    found = sampled(compiled, prompt(3, 5))
    assert len(compiled._session.last_graphs) == 1
    assert torch.equal(found, run(model, prompt(3, 5)))


def test_what_is_read_is_spelt_out_or_a_digest() -> None:
    assert described(torch.tensor([[3, 4]])) == "[[3, 4]]"
    assert described(torch.tensor(True)) == "True"
    many = torch.arange(9, dtype=torch.bfloat16)
    assert described(many).startswith("9 values, ")
    assert described(many) != described(many.flip(0))
