"""What is done to a compiled denoiser is done to the model: by name, through hooks, in place of ``forward``."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hicache_compile import HiCache, hicache_compile
from tests.support.models import flux_inputs, random_flux, sample

STEPS = 9


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def half(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Another ``forward`` of the same model."""
    return (type(self).forward(self, *args, **kwargs)[0] * 0.5,)


def replace_forward(model: nn.Module) -> None:
    model.forward = types.MethodType(half, model)


def wrap_forward(model: nn.Module) -> None:
    before = model.forward

    @functools.wraps(before)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (before(*args, **kwargs)[0] * 0.5,)

    model.forward = forward


def skip_a_layer(model: nn.Module) -> None:
    from diffusers import LayerSkipConfig
    from diffusers.hooks import apply_layer_skip

    skipped = LayerSkipConfig([0], fqn="single_transformer_blocks", skip_attention=False, skip_ff=False)
    apply_layer_skip(model, skipped)


def cast_layerwise(model: nn.Module) -> None:
    from diffusers.hooks import apply_layerwise_casting

    apply_layerwise_casting(model, storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


def offload(model: nn.Module) -> None:
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(model, torch.device("cpu"))


def offload_and_take_off(model: nn.Module) -> None:
    from accelerate.hooks import remove_hook_from_module

    offload(model)
    remove_hook_from_module(model)


def shrink_linears(module: nn.Module) -> None:
    """Linear layers replaced by name, as the loaders of quantised checkpoints do."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            made = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
            made.weight, made.bias = nn.Parameter(child.weight * 0.9), child.bias
            module._modules[name] = made
        shrink_linears(child)


CHANGES = [replace_forward, wrap_forward, skip_a_layer, cast_layerwise, offload, offload_and_take_off, shrink_linears]


def run(denoiser: nn.Module) -> Tensor:
    return sample(denoiser, flux_inputs(), STEPS)


@pytest.mark.parametrize(
    ("change", "when"),
    [(change, "after a run") for change in CHANGES]
    + [(change, "before it is compiled") for change in (replace_forward, offload)],
)
def test_a_change_does_what_it_does_to_the_model(change: Callable[[nn.Module], None], when: str) -> None:
    plain, model = random_flux(1, 2), random_flux(1, 2)
    with torch.no_grad():
        change(plain)
        want = run(plain)
        if when == "before it is compiled":
            change(model)
        compiled = hicache_compile(model, HiCache(interval=1), backend="eager")
        if when == "after a run":
            run(compiled)
            change(compiled)
        assert torch.equal(run(compiled), want)
        compiled.policy = HiCache(interval=3)
        run(compiled)
    assert compiled.report().decisions() == "FFF..F..F"
    assert compiled.report().graph_breaks == 0


def test_names_children_and_weights_are_the_models() -> None:
    model = random_flux(1, 1)
    compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
    for walk in ("named_parameters", "named_buffers", "named_children"):
        assert dict(getattr(compiled, walk)()) == dict(getattr(model, walk)())
    assert [name for name, _ in compiled.named_modules()] == [name for name, _ in model.named_modules()]
    compiled.to(torch.float64)
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    compiled.extra = nn.Linear(2, 2)
    assert model.extra is compiled.extra


class Guided(nn.Module):
    """A denoiser with both branches of guidance in one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.denoiser = random_flux(1, 1)

    def forward(self, hidden_states: Tensor, timestep: Tensor, **rest: Tensor) -> Any:
        return self.denoiser(hidden_states=hidden_states, timestep=timestep, **rest)

    def forward_with_cfg(self, **inputs: Tensor) -> Any:
        return (2 * self(**inputs)[0],)


def test_a_method_calls_the_compiled_model() -> None:
    compiled = hicache_compile(Guided(), HiCache(interval=3), backend="eager")

    def call(**inputs: Tensor) -> Any:
        return compiled.forward_with_cfg(**inputs)

    with torch.no_grad(), compiled.trajectory(STEPS):
        for step in range(STEPS):
            call(**{**flux_inputs(), "timestep": torch.tensor([1 - step / STEPS])})
    assert compiled.report().decisions() == "FFF..F..F"


def test_hooks_on_every_submodule_are_named(caplog: pytest.LogCaptureFixture) -> None:
    from accelerate import cpu_offload

    model = random_flux(1, 1)
    cpu_offload(model, execution_device=torch.device("cpu"))
    compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
    assert torch.equal(run(compiled), run(random_flux(1, 1)))
    warned = [record.getMessage() for record in caplog.records if record.name.startswith("hicache_compile")]
    assert len(warned) == 1
    assert "hooks on" in warned[0]
    assert "hooks on" in compiled.report().refused[0][1]


def test_whether_it_is_there_can_be_asked() -> None:
    """Modular pipelines do, of each component."""
    assert bool(hicache_compile(random_flux(1, 1), HiCache(interval=3), backend="eager")) is True
    assert bool(hicache_compile(nn.ModuleList(), HiCache(interval=3), backend="eager")) is False


def test_the_signature_of_forward_is_the_models() -> None:
    """Pipelines pass the arguments that they find there."""
    model = random_flux(1, 1)
    compiled = hicache_compile(model, HiCache(interval=3), backend="eager")
    assert inspect.signature(compiled.forward) == inspect.signature(model.forward)
    plain = model.forward

    def timed(hidden_states: torch.Tensor, timestep: torch.Tensor, **more: Any) -> Any:
        return plain(hidden_states, timestep=timestep, **more)

    compiled.forward = timed
    assert list(inspect.signature(compiled.forward).parameters) == ["hidden_states", "timestep", "more"]
