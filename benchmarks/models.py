"""The measured models: diffusers classes with random weights, and the trained demo model.

Each is a frozen record of all settings, with ``model()`` and ``branches()``: the arguments of one denoiser call for
each guidance branch, except the sample and the time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Arguments = dict[str, Any]


class Shape(Protocol):
    """A measured model."""

    @property
    def time_scale(self) -> float:
        """The model's input value for time 1."""
        ...

    def model(self) -> nn.Module: ...

    def twin(self, original: nn.Module) -> nn.Module:
        """Another model that shares the weights of ``original``."""
        ...

    def noise(self) -> Tensor:
        """The sample at time 1."""
        ...

    def branches(self) -> dict[str, Arguments]: ...


class _Twins(ABC):
    """``twin`` for models that are small enough to be built twice."""

    __slots__ = ()

    @abstractmethod
    def model(self) -> nn.Module: ...

    def twin(self, original: nn.Module) -> nn.Module:
        twin = self.model()
        twin.load_state_dict(original.state_dict(), assign=True)
        return twin.requires_grad_(False)


def _noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, slots=True)
class Flux:
    """A FLUX transformer on ``image_tokens + text_tokens`` tokens."""

    layers: int
    single_layers: int
    heads: int
    head_dim: int
    image_tokens: int
    text_tokens: int
    batch: int = 1
    seed: int = 0
    time_scale: float = 1.0
    joint_dim: int = 512
    pooled_dim: int = 256
    guidance: bool = False
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def model(self) -> nn.Module:
        return self._built(self.device)

    def _built(self, device: str) -> nn.Module:
        from diffusers import FluxTransformer2DModel

        torch.manual_seed(self.seed)
        third = self.head_dim // 8
        default = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(device):
                return FluxTransformer2DModel(
                    patch_size=1,
                    in_channels=64,
                    num_layers=self.layers,
                    num_single_layers=self.single_layers,
                    attention_head_dim=self.head_dim,
                    num_attention_heads=self.heads,
                    joint_attention_dim=self.joint_dim,
                    pooled_projection_dim=self.pooled_dim,
                    guidance_embeds=self.guidance,
                    axes_dims_rope=(2 * third, 3 * third, 3 * third),
                ).eval()
        finally:
            torch.set_default_dtype(default)

    def twin(self, original: nn.Module) -> nn.Module:
        twin = self._built("meta")  # two copies of the full-size model would not fit
        twin.load_state_dict(original.state_dict(), assign=True)
        return twin.requires_grad_(False)

    def noise(self) -> Tensor:
        return self._noise(0, self.batch, self.image_tokens, 64)

    def _noise(self, offset: int, *shape: int) -> Tensor:
        return _noise(self.seed + offset, *shape).to(self.device, self.dtype)

    def branches(self) -> dict[str, Arguments]:
        side = round(self.image_tokens**0.5)
        rows = torch.arange(side, dtype=torch.float32)
        grid = torch.stack(torch.meshgrid(rows, rows, indexing="ij"), -1).reshape(-1, 2)
        arguments: Arguments = {
            "encoder_hidden_states": self._noise(1, self.batch, self.text_tokens, self.joint_dim),
            "pooled_projections": self._noise(2, self.batch, self.pooled_dim),
            "img_ids": torch.nn.functional.pad(grid, (1, 0)).to(self.device),
            "txt_ids": torch.zeros(self.text_tokens, 3, device=self.device),
        }
        if self.guidance:
            arguments["guidance"] = torch.full((self.batch,), 3.5, device=self.device)
        return {"cond": arguments}


@dataclass(frozen=True, slots=True)
class DiT(_Twins):
    """A class-conditional DiT so small that launching its kernels takes longer than running them."""

    layers: int
    heads: int
    head_dim: int
    tokens: int
    seed: int = 0
    time_scale: float = 1000.0

    def model(self) -> nn.Module:
        from diffusers import DiTTransformer2DModel

        torch.manual_seed(self.seed)
        return DiTTransformer2DModel(
            num_attention_heads=self.heads,
            attention_head_dim=self.head_dim,
            in_channels=4,
            out_channels=4,
            num_layers=self.layers,
            sample_size=2 * round(self.tokens**0.5),
            num_embeds_ada_norm=1000,
        ).eval()

    def noise(self) -> Tensor:
        side = 2 * round(self.tokens**0.5)
        return _noise(self.seed, 1, 4, side, side)

    def branches(self) -> dict[str, Arguments]:
        return {"cond": {"class_labels": torch.tensor([1])}}


@dataclass(frozen=True, slots=True)
class Wan(_Twins):
    """A Wan video transformer on ``frames x side x side`` tokens."""

    layers: int
    heads: int
    head_dim: int
    frames: int
    side: int
    text_tokens: int
    seed: int = 0
    time_scale: float = 1000.0

    def model(self) -> nn.Module:
        from diffusers import WanTransformer3DModel

        torch.manual_seed(self.seed)
        return WanTransformer3DModel(
            num_attention_heads=self.heads,
            attention_head_dim=self.head_dim,
            text_dim=512,
            ffn_dim=4 * self.heads * self.head_dim,
            num_layers=self.layers,
        ).eval()

    def noise(self) -> Tensor:
        return _noise(self.seed, 1, 16, self.frames, 2 * self.side, 2 * self.side)

    def branches(self) -> dict[str, Arguments]:
        return {"cond": {"encoder_hidden_states": _noise(self.seed + 1, 1, self.text_tokens, 512)}}


@dataclass(frozen=True, slots=True)
class Qwen(_Twins):
    """A Qwen-Image transformer with true guidance: two branches per step, with prompts of different lengths."""

    layers: int
    heads: int
    head_dim: int
    side: int
    text_tokens: tuple[int, int]
    seed: int = 0
    time_scale: float = 1.0

    def model(self) -> nn.Module:
        from diffusers import QwenImageTransformer2DModel

        torch.manual_seed(self.seed)
        third = self.head_dim // 8
        return QwenImageTransformer2DModel(
            num_layers=self.layers,
            attention_head_dim=self.head_dim,
            num_attention_heads=self.heads,
            joint_attention_dim=512,
            axes_dims_rope=(2 * third, 3 * third, 3 * third),
        ).eval()

    def noise(self) -> Tensor:
        return _noise(self.seed, 1, self.side**2, 64)

    def branches(self) -> dict[str, Arguments]:
        return {
            name: {
                "encoder_hidden_states": _noise(self.seed + tokens, 1, tokens, 512),
                "encoder_hidden_states_mask": None,
                "img_shapes": [[(1, self.side, self.side)]],
            }
            for name, tokens in zip(("cond", "uncond"), self.text_tokens, strict=True)
        }


@dataclass(frozen=True, slots=True)
class Demo(_Twins):
    """The trained demo model drawing ``digits`` digits: the only one whose images are meaningful."""

    digits: int
    seed: int = 0
    time_scale: float = 1.0

    def model(self) -> nn.Module:
        from hicache_compile.demo.sampling import load_model

        return load_model().eval()

    def noise(self) -> Tensor:
        from hicache_compile.demo import digits

        return _noise(self.seed, self.digits, digits.TOKENS, digits.CHANNELS)

    def branches(self) -> dict[str, Arguments]:
        from hicache_compile.demo import digits

        return {"cond": digits.prompt(torch.arange(self.digits) % 10)}
