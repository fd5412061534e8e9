"""The models under test: the trained demo model, a random FLUX, and small hand-written denoisers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def random_flux(layers: int = 2, single_layers: int = 2, seed: int = 0) -> nn.Module:
    """A FLUX transformer of width 32 with random weights (real diffusers class)."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(seed)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=layers,
        num_single_layers=single_layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=14,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def flux_inputs(tokens: int = 16, batch: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of one call of ``random_flux``: hidden_states ``[batch, tokens, 4]`` and the conditioning."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, tokens, 4, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 4, 14, generator=generator),
        "pooled_projections": torch.randn(batch, 10, generator=generator),
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(4, 3),
    }


def sample(denoiser: nn.Module, inputs: dict[str, Tensor], steps: int) -> Tensor:
    """An Euler trajectory of a flow model from t=1 to 0; returns the last state, ``[batch, tokens, 4]``."""
    return trace(denoiser, inputs, steps)[-1]


def trace(denoiser: nn.Module, inputs: dict[str, Tensor], steps: int) -> Tensor:
    """Every state of the trajectory of ``sample``, ``[steps, batch, tokens, 4]``."""
    states = []
    x = inputs["hidden_states"]
    for step in range(steps):
        time = torch.full((len(x),), 1 - step / steps)
        with torch.no_grad():
            velocity = denoiser(**{**inputs, "hidden_states": x}, timestep=time, return_dict=False)[0]
        x = x - velocity / steps
        states.append(x)
    return torch.stack(states)


def demo_inputs(labels: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Inputs of one call of the demo model for digits ``labels``: hidden_states ``[len(labels), 64, 4]``."""
    from hicache_compile.demo import digits

    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(labels), digits.TOKENS, digits.CHANNELS, generator=generator)
    return {"hidden_states": noise, **digits.prompt(torch.tensor(labels))}


class ToyBlock(nn.Module):
    """Attention and MLP with adaLN gates on one stream."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim)
        self.gates = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        gate_a, gate_m = self.gates(c).unsqueeze(1).chunk(2, dim=-1)
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, dim=-1)
        attention = nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        x = x + gate_a * self.proj(attention)
        return x + gate_m * self.down(nn.functional.gelu(self.up(self.norm(x))))


class ToyDiT(nn.Module):
    """A plain diffusion transformer: ``forward(x [B, N, D], t [B]) -> [B, N, D]``."""

    block: type[nn.Module] = ToyBlock

    def __init__(self, depth: int = 3, dim: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(dim, dim)
        self.time = nn.Linear(1, dim)
        self.layers = nn.ModuleList(self.block(dim) for _ in range(depth))
        self.head = nn.Linear(dim, dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        c = self.time(t[:, None])
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x, c)
        return self.head(x)


class GroupedBlock(ToyBlock):
    """Four heads of queries share two of keys and values; a key that is far from the others is masked."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        gate_a, gate_m = self.gates(c).unsqueeze(1).chunk(2, dim=-1)
        y = self.norm(x)
        q, k, v = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in self.qkv(y).split([16, 8, 8, 16], -1)[:3])
        seen = (y[..., 0] < 1)[:, None, None]
        attention = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        x = x + gate_a * self.proj(attention.transpose(1, 2).flatten(2))
        return x + gate_m * self.down(nn.functional.gelu(self.up(y)))


class GroupedDiT(ToyDiT):
    block = GroupedBlock


def toy_sample(denoiser: Any, steps: int) -> Tensor:
    """What a ``ToyDiT`` makes of fixed noise."""
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step in range(steps):
            x = x - denoiser(x, torch.full((2,), 1 - step / steps)) / steps
    return x
