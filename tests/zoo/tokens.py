"""Image models that are given tokens: FLUX and its kin, Qwen-Image, and others of that kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.case import Case, constant, grid_ids, one, thousand

TEXT = 6


def _tokens(channels: int) -> Any:
    return lambda batch, height, width: (batch, height * width, channels)


def _flux_like(x: Tensor, t: float, height: int, width: int, text: int = 32, **more: Any) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": constant(len(x), TEXT, text, like=x),
        "img_ids": grid_ids(height, width),
        "txt_ids": torch.zeros(TEXT, 3),
        "timestep": one(x, t),
        "return_dict": False,
        **more,
    }


def _four_axis_ids(x: Tensor, height: int, width: int) -> dict[str, Tensor]:
    image = grid_ids(height, width, 4)
    text = torch.zeros(TEXT, 4)
    text[:, 3] = torch.arange(TEXT)
    return {"img_ids": image, "txt_ids": text}


def _flux(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    guidance = torch.full((len(x),), 3.5).to(x.dtype)
    return _flux_like(x, t, height, width, pooled_projections=constant(len(x), 12, like=x), guidance=guidance)


def _guided(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return _flux_like(x, t, height, width, guidance=torch.full((len(x),), 3.5).to(x.dtype))


def _bria_fibo(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    text = constant(len(x), TEXT, 32, like=x)
    return _flux_like(x, t, height, width, timestep=thousand(x, t), text_encoder_layers=[text[..., :16]] * 5)


def _flux2(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {**_guided(x, t, height, width), **_four_axis_ids(x, height, width)}


def _flux3(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {**_flux_like(x, t, height, width), **_four_axis_ids(x, height, width)}


def _qwen(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": constant(len(x), TEXT, 16, like=x),
        "encoder_hidden_states_mask": torch.ones(len(x), TEXT, dtype=torch.long),
        "timestep": one(x, t),
        "img_shapes": [[(1, height, width)]] * len(x),
        "return_dict": False,
    }


def _qwen21(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    slots = height * width // 4
    image_slots = torch.zeros(len(x), TEXT + slots, dtype=torch.bool)
    image_slots[:, TEXT:] = True
    return {**_qwen(x, t, height, width), "img_shapes": [[(1, 2 * slots, 2)]] * len(x), "img_mask": image_slots}


def _ideogram(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    from diffusers.models.transformers import transformer_ideogram4 as source

    batch, length = len(x), TEXT + height * width
    positions = torch.zeros(batch, length, 3, dtype=torch.long)
    positions[:, :TEXT] = torch.arange(TEXT)[None, :, None]
    positions[:, TEXT:] = (grid_ids(height, width) + source.IMAGE_POSITION_OFFSET).long()
    indicator = torch.full((batch, length), source.OUTPUT_IMAGE_INDICATOR)
    indicator[:, :TEXT] = source.LLM_TOKEN_INDICATOR
    text = constant(batch, length, 24, like=x) * (torch.arange(length) < TEXT)[None, :, None].to(x.dtype)
    return {
        "hidden_states": x,
        "encoder_hidden_states": text,
        "timestep": one(x, t),
        "position_ids": positions,
        "segment_ids": torch.ones(batch, length, dtype=torch.long),
        "indicator": indicator,
        "return_dict": False,
    }


def _krea(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": constant(len(x), TEXT, 3, 16, like=x),
        "timestep": one(x, t),
        "position_ids": torch.cat([torch.zeros(TEXT, 3), grid_ids(height, width)]),
        "encoder_attention_mask": torch.ones(len(x), TEXT, dtype=torch.bool),
        "return_dict": False,
    }


def _flux_config(layers: int) -> dict[str, Any]:
    return {
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": layers,
        "num_single_layers": layers + 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (4, 6, 6),
    }


def _without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


CASES = [
    Case(
        "FluxTransformer2DModel",
        lambda layers: {**_flux_config(layers), "pooled_projection_dim": 12, "guidance_embeds": True},
        _tokens(4),
        _flux,
    ),
    Case(
        "LongCatImageTransformer2DModel",
        lambda layers: {**_flux_config(layers), "pooled_projection_dim": 12},
        _tokens(4),
        _guided,
    ),
    Case(
        "OvisImageTransformer2DModel",
        lambda layers: {**_flux_config(layers), "out_channels": 4},
        _tokens(4),
        _flux_like,
    ),
    Case(
        "BriaTransformer2DModel",
        lambda layers: {**_flux_config(layers), "pooled_projection_dim": None},
        _tokens(4),
        lambda x, t, height, width: _flux_like(x, t, height, width, timestep=thousand(x, t)),
    ),
    Case(
        "BriaFiboTransformer2DModel",
        lambda layers: {  # one text layer for each of its five blocks
            **_flux_config(layers),
            "num_single_layers": 5 - layers,
            "text_encoder_dim": 16,
            "pooled_projection_dim": None,
        },
        _tokens(4),
        _bria_fibo,
    ),
    Case(
        "ChromaTransformer2DModel",
        lambda layers: {
            **_flux_config(layers),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        _tokens(4),
        _flux_like,
    ),
    Case(
        "Flux2Transformer2DModel",
        lambda layers: {**_flux_config(layers), "axes_dims_rope": (4, 4, 4, 4)},
        _tokens(4),
        _flux2,
    ),
    Case(
        "Flux3Transformer2DModel",
        lambda layers: {
            **_without(_flux_config(layers), "patch_size"),
            "cond_in_channels": 4,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        _tokens(4),
        _flux3,
    ),
    Case(
        "QwenImageTransformer2DModel",
        lambda layers: {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": layers,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 6, 6),
        },
        _tokens(16),
        _qwen,
    ),
    Case(
        "QwenImage21Transformer2DModel",
        lambda layers: {
            "patch_size": 1,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": layers,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "context_in_dim": 16,
            "mlp_ratio": 2,
            "axes_dims_rope": (4, 6, 6),
        },
        lambda batch, height, width: (batch, height * width // 4 * 4, 4),
        _qwen21,
        velocity=lambda output: output[0][:, TEXT:],
    ),
    Case(
        "NucleusMoEImageTransformer2DModel",
        lambda layers: {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": layers,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 6, 6),
            "dense_moe_strategy": "none",
            "num_experts": 4,
            "moe_intermediate_dim": 24,
            "capacity_factors": [2.0] * layers,
        },
        _tokens(16),
        lambda x, t, height, width: {**_qwen(x, t, height, width), "img_shapes": [(1, height, width)] * len(x)},
    ),
    Case(
        "Ideogram4Transformer2DModel",
        lambda layers: {
            "in_channels": 16,
            "num_layers": layers,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "intermediate_size": 32,
            "adaln_dim": 16,
            "llm_features_dim": 24,
            "rope_theta": 10_000,
            "mrope_section": (2, 1, 1),
        },
        lambda batch, height, width: (batch, TEXT + height * width, 16),
        _ideogram,
    ),
    Case(
        "Krea2Transformer2DModel",
        lambda layers: {
            "in_channels": 16,
            "num_layers": layers,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "timestep_embed_dim": 8,
            "text_hidden_dim": 16,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": 16,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
        },
        _tokens(16),
        _krea,
    ),
]
