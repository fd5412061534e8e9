"""Image models that are given latents ``[B, C, H, W]``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.case import Case, constant, half_channels, one, stacked, thousand, whole

TEXT = 6


def _latents(channels: int, patch: int = 2) -> Any:
    return lambda batch, height, width: (batch, channels, patch * height, patch * width)


def _text(x: Tensor, width: int, length: int = TEXT) -> Tensor:
    return constant(len(x), length, width, like=x)


def _sizes(x: Tensor, height: int, width: int) -> dict[str, Tensor]:
    size = torch.tensor([[2.0 * height, 2.0 * width]]).expand(len(x), -1).to(x.dtype)
    return {"original_size": size, "target_size": size, "crop_coords": torch.zeros_like(size)}


def _aura(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "timestep": one(x, t),
        "return_dict": False,
    }


def _sd3(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "pooled_projections": constant(len(x), 12, like=x),
        "timestep": thousand(x, t),
        "return_dict": False,
    }


def _cogview(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "timestep": whole(x, t),
        **_sizes(x, height, width),
        "return_dict": False,
    }


def _dit(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "timestep": whole(x, t),
        "class_labels": torch.arange(len(x)) % 5,
        "return_dict": False,
    }


def _spatial(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {"hidden_states": x, "encoder_hidden_states": _text(x, 16), "timestep": whole(x, t), "return_dict": False}


def _ernie(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "timestep": thousand(x, t),
        "text_bth": _text(x, 16),
        "text_lens": torch.full((len(x),), TEXT),
        "return_dict": False,
    }


def _glm(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    sizes = _sizes(x, height, width)
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "prior_token_id": (torch.arange(height * width) * 7 % 32).expand(len(x), -1),
        "prior_token_drop": torch.zeros(len(x), height * width, dtype=torch.bool),
        "timestep": whole(x, t),
        "target_size": sizes["target_size"],
        "crop_coords": sizes["crop_coords"],
        "return_dict": False,
    }


def _hidream(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "timesteps": whole(x, t),
        "encoder_hidden_states_t5": _text(x, 16),
        "encoder_hidden_states_llama3": constant(len(x), 2, TEXT, 8, like=x).transpose(0, 1),
        "pooled_embeds": constant(len(x), 12, like=x),
        "return_dict": False,
    }


def _hunyuan_dit(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    rotary = get_2d_rotary_pos_embed(8, ((0, 0), (height, width)), (height, width), output_type="pt")
    return {
        "hidden_states": x,
        "timestep": thousand(x, t).to(x.dtype),
        "encoder_hidden_states": _text(x, 16, 4),
        "text_embedding_mask": torch.ones(len(x), 4),
        "encoder_hidden_states_t5": constant(len(x), 4, 16, like=x, seed=8),
        "text_embedding_mask_t5": torch.ones(len(x), 4),
        "image_meta_size": torch.tensor([[64.0, 64.0, 64.0, 64.0, 0.0, 0.0]]).repeat(len(x), 1).to(x.dtype),
        "style": torch.zeros(len(x), dtype=torch.long),
        "image_rotary_emb": rotary,
        "return_dict": False,
    }


def _hunyuan_image(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "timestep": thousand(x, t).to(x.dtype),
        "encoder_hidden_states": _text(x, 16),
        "encoder_attention_mask": torch.ones(len(x), TEXT, dtype=torch.bool),
        "encoder_hidden_states_2": constant(len(x), 4, 12, like=x),
        "encoder_attention_mask_2": torch.ones(len(x), 4, dtype=torch.bool),
        "return_dict": False,
    }


def _lumina2(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "timestep": one(x, 1 - t),
        "encoder_hidden_states": _text(x, 16),
        "encoder_attention_mask": torch.ones(len(x), TEXT, dtype=torch.bool),
        "return_dict": False,
    }


def _lumina_next(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    return {
        "hidden_states": x,
        "timestep": one(x, 1 - t),
        "encoder_hidden_states": _text(x, 16),
        "encoder_mask": torch.ones(len(x), TEXT, dtype=torch.long),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(16, 16, 16, linear_factor=1.0, ntk_factor=1.0),
        "cross_attention_kwargs": {},
        "return_dict": False,
    }


def _omnigen(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    length = TEXT + 1 + height * width
    return {
        "hidden_states": x,
        "timestep": one(x, 1 - t),
        "input_ids": (torch.arange(TEXT) * 3 % 50).expand(len(x), -1),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(len(x), length, length),
        "position_ids": torch.arange(length).expand(len(x), -1),
        "return_dict": False,
    }


def _pixart(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "encoder_attention_mask": torch.ones(len(x), TEXT),
        "timestep": whole(x, t),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }


def _sana(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "encoder_attention_mask": torch.ones(len(x), TEXT),
        "timestep": thousand(x, t),
        "return_dict": False,
    }


def _z_image(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    text = constant(len(x), TEXT, 16, like=x)
    return {
        "x": list(x.unsqueeze(2)),
        "t": one(x, 1 - t),
        "cap_feats": list(text),
        "return_dict": False,
    }


def _prior(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "timestep": whole(x, t),
        "proj_embedding": constant(len(x), 16, like=x),
        "encoder_hidden_states": constant(len(x), TEXT, 16, like=x, seed=8),
        "attention_mask": torch.ones(len(x), TEXT, dtype=torch.bool),
        "return_dict": False,
    }


def _joy(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "timestep": thousand(x, t),
        "return_dict": False,
    }


def _joy_plus(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {**_joy(x, t, height, width), "shape_list": [[(1, height, width)]] * len(x)}


def _with_heads(layers: int) -> dict[str, Any]:
    return {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": layers}


def _spatial_config(layers: int) -> dict[str, Any]:
    return {**_with_heads(layers), "in_channels": 16, "norm_num_groups": 4, "cross_attention_dim": 16}


CASES = [
    Case(
        "AuraFlowTransformer2DModel",
        lambda layers: {
            "sample_size": 16,
            "in_channels": 4,
            "num_mmdit_layers": layers,
            "num_single_dit_layers": layers + 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pos_embed_max_size": 64,
        },
        _latents(4),
        _aura,
    ),
    Case(
        "SD3Transformer2DModel",
        lambda layers: {
            **_with_heads(layers),
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "joint_attention_dim": 16,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 12,
            "pos_embed_max_size": 16,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        _latents(4),
        _sd3,
    ),
    Case(
        "CogView3PlusTransformer2DModel",
        lambda layers: {
            **_with_heads(layers),
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "pos_embed_max_size": 16,
            "sample_size": 16,
        },
        _latents(4),
        _cogview,
    ),
    Case(
        "CogView4Transformer2DModel",
        lambda layers: {
            **_with_heads(layers),
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "pos_embed_max_size": 16,
            "sample_size": 16,
            "rope_axes_dim": (16, 16),
        },
        _latents(4),
        _cogview,
    ),
    Case(
        "DiTTransformer2DModel",
        lambda layers: {
            **_with_heads(layers),
            "in_channels": 4,
            "out_channels": 8,
            "sample_size": 16,
            "num_embeds_ada_norm": 1001,
        },
        lambda batch, height, width: (batch, 4, 2 * height, 2 * height),  # square only
        _dit,
        velocity=half_channels,
    ),
    Case("DreamLiteTransformer2DModel", _spatial_config, _latents(16, 1), _spatial),
    Case(
        "DualTransformer2DModel",
        _spatial_config,
        _latents(16, 1),
        lambda x, t, height, width: {
            **_spatial(x, t, height, width),
            "encoder_hidden_states": _text(x, 16, 77 + 257),
        },
    ),
    Case("Transformer2DModel", _spatial_config, _latents(16, 1), _spatial),
    Case(
        "ErnieImageTransformer2DModel",
        lambda layers: {
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_layers": layers,
            "ffn_hidden_size": 48,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 1,
            "text_in_dim": 16,
            "rope_theta": 256,
            "rope_axes_dim": (8, 4, 4),
            "qk_layernorm": True,
        },
        _latents(4, 1),
        _ernie,
    ),
    Case(
        "GlmImageTransformer2DModel",
        lambda layers: {
            **_with_heads(layers),
            "in_channels": 4,
            "out_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "condition_dim": 8,
            "prior_vq_quantizer_codebook_size": 32,
        },
        _latents(4),
        _glm,
    ),
    Case(
        "HiDreamImageTransformer2DModel",
        lambda layers: {
            **_with_heads(layers),
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "num_single_layers": layers,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "caption_channels": [16, 8],
            "text_emb_dim": 12,
            "num_routed_experts": 4,
            "num_activated_experts": 2,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (32, 32),
            "llama_layers": tuple(i % 2 for i in range(2 * layers)),
        },
        _latents(4),
        _hidream,
    ),
    Case(
        "HunyuanDiT2DModel",
        lambda layers: {
            **_with_heads(2 * layers),  # the second half takes the skips of the first
            "attention_head_dim": 8,
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "cross_attention_dim": 16,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 8,
            "hidden_size": 16,
            "text_len": 4,
            "text_len_t5": 4,
            "activation_fn": "gelu-approximate",
        },
        _latents(4),
        _hunyuan_dit,
        velocity=half_channels,
    ),
    Case(
        "HunyuanImageTransformer2DModel",
        lambda layers: {
            **_with_heads(layers),
            "in_channels": 4,
            "out_channels": 4,
            "num_single_layers": layers + 1,
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "patch_size": (1, 1),
            "text_embed_dim": 16,
            "text_embed_2_dim": 12,
            "rope_axes_dim": (8, 8),
        },
        _latents(4, 1),
        _hunyuan_image,
    ),
    Case(
        "Lumina2Transformer2DModel",
        lambda layers: {
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": layers,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (64, 32, 32),
            "cap_feat_dim": 16,
        },
        _latents(4),
        _lumina2,
    ),
    Case(
        "LuminaNextDiT2DModel",
        lambda layers: {
            "sample_size": 16,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": layers,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 16,
            "ffn_dim_multiplier": None,
            "cross_attention_dim": 16,
        },
        _latents(4),
        _lumina_next,
        velocity=half_channels,
    ),
    Case(
        "OmniGenTransformer2DModel",
        lambda layers: {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "num_layers": layers,
            "pad_token_id": 0,
            "vocab_size": 64,
            "in_channels": 4,
            "time_step_dim": 8,
            "rope_scaling": {"long_factor": [1, 2, 3, 4], "short_factor": [1, 2, 3, 4]},
        },
        _latents(4),
        _omnigen,
    ),
    Case(
        "PRXTransformer2DModel",
        lambda layers: {
            "in_channels": 4,
            "patch_size": 2,
            "context_in_dim": 16,
            "hidden_size": 32,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": layers,
            "axes_dim": [8, 8],
        },
        _latents(4),
        _aura,
    ),
    Case(
        "PixArtTransformer2DModel",
        lambda layers: {
            **_with_heads(layers),
            "in_channels": 4,
            "out_channels": 8,
            "cross_attention_dim": 32,
            "sample_size": 16,
            "caption_channels": 16,
            "use_additional_conditions": False,
        },
        _latents(4),
        _pixart,
        velocity=half_channels,
    ),
    Case(
        "PriorTransformer",
        lambda layers: {
            **_with_heads(layers),
            "embedding_dim": 16,
            "num_embeddings": TEXT,
            "additional_embeddings": 4,
        },
        lambda batch, height, width: (batch, 16),
        _prior,
    ),
    Case(
        "SanaTransformer2DModel",
        lambda layers: {
            **_with_heads(layers),
            "in_channels": 4,
            "out_channels": 4,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 16,
            "cross_attention_dim": 32,
            "caption_channels": 16,
            "sample_size": 16,
        },
        _latents(4, 1),
        _sana,
    ),
    Case(
        "ZImageTransformer2DModel",
        lambda layers: {
            "all_patch_size": (2,),
            "all_f_patch_size": (1,),
            "in_channels": 4,
            "dim": 32,
            "n_layers": layers,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "qk_norm": True,
            "cap_feat_dim": 16,
            "rope_theta": 256.0,
            "t_scale": 1000.0,
            "axes_dims": [8, 4, 4],
            "axes_lens": [256, 32, 32],
        },
        _latents(4),
        _z_image,
        velocity=lambda output: stacked(output).squeeze(2),
    ),
    Case(
        "BriaFibo2Transformer2DModel",
        lambda layers: {
            "in_channels": 4,
            "patch_size": 2,
            "dim": 32,
            "n_layers": layers,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "cap_feat_dim": 16,
            "injection_layer_ids": (layers - 1,),
            "perceiver_num_layers": 1,
            "min_num_gist_tokens": 4,
            "max_num_gist_tokens": 8,
            "gist_step": 4,
            "gist_min_text_len": 4,
            "gist_max_text_len": 16,
            "axes_dims": (4, 6, 6),
            "axes_lens": (64, 32, 32),
        },
        _latents(4),
        lambda x, t, height, width: {
            "hidden_states": x,
            "timestep": one(x, 1 - t),
            "encoder_hidden_states": constant(len(x), 2, TEXT, 16, like=x),
            "return_dict": False,
        },
    ),
    Case(
        "JoyImageEditTransformer3DModel",
        lambda layers: {
            "patch_size": [1, 2, 2],
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "text_dim": 16,
            "num_layers": layers,
            "rope_dim_list": [4, 6, 6],
            "theta": 256,
        },
        lambda batch, height, width: (batch, 4, 1, 2 * height, 2 * width),
        _joy,
    ),
    Case(
        "JoyImageEditPlusTransformer3DModel",
        lambda layers: {
            "patch_size": [1, 2, 2],
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "text_dim": 16,
            "num_layers": layers,
            "rope_dim_list": [4, 6, 6],
            "theta": 256,
        },
        lambda batch, height, width: (batch, height * width, 4, 1, 2, 2),
        _joy_plus,
    ),
]
