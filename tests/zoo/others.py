"""Audio models, and classes that are made for something else than images and video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.case import Case, constant, one, whole

TEXT = 6


def _frames(channels: int) -> Any:
    return lambda batch, height, width: (batch, channels, height * width)


def _frames_last(channels: int) -> Any:
    return lambda batch, height, width: (batch, height * width, channels)


def _stable_audio(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    return {
        "hidden_states": x,
        "timestep": one(x, t),
        "encoder_hidden_states": constant(len(x), TEXT, 16, like=x),
        "global_hidden_states": constant(len(x), 1, 16, like=x, seed=8),
        "rotary_embedding": get_1d_rotary_pos_embed(8, height * width + 1, use_real=True, repeat_interleave_real=False),
        "return_dict": False,
    }


def _stable_audio3(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "timestep": one(x, t),
        "encoder_hidden_states": constant(len(x), TEXT, 16, like=x),
        "global_hidden_states": constant(len(x), 12, like=x, seed=8),
        "return_dict": False,
    }


def _ace(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "timestep": one(x, t),
        "timestep_r": one(x, t),
        "encoder_hidden_states": constant(len(x), TEXT, 32, like=x),
        "context_latents": constant(len(x), height * width, 16, like=x, seed=8),
        "return_dict": False,
    }


def _longcat_audio(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": constant(len(x), TEXT, 16, like=x),
        "encoder_attention_mask": torch.ones(len(x), TEXT, dtype=torch.bool),
        "attention_mask": torch.ones(len(x), height * width, dtype=torch.bool),
        "timestep": one(x, t),
        "return_dict": False,
    }


def _minimax_music(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": x,
        "encoder_hidden_states": constant(len(x), height * width, 16, like=x),
        "timestep": one(x, t),
        "return_dict": False,
    }


def _t5_film(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    encoded = constant(len(x), TEXT, 24, like=x)
    return {
        "encodings_and_masks": [(encoded, torch.ones(len(x), TEXT))],
        "decoder_input_tokens": x,
        "decoder_noise_time": one(x, t),
    }


def _temporal(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    return {"hidden_states": x, "timestep": whole(x, t), "num_frames": height, "return_dict": False}


def _proteina(x: Tensor, t: float, height: int, width: int) -> dict[str, Any]:
    backbone, latents = x.split([3, 4], dim=-1)
    return {
        "bb_ca": backbone,
        "local_latents": latents,
        "bb_ca_time": one(x, 1 - t),
        "local_latents_time": one(x, 1 - t),
        "padding_mask": torch.ones(x.shape[:2], dtype=torch.bool),
        "conditioning": {
            "is_in_context_conditioning": torch.zeros(x.shape[:2], dtype=torch.bool),
            "supports_local_latent": torch.ones(x.shape[:2], dtype=torch.bool),
        },
    }


CASES = [
    Case(
        "StableAudioDiTModel",
        lambda layers: {
            "sample_size": 15,
            "in_channels": 4,
            "num_layers": layers,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "num_key_value_attention_heads": 1,
            "out_channels": 4,
            "cross_attention_dim": 16,
            "time_proj_dim": 16,
            "global_states_input_dim": 16,
            "cross_attention_input_dim": 16,
        },
        _frames(4),
        _stable_audio,
    ),
    Case(
        "StableAudio3DiTModel",
        lambda layers: {
            "io_channels": 4,
            "embed_dim": 32,
            "depth": layers,
            "num_heads": 2,
            "cond_token_dim": 16,
            "global_cond_dim": 12,
            "local_add_cond_dim": 5,
            "timestep_features_dim": 16,
            "ff_mult": 2,
            "num_memory_tokens": 3,
            "use_differential_attention": True,
        },
        _frames(4),
        _stable_audio3,
    ),
    Case(
        "AceStepTransformer1DModel",
        lambda layers: {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "in_channels": 24,
            "audio_acoustic_hidden_dim": 8,
            "patch_size": 2,
            "sliding_window": 16,
        },
        _frames_last(8),
        _ace,
    ),
    Case(
        "LongCatAudioDiTTransformer",
        lambda layers: {
            "dit_dim": 32,
            "dit_depth": layers,
            "dit_heads": 2,
            "dit_text_dim": 16,
            "latent_dim": 4,
            "text_conv": False,
        },
        _frames_last(4),
        _longcat_audio,
    ),
    Case(
        "MiniMaxMusic3Transformer1DModel",
        lambda layers: {
            "in_channels": 4,
            "condition_dim": 16,
            "num_layers": layers,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "ff_inner_dim": 32,
            "rotary_dim": 4,
            "fourier_embedding_dim": 8,
        },
        _frames(4),
        _minimax_music,
    ),
    Case(
        "MiniMaxMusic3RVQDepthDecoder",
        lambda layers: {
            "hidden_size": 32,
            "num_layers": layers,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "audio_vocab_size": 16,
            "num_codebooks": 4,
            "max_position_embeddings": 16,
        },
        _frames_last(32),
        lambda x, t, height, width: {"inputs_embeds": x},
        reason="decodes audio codes one after the other, token by token: it is called in no sampling step and has no "
        "time",
    ),
    Case(
        "T5FilmDecoder",
        lambda layers: {
            "input_dims": 4,
            "targets_length": 32,
            "d_model": 24,
            "num_layers": layers,
            "num_heads": 2,
            "d_kv": 12,
            "d_ff": 32,
        },
        _frames_last(4),
        _t5_film,
    ),
    Case(
        "TransformerTemporalModel",
        lambda layers: {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 16,
            "num_layers": layers,
            "norm_num_groups": 4,
        },
        lambda batch, height, width: (batch * height, 16, width, 3),  # frames in the batch
        _temporal,
    ),
    Case(
        "RFD4ProteinaTransformer",
        lambda layers: {
            "nlayers": layers,
            "token_dim": 32,
            "nheads": 2,
            "dim_cond": 16,
            "pair_repr_dim": 16,
            "latent_dim": 4,
            "token_type_emb_dim": 8,
            "cath_emb_dim": 8,
            "t_emb_dim": 16,
            "seq_sep_dim": 8,
            "xt_pair_dist_dim": 8,
            "tri_mult_c": 16,
            "feats_seq": ("xt_bb_ca", "xt_local_latents"),
            "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"),
            "feats_pair_repr": ("xt_bb_ca_pair_dists",),
        },
        _frames_last(7),
        _proteina,
        velocity=lambda output: torch.cat([output[0], output[1]], dim=-1),
    ),
]
