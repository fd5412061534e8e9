"""UNets: Stable Diffusion's and its kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.case import Case, constant, one, thousand, whole

TEXT = 6


def _latents(channels: int) -> Any:
    return lambda batch, height, width: (batch, channels, 8 * (height // 2), 8 * (width // 2))


def _clip(channels: int) -> Any:
    return lambda batch, height, width: (batch, channels, 2, 8 * (height // 2), 8 * (width // 2))


def _sd(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    text = constant(len(x), TEXT, 16, like=x)
    return {"sample": x, "timestep": torch.tensor(round(1000 * t)), "encoder_hidden_states": text, "return_dict": False}


def _sdxl(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    added = {
        "text_embeds": constant(len(x), 8, like=x),
        "time_ids": torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]).repeat(len(x), 1).to(x.dtype),
    }
    return {**_sd(x, t, height, width), "added_cond_kwargs": added}


def _svd(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "sample": torch.cat([x, x * 0 + 0.3], dim=2),
        "timestep": thousand(x, t)[0],
        "encoder_hidden_states": constant(len(x), 1, 16, like=x),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]).repeat(len(x), 1).to(x.dtype),
        "return_dict": False,
    }


def _i2vgen(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "sample": x,
        "timestep": torch.tensor(round(1000 * t)),
        "fps": torch.full((len(x),), 16),
        "image_latents": constant(*x.shape, like=x, seed=1),
        "image_embeddings": constant(len(x), 16, like=x, seed=2),
        "encoder_hidden_states": constant(len(x), TEXT, 16, like=x),
        "return_dict": False,
    }


def _config(layers: int) -> dict[str, Any]:
    return {
        "in_channels": 4,
        "out_channels": 4,
        "sample_size": 16,
        "block_out_channels": (16, 32, 32),
        "layers_per_block": layers,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }


CASES = [
    Case("UNet2DConditionModel", _config, _latents(4), _sd, label="UNet2DConditionModel (SD 1.5)"),
    Case(
        "UNet2DConditionModel",
        lambda layers: {
            **_config(layers),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 3),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 8,
        },
        _latents(4),
        _sdxl,
        label="UNet2DConditionModel (SDXL)",
    ),
    Case(
        "UNet2DModel",
        lambda layers: {
            "in_channels": 3,
            "out_channels": 3,
            "sample_size": 16,
            "block_out_channels": (16, 32, 32),
            "layers_per_block": layers,
            "norm_num_groups": 4,
            "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "UpBlock2D"),
            "add_attention": False,  # torch's own aot_eager fails on the group norm behind its attention, on a CPU
        },
        _latents(3),
        lambda x, t, height, width: {"sample": x, "timestep": whole(x, t), "return_dict": False},
    ),
    Case(
        "UNet3DConditionModel",
        lambda layers: {
            **_config(layers),
            "down_block_types": ("CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
            "attention_head_dim": 8,
        },
        _clip(4),
        _sd,
    ),
    Case(
        "UNetMotionModel",
        lambda layers: {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
            "block_out_channels": (16, 32),
            "layers_per_block": layers,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
            "num_attention_heads": 2,
            "motion_num_attention_heads": 2,
        },
        _clip(4),
        lambda x, t, height, width: {
            **_sd(x, t, height, width),
            "encoder_hidden_states": constant(len(x), TEXT, 16, like=x).repeat_interleave(2, dim=0),
        },
    ),
    Case(
        "UNetSpatioTemporalConditionModel",
        lambda layers: {
            "sample_size": 16,
            "in_channels": 8,
            "out_channels": 4,
            "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            "block_out_channels": (32, 64),
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24,
            "layers_per_block": layers,
            "cross_attention_dim": 16,
            "num_attention_heads": (2, 4),
            "num_frames": 2,
        },
        lambda batch, height, width: (batch, 2, 4, 8 * (height // 2), 8 * (width // 2)),
        _svd,
    ),
    Case(
        "Kandinsky3UNet",
        lambda layers: {
            "in_channels": 4,
            "time_embedding_dim": 16,
            "groups": 4,
            "attention_head_dim": 8,
            "layers_per_block": layers + 1,
            "block_out_channels": (16, 16, 32, 32),
            "cross_attention_dim": 16,
            "encoder_hid_dim": 16,
        },
        _latents(4),
        lambda x, t, height, width: {
            **_sd(x, t, height, width),
            "timestep": one(x, t) * 1000,
            "encoder_attention_mask": torch.ones(len(x), TEXT, dtype=torch.bool),
        },
    ),
    Case(
        "I2VGenXLUNet",
        lambda layers: {
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "block_out_channels": (16, 32),
            "layers_per_block": layers,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
            "attention_head_dim": 8,
        },
        _clip(4),
        _i2vgen,
    ),
]
