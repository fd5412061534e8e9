"""Blocks in contexts: autocast and a choice of attention kernels around parts of a block, all blocks or everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hicache_compile import Chipmunk, DBCache, HiCache, Policy, hicache_compile
from hicache_compile.passes.graph import contexts
from hicache_compile.passes.lowering.outline import outline
from tests.support.models import ToyBlock, ToyDiT, flux_inputs, random_flux, sample, toy_sample

STEPS = 9


pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Whole(ToyDiT):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x, t).float()


class Loop(ToyDiT):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = self.time(t[:, None])
        x = self.embed(x)
        with torch.autocast("cpu", torch.bfloat16):
            for layer in self.layers:
                x = layer(x, c)
        return self.head(x.float())


class Parts(ToyDiT):
    """Autocast is on in the denoiser and off in a part of each block, as in the blocks that Wan published."""

    class block(ToyBlock):  # noqa: N801  # named as in the class it is of
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                gate = self.gates(c.float()).unsqueeze(1)[..., : x.shape[-1]]
            with sdpa_kernel(SDPBackend.MATH):
                x = super().forward(x, c)
            return x + gate * self.down(nn.functional.gelu(self.up(self.norm(x))))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x, t).float()


class Kernels(ToyDiT):
    class block(ToyBlock):  # noqa: N801
        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            with sdpa_kernel([SDPBackend.MATH]):
                return super().forward(x, c)


MODELS = {model.__name__: model for model in (Whole, Loop, Parts, Kernels)}


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "cond_eager"])
@pytest.mark.parametrize("scope", ["module", "stack"])
@pytest.mark.parametrize("name", MODELS)
def test_steps_compute_under_their_contexts(name: str, scope: str, backend: str) -> None:
    expected = toy_sample(MODELS[name](), STEPS)
    compiled = hicache_compile(MODELS[name](), HiCache(interval=1, scope=scope), backend=backend)
    with compiled.trajectory(STEPS):
        assert torch.equal(toy_sample(compiled, STEPS), expected)
    compiled.policy = HiCache(interval=4, scope=scope)
    with compiled.trajectory(STEPS):
        error = (toy_sample(compiled, STEPS) - expected).norm() / expected.norm()
    assert compiled.report().decisions() == "FFF...F.."
    assert not compiled.report().refused
    assert 0 < float(error) < 0.1


@pytest.mark.parametrize(
    "policy", [DBCache(threshold=0.0, first=1, last=1, warmup=0), HiCache(interval=1, scope="block")], ids=str
)
@pytest.mark.parametrize("name", MODELS)
def test_probes_and_blocks_too(name: str, policy: Policy) -> None:
    expected = toy_sample(MODELS[name](), STEPS)
    compiled = hicache_compile(MODELS[name](), policy, backend="eager")
    with compiled.trajectory(STEPS):
        assert torch.equal(toy_sample(compiled, STEPS), expected)


@pytest.mark.parametrize("name", MODELS)
def test_sparse_steps_compute_in_the_dtype_of_their_context(name: str) -> None:
    """With every key and unit they are as dense, but for the rounding of sums in bfloat16."""
    expected = toy_sample(MODELS[name](), STEPS)
    every = Chipmunk(top_keys=1.0, mlp_keys=1.0, first_dense=0, full_every=3)
    compiled = hicache_compile(MODELS[name](), HiCache(interval=1), sparsity=every, backend="eager")
    with compiled.trajectory(STEPS):
        error = (toy_sample(compiled, STEPS) - expected).norm() / expected.norm()
    assert "S" in compiled.report().decisions()
    assert float(error) < 2e-3


def test_a_kernel_is_the_one_that_was_chosen() -> None:
    """The math kernel rounds otherwise than the one that is taken by default."""
    assert not torch.equal(toy_sample(Kernels(), STEPS), toy_sample(ToyDiT(), STEPS))


@pytest.mark.parametrize("name", MODELS)
def test_blocks_in_contexts_are_not_compiled_once_for_all(name: str) -> None:
    """What opens and closes a context has no arguments that would keep it at its place."""
    compiled = hicache_compile(MODELS[name](), HiCache(interval=1), backend="eager")
    with compiled.trajectory(STEPS):
        toy_sample(compiled, STEPS)
    programs = [graph for name, graph in compiled.graphs.items() if name in ("full", "plain")]
    assert programs
    assert all(outline(program)[1] == 0 for program in programs)


def test_what_is_lifted_is_written_back() -> None:
    made: list[tuple[fx.GraphModule, Any]] = []

    def keep(program: fx.GraphModule, _: Any) -> Any:
        def run(*inputs: Any) -> Any:
            made.append((program, inputs))
            return program(*inputs)

        return run

    with torch.no_grad():
        torch.compile(ToyDiT(), backend=keep)(torch.randn(2, 6, 16), torch.ones(2))
        expected = torch.compile(Parts(), backend=keep)(torch.randn(2, 6, 16), torch.ones(2))
        (plain, _), (program, inputs) = made
        assert contexts.lifted(plain) is plain
        lifted = contexts.lifted(program)
        targets = {node.target for node in lifted.graph.nodes}
        assert not targets & {torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast}
        written = contexts.write_back(lifted)
        assert torch.equal(written(*inputs)[0], expected)
    assert contexts.write_back(written) is written


def test_what_is_under_vmap_is_computed(caplog: pytest.LogCaptureFixture) -> None:
    class Mapped(ToyDiT):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            c = self.time(t[:, None])

            def all_layers(x: Tensor, c: Tensor) -> Tensor:
                for layer in self.layers:
                    x = layer(x[None], c[None])[0]
                return x

            return self.head(torch.vmap(all_layers)(self.embed(x), c))

    expected = toy_sample(Mapped(), STEPS)
    compiled = hicache_compile(Mapped(), HiCache(interval=4), backend="eager")
    with compiled.trajectory(STEPS):
        assert torch.equal(toy_sample(compiled, STEPS), expected)
    assert "where no values can be kept" in caplog.text


def test_flops_of_a_graph_that_was_captured_under_autocast() -> None:
    """FLUX's norms give float32 queries beside bfloat16 values, which only attention under autocast takes."""
    found = []
    for enabled in (False, True):
        compiled = hicache_compile(random_flux(1, 1), HiCache(interval=3), backend="eager")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            sample(compiled, flux_inputs(), 6)
        report, plan = compiled.report(), compiled.explain(6)
        assert (plan.flops_full, plan.flops_forecast) == (report.flops_full, report.flops_forecast)
        found.append((report.flops_full, report.decisions()))
    assert found[0] == found[1]
