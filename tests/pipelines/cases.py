"""The pipelines: how each is built and called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.pipelines import text
from tests.zoo.case import enliven

PROMPT = "a photo of a cat in the snow"
NEGATIVE = "low quality, blurred"


@dataclass(frozen=True, slots=True)
class PipelineCase:
    """A pipeline and one call of it.

    Args:
        name: for messages; the class of the pipeline, and what is special about the call.
        build: makes it, seeded, in float32.
        arguments: of one call, without steps, generator and output type.
        denoisers: the components that are compiled.
        branches: calls of the denoiser a step.
        call: makes the call, with ``num_inference_steps``, ``generator`` and the arguments; by default the pipeline is
            called for latents. For pipelines that take other arguments or return something else.
    """

    name: str
    build: Callable[[], Any]
    arguments: Callable[[], dict[str, Any]]
    denoisers: tuple[str, ...] = ("transformer",)
    branches: int = 1
    call: Callable[..., Any] | None = None

    def run(self, pipeline: Any, steps: int = 8, seed: int = 0, **more: Any) -> Tensor:
        """Latents of one run."""
        pipeline.set_progress_bar_config(disable=True)
        arguments = {**self.arguments(), **more}
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # some encode a picture without the generator
        if self.call is not None:
            return self.call(pipeline, num_inference_steps=steps, generator=generator, **arguments)
        output = pipeline(**arguments, num_inference_steps=steps, generator=generator, output_type="latent")
        return output[0]

    def saved(self, folder: Path) -> Path:
        self.build().save_pretrained(folder)
        return folder


def _live(model: Any, seed: int = 0) -> Any:
    return enliven(model, seed).eval()


def _picture(width: int = 16, height: int = 16) -> Any:
    import numpy as np
    from PIL import Image

    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(ramp.astype("uint8"))


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler()


def _kl(latents: int, blocks: int = 1) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(5)
    return AutoencoderKL(
        latent_channels=latents,
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=4,
        shift_factor=0.0,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def _flux_transformer(channels: int = 4) -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return _live(
        FluxTransformer2DModel(
            patch_size=1,
            in_channels=channels,
            out_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=text.WIDTH,
            pooled_projection_dim=text.WIDTH,
            axes_dims_rope=(4, 6, 6),
        )
    )


def _flux(cls: str, **more: Any) -> Callable[[], Any]:
    def build() -> Any:
        import diffusers

        components: dict[str, Any] = {
            "scheduler": _scheduler(),
            "vae": _kl(1),
            "text_encoder": text.clip(),
            "tokenizer": text.tokenizer(),
            "text_encoder_2": text.t5(),
            "tokenizer_2": text.tokenizer(48),
            "transformer": _flux_transformer(),
        }
        return getattr(diffusers, cls)(**components, **more)

    return build


def _sized(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "prompt": PROMPT,
        "height": 16,
        "width": 16,
        **{k: v() if callable(v) else v for k, v in more.items()},
    }


def _qwen(cls: str) -> Callable[[], Any]:
    def build() -> Any:
        import diffusers

        edits = "Edit" in cls  # it scales pictures to a megapixel: the VAE must be small, and scale by 8

        torch.manual_seed(0)
        transformer = diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=text.WIDTH,
            axes_dims_rope=(4, 6, 6),
        )
        vae = diffusers.AutoencoderKLQwenImage(
            base_dim=4 if edits else 24,
            z_dim=4,
            dim_mult=[1, 1, 1, 1] if edits else [1, 2, 4],
            num_res_blocks=1,
            temperal_downsample=[False, False, True] if edits else [False, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
        edit = {"processor": text.tokenizer()} if edits else {}  # not called: the embeddings are given
        return getattr(diffusers, cls)(
            scheduler=_scheduler(),
            vae=vae.eval(),
            text_encoder=text.qwen_vl(),
            tokenizer=text.tokenizer(),
            transformer=_live(transformer),
            **edit,
        )

    return build


def _embedded(length: int = 7, negative: bool = False) -> dict[str, Any]:
    """Embeddings instead of a prompt: the processor that reads images for the text encoder needs torchvision."""
    generator = torch.Generator().manual_seed(6)
    prefix = "negative_prompt" if negative else "prompt"
    embeds = torch.randn(1, length, text.WIDTH, generator=generator)
    return {f"{prefix}_embeds": embeds, f"{prefix}_embeds_mask": torch.ones(1, length, dtype=torch.long)}


def _hunyuan() -> Any:
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=2,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=text.WIDTH,
        pooled_projection_dim=text.WIDTH,
        rope_axes_dim=(2, 4, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return diffusers.HunyuanVideoPipeline(
        text_encoder=text.llama(),
        tokenizer=text.tokenizer(),
        transformer=_live(transformer),
        vae=vae.eval(),
        scheduler=_scheduler(),
        text_encoder_2=text.clip(),
        tokenizer_2=text.tokenizer(),
    )


def _wan_transformer(seed: int) -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    return _live(
        WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=text.WIDTH,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        seed,
    )


def _wan(two: bool) -> Callable[[], Any]:
    def build() -> Any:
        import diffusers

        torch.manual_seed(5)
        vae = diffusers.AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
        second = {"transformer_2": _wan_transformer(1), "boundary_ratio": 0.6} if two else {}
        return diffusers.WanPipeline(
            tokenizer=text.tokenizer(),
            text_encoder=text.umt5(),
            vae=vae.eval(),
            scheduler=diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
            transformer=_wan_transformer(0),
            **second,
        )

    return build


def _sd3() -> Any:
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_projection_dim=32,
        joint_attention_dim=text.WIDTH * 2,
        pooled_projection_dim=text.WIDTH * 2,
    )
    t5 = text.t5()
    return diffusers.StableDiffusion3Pipeline(
        transformer=_live(transformer),
        scheduler=_scheduler(),
        vae=_kl(4),
        text_encoder=text.clip(projected=True),
        tokenizer=text.tokenizer(),
        text_encoder_2=text.clip(projected=True),
        tokenizer_2=text.tokenizer(),
        text_encoder_3=_wider(t5),
        tokenizer_3=text.tokenizer(),
    )


def _wider(encoder: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(2)
    config = T5Config(**{**encoder.config.to_dict(), "d_model": text.WIDTH * 2})
    return T5EncoderModel(config).eval()


def _pixart() -> Any:
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=text.WIDTH,
        in_channels=4,
        cross_attention_dim=32,
        out_channels=8,
        use_additional_conditions=False,
    )
    return diffusers.PixArtSigmaPipeline(
        tokenizer=text.tokenizer(),
        text_encoder=text.t5(),
        vae=_kl(4),
        transformer=_live(transformer),
        scheduler=diffusers.DDIMScheduler(),
    )


def _cogvideo() -> Any:
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=text.WIDTH,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        max_text_seq_length=16,
        use_rotary_positional_embeddings=True,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    return diffusers.CogVideoXPipeline(
        tokenizer=text.tokenizer(),
        text_encoder=text.t5(),
        vae=vae.eval(),
        transformer=_live(transformer),
        scheduler=diffusers.DDIMScheduler(),
    )


def _ltx() -> Any:
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=text.WIDTH,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    return diffusers.LTXPipeline(
        scheduler=_scheduler(),
        vae=vae.eval(),
        text_encoder=text.t5(),
        tokenizer=text.tokenizer(),
        transformer=_live(transformer),
    )


def _unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return _live(
        UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            attention_head_dim=2,
            **more,
        )
    )


def _sdxl() -> Any:
    import diffusers

    unet = _unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=text.WIDTH * 2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + text.WIDTH,
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=_kl(4, 2),
        text_encoder=text.clip(),
        text_encoder_2=text.clip(projected=True),
        tokenizer=text.tokenizer(),
        tokenizer_2=text.tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )


def _sd() -> Any:
    import diffusers

    unet = _unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text.WIDTH,
    )
    return diffusers.StableDiffusionPipeline(
        vae=_kl(4, 2),
        text_encoder=text.clip(),
        tokenizer=text.tokenizer(),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _guided(**more: Any) -> Callable[[], dict[str, Any]]:
    return _sized(negative_prompt=NEGATIVE, **more)


def _video(**more: Any) -> Callable[[], dict[str, Any]]:
    return _sized(num_frames=9, **more)


CASES = [
    PipelineCase("FluxPipeline", _flux("FluxPipeline"), _sized(max_sequence_length=48)),
    PipelineCase(
        "FluxPipeline, true CFG",
        _flux("FluxPipeline"),
        _guided(max_sequence_length=48, true_cfg_scale=4.0),
        branches=2,
    ),
    PipelineCase(
        "FluxKontextPipeline",
        _flux("FluxKontextPipeline", image_encoder=None, feature_extractor=None),
        _sized(image=_picture, max_area=256, _auto_resize=False, max_sequence_length=48),
    ),
    PipelineCase(
        "FluxImg2ImgPipeline",
        _flux("FluxImg2ImgPipeline"),
        _sized(image=_picture, strength=0.75, max_sequence_length=48),
    ),
    PipelineCase(
        "FluxInpaintPipeline",
        _flux("FluxInpaintPipeline"),
        _sized(image=_picture, mask_image=_picture, strength=0.75, max_sequence_length=48),
    ),
    PipelineCase("QwenImagePipeline", _qwen("QwenImagePipeline"), _guided(true_cfg_scale=4.0), branches=2),
    PipelineCase(
        "QwenImageEditPipeline",
        _qwen("QwenImageEditPipeline"),
        lambda: {
            "image": _picture(),
            "height": 16,
            "width": 16,
            **_embedded(),
            **_embedded(5, negative=True),
            "true_cfg_scale": 4.0,
        },
        branches=2,
    ),
    PipelineCase("HunyuanVideoPipeline", _hunyuan, _video(max_sequence_length=16)),
    PipelineCase("WanPipeline", _wan(False), _video(negative_prompt=NEGATIVE, max_sequence_length=16), branches=2),
    PipelineCase(
        "WanPipeline, two transformers",
        _wan(True),
        _video(negative_prompt=NEGATIVE, max_sequence_length=16),
        denoisers=("transformer", "transformer_2"),
        branches=2,
    ),
    PipelineCase("StableDiffusion3Pipeline", _sd3, _guided(max_sequence_length=16)),
    PipelineCase(
        "StableDiffusion3Pipeline, skipped layers",
        _sd3,
        _guided(max_sequence_length=16, skip_guidance_layers=lambda: [1]),
    ),
    PipelineCase("PixArtSigmaPipeline", _pixart, _guided(max_sequence_length=16, use_resolution_binning=False)),
    PipelineCase("CogVideoXPipeline", _cogvideo, _video(max_sequence_length=16, use_dynamic_cfg=True)),
    PipelineCase("LTXPipeline", _ltx, _sized(height=32, width=32, num_frames=9, max_sequence_length=16)),
    PipelineCase("StableDiffusionXLPipeline", _sdxl, _guided(), denoisers=("unet",)),
    PipelineCase("StableDiffusionPipeline", _sd, _guided(), denoisers=("unet",)),
]


def by_name(name: str) -> PipelineCase:
    return next(case for case in CASES if case.name == name)
