"""Sparse steps composed: refusals, backends, schedules that reuse, suspend, dumps, the original kernel."""

from __future__ import annotations

import copy
import json
import logging
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import (
    PAB,
    CompiledDenoiser,
    DiTango,
    FBCache,
    HiCache,
    HiCacheError,
    Policy,
    hicache_compile,
    inspect,
)
from hicache_compile.operators.chipmunk import original
from hicache_compile.policy.sparsity.chipmunk import Chipmunk
from tests.runtime.test_chipmunk import SMALL, STEPS, compiled, error, run, subjects
from tests.support.models import ToyDiT, flux_inputs, random_flux, sample


def test_a_denoiser_with_nothing_to_be_sparse_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block(x).sin()
            return x

    denoiser = compiled(Plain(), HiCache(interval=2))
    with caplog.at_level(logging.WARNING), denoiser.trajectory(4), torch.no_grad():
        for step in range(4):
            denoiser(torch.ones(1, 4, 8), torch.tensor(1 - step / 4))
    assert "nothing is sparse" in caplog.text
    assert denoiser.report().decisions() == "FFF."


@pytest.mark.parametrize(
    ("policy", "backend", "said"),
    [
        (FBCache(0.2), "cond_eager", "how sparse a step is depends on decisions that the host does not see"),
        (DiTango(0.5), "eager", r"use Chipmunk\(top_keys=None\) for sparse MLPs alone"),
    ],
)
def test_what_cannot_be_sparse_is_refused(policy: Policy, backend: str, said: str) -> None:
    with pytest.raises(HiCacheError, match=said):
        hicache_compile(ToyDiT(), policy, backend=backend, sparsity=Chipmunk())


def test_one_program_of_all_phases_runs_what_each_alone_does() -> None:
    model, inputs = random_flux(2, 1), flux_inputs(tokens=45)
    found = []
    for backend in ("cond_eager", "eager"):
        denoiser = compiled(model, HiCache(interval=3), backend, full_every=3)
        found.append((run(denoiser, inputs), denoiser.report().decisions()))
    assert found[0][1] == found[1][1]
    assert set("FS.") == set(found[0][1])
    assert torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        (PAB(2, window=None), {"top_keys": 1.0, "mlp_keys": 1.0}),
        (DiTango(0.5, 2, 2), {"top_keys": None, "mlp_keys": 1.0}),
    ],
    ids=["PAB", "DiTango"],
)
def test_what_reuses_attention_is_sparse_in_what_it_computes(policy: Policy, settings: dict[str, object]) -> None:
    """With every key and unit sparse is dense; with fewer it is not, and is decided the same way."""
    model, inputs = subjects()["random"]
    dense = hicache_compile(model, policy, backend="eager")
    expected, decisions = run(dense, inputs), dense.report().decisions()
    whole = compiled(model, policy, **settings)
    assert error(run(whole, inputs), expected) < 5e-6
    assert whole.report().decisions().replace("S", "F") == decisions
    fewer = compiled(model, policy, **{name: value and 0.3 for name, value in settings.items()})
    assert 1e-6 < error(run(fewer, inputs), expected) < 0.1


def test_sparsity_is_an_option_of_torch_compile() -> None:
    model, inputs = subjects()["random"]
    options = {"policy": HiCache(interval=3), "backend": "eager", "sparsity": {**SMALL, "top_keys": 0.3}}
    denoiser = torch.compile(copy.deepcopy(model), backend="hicache", options=options)
    with inspect(denoiser).trajectory(STEPS):
        found = sample(denoiser, inputs, STEPS)
    assert torch.equal(found, run(compiled(model, HiCache(interval=3), top_keys=0.3), inputs))


@pytest.mark.parametrize("policy", [HiCache(interval=3), FBCache(0.01)], ids=["HiCache", "FBCache"])
def test_a_suspended_run_goes_on(policy: Policy, tmp_path: Path) -> None:
    model, inputs = subjects()["random"]
    whole = compiled(model, policy, full_every=3, max_age=20)
    expected = run(whole, inputs)
    path = tmp_path / "run.safetensors"
    first, second = (compiled(model, policy, full_every=3, max_age=20) for _ in range(2))
    x = inputs["hidden_states"]

    def steps(denoiser: CompiledDenoiser, x: Tensor, which: range) -> Tensor:
        for step in which:
            time = torch.full((2,), 1 - step / STEPS)
            with torch.no_grad():
                x = x - denoiser(**{**inputs, "hidden_states": x}, timestep=time, return_dict=False)[0] / STEPS
        return x

    with first.trajectory(STEPS):
        x = steps(first, x, range(7))
        first.suspend(path)
    with second.resume(path):
        x = steps(second, x, range(7, STEPS))
    assert torch.equal(x, expected)
    assert second.report().decisions() == whole.report().decisions()
    assert "S" in whole.report().decisions()[7:]


def test_explain_and_dump_say_what_is_sparse_and_when(tmp_path: Path) -> None:
    model, inputs = subjects()["random"]
    denoiser = compiled(model, HiCache(interval=3))
    run(denoiser, inputs)
    found = denoiser.explain(STEPS)
    assert found.decisions == denoiser.report().decisions()
    assert found.flops_speedup == pytest.approx(denoiser.report().flops_speedup)
    assert "single_transformer_blocks.0.attn" in found.sparse
    assert "steps sparse in 4 attentions and MLPs" in str(found)
    denoiser.dump(tmp_path, STEPS)
    decided = [line.split("\t")[1] for line in (tmp_path / "schedule.tsv").read_text().splitlines()[1:]]
    assert decided[:6] == ["full", "select", "sparse", "forecast", "forecast", "sparse"]
    assert Chipmunk.from_dict(json.loads((tmp_path / "sparsity.json").read_text())) == Chipmunk(**SMALL)
    alone = compiled(model, None)
    run(alone, inputs)
    assert alone.explain(STEPS).decisions == "FFSSSSSSSSSF"


def test_the_original_kernel_gets_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel is stood in for: what is handed to it is what it is made for."""
    asked = []

    def csp_attn(q: Tensor, k: Tensor, v: Tensor, o: Tensor, indices: Tensor, counts: Tensor, sign: int) -> None:
        asked.append((q.shape, indices.shape, indices.dtype, counts.dtype, sign))
        rows = indices[..., : int(counts.max())].repeat_interleave(192, dim=2)[:, :, : q.shape[2]].long()
        chosen = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.bool).scatter(-1, rows, True)
        o += sign * nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=chosen)

    monkeypatch.setitem(sys.modules, "chipmunk", types.ModuleType("chipmunk"))
    monkeypatch.setattr(original, "_check", lambda *_: None)
    monkeypatch.setattr(torch.ops, "chipmunk", types.SimpleNamespace(csp_attn=csp_attn), raising=False)
    query, key, value = (torch.randn(2, 3, 400, 128) for _ in range(3))
    columns = torch.stack([torch.randperm(400)[:112].sort().values for _ in range(18)]).view(2, 3, 3, 112).int()
    given = (columns, None, 192, 128**-0.5, 0.28)
    found, _ = torch.ops.hicache.attention_columns(query, key, value, *given, "chipmunk")
    expected, _ = torch.ops.hicache.attention_columns(query, key, value, *given, "portable")
    assert error(found, expected) < 1e-6
    assert asked == [(torch.Size([1, 3, 400, 128]), torch.Size([1, 3, 3, 400]), torch.int32, torch.int32, 1)] * 2


def test_the_original_kernel_is_refused_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "chipmunk", types.ModuleType("chipmunk"))
    with pytest.raises(HiCacheError, match="must be for"):
        original.attention_columns(*[torch.randn(1, 1, 8, 16)] * 3, torch.zeros(1, 1, 1, 4).int(), None, 192, 0.25)


class Scaled(nn.Module):
    """Blocks of attention whose scale is a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 24) for _ in range(3))
        self.scale = 0.3

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for block in self.blocks:
            query, key, value = (part[:, None] for part in block(x * t).chunk(3, -1))
            x = x + nn.functional.scaled_dot_product_attention(query, key, value, scale=self.scale)[:, 0]
        return x


def test_what_dynamic_shapes_hand_in_is_as_sparse() -> None:
    """Under ``dynamic=True`` the numbers that attentions are given are inputs of the graph."""
    model, inputs = subjects()["random"]
    torch._dynamo.reset()
    expected = run(compiled(model, HiCache(interval=3), top_keys=0.3), inputs)
    sparsity = Chipmunk(**SMALL, top_keys=0.3)
    denoiser = hicache_compile(model, HiCache(interval=3), backend="eager", sparsity=sparsity, dynamic=True)
    assert error(run(denoiser, inputs), expected) < 1e-6
    assert not denoiser.report().refused


def test_a_scale_of_attention_that_changes_is_seen() -> None:
    model = Scaled()
    denoiser = hicache_compile(model, HiCache(interval=1), backend="eager", dynamic=True)
    for model.scale in (0.3, 2.0):
        x, t = torch.randn(1, 8, 8), torch.ones(())
        with torch.no_grad(), denoiser.trajectory(1):
            assert torch.equal(denoiser(x, t), model(x, t))
