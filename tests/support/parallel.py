"""Denoisers over several ranks as people run them: diffusers' ``enable_parallelism``, and FSDP2."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hicache_compile import hicache_compile
from tests.support.models import flux_inputs, random_flux, trace
from tests.support.record import CASES
from tests.zoo import tokens, video
from tests.zoo.case import Case

STEPS = 12
SIZE = 2  # 24 tokens: even parts for 2 and 4 ranks
ZOO: dict[str, Case] = {case.name: case for case in (*tokens.CASES, *video.CASES)}
MODELS = {
    "flux": "FluxTransformer2DModel",
    "wan": "WanTransformer3DModel",
    "qwen": "QwenImageTransformer2DModel",
    "hunyuan": "HunyuanVideoTransformer3DModel",
}
Found = dict[str, Any]


def uneven_inputs() -> dict[str, Tensor]:
    """Inputs of ``random_flux`` of which the first half of the tokens holds nearly all of the change."""
    inputs = flux_inputs(batch=1)
    sizes = torch.tensor([3.0, 0.01]).repeat_interleave(8)[:, None]
    return {**inputs, "hidden_states": inputs["hidden_states"] * sizes}


def build(model: str) -> nn.Module:
    return random_flux(3, 2) if model == "uneven" else ZOO[MODELS[model]].build(3)


class Parts(nn.Module):
    """A diffusers ``FeedForward`` as the MLPs that ``world`` ranks have of it: each sparse by itself."""

    def __init__(self, whole: Any, world: int) -> None:
        super().__init__()
        first, last = whole.net[0].proj, whole.net[2]
        rows = [(first.weight.chunk(world)[part], first.bias.chunk(world)[part]) for part in range(world)]
        self.inner = nn.ParameterList(nn.Parameter(given) for pair in rows for given in pair)
        self.outer = nn.ParameterList(nn.Parameter(part) for part in last.weight.chunk(world, 1))
        self.bias = last.bias

    def forward(self, x: Tensor) -> Tensor:
        total = self.bias
        for part, outer in enumerate(self.outer):
            hidden = functional.linear(x, self.inner[2 * part], self.inner[2 * part + 1])
            total = total + functional.linear(functional.gelu(hidden, approximate="tanh"), outer)
        return total


def in_parts(model: nn.Module, world: int) -> nn.Module:
    """``model`` on one rank with every ``FeedForward`` as ``world`` ranks have it."""
    from diffusers.models.attention import FeedForward

    for name, module in [*model.named_modules()]:
        if isinstance(module, FeedForward):
            model.set_submodule(name, Parts(module, world))
    return model


def parallelise(model: Any, engine: str, world: int) -> nn.Module:
    """``model`` over ``world`` ranks. diffusers takes a CPU for no accelerator, so it is told otherwise."""
    from diffusers import ContextParallelConfig, TensorParallelConfig
    from diffusers.hooks import tensor_parallel

    torch.accelerator.device_count = lambda: 1
    tensor_parallel._SUPPORTED_TP_DEVICES = ("cpu",)
    if engine == "ulysses":
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=world))
    elif engine == "tensor":
        model.enable_parallelism(config=TensorParallelConfig(tp_degree=world))
    elif engine == "fsdp":
        _shard(model, None)
    elif engine == "ulysses, fsdp":  # weights over two ranks, and each such pair has half of the tokens
        from torch.distributed.device_mesh import init_device_mesh

        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "ulysses"))
        names = {"ring": 1, "ulysses": world // 2}
        tokens_mesh = init_device_mesh("cpu", (2, *names.values()), mesh_dim_names=("data", *names))["ring", "ulysses"]
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=world // 2, mesh=tokens_mesh))
        _shard(model, mesh["data"])
    return model


def _shard(model: nn.Module, mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    for blocks in model.children():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def run(denoiser: Any, model: str, contexts: int) -> Tensor:
    """The last states of a run with ``contexts`` guidance branches."""
    if model == "uneven":
        return trace(denoiser, uneven_inputs(), STEPS)[-1]
    case = ZOO[MODELS[model]]
    x = case.noise(size=SIZE)
    for step in range(STEPS):
        velocities = []
        for branch in range(contexts):
            with denoiser.cache_context(f"branch {branch}") if contexts > 1 else nullcontext(), torch.no_grad():
                velocities.append(case.call(denoiser, x + 0.1 * branch, 1 - step / STEPS, SIZE))
        x = x - sum(velocities) / contexts / STEPS
    return x


def sampled(model: str, policy: str, engine: str = "", world: int = 1, backend: str = "eager", parts: int = 1) -> Found:
    """A run of ``model`` under the policy ``policy`` of the record. ``parts``: of its MLPs, see ``in_parts``."""
    contexts = 2 if model == "qwen" else 1
    made, options = CASES[policy]
    built = in_parts(build(model), parts) if parts > 1 else build(model)
    compiled = hicache_compile(parallelise(built, engine, world), made(0), backend=backend, **options)
    with compiled.trajectory(STEPS):
        x = run(compiled, model, contexts)
    report = compiled.report()
    return {
        "x": x,
        "decisions": {name: report.decisions(name) for name in report.history},
        "breaks": report.graph_breaks,
        "recompiles": report.recompiles,
        "flops": (report.flops_full, report.flops_forecast),
        "collectives": (report.collectives_full, report.collectives_forecast),
        "bytes": (report.bytes_sent_full, report.bytes_sent_forecast),
        "state": report.state_bytes,
    }
