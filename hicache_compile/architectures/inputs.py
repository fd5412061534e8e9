"""Example inputs of one denoiser call for an image or video of a given size, as the model's pipeline makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hicache_compile.errors import HiCacheError

Inputs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """The size of the sample in pixels, frames and prompts. ``None``: the default of the model."""

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    batch: int = 1
    text_tokens: int | None = None

    def size(self, default: int, multiple: int) -> tuple[int, int]:
        """Height and width in pixels.

        Raises:
            HiCacheError: one of them is not a multiple of ``multiple``, which the model's latents and patches require.
        """
        sizes = self.height or default, self.width or self.height or default
        for name, value in zip(("height", "width"), sizes, strict=True):
            if value < multiple or value % multiple:
                raise HiCacheError(f"{name} = {value}: must be a multiple of {multiple}")
        return sizes

    def clip(self, default: int, step: int) -> int:
        """The number of latent frames of a video."""
        frames = self.frames or default
        if frames < 1 or (frames - 1) % step:
            raise HiCacheError(f"frames = {frames}: must be 1 more than a multiple of {step}")
        return (frames - 1) // step + 1


def example_inputs(model: nn.Module, request: Request) -> Inputs:
    """The arguments of one call of ``model``, on its device and in its dtype; the values are arbitrary.

    Raises:
        HiCacheError: there are no example inputs for the class, or the request does not fit it.
    """
    name = type(model).__name__
    if name not in INPUTS:
        raise HiCacheError(
            f"model is a {name}: must be one of {', '.join(INPUTS)}; for any other, compile it, call it once, and ask "
            "compiled.explain()"
        )
    return {**INPUTS[name](_Maker(model, request)), "return_dict": False}


class _Maker:
    """Makes tensors with the model's device and dtype."""

    def __init__(self, model: Any, request: Request) -> None:
        self.model = model
        self.config = model.config
        self.request = request
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype

    def noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(self.request.batch, *shape, device=self.device, dtype=self.dtype)

    def full(self, value: float, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.full((self.request.batch,), value, device=self.device, dtype=dtype or self.dtype)

    def text(self, tokens: int, width: int) -> torch.Tensor:
        return self.noise(self.request.text_tokens or tokens, width)


def _flux(make: _Maker) -> Inputs:
    height, width = make.request.size(1024, 16)
    tokens = height * width // 256
    text = make.text(512, make.config.joint_attention_dim)
    ids = torch.zeros(tokens, 3, device=make.device, dtype=make.dtype)
    guidance = {"guidance": make.full(3.5)} if make.config.guidance_embeds else {}
    return {
        "hidden_states": make.noise(tokens, make.config.in_channels),
        "encoder_hidden_states": text,
        "pooled_projections": make.noise(make.config.pooled_projection_dim),
        "timestep": make.full(1.0),
        "img_ids": ids,
        "txt_ids": ids.new_zeros(text.shape[1], 3),
        **guidance,
    }


def _qwen_image(make: _Maker) -> Inputs:
    height, width = make.request.size(1024, 16)
    text = make.text(256, make.config.joint_attention_dim)
    return {
        "hidden_states": make.noise(height * width // 256, make.config.in_channels),
        "encoder_hidden_states": text,
        "timestep": make.full(1.0),
        "img_shapes": [[(1, height // 16, width // 16)]] * make.request.batch,
    }


def _hunyuan_video(make: _Maker) -> Inputs:
    height, width = make.request.size(720, 16)
    text = make.text(256, make.config.text_embed_dim)
    guidance = {"guidance": make.full(6000.0)} if make.config.guidance_embeds else {}
    return {
        "hidden_states": make.noise(make.config.in_channels, make.request.clip(61, 4), height // 8, width // 8),
        "timestep": make.full(1000.0),
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.ones(text.shape[:2], device=make.device, dtype=torch.bool),
        "pooled_projections": make.noise(make.config.pooled_projection_dim),
        **guidance,
    }


def _wan(make: _Maker) -> Inputs:
    height, width = make.request.size(480, 16)
    return {
        "hidden_states": make.noise(make.config.in_channels, make.request.clip(81, 4), height // 8, width // 8),
        "timestep": make.full(1000, torch.int64),
        "encoder_hidden_states": make.text(512, make.config.text_dim),
    }


def _sd3(make: _Maker) -> Inputs:
    height, width = make.request.size(8 * make.config.sample_size, 16)
    return {
        "hidden_states": make.noise(make.config.in_channels, height // 8, width // 8),
        "encoder_hidden_states": make.text(333, make.config.joint_attention_dim),
        "pooled_projections": make.noise(make.config.pooled_projection_dim),
        "timestep": make.full(1000.0),
    }


def _pixart(make: _Maker) -> Inputs:
    height, width = make.request.size(8 * make.config.sample_size, 16)
    text = make.text(300, make.config.caption_channels or make.config.cross_attention_dim)
    sizes = make.noise(2) if make.model.use_additional_conditions else None
    return {
        "hidden_states": make.noise(make.config.in_channels, height // 8, width // 8),
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.ones(text.shape[:2], device=make.device, dtype=make.dtype),
        "timestep": make.full(999, torch.int64),
        "added_cond_kwargs": {"resolution": sizes, "aspect_ratio": None if sizes is None else sizes[:, :1]},
    }


def _dit(make: _Maker) -> Inputs:
    height, width = make.request.size(8 * make.config.sample_size, 8 * make.config.patch_size)
    return {
        "hidden_states": make.noise(make.config.in_channels, height // 8, width // 8),
        "timestep": make.full(999, torch.int64),
        "class_labels": make.full(0, torch.int64),
    }


def _ltx(make: _Maker) -> Inputs:
    height, width = make.request.size(512, 32)
    frames = make.request.clip(161, 8)
    text = make.text(128, make.config.caption_channels)
    return {
        "hidden_states": make.noise(frames * height * width // 1024, make.config.in_channels),
        "encoder_hidden_states": text,
        "timestep": make.full(1000, torch.int64),
        "encoder_attention_mask": torch.ones(text.shape[:2], device=make.device, dtype=make.dtype),
        "num_frames": frames,
        "height": height // 32,
        "width": width // 32,
        "rope_interpolation_scale": (8 / 25, 32, 32),
    }


INPUTS: dict[str, Callable[[_Maker], Inputs]] = {
    "FluxTransformer2DModel": _flux,
    "QwenImageTransformer2DModel": _qwen_image,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "WanTransformer3DModel": _wan,
    "SD3Transformer2DModel": _sd3,
    "PixArtTransformer2DModel": _pixart,
    "DiTTransformer2DModel": _dit,
    "LTXVideoTransformer3DModel": _ltx,
}
