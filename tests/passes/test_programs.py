"""How much is compiled: two programs a static policy, nothing again, and each shape once."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from hicache_compile import (
    FORA,
    AdamsBashforth,
    HiCache,
    HiCacheError,
    Interval,
    Newton,
    Policy,
    Smoothing,
    StepMask,
    Taylor,
    TaylorSeer,
    hicache_compile,
)
from hicache_compile.passes.graph.graphs import placeholders
from tests.support.models import ToyDiT, flux_inputs, random_flux, sample


@pytest.fixture(autouse=True)
def fresh_counters() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def captures() -> int:
    """Graphs Dynamo handed to a backend: each recompile is one more."""
    return counters["stats"]["unique_graphs"]


def test_twenty_trajectories_compile_two_programs() -> None:
    model = random_flux(1, 2)
    compiled = hicache_compile(model, HiCache(interval=4, order=3), backend="aot_eager")
    mask = "1101000100"
    policies = [
        HiCache(interval=2, order=1),
        HiCache(interval=5, order=2, sigma=0.3),
        HiCache(interval=3, order=3, sigma=0.9, warmup=1),
        TaylorSeer(interval=3, order=2),
        FORA(interval=2),
        Policy(Interval(4, cooldown=2), Newton(3)),
        Policy(Interval(2, warmup=2), AdamsBashforth(2)),
        Policy(StepMask(mask), Taylor(1)),
        Policy(Interval(3), Taylor(2), smoothing=Smoothing()),
        HiCache(interval=1),
    ]
    for seed, policy in zip(range(20), itertools.cycle(policies)):
        compiled.policy = policy
        steps = len(mask) if isinstance(policy.schedule, StepMask) else 6 + seed % 5
        with compiled.trajectory(steps):
            sample(compiled, flux_inputs(seed=seed), steps)
        assert compiled.report().decisions() == policy.decisions(steps)
    report = compiled.report()
    assert (report.programs, report.recompiles, report.graph_breaks, captures()) == (2, 0, 0, 1)


def test_a_second_shape_adds_its_programs_once() -> None:
    model = random_flux(1, 2)
    compiled = hicache_compile(model, HiCache(interval=2), backend="aot_eager", dynamic=False)
    for tokens, programs, graphs in ((16, 2, 1), (25, 4, 2), (16, 4, 2), (25, 4, 2)):
        with compiled.trajectory(6):
            sample(compiled, flux_inputs(tokens), 6)
        report = compiled.report()
        assert (report.programs, captures(), report.recompiles) == (programs, graphs, 0)
        alone = hicache_compile(model, HiCache(interval=2), backend="eager", dynamic=False)
        with alone.trajectory(6):
            sample(alone, flux_inputs(tokens), 6)
        counters["stats"]["unique_graphs"] -= 1  # the capture of `alone`
        assert (report.flops_full, report.flops_forecast) == (alone.report().flops_full, alone.report().flops_forecast)
        assert report.state_bytes == alone.report().state_bytes


def test_dynamic_shapes_share_programs_but_not_anchors() -> None:
    model = random_flux(1, 2)
    compiled = hicache_compile(model, HiCache(interval=3), backend="aot_eager", dynamic=True)
    for tokens in (16, 25, 16):
        alone = hicache_compile(model, HiCache(interval=3), backend="aot_eager", dynamic=False)
        with alone.trajectory(8), compiled.trajectory(8):
            expected, found = (sample(each, flux_inputs(tokens), 8) for each in (alone, compiled))
        assert float((found - expected).norm() / expected.norm()) < 1e-5  # dynamic kernels may round differently
        assert compiled.report().state_bytes == alone.report().state_bytes
    assert compiled.report().programs == 2


def test_sizes_that_were_seen_are_not_worked_out_again() -> None:
    """A step of a dynamic graph takes as long on the host as one of a static graph: sympy is slow."""
    compiled = hicache_compile(random_flux(1, 2), HiCache(interval=3), backend="eager", dynamic=True)
    with compiled.trajectory(4):
        sample(compiled, flux_inputs(16), 4)
    with mock.patch("hicache_compile.runtime.program_set.concrete", side_effect=AssertionError):
        with compiled.trajectory(4):
            sample(compiled, flux_inputs(16), 4)
        with pytest.raises(AssertionError), compiled.trajectory(4):
            sample(compiled, flux_inputs(25), 4)


def test_a_deeper_ring_is_built_when_a_policy_needs_it() -> None:
    compiled = hicache_compile(random_flux(1, 1), FORA(interval=2), backend="eager")
    with compiled.trajectory(4):
        sample(compiled, flux_inputs(), 4)
    shallow = compiled.report().state_bytes
    compiled.policy = TaylorSeer(interval=2, order=2)
    with compiled.trajectory(6):
        sample(compiled, flux_inputs(), 6)
    assert compiled.report().state_bytes == 3 * shallow
    assert captures() == 1


def test_scopes_share_one_capture() -> None:
    compiled = hicache_compile(random_flux(1, 1), HiCache(interval=3), backend="eager")
    for scope in ("module", "block", "stack", "output"):
        compiled.policy = HiCache(interval=3, scope=scope)
        with compiled.trajectory(6):
            sample(compiled, flux_inputs(), 6)
    assert captures() == 1
    assert compiled.report().recompiles == 0


def test_many_denoisers_of_one_class_do_not_use_up_a_shared_limit() -> None:
    for seed in range(torch._dynamo.config.recompile_limit + 3):
        compiled = hicache_compile(ToyDiT(depth=1), HiCache(interval=2, warmup=1), backend="eager")
        with compiled.trajectory(4), torch.no_grad():
            for step in range(4):
                compiled(torch.zeros(2, 5, 16), torch.full((2,), 1 - step / 4))
        assert compiled.report().decisions() == "F.F.", seed


def test_graph_breaks_of_the_model_are_counted_and_each_graph_is_cached() -> None:
    class Breaks(ToyDiT):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            c = self.time(t[:, None])
            x = self.layers[0](self.embed(x), c)
            torch._dynamo.graph_break()
            return self.head(self.layers[1](x, c))

    model = Breaks(depth=2)
    compiled = hicache_compile(model, HiCache(interval=3, warmup=1), backend="eager")
    x = torch.randn(2, 5, 16)
    with compiled.trajectory(6), torch.no_grad():
        outputs = [compiled(x, torch.full((2,), 1 - step / 6)) for step in range(6)]
        expected = [model(x, torch.full((2,), 1 - step / 6)) for step in range(6)]
    report = compiled.report()
    assert (report.graph_breaks, report.programs, report.decisions()) == (1, 4, "F..F..")
    assert torch.equal(outputs[0], expected[0])
    assert torch.equal(outputs[3], expected[3])


def test_the_denoiser_is_not_compiled_eagerly_unseen(caplog: pytest.LogCaptureFixture) -> None:
    compiled = hicache_compile(ToyDiT(), HiCache(interval=3), backend="eager")
    with caplog.at_level(logging.WARNING), torch._dynamo.config.patch(disable=True), compiled.trajectory(2):
        compiled(torch.zeros(2, 5, 16), torch.ones(2))
    assert "Dynamo ran the denoiser without compiling it" in caplog.text


def test_a_model_without_sites_warns_and_runs(caplog: pytest.LogCaptureFixture) -> None:
    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv1d(5, 5, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    model = Convolutions()
    compiled = hicache_compile(model, HiCache(interval=2, warmup=1), backend="eager")
    x = torch.randn(2, 5, 16)
    with caplog.at_level(logging.WARNING), compiled.trajectory(2), torch.no_grad():
        assert torch.equal(compiled(x, torch.ones(2)), model(x, torch.ones(2)))
        assert torch.equal(compiled(x, torch.zeros(2)), model(x, torch.zeros(2)))
    assert "nothing is cached" in caplog.text
    assert "layers: no output of layers.0 is a residual sum of its input" in caplog.text
    report = compiled.report()
    assert report.decisions() == "FF"
    assert report.refused == [("layers", "no output of layers.0 is a residual sum of its input")]


def test_torch_export_exports_one_call() -> None:
    """As of what ``torch.compile`` makes: the wrapped module's graph."""
    arguments = torch.randn(2, 5, 16), torch.ones(2)
    exported = torch.export.export(hicache_compile(ToyDiT(), HiCache(), backend="eager"), arguments)
    assert torch.equal(exported.module()(*arguments), ToyDiT()(*arguments))


def test_gradients_are_refused() -> None:
    compiled = hicache_compile(ToyDiT(), HiCache(), backend="eager")
    x = torch.zeros(2, 5, 16, requires_grad=True)
    with pytest.raises(HiCacheError, match="argument 0 requires grad: must not"), compiled.trajectory(2):
        compiled(x, torch.ones(2))


def test_gradients_of_what_is_in_an_argument_are_refused() -> None:
    class Nested(ToyDiT):
        def forward(self, inputs: dict[str, Tensor], t: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(inputs["x"], t)

    compiled = hicache_compile(Nested(), HiCache(), backend="eager")
    x = torch.zeros(2, 5, 16, requires_grad=True)
    with pytest.raises(HiCacheError, match="'inputs' requires grad: must not"), compiled.trajectory(2):
        compiled(inputs={"x": x}, t=torch.ones(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": torch.jit.script(nn.Linear(2, 2))}, r"hicache_compile.model = .*: must not be TorchScript"),
        ({"policy": {"preset": "FORA", "interval": np.float32(2.5)}}, r"Interval.interval = 2.5: must be an integer"),
        ({"model": 3}, r"hicache_compile.model = int: must be a torch.nn.Module"),
        ({"policy": 3}, r"policy = 3: must be a Policy, a dict, a path"),
        ({"policy": "HiCash"}, r"policy = 'HiCash': must be .* one of HiCache, TaylorSeer"),
        ({"backend": "tvm"}, r"hicache_compile.backend = 'tvm': must be one of eager, aot_eager, inductor"),
        ({"sparsity": 0.5}, r"hicache_compile.sparsity = 0.5: must be None"),
        ({"dynamic": "yes"}, r"hicache_compile.dynamic = 'yes': must be None, True or False"),
        ({"mode": "reduce-overhead"}, r"hicache_compile.mode = 'reduce-overhead': must be None with backend 'eager'"),
        ({"mode": "fast", "backend": "inductor"}, r"hicache_compile.mode = 'fast': must be one of default, "),
    ],
)
def test_a_bad_argument_names_itself(arguments: dict[str, object], message: str) -> None:
    given = {"model": ToyDiT(), "policy": "HiCache", "backend": "eager", **arguments}
    model, policy = given.pop("model"), given.pop("policy")
    with pytest.raises(HiCacheError, match=message):
        hicache_compile(model, policy, **given)  # type: ignore[arg-type]  # that is the test


def test_compiling_twice_is_an_error() -> None:
    compiled = hicache_compile(ToyDiT(), "HiCache", backend="eager")
    with pytest.raises(HiCacheError, match="compiled already: set its policy instead"):
        hicache_compile(compiled, "HiCache")
    with pytest.raises(HiCacheError, match=r"instead; it has policy.schedule = Interval\(interval=6.*, not .*=4"):
        hicache_compile(compiled, HiCache(interval=4))
    with pytest.raises(HiCacheError, match=r"; it has backend = 'eager', not 'aot_eager'; anchors = None, not"):
        hicache_compile(compiled, "HiCache", backend="aot_eager", anchors="bfloat16")
    with pytest.raises(HiCacheError, match=r"program_passes = \[\], not \[print\]$"):
        hicache_compile(compiled, "HiCache", program_passes=[print])
    with pytest.raises(HiCacheError, match="policy = 'nope'"):
        compiled.policy = "nope"
    assert compiled.policy == HiCache()  # nothing was half-changed


def test_it_behaves_like_the_model_it_wraps() -> None:
    model = random_flux(1, 1)
    compiled = hicache_compile(model, "HiCache", backend="eager")
    assert isinstance(compiled, nn.Module)
    assert compiled.config is model.config
    assert (compiled.dtype, compiled.device) == (model.dtype, model.device)
    assert compiled.state_dict().keys() == model.state_dict().keys()
    compiled.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})
    assert model.proj_out.weight.abs().sum() == 0
    assert compiled.to(torch.float64).dtype == model.dtype == torch.float64


def test_saving_saves_the_model(tmp_path: object) -> None:
    model = random_flux(1, 1)
    hicache_compile(model, "HiCache", backend="eager").save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)  # type: ignore[attr-defined]  # diffusers
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_denoiser_does_not_learn_its_sizes_from_another() -> None:
    first, second = (hicache_compile(ToyDiT(), HiCache(), backend="eager") for _ in range(2))
    with torch.no_grad():
        first(torch.randn(2, 5, 16), torch.rand(2))
        second(torch.randn(2, 7, 16), torch.rand(2))
    sizes = [node.meta["example_value"].shape for node in placeholders(second.graphs["captured"])]
    assert torch.Size([2, 7, 16]) in sizes
