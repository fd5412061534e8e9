"""Declared scenarios: everything that decides a number, in one frozen record."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hicache_compile import FORA, HiCache, Policy, TaylorSeer


@dataclass(frozen=True, slots=True)
class Flux:
    """A FLUX transformer with random weights and the inputs of one denoiser call."""

    layers: int
    single_layers: int
    heads: int
    head_dim: int
    image_tokens: int
    text_tokens: int
    batch: int = 1
    seed: int = 0

    def model(self) -> torch.nn.Module:
        from diffusers import FluxTransformer2DModel

        torch.manual_seed(self.seed)
        third = self.head_dim // 8
        return FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=self.layers,
            num_single_layers=self.single_layers,
            attention_head_dim=self.head_dim,
            num_attention_heads=self.heads,
            joint_attention_dim=512,
            pooled_projection_dim=256,
            axes_dims_rope=(2 * third, 3 * third, 3 * third),
        ).eval()

    def inputs(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)

        def noise(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        side = round(self.image_tokens**0.5)
        rows = torch.arange(side, dtype=torch.float32)
        grid = torch.stack(torch.meshgrid(rows, rows, indexing="ij"), -1).reshape(-1, 2)
        return {
            "hidden_states": noise(self.batch, self.image_tokens, 64),
            "encoder_hidden_states": noise(self.batch, self.text_tokens, 512),
            "pooled_projections": noise(self.batch, 256),
            "timestep": torch.full((self.batch,), 1.0),
            "img_ids": torch.nn.functional.pad(grid, (1, 0)),
            "txt_ids": torch.zeros(self.text_tokens, 3),
        }


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is measured: a model, a policy at a scope, a number of steps, and how it is compiled."""

    name: str
    model: Flux
    policy: Policy
    steps: int = 50
    backend: str = "inductor"


FLUX_70M = Flux(layers=2, single_layers=4, heads=11, head_dim=64, image_tokens=576, text_tokens=64)

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("flux-70m-module", FLUX_70M, HiCache(interval=6, scope="module")),
        Scenario("flux-70m-stack", FLUX_70M, HiCache(interval=6, scope="stack")),
        Scenario("flux-70m-output", FLUX_70M, HiCache(interval=6, scope="output")),
        Scenario("flux-70m-taylorseer", FLUX_70M, TaylorSeer(interval=6)),
        Scenario("flux-70m-fora", FLUX_70M, FORA(interval=6, warmup=3)),
    )
}
