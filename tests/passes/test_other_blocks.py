"""Blocks whose residual is not written ``x + f(x)``, against a cache written out with hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import FORA, HiCache, hicache_compile

STEPS = 8


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def added(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(self.norm(x))))


class Minus(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return x - self.added(x)


class Lerp(Layers):
    """The magnitude-preserving sum of EDM2 (2312.02696, equation 88)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, self.added(x), 0.3) / (0.7**2 + 0.3**2) ** 0.5


class Gated(Layers):
    """As a highway network."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return (1 - gate) * x + gate * self.added(x)


class Denoiser(nn.Module):
    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 16))
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(16, 16)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = x + self.time(t[:, None])[:, None]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def encoder() -> nn.Module:
    """In ``eval()`` torch runs each of its layers as one operator."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


KINDS: dict[str, Any] = {
    "minus": lambda: [Minus() for _ in range(3)],
    "lerp": lambda: [Lerp() for _ in range(3)],
    "gated": lambda: [Gated() for _ in range(3)],
    "shared": lambda: [block := Gated(), block, Gated()],
    "encoder": lambda: [encoder()],
}


def sampled(model: Any) -> Tensor:
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for step in range(STEPS):
            x = x - model(x, torch.full((2,), 1 - step / STEPS)) / STEPS
    return x


def run(model: nn.Module, policy: Any, backend: str = "eager") -> tuple[Tensor, Any]:
    denoiser = hicache_compile(model, policy, backend=backend)
    with denoiser.trajectory(STEPS):
        return sampled(denoiser), denoiser.report()


@pytest.mark.parametrize("scope", ["module", "block", "stack"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_computed_in_every_step_it_is_the_model(kind: str, scope: str) -> None:
    torch.manual_seed(0)
    model = Denoiser(KINDS[kind]()).eval()
    found, report = run(model, HiCache(interval=1, scope=scope))
    assert torch.equal(found, sampled(model))
    assert all(site == "time" or site.startswith("collapse blocks") for site, _ in report.refused)


@pytest.mark.parametrize("kind", list(KINDS))
def test_its_stack_is_forecast(kind: str) -> None:
    """The stack is replaced by its input and what it added at the last computed step. A scale after a sum is one of the
    stream."""
    torch.manual_seed(0)
    model = Denoiser(KINDS[kind]()).eval()
    scale = (0.7**2 + 0.3**2) ** -1.5 if kind == "lerp" else 1.0
    added: list[Tensor] = []
    computed: list[bool] = []

    class Cached(nn.Module):
        def __init__(self, blocks: nn.ModuleList) -> None:
            super().__init__()
            self.blocks = blocks

        def forward(self, x: Tensor) -> Tensor:
            computed.append(len(computed) % 3 == 0)
            if computed[-1]:
                out = x
                for block in self.blocks:
                    out = block(out)
                added[:] = [out - scale * x]
            return scale * x + added[0]

    found, report = run(model, FORA(interval=3, scope="stack"))
    reference = Denoiser([Cached(model.blocks)])  # type: ignore[arg-type]  # a ModuleList
    reference.time, reference.head = model.time, model.head
    torch.testing.assert_close(found, sampled(reference), rtol=1e-5, atol=1e-5)
    assert report.decisions() == "F..F..F."


@pytest.mark.parametrize("kind", ["minus", "lerp"])
def test_what_is_taken_off_or_mixed_in_is_a_site(kind: str) -> None:
    """At scope module the last layer's output is reused, and the sum is made live."""
    torch.manual_seed(0)
    model = Denoiser(KINDS[kind]()).eval()
    found, report = run(model, FORA(interval=3, scope="module"))
    calls = dict.fromkeys(model.blocks, 0)
    kept: dict[nn.Module, Tensor] = {}
    for block in model.blocks:

        def reuse(module: nn.Module, args: Any, out: Tensor, block: nn.Module = block) -> Tensor:
            if calls[block] % 3 == 0:
                kept[block] = out
            calls[block] += 1
            return kept[block]

        block.down.register_forward_hook(reuse)  # type: ignore[union-attr]  # a layer
    torch.testing.assert_close(found, sampled(model), rtol=1e-5, atol=1e-5)
    assert report.decisions() == "F..F..F."
    assert [site for site, _ in report.refused] == ["time"]


def test_the_layers_of_an_encoder_that_are_one_operator_have_their_flops() -> None:
    fused, apart = Denoiser(KINDS["encoder"]()).eval(), Denoiser(KINDS["encoder"]())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        expected = run(apart.eval(), FORA(interval=3, scope="stack"))[1]
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    found = run(fused, FORA(interval=3, scope="stack"))[1]
    assert (found.flops_full, found.flops_forecast) == (expected.flops_full, expected.flops_forecast)
    assert found.flops_speedup > 2


def test_the_nearest_miss_is_the_most_expensive_list(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(Denoiser):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            x = x + self.time(t[:, None])[:, None]
            parts = [block.added(x.roll(place, -1)).sin() for place, block in enumerate(self.blocks)]
            return self.head(parts[0] * parts[1] * parts[2])

    _, report = run(Odd([Layers() for _ in range(3)]), FORA(interval=3, scope="stack"))
    assert report.decisions() == "F" * STEPS
    assert "nearest miss: blocks: no output of blocks.0 is a residual sum of its input" in caplog.text


class Spectral(nn.Module):
    """A stream of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.randn(16, 16, dtype=torch.complex64) * 0.1) for _ in range(2))

    def forward(self, z: Tensor) -> Tensor:
        return z + (torch.sigmoid((z @ self.up).abs()) * z) @ self.down


class Plain(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = x + t[:, None, None]
        for block in self.blocks:
            x = block(x)
        return x


class Adding(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.added(x)


def jagged() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    lengths = [torch.randn(count, 16, generator=generator) for count in (4, 7)]
    return torch.nested.nested_tensor(lengths, layout=torch.jagged)


@pytest.mark.parametrize(
    ("block", "x", "reason"),
    [
        (Spectral, torch.randn(2, 8, 16, dtype=torch.complex64), "is complex64: must be real numbers"),
        (Adding, jagged(), "is a nested tensor: must be a tensor with padding"),
    ],
    ids=["complex", "nested"],
)
def test_streams_that_no_ring_can_keep(block: type[nn.Module], x: Tensor, reason: str) -> None:
    torch.manual_seed(0)
    model = Plain([block() for _ in range(3)]).eval()
    compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
    expected = found = x
    with torch.no_grad():
        for step in range(4):
            time = torch.full((2,), 1 - step / 4)
            expected, found = expected - model(expected, time) * 0.25, found - compiled(found, time) * 0.25
    parts = (expected.values(), found.values()) if x.is_nested else (expected, found)
    assert torch.equal(*parts)
    report = compiled.report()
    assert report.refused == [("blocks", f"what blocks.0 computes {reason}")]
    assert (report.decisions(), report.flops_speedup) == ("FFFF", 1.0)
