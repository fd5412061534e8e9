"""``torch.compile(backend="hicache")``: the same runs, the same handle, as ``hicache_compile``."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hicache_compile import FORA, HiCache, HiCacheError, hicache_compile, inspect
from tests.support.denoisers import Hourglass
from tests.support.models import ToyBlock, ToyDiT

POLICY = HiCache(interval=4, warmup=2)
OPTIONS = {"policy": POLICY, "backend": "aot_eager"}


@pytest.fixture(autouse=True)
def _few_models() -> None:
    """All models of one class share one recompile limit of Dynamo's, as under any backend."""
    torch.compiler.reset()


def run(denoiser: Callable[..., Tensor], steps: int = 12, batch: int = 2, seed: int = 0) -> Tensor:
    x = torch.randn(batch, 5, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for step in range(steps):
            x = x - denoiser(x, t=torch.full((batch,), 1 - step / steps)) / steps
    return x


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="hicache", options=OPTIONS)
    return model


def function_of(model: nn.Module) -> Callable[..., Tensor]:
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return 2 * model(x, t) / 2

    return denoise


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "module": lambda model: torch.compile(model, backend="hicache", options=OPTIONS),
    "fullgraph": lambda model: torch.compile(model, backend="hicache", options=OPTIONS, fullgraph=True),
    "dynamic": lambda model: torch.compile(model, backend="hicache", options=OPTIONS, dynamic=True),
    "function": lambda model: torch.compile(function_of(model), backend="hicache", options=OPTIONS),
    "in place": in_place,
}


@pytest.mark.parametrize("way", WAYS)
def test_it_samples_like_hicache_compile(way: str) -> None:
    expected = run(hicache_compile(ToyDiT(), POLICY, backend="aot_eager"))
    compiled = WAYS[way](ToyDiT())
    for _ in range(2):
        torch.testing.assert_close(run(compiled), expected, rtol=0, atol=0)
    report = inspect(compiled).report()
    assert report.history["default"] == ["FF...F...F..", "FF...F...F.."]
    assert (report.programs, report.recompiles, report.graph_breaks) == (2, 0, 0)
    assert list(inspect(compiled).graphs) == ["captured", "guarded", "full", "forecast"]


def test_the_handle_is_there_before_the_first_call() -> None:
    compiled = torch.compile(ToyDiT(), backend="hicache", options=OPTIONS)
    handle = inspect(compiled)
    handle.policy = HiCache(interval=3, warmup=1)
    with handle.trajectory(6):
        run(compiled, 6)
    assert inspect(compiled) is handle
    assert handle.report().decisions() == "F..F.."


def test_two_models_of_one_class_share_nothing() -> None:
    first, second = ToyDiT(), ToyDiT()
    nn.init.ones_(next(second.parameters()))
    expected = [run(hicache_compile(model, POLICY, backend="aot_eager")) for model in (first, second)]
    compiled = [torch.compile(model, backend="hicache", options=dict(OPTIONS)) for model in (first, second)]
    for model, sample in zip(compiled, expected, strict=True):
        torch.testing.assert_close(run(model), sample, rtol=0, atol=0)
        assert inspect(model).report().decisions() == "FF...F...F.."


def test_guidance_branches_are_named_through_the_handle() -> None:
    compiled = torch.compile(ToyDiT(), backend="hicache", options=OPTIONS)
    handle, x = inspect(compiled), torch.randn(2, 5, 16)
    with torch.no_grad(), handle.trajectory(6):
        for step in range(6):
            for name in ("cond", "uncond"):
                with handle.cache_context(name):
                    compiled(x, torch.full((2,), 1 - step / 6))
    assert handle.report().decisions("cond") == handle.report().decisions("uncond") == "FF...F"


def test_graph_breaks_are_one_step() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dit = ToyDiT()

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            x = self.dit(x, t)
            torch._dynamo.graph_break()
            return self.dit(x, t)

    expected = run(hicache_compile(Broken(), POLICY, backend="aot_eager"))
    compiled = torch.compile(Broken(), backend="hicache", options=OPTIONS)
    torch.testing.assert_close(run(compiled), expected, rtol=0, atol=0)
    assert inspect(compiled).report().decisions() == "FF...F...F.."
    assert inspect(compiled).report().graph_breaks == 1


def test_reset_compiles_anew_and_frees_the_anchors() -> None:
    compiled = torch.compile(ToyDiT(), backend="hicache", options=OPTIONS)
    expected = run(compiled)
    torch.compiler.reset()
    assert inspect(compiled).graphs == {}
    assert inspect(compiled).report().state_bytes == 0
    torch.testing.assert_close(run(compiled), expected, rtol=0, atol=0)


def test_what_is_no_denoiser_is_compiled_plainly(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    compiled = torch.compile(model, backend="hicache", options={"backend": "aot_eager"})
    x = torch.randn(3, 4)
    with caplog.at_level(logging.WARNING, "hicache_compile"):
        compiled(x).sum().backward()  # it trains, as it would under any other backend
    assert "nothing is cached" in caplog.text
    assert "nearest miss" in caplog.text
    given = model[0].weight.grad.clone()
    model.zero_grad()
    model(x).sum().backward()
    torch.testing.assert_close(given, model[0].weight.grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": {"preset": "HiCache", "interval": 0}}, r"Interval\.interval = 0: must be an integer >= 1"),
        ({"polcy": HiCache()}, r"options\['polcy'\]: must be one of policy, backend"),
        ({"backend": "tvm"}, r"hicache_compile\.backend = 'tvm': must be one of eager"),
        ({"sparsity": 3}, r"hicache_compile\.sparsity = 3: must be None"),
    ],
)
def test_bad_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    compiled = torch.compile(ToyDiT(), backend="hicache", options=options)
    with pytest.raises(HiCacheError, match=message):
        compiled(torch.randn(2, 5, 16), torch.rand(2))


@pytest.mark.slow
def test_it_composes_with_a_mode() -> None:
    expected = run(hicache_compile(ToyDiT(), HiCache(), backend="inductor"))
    for given in ({"mode": "reduce-overhead"}, {"options": {"policy": HiCache(), "mode": "reduce-overhead"}}):
        compiled = torch.compile(ToyDiT(), backend="hicache", **given)
        torch.testing.assert_close(run(compiled), expected, rtol=1e-5, atol=1e-6)
    wrong = torch.compile(ToyDiT(), backend="hicache", options={**OPTIONS, "mode": "max-autotune"})
    with pytest.raises(HiCacheError, match=r"hicache_compile\.mode = 'max-autotune': must be None with backend"):
        run(wrong)


@pytest.mark.parametrize(("way", "counted"), [("module", 0), ("module", 4), ("function", 4), ("in place", 0)])
def test_a_step_under_a_dispatch_mode_is_a_step(way: str, counted: int) -> None:
    """Dynamo would skip the frame, and never look at it again."""
    compiled = WAYS[way](ToyDiT())
    handle, plain = inspect(compiled), hicache_compile(ToyDiT(), POLICY, backend="aot_eager")
    totals = []
    for denoise, trajectory in ((compiled, handle.trajectory), (plain, plain.trajectory)):
        with torch.no_grad(), trajectory(12):
            for step in range(12):
                x, mode = torch.ones(2, 5, 16), FlopCounterMode(display=False)
                with mode if step == counted else contextlib.nullcontext():
                    denoise(x, t=torch.full((2,), 1 - step / 12))
                totals += [mode.get_total_flops()] if step == counted else []
    assert handle.report().decisions() == plain.report().decisions() == "FF...F...F.."
    assert totals[0] == totals[1] > 0


def test_more_sizes_than_dynamo_would_keep() -> None:
    compiled = torch.compile(ToyDiT(), backend="hicache", options=OPTIONS, dynamic=False)
    for batch in range(1, 12):
        with inspect(compiled).trajectory(12):
            run(compiled, batch=batch)
    assert set(inspect(compiled).report().history["default"]) == {"FF...F...F.."}


class Bare(ToyDiT):
    """Its arguments have other names in the frame that Dynamo compiles."""

    @torch.no_grad()
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t)


def _decorated(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def wrapper(self: nn.Module, *a: Any, **k: Any) -> Tensor:
        return forward(self, *a, **k)

    return wrapper


class Decorated(ToyDiT):
    forward = _decorated(ToyDiT.forward)


class OtherSelf(ToyDiT):
    def forward(this, x: Tensor, t: Tensor) -> Tensor:  # noqa: N805
        return super().forward(x, t)


@pytest.mark.parametrize("kind", [Bare, Decorated, OtherSelf])
def test_a_loop_of_ones_own_is_followed_however_forward_names_its_arguments(kind: type[ToyDiT]) -> None:
    expected = run(hicache_compile(kind(), POLICY, backend="aot_eager"))
    compiled = torch.compile(kind(), backend="hicache", options=OPTIONS)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(12):
            x = x - compiled(x, torch.full((2,), 1 - step / 12)) / 12  # by their places
    assert torch.equal(x, expected)
    assert inspect(compiled).report().decisions() == "FF...F...F.."


class Scaled(ToyDiT):
    """It has a parameter itself, which Dynamo reads out of its ``__dict__`` for the sake of ``__getattr__``."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x * self.scale, t)


@pytest.mark.parametrize("way", ["module", "hicache_compile"])
def test_a_parameter_of_the_denoiser_itself_is_a_weight(way: str) -> None:
    model = Scaled()
    compiled = hicache_compile(model, POLICY, backend="aot_eager") if way not in WAYS else WAYS[way](model)
    handle = inspect(compiled)
    with torch.no_grad(), handle.trajectory(12):
        for step in range(12):
            if step == 7:
                model.scale.mul_(2)
            compiled(torch.ones(2, 5, 16), torch.full((2,), 1 - step / 12))
    assert handle.report().decisions() == "FF...F.F.F.."


def test_gradients_are_refused() -> None:
    compiled = torch.compile(ToyDiT(), backend="hicache", options=OPTIONS)
    with pytest.raises(HiCacheError, match="requires grad"):
        compiled(torch.randn(2, 5, 16, requires_grad=True), torch.rand(2))


def test_a_denoiser_without_a_time_needs_a_trajectory() -> None:
    compiled = torch.compile(lambda x: ToyDiT()(x, torch.ones(2)), backend="hicache", options=OPTIONS)
    with pytest.raises(HiCacheError, match="timestep"):
        compiled(torch.randn(2, 5, 16))


class Reading(ToyBlock):
    """Reads a number on the host, which breaks the graph in the loop over the blocks."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        y = super().forward(x, c)
        return x if float(y.abs().max()) > 1e6 else y


class ReadingDiT(ToyDiT):
    block = Reading


@pytest.mark.parametrize("way", ["module", "in place"])
@pytest.mark.parametrize("announced", [True, False])
def test_blocks_that_are_traced_one_by_one_are_no_denoisers(way: str, announced: bool) -> None:
    compiled = WAYS[way](ReadingDiT())
    said = "ReadingDiT: the graph breaks in its loop over 3 Reading, .* use hicache_compile"
    with (
        inspect(compiled).trajectory(12) if announced else contextlib.nullcontext(),
        pytest.raises(HiCacheError, match=said),
    ):
        run(compiled)
    assert torch.equal(run(hicache_compile(ReadingDiT(), HiCache(interval=1), backend="eager")), run(ReadingDiT()))


@pytest.mark.parametrize("other", [nn.Linear(2, 2), torch.compile(nn.Linear(2, 2)), len])
def test_inspect_says_what_it_takes(other: Any) -> None:
    with pytest.raises(HiCacheError, match="must be compiled by hicache_compile or with"):
        inspect(other)


def test_inspect_of_a_compiled_denoiser_is_itself() -> None:
    compiled = hicache_compile(Hourglass(), POLICY, backend="eager")
    assert inspect(compiled) is compiled


FRESH = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(x)))

class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
    def forward(self, x, timestep):
        for block in self.blocks:
            x = block(x) * (1 + timestep)
        return x

def run(denoiser):
    x = noise
    with torch.no_grad():
        for step in range(20):
            x = x - denoiser(x, torch.tensor([1 - step / 20])) / 20
    return x

model, noise = Denoiser(), torch.randn(1, 8, 16)
OPTIONS = {"policy": {"preset": "HiCache", "interval": 4}, "backend": "aot_eager"}
mine = run(torch.compile(model, backend="hicache", options=OPTIONS))
plain = torch.compile(model, backend="hicache", options={"backend": "aot_eager"})(noise, torch.ones(1))

from hicache_compile import HiCache, hicache_compile
assert torch.equal(mine, run(hicache_compile(model, HiCache(interval=4), backend="aot_eager")))
assert not torch.equal(mine, run(model)), "nothing was forecast"
"""


def test_a_process_that_never_imported_the_package() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Making(ToyDiT):
    """Makes a module in its forward, as slices of a ``ModuleList`` do."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return nn.Sequential(nn.GELU(), nn.Identity())(super().forward(x, t))


@pytest.mark.parametrize("backend", ["hicache", "eager"])
def test_a_module_made_in_the_forward_is_compiled_once(backend: str) -> None:
    """Also by other backends, in a process that has imported the package."""
    options = {"options": OPTIONS} if backend == "hicache" else {}
    torch._dynamo.utils.counters.clear()
    run(torch.compile(Making(), backend=backend, **options), 4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_copy_samples_by_itself() -> None:
    """Also one that is made after a run; with the policy that was set meanwhile."""
    original = torch.compile(ToyDiT(), backend="hicache", options=OPTIONS)
    before = run(original)
    inspect(original).policy = HiCache(interval=6)
    copied = copy.deepcopy(original)
    assert torch.equal(run(copied), run(original))
    assert not torch.equal(run(copied), before)
    assert inspect(copied) is not inspect(original)
    assert len(inspect(original).report().history["default"]) == 2
    torch._dynamo.reset()
    assert torch.equal(run(copied), run(original))


def test_the_report_says_what_is_refused_where_nothing_is_cached() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x * t[:, None, None])
            return x

    denoiser = torch.compile(Layers(), backend="hicache", options=OPTIONS)
    run(denoiser, 3)
    report = inspect(denoiser).report()
    assert report.refused == [("layers", "no output of layers.0 is a residual sum of its input")]
    with pytest.raises(HiCacheError, match="no step was counted: nothing is cached"):
        report.decisions()


class Routed(ToyBlock):
    """A mixture of experts that computes for each the tokens that chose it: how many depends on data."""

    def __init__(self) -> None:
        super().__init__(16)
        self.router = nn.Linear(16, 2)
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        x = super().forward(x, temb)
        flat = x.flatten(0, 1)
        chosen = self.router(flat).argmax(-1)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            (rows,) = torch.where(chosen == number)
            out.index_add_(0, rows, expert(flat[rows]))
        return x + out.view_as(x)


@pytest.mark.parametrize("scope", ["module", "stack"])
def test_sizes_that_depend_on_data_are_no_obstacle(scope: str) -> None:
    torch.manual_seed(0)
    model = ToyDiT()
    model.layers = nn.ModuleList(Routed() for _ in range(2))
    options = {**OPTIONS, "policy": HiCache(interval=1, scope=scope)}
    denoiser = torch.compile(model, backend="hicache", fullgraph=True, options=options)
    assert torch.equal(run(denoiser), run(model))
    assert inspect(denoiser).report().decisions() == "F" * 12
    inspect(denoiser).policy = FORA(interval=3, scope=scope)
    made = run(denoiser)
    report = inspect(denoiser).report()
    assert report.decisions() == "F..F..F..F.."
    assert report.flops_speedup > 1.5
    assert 0 < float((made - run(model)).norm() / made.norm()) < 0.2
