"""Small pipelines with random weights, for ``--tiny``: real classes of diffusers and transformers, nothing downloaded.

``tiny("flux")`` is a ``FluxPipeline`` in float32 on the CPU. It draws noise, and a step of it takes milliseconds.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

WIDTH = 32  # of embeddings of text
WORDS = 300


def tiny(name: str) -> Any:
    """The pipeline called ``name``, a key of ``PIPELINES``; the same weights each time."""
    torch.manual_seed(0)
    pipe = PIPELINES[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(edge: int = 16) -> Any:
    """A picture to edit."""
    from PIL import Image

    return Image.linear_gradient("L").resize((edge, edge)).convert("RGB")


def tiny_lora(rank: int = 4) -> dict[str, torch.Tensor]:
    """What the file of a LoRA for ``tiny("flux")`` holds."""
    made = {}
    for layer in ("to_q", "to_k", "to_v"):
        name = f"transformer.transformer_blocks.0.attn.{layer}"
        made[f"{name}.lora_A.weight"] = torch.randn(rank, 32)
        made[f"{name}.lora_B.weight"] = torch.randn(32, rank)
    return made


def flux(cls: str = "FluxPipeline", guided: bool = True, **more: Any) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guided,
        axes_dims_rope=(4, 6, 6),
    )
    return getattr(diffusers, cls)(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(1),
        text_encoder=clip(),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(),
        transformer=transformer.eval(),
        **more,
    )


def qwen_image() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return diffusers.QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=qwen_vl(),
        tokenizer=tokenizer(),
        transformer=transformer.eval(),
    )


def hunyuan_video() -> Any:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    return diffusers.HunyuanVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=llama(),
        tokenizer=tokenizer(),
        text_encoder_2=clip(),
        tokenizer_2=tokenizer(),
        transformer=transformer.eval(),
    )


def wan(**more: Any) -> Any:
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return diffusers.WanPipeline(
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        vae=vae.eval(),
        text_encoder=umt5(),
        tokenizer=tokenizer(),
        transformer=wan_transformer(),
        **more,
    )


def wan_transformer() -> Any:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    ).eval()


def sdxl() -> Any:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=WIDTH * 2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    return diffusers.StableDiffusionXLPipeline(
        scheduler=diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        vae=autoencoder(4),
        text_encoder=clip(),
        text_encoder_2=clip(projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet.eval(),
        add_watermarker=False,
    )


def autoencoder(channels: int) -> Any:
    return diffusers.AutoencoderKL(
        latent_channels=channels, block_out_channels=(8,), norm_num_groups=4, shift_factor=0.0, scaling_factor=1.0
    ).eval()


SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
SIZES_OF_T5: dict[str, Any] = {"vocab_size": WORDS, "d_model": WIDTH, "d_ff": 37, "num_heads": 2, "num_layers": 1}


def clip(projected: bool = False) -> Any:
    cls = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return cls(transformers.CLIPTextConfig(**SIZES, projection_dim=WIDTH)).eval()


def t5() -> Any:
    return transformers.T5EncoderModel(transformers.T5Config(**SIZES_OF_T5)).eval()


def umt5() -> Any:
    return transformers.UMT5EncoderModel(transformers.UMT5Config(**SIZES_OF_T5)).eval()


def llama() -> Any:
    return transformers.LlamaModel(transformers.LlamaConfig(**SIZES)).eval()


def qwen_vl() -> Any:
    rope = {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": 37, "num_heads": 2, "out_hidden_size": WIDTH}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**SIZES, "num_key_value_heads": 2, "rope_scaling": rope}, vision_config=vision
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


def tokenizer() -> Any:
    """One token a byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["<s>", "</s>", "<pad>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<pad>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=77, **names)


PIPELINES: dict[str, Callable[[], Any]] = {
    "flux": flux,
    "flux-kontext": partial(flux, "FluxKontextPipeline", image_encoder=None, feature_extractor=None),
    "flux-schnell": partial(flux, guided=False),
    "hunyuan-video": hunyuan_video,
    "qwen-image": qwen_image,
    "sdxl": sdxl,
    "wan": wan,
    "wan-2.2": lambda: wan(transformer_2=wan_transformer(), boundary_ratio=0.875),
}
