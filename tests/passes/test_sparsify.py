"""The pass that makes attention and MLPs sparse: what it finds, and that with everything kept it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from hicache_compile import Chipmunk, CompiledDenoiser, DiTango, hicache_compile
from hicache_compile.passes import Choice
from hicache_compile.policy.sparsity.phases import Phase
from tests.passes.test_order_tokens import velocity_of
from tests.runtime.test_chipmunk import error
from tests.support.models import GroupedDiT
from tests.zoo import CASES

SPARSE = Choice.FULL.with_phases((("", Phase.SPARSE),))
EVERYTHING = Chipmunk(top_keys=1.0, mlp_keys=1.0, first_dense=0, group=16, mlp_block=16)

# attentions and MLPs that are sparse, of two (FLUX's single blocks: three) blocks of each kind
FOUND = {
    "FluxTransformer2DModel": (5, 5),
    "Flux2Transformer2DModel": (5, 5),
    "SD3Transformer2DModel": (3, 2),
    "QwenImageTransformer2DModel": (2, 2),
    "WanTransformer3DModel": (2, 2),
    "HunyuanVideoTransformer3DModel": (5, 6),
    "CogVideoXTransformer3DModel": (2, 2),
    "Lumina2Transformer2DModel": (4, 4),
    "LTXVideoTransformer3DModel": (2, 2),
    "PixArtTransformer2DModel": (2, 2),
}


@pytest.mark.parametrize("name", FOUND)
def test_real_denoisers_with_every_key_and_unit_are_as_dense(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    model, x = case.build(2), case.noise()
    expected = velocity_of(case, model, x)
    denoiser = hicache_compile(model, None, backend="eager", sparsity=EVERYTHING)
    with denoiser.trajectory(4):
        found = [velocity_of(case, denoiser, x) for _ in range(4)]
    assert all(error(one, expected) < 2e-6 for one in found)
    assert denoiser.report().decisions() == "FFSS"
    assert counts(denoiser) == FOUND[name]


@pytest.mark.parametrize("given", [{"sparsity": EVERYTHING}, {"policy": DiTango(0.9, 1, 1, 2, partitions=4)}])
def test_attention_with_shared_heads_and_masked_keys_is_as_dense(given: dict[str, Any]) -> None:
    """Of what stands still everything that is reused is exact."""
    model, x, t = GroupedDiT(), torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    denoiser = hicache_compile(model, **{"policy": None, **given}, backend="eager")
    with denoiser.trajectory(8), torch.no_grad():
        for _ in range(8):
            assert error(denoiser(x, t), model(x, t)) < 2e-6
    report = denoiser.report()
    assert {"F", "S"} <= {*report.decisions()} or "." in report.decisions()
    assert not report.refused


def counts(denoiser: CompiledDenoiser) -> tuple[int, int]:
    """How many attentions and MLPs are sparse, counted in the graphs."""
    code = "".join(program.code for program in sparse_programs(denoiser))
    return code.count("attention_columns.default("), code.count("mlp_delta.default(")


def sparse_programs(denoiser: CompiledDenoiser) -> list[fx.GraphModule]:
    """One for each captured graph in which something is sparse."""
    made = [live.programs.rewrite.programs for live in denoiser._session.live.values()]
    return [programs[SPARSE] for programs in made if SPARSE in programs]


class Layer(nn.Module):
    """An MLP of some kind behind a residual sum, with attention's output beside it where it is fused."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        inner = {"gated": 64, "fused": 80, "halves": 64}.get(kind, 32)
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, inner)
        self.gate = nn.Linear(16, 32)
        self.down = nn.Linear(48 if kind == "fused" else 32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.kind == "gelu":
            hidden = functional.gelu(self.up(y))
        elif self.kind == "relu":
            hidden = functional.dropout(functional.relu(self.up(y)), 0.5, self.training)
        elif self.kind == "gated":
            value, gate = self.up(y).chunk(2, dim=-1)
            hidden = value * functional.silu(gate)
        elif self.kind == "halves":
            inner = self.up(y)
            hidden = functional.gelu(inner[..., :32], approximate="tanh") * inner[..., 32:]
        elif self.kind == "two":
            hidden = functional.silu(self.up(y)) * self.gate(y)
        elif self.kind == "fused":
            other, inner = self.up(y).split([16, 64], dim=-1)
            value, gate = inner.chunk(2, dim=-1)
            hidden = torch.cat([other.sin(), functional.silu(value) * gate], dim=-1)
        else:  # nothing that is known
            hidden = torch.sin(self.up(y))
        return x + self.down(hidden)


class Stack(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Layer(kind) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def sampled(denoiser: nn.Module, steps: int = 6) -> Tensor:
    x = torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(steps):
            x = x - denoiser(x, torch.tensor(1 - step / steps)) / steps
    return x


@pytest.mark.parametrize("kind", ["gelu", "relu", "gated", "halves", "two", "fused"])
def test_every_kind_of_mlp_is_found(kind: str) -> None:
    torch.manual_seed(0)
    model = Stack(kind).eval()
    expected = sampled(model)
    denoiser = hicache_compile(model, None, backend="eager", sparsity=EVERYTHING)
    with denoiser.trajectory(6):
        assert error(sampled(denoiser), expected) < 1e-6
    assert counts(denoiser) == (0, 3)
    fewer = hicache_compile(
        model, None, backend="eager", sparsity=Chipmunk(mlp_keys=0.2, first_dense=0, mlp_block=8)
    )  # fmt: skip
    with fewer.trajectory(6):
        assert 1e-6 < error(sampled(fewer), expected) < 0.1


def test_what_is_no_mlp_stays(caplog: pytest.LogCaptureFixture) -> None:
    model = Stack("unknown").eval()
    denoiser = hicache_compile(model, None, backend="eager", sparsity=EVERYTHING)
    with denoiser.trajectory(6):
        assert error(sampled(denoiser), sampled(model)) == 0
    assert denoiser.report().decisions() == "FFFFFF"


def test_a_fused_linear_is_split_and_its_bias_added_once() -> None:
    """The original adds the bias of FLUX's second single-block linear twice. Here one half has it, the other none."""
    model = Stack("fused").eval()
    for block in model.blocks:
        nn.init.constant_(block.down.bias, 100.0)
        nn.init.constant_(block.up.bias, 1.0)
    denoiser = hicache_compile(model, None, backend="eager", sparsity=EVERYTHING)
    with denoiser.trajectory(6):
        assert error(sampled(denoiser), sampled(model)) < 1e-6
    code = denoiser.graphs["sparse"].code
    assert "split(" not in code  # what is read of the first linear besides is a linear of its own
    assert code.count("linear(") == 6


@pytest.mark.parametrize(("first_dense", "sparse"), [(0, 3), (2, 1), (3, 0)])
def test_the_first_blocks_stay_dense(first_dense: int, sparse: int) -> None:
    model = Stack("gelu").eval()
    settings = Chipmunk(mlp_keys=0.5, first_dense=first_dense, mlp_block=8)
    denoiser = hicache_compile(model, None, backend="eager", sparsity=settings)
    with denoiser.trajectory(6):
        sampled(denoiser)
    (live,) = denoiser._session.live.values()
    assert len(live.programs.rewrite.sparse) == sparse
