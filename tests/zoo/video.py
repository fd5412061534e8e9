"""Video models, which are given latents ``[B, C, F, H, W]`` or their tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.case import Case, constant, half_channels, one, thousand, whole

TEXT = 6
FRAMES = 3


def _clip(channels: int, patch: int = 2) -> Any:
    return lambda batch, height, width: (batch, channels, FRAMES, patch * height, patch * width)


def _frames_first(channels: int) -> Any:
    return lambda batch, height, width: (batch, FRAMES, channels, 2 * height, 2 * width)


def _text(x: Tensor, width: int, length: int = TEXT) -> Tensor:
    return constant(len(x), length, width, like=x)


def _mask(x: Tensor, length: int = TEXT) -> Tensor:
    return torch.ones(len(x), length, dtype=torch.bool)


def _wan(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {"hidden_states": x, "timestep": thousand(x, t), "encoder_hidden_states": _text(x, 16), "return_dict": False}


def _allegro(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "timestep": whole(x, t),
        "encoder_hidden_states": _text(x, 16),
        "encoder_attention_mask": torch.ones(len(x), TEXT),
        "return_dict": False,
    }


def _cogvideo(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    rotary = get_3d_rotary_pos_embed(16, ((0, 0), (height, width)), (height, width), FRAMES)
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "timestep": whole(x, t),
        "image_rotary_emb": rotary,
        "return_dict": False,
    }


def _consisid(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        **_cogvideo(x, t, height, width),
        "id_cond": constant(len(x), 2, like=x),
        "id_vit_hidden": [constant(len(x), 2, 2, like=x, seed=8)],
    }


def _cosmos(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "timestep": one(x, t),
        "encoder_hidden_states": _text(x, 16),
        "fps": 30,
        "return_dict": False,
    }


def _cosmos3(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    text, tokens = 4, FRAMES * height * width
    vision = torch.arange(text, text + tokens)
    return {
        "input_ids": torch.arange(1, text + 1),
        "text_indexes": torch.arange(text),
        "position_ids": torch.arange(text + tokens).expand(3, -1),
        "und_len": text,
        "sequence_length": text + tokens,
        "vision_tokens": [x],
        "vision_token_shapes": [(FRAMES, height, width)],
        "vision_sequence_indexes": vision,
        "vision_mse_loss_indexes": vision,
        "vision_timesteps": torch.full((tokens,), 1000 * t),
        "vision_noisy_frame_indexes": [torch.arange(FRAMES)],
        "return_dict": False,
    }


def _easyanimate(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {"hidden_states": x, "timestep": thousand(x, t), "encoder_hidden_states": _text(x, 16), "return_dict": False}


def _helios(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    batch, size = len(x), (2 * height, 2 * width)
    return {
        **_wan(x, t, height, width),
        "timestep": whole(x, t),
        "indices_hidden_states": torch.arange(6, 6 + FRAMES).expand(batch, -1).float(),
        "indices_latents_history_short": torch.full((batch, 1), 5.0),
        "indices_latents_history_mid": torch.full((batch, 1), 4.0),
        "indices_latents_history_long": torch.arange(4).expand(batch, -1).float(),
        "latents_history_short": constant(batch, 4, 1, *size, like=x, seed=1),
        "latents_history_mid": constant(batch, 4, 1, *size, like=x, seed=2),
        "latents_history_long": constant(batch, 4, 4, *size, like=x, seed=3),
    }


def _hunyuan(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "timestep": thousand(x, t).to(x.dtype),
        "encoder_hidden_states": _text(x, 16),
        "encoder_attention_mask": _mask(x),
        "pooled_projections": constant(len(x), 12, like=x),
        "guidance": torch.full((len(x),), 6000.0).to(x.dtype),
        "return_dict": False,
    }


def _framepack(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    batch, size = len(x), (2 * height, 2 * width)
    return {
        **_hunyuan(x, t, height, width),
        "image_embeds": constant(batch, 4, 16, like=x, seed=4),
        "indices_latents": torch.arange(8, 8 + FRAMES).float(),
        "latents_clean": constant(batch, 4, 2, *size, like=x, seed=1),
        "indices_latents_clean": torch.tensor([0.0, 7.0]),
        "latents_history_2x": constant(batch, 4, 2, *size, like=x, seed=2),
        "indices_latents_history_2x": torch.tensor([5.0, 6.0]),
        "latents_history_4x": constant(batch, 4, 4, *size, like=x, seed=3),
        "indices_latents_history_4x": torch.arange(1, 5).float(),
    }


def _hunyuan15(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    batch = len(x)
    return {
        "hidden_states": x,
        "timestep": thousand(x, t).to(x.dtype),
        "encoder_hidden_states": _text(x, 16),
        "encoder_attention_mask": torch.ones(batch, TEXT),
        "encoder_hidden_states_2": constant(batch, 4, 12, like=x, seed=8),
        "encoder_attention_mask_2": torch.ones(batch, 4),
        "image_embeds": torch.zeros(batch, 3, 12).to(x.dtype),
        "return_dict": False,
    }


def _kandinsky5(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "timestep": thousand(x, t),
        "pooled_projections": constant(len(x), 12, like=x),
        "visual_rope_pos": [torch.arange(size) for size in (FRAMES, height, width)],
        "text_rope_pos": torch.arange(TEXT),
        "return_dict": False,
    }


def _kandinsky6(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "pooled_projections": constant(len(x), 12, like=x),
        "timestep": thousand(x, t),
        "visual_rope_pos": tuple(torch.arange(size) for size in (FRAMES, height, width)),
        "return_dict": False,
    }


def _ltx(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "timestep": thousand(x, t),
        "encoder_attention_mask": torch.ones(len(x), TEXT),
        "num_frames": FRAMES,
        "height": height,
        "width": width,
        "return_dict": False,
    }


def _ltx2(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        **_ltx(x, t, height, width),
        "audio_hidden_states": constant(len(x), 9, 4, like=x, seed=1),
        "audio_encoder_hidden_states": constant(len(x), TEXT, 16, like=x, seed=2),
        "encoder_attention_mask": _mask(x),
        "audio_num_frames": 9,
        "fps": 25.0,
    }


def _wm_refiner(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2AudioVideoRotaryPosEmbed

    rope = SanaWMLTX2AudioVideoRotaryPosEmbed(
        dim=16,
        patch_size=1,
        patch_size_t=1,
        base_num_frames=20,
        base_height=2048,
        base_width=2048,
        scale_factors=(8, 32, 32),
        modality="video",
        double_precision=False,
        num_attention_heads=2,
    )
    coordinates = rope.prepare_video_coords(len(x), FRAMES, height, width, device=x.device, fps=24.0)
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "timestep": torch.full((len(x), FRAMES * height * width), 1000 * t),
        "video_rotary_emb": rope(coordinates, device=x.device),
        "encoder_attention_mask": torch.ones(len(x), TEXT),
        "return_dict": False,
    }


def _sana_wm(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    batch = len(x)
    pose = torch.eye(4).repeat(batch, FRAMES, 1, 1)
    pose[..., 2, 3] = 0.1 * torch.arange(FRAMES)
    lens = torch.tensor([float(width), float(height), width / 2, height / 2]).expand(batch, FRAMES, 4)
    return {
        "hidden_states": x,
        "timestep": torch.full((batch, 1, FRAMES), 1000 * t),
        "encoder_hidden_states": constant(batch, 1, TEXT, 16, like=x),
        "encoder_attention_mask": torch.ones(batch, TEXT, dtype=torch.long),
        "camera_conditions": torch.cat([pose.flatten(start_dim=-2), lens], dim=-1).to(x.dtype),
        "chunk_plucker": constant(batch, 8, FRAMES, height, width, like=x, seed=1),
        "return_dict": False,
    }


def _minimax(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    audio, video = 5, x.shape[1]
    length = TEXT + audio + video
    text_at, audio_at, video_at = torch.arange(length).split([TEXT, audio, video])
    tags = torch.zeros(length, dtype=torch.long)
    tags[text_at], tags[audio_at] = 1, 2
    levels = torch.zeros(length, dtype=torch.long)
    levels[audio_at] = 1
    positions = torch.zeros(length, 3)
    positions[:, 0] = torch.arange(length)
    positions[video_at, 1] = torch.arange(video).float() % width
    return {
        "hidden_states": x,
        "audio_hidden_states": constant(len(x), audio, 6, like=x, seed=1),
        "encoder_hidden_states": _text(x, 16),
        "timestep": torch.tensor([t, t / 2]),
        "timestep_indices": levels,
        "token_tags": tags,
        "position_ids": positions,
        "video_indices": video_at,
        "audio_indices": audio_at,
        "text_indices": text_at,
        "return_dict": False,
    }


def _mochi(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": _text(x, 16),
        "timestep": thousand(x, t),
        "encoder_attention_mask": _mask(x),
        "return_dict": False,
    }


def _anyflow(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    times = torch.full((len(x), FRAMES), 1000 * t)
    return {
        "hidden_states": x,
        "timestep": times,
        "r_timestep": times / 2,
        "encoder_hidden_states": _text(x, 16),
        "return_dict": False,
    }


def _vace(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    control = constant(len(x), 12, FRAMES, 2 * height, 2 * width, like=x, seed=1)
    return {**_wan(x, t, height, width), "control_hidden_states": control}


def _animate(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    batch, frames, size = len(x), x.shape[2], (2 * height, 2 * width)
    state = torch.cat([x, constant(batch, 8, frames, *size, like=x, seed=5)], dim=1)
    return {
        **_wan(state, t, height, width),
        "encoder_hidden_states_image": constant(batch, 4, 16, like=x, seed=1),
        "pose_hidden_states": constant(batch, 4, frames - 1, *size, like=x, seed=2),
        "face_pixel_values": constant(batch, 3, 77, 16, 16, like=x, seed=3),
    }


def _animate2(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    cache = WanAnimate2KVCache(12)
    for layer in range(12):  # what the pass over the driving video would have written
        keys, values = (constant(1, 2 * height * width, 4, 32, like=x, seed=10 * layer + i) for i in (0, 1))
        cache.get(layer).store(keys, values)
    return {
        "hidden_states": list(x),
        "timestep": thousand(x, t),
        "encoder_hidden_states": list(constant(len(x), 8, 32, like=x)),
        "condition_latents": list(constant(len(x), 20, FRAMES, 2 * height, 2 * width, like=x, seed=1)),
        "encoder_hidden_states_image": constant(len(x), 4, 1280, like=x, seed=2),
        "kv_cache": cache,
        "kv_cache_mode": "cached",
        "seq_len": FRAMES * height * width,
        "reference_grid_sizes": torch.tensor([[2, height, width]]),
        "origin_len": 5,
        "origin_area": [16 * height, 16 * width],
        "return_dict": False,
    }


def _wan_config(layers: int) -> dict[str, Any]:
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 32,
    }


def _without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def _cogvideo_config(layers: int) -> dict[str, Any]:
    return {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": 16,
        "num_layers": layers,
        "sample_width": 12,
        "sample_height": 12,
        "sample_frames": 9,
        "max_text_seq_length": TEXT,
        "use_rotary_positional_embeddings": True,
    }


def _hunyuan_config(layers: int) -> dict[str, Any]:
    return {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": layers,
        "num_single_layers": layers + 1,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "guidance_embeds": True,
        "text_embed_dim": 16,
        "pooled_projection_dim": 12,
        "rope_axes_dim": (2, 4, 4),
    }


def _ltx_config(layers: int) -> dict[str, Any]:
    return {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "num_layers": layers,
        "caption_channels": 16,
    }


def _ltx2_config(layers: int) -> dict[str, Any]:
    return {
        **_ltx_config(layers),
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
        "rope_double_precision": False,
    }


def _tokens(channels: int) -> Any:
    return lambda batch, height, width: (batch, FRAMES * height * width, channels)


CASES = [
    Case(
        "AllegroTransformer3DModel",
        lambda layers: {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": layers,
            "cross_attention_dim": 48,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 8,
            "caption_channels": 16,
        },
        _clip(4),
        _allegro,
    ),
    Case(
        "AnyFlowTransformer3DModel",
        lambda layers: {**_without(_wan_config(layers), "qk_norm"), "gate_value": 0.25, "deltatime_type": "r"},
        _frames_first(4),
        _anyflow,
    ),
    Case(
        "AnyFlowFARTransformer3DModel",
        lambda layers: {
            **_without(_wan_config(layers), "qk_norm"),
            "attention_head_dim": 24,
            "compressed_patch_size": (1, 4, 4),
            "full_chunk_limit": 3,
            "gate_value": 0.25,
            "deltatime_type": "r",
        },
        _frames_first(4),
        lambda x, t, height, width: {**_anyflow(x, t, height, width), "chunk_partition": [1, 2]},
    ),
    Case(
        "ChronoEditTransformer3DModel",
        lambda layers: {**_wan_config(layers), "rope_temporal_skip_len": 8},
        _clip(4),
        _wan,
    ),
    Case("CogVideoXTransformer3DModel", _cogvideo_config, _frames_first(4), _cogvideo),
    Case(
        "ConsisIDTransformer3DModel",
        lambda layers: {
            **_cogvideo_config(layers),
            "cross_attn_interval": 1,
            "is_train_face": True,
            "cross_attn_dim_head": 4,
            "cross_attn_num_heads": 2,
            "LFE_id_dim": 2,
            "LFE_vit_dim": 2,
            "LFE_depth": 5,
            "LFE_dim_head": 8,
            "LFE_num_heads": 2,
            "LFE_num_id_token": 1,
            "LFE_num_querie": 1,
            "LFE_output_dim": 21,
            "LFE_ff_mult": 1,
            "LFE_num_scale": 1,
        },
        _frames_first(4),
        _consisid,
    ),
    Case(
        "CosmosTransformer3DModel",
        lambda layers: {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": layers,
            "mlp_ratio": 2,
            "text_embed_dim": 16,
            "adaln_lora_dim": 4,
            "max_size": (4, 32, 32),
            "patch_size": (1, 2, 2),
            "rope_scale": (2.0, 1.0, 1.0),
            "concat_padding_mask": False,  # resizing the mask needs torchvision
            "extra_pos_embed_type": "learnable",
        },
        _clip(4),
        _cosmos,
    ),
    Case(
        "Cosmos3OmniTransformer",
        lambda layers: {
            "head_dim": 12,
            "hidden_size": 24,
            "intermediate_size": 32,
            "latent_channel": 4,
            "latent_patch_size": 1,
            "num_attention_heads": 2,
            "num_hidden_layers": layers,
            "num_key_value_heads": 1,
            "patch_latent_dim": 4,
            "rope_axes_dim": [2, 2, 2],
            "vocab_size": 32,
        },
        lambda batch, height, width: (1, 4, FRAMES, height, width),  # one packed sequence
        _cosmos3,
    ),
    Case(
        "EasyAnimateTransformer3DModel",
        lambda layers: {
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "in_channels": 4,
            "out_channels": 4,
            "mmdit_layers": max(1, layers - 1),
            "num_layers": layers,
            "patch_size": 2,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
        },
        _clip(4),
        _easyanimate,
    ),
    Case(
        "HeliosTransformer3DModel",
        lambda layers: {
            **_without(_wan_config(layers), "rope_max_seq_len"),
            "rope_dim": (4, 4, 4),
            "has_multi_term_memory_patch": True,
            "guidance_cross_attn": True,
            "zero_history_timestep": True,
            "is_amplify_history": False,
        },
        _clip(4),
        _helios,
    ),
    Case(
        "HunyuanVideoTransformer3DModel",
        _hunyuan_config,
        _clip(4),
        _hunyuan,
    ),
    Case(
        "HunyuanVideoFramepackTransformer3DModel",
        lambda layers: {
            **_hunyuan_config(layers),
            "has_image_proj": True,
            "image_proj_dim": 16,
            "has_clean_x_embedder": True,
        },
        _clip(4),
        _framepack,
    ),
    Case(
        "HunyuanVideo15Transformer3DModel",
        lambda layers: {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": layers,
            "num_refiner_layers": 1,
            "mlp_ratio": 2.0,
            "patch_size": 1,
            "patch_size_t": 1,
            "text_embed_dim": 16,
            "text_embed_2_dim": 12,
            "image_embed_dim": 12,
            "rope_axes_dim": (2, 2, 4),
            "target_size": 16,
            "task_type": "t2v",
        },
        _clip(4, 1),
        _hunyuan15,
    ),
    Case(
        "Kandinsky5Transformer3DModel",
        lambda layers: {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 12,
            "time_dim": 16,
            "model_dim": 24,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": layers,
            "axes_dims": (4, 4, 4),
        },
        lambda batch, height, width: (batch, FRAMES, 2 * height, 2 * width, 4),
        _kandinsky5,
    ),
    Case(
        "Kandinsky6Transformer3DModel",
        lambda layers: {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 12,
            "time_dim": 16,
            "patch_size": (1, 2, 2),
            "model_dim": 48,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": layers,
            "axes_dims": (4, 4, 4),
            "visual_cond": False,
            "in_audio_dim": 4,
            "out_audio_dim": 4,
        },
        lambda batch, height, width: (batch, FRAMES, 2 * height, 2 * width, 4),
        _kandinsky6,
    ),
    Case(
        "Kandinsky6SRTransformer3DModel",
        lambda layers: {
            "in_visual_dim": 4,
            "out_visual_dim": 9,
            "time_dim": 16,
            "patch_size": (1, 2, 2),
            "model_dim": 48,
            "ff_dim": 32,
            "num_visual_blocks": layers,
            "axes_dims": (4, 4, 4),
        },
        lambda batch, height, width: (batch, 2, 16, 16 + 16 * (width % 2), 9),  # windows of 8x8 patches
        lambda x, t, height, width: {"hidden_states": x, "timestep": thousand(x, t), "return_dict": False},
    ),
    Case(
        "LTXVideoTransformer3DModel",
        _ltx_config,
        _tokens(4),
        _ltx,
    ),
    Case("LTX2VideoTransformer3DModel", _ltx2_config, _tokens(4), _ltx2),
    Case("SanaWMLTX2RefinerTransformer3DModel", _ltx2_config, _tokens(4), _wm_refiner),
    Case(
        "LatteTransformer3DModel",
        lambda layers: {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": layers,
            "cross_attention_dim": 32,
            "sample_size": 8,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "norm_eps": 1e-6,
            "caption_channels": 16,
            "video_length": FRAMES,
        },
        _clip(4),
        lambda x, t, height, width: {**_wan(x, t, height, width), "timestep": whole(x, t)},
        velocity=half_channels,
    ),
    Case(
        "MiniMaxH3Transformer3DModel",
        lambda layers: {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "hidden_size": 24,
            "num_layers": layers,
            "num_refiner_layers": 1,
            "ffn_dim": 32,
            "in_channels": 4,
            "audio_in_channels": 6,
            "patch_size": (1, 2, 2),
            "text_dim": 16,
            "freq_dim": 8,
            "time_embed_hidden_dim": 24,
            "time_embed_dim": 16,
            "rope_freq_dim": 2,
        },
        _tokens(16),
        _minimax,
    ),
    Case(
        "MochiTransformer3DModel",
        lambda layers: {
            "patch_size": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "num_layers": layers,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "qk_norm": "rms_norm",
            "text_embed_dim": 16,
            "time_embed_dim": 16,
            "max_sequence_length": TEXT,
        },
        _clip(4),
        _mochi,
    ),
    Case(
        "MotifVideoTransformer3DModel",
        lambda layers: {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": layers,
            "num_single_layers": layers,
            "num_decoder_layers": 1,
            "mlp_ratio": 2.0,
            "patch_size": 1,
            "patch_size_t": 1,
            "qk_norm": "rms_norm",
            "norm_type": "layer_norm",
            "text_embed_dim": 16,
            "rope_theta": 256.0,
            "rope_axes_dim": (4, 4, 4),
        },
        _clip(4, 1),
        _wan,
    ),
    Case(
        "SanaVideoTransformer3DModel",
        lambda layers: {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": layers,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 16,
            "sample_size": 8,
            "patch_size": (1, 2, 2),
            "qk_norm": "rms_norm_across_heads",
            "rope_max_seq_len": 32,
        },
        _clip(4),
        _wan,
    ),
    Case(
        "SanaWMTransformer3DModel",
        lambda layers: {
            "in_channels": 4,
            "num_layers": layers,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "patch_size": (1, 1, 1),
            "softmax_every_n": 2,
            "linear_head_dim": 16,
            "t_kernel_size": 3,
            "conv_kernel_size": 4,
            "caption_channels": 16,
            "mlp_ratio": 2.0,
            "chunk_plucker_channels": 8,
            "chunk_plucker_post_attn_blocks": layers,
        },
        _clip(4, 1),
        _sana_wm,
    ),
    Case("SkyReelsV2Transformer3DModel", _wan_config, _clip(4), _wan),
    Case("WanTransformer3DModel", _wan_config, _clip(4), _wan),
    Case(
        "WanVACETransformer3DModel",
        lambda layers: {**_wan_config(layers), "vace_layers": list(range(0, layers, 2)), "vace_in_channels": 12},
        _clip(4),
        _vace,
    ),
    Case(
        "WanAnimateTransformer3DModel",
        lambda layers: {
            **_wan_config(layers),
            "in_channels": 12,
            "latent_channels": 4,
            "image_dim": 16,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 16,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 1,
        },
        lambda batch, height, width: (batch, 4, 21, 2 * height, 2 * width),  # the frames a face clip of 77 gives
        _animate,
    ),
    Case(
        "WanAnimate2Transformer3DModel",
        lambda layers: {
            "patch_size": (1, 2, 2),
            "text_len": 16,
            "in_dim": 36,
            "dim": 128,
            "ffn_dim": 64,
            "freq_dim": 32,
            "text_dim": 32,
            "out_dim": 16,
            "num_heads": 4,
            "num_layers": layers,
            "cross_attn_norm": True,
            "use_img_emb": True,
        },
        lambda batch, height, width: (1, 16, FRAMES, 2 * height, 2 * width),
        _animate2,
        velocity=lambda output: torch.stack(list(output[0])),
    ),
]
