"""Published denoisers: class and configuration, as in their repositories; omitted fields have their defaults."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_FLUX = "FluxTransformer2DModel"
_WAN = "WanTransformer3DModel"
_SD3 = "SD3Transformer2DModel"
_SD3_COMMON: Config = {
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "in_channels": 16,
    "out_channels": 16,
}

KNOWN: dict[str, tuple[str, Config]] = {
    "flux.1-dev": (_FLUX, {"guidance_embeds": True}),
    "flux.1-schnell": (_FLUX, {"guidance_embeds": False}),
    "qwen-image": ("QwenImageTransformer2DModel", {}),
    "hunyuan-video": ("HunyuanVideoTransformer3DModel", {}),
    "wan2.1-14b": (_WAN, {}),
    "wan2.1-1.3b": (_WAN, {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960}),
    "wan2.2-a14b": (_WAN, {}),
    "sd3-medium": (_SD3, {**_SD3_COMMON, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
                          "pos_embed_max_size": 192, "sample_size": 128}),
    "sd3.5-large": (_SD3, {**_SD3_COMMON, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
                           "pos_embed_max_size": 192, "sample_size": 128, "qk_norm": "rms_norm"}),
    "pixart-sigma": ("PixArtTransformer2DModel", {"sample_size": 128, "use_additional_conditions": False,
                                                  "caption_channels": 4096}),
    "dit-xl-2": ("DiTTransformer2DModel", {}),
    "ltx-video": ("LTXVideoTransformer3DModel", {}),
}  # fmt: skip
