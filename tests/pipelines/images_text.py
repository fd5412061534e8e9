"""More pipelines that make images from text; cascades, tokens and sound are in ``images_text_2``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from tests.pipelines import text
from tests.pipelines.cases import (
    NEGATIVE,
    PROMPT,
    PipelineCase,
    _embedded,
    _guided,
    _kl,
    _live,
    _picture,
    _pixart,
    _qwen,
    _scheduler,
    _sd,
    _sd3,
    _sized,
)


def _like(cls: str, base: Callable[[], Any], **more: Any) -> Callable[[], Any]:
    """A pipeline of another class from the components of ``base`` that it has too, and ``more``; functions are
    called."""

    def build() -> Any:
        import diffusers

        new = getattr(diffusers, cls)
        known = inspect.signature(new.__init__).parameters
        components = {k: v for k, v in base().components.items() if k in known}
        return new(**{**components, **{k: v() if callable(v) else v for k, v in more.items()}})

    return build


def _changed(model: Any, **more: Any) -> Any:
    """A model as ``model``, with other arguments."""
    torch.manual_seed(0)
    return _live(type(model).from_config(model.config, **more))


def _seeded(pipeline: Any, generator: torch.Generator, **arguments: Any) -> Any:
    """A call of a pipeline that also draws numbers without its generator."""
    torch.manual_seed(generator.initial_seed())
    return pipeline(**arguments, generator=generator, output_type="latent")[0]


def _controlled(cls: str, base: Callable[[], Any], controlnet: str, **more: Any) -> Callable[[], Any]:
    """A pipeline with the components of ``base`` and a ControlNet of the sizes of its transformer."""

    def build() -> Any:
        import diffusers

        parts = base()
        new = getattr(diffusers, controlnet)
        known = inspect.signature(new.__init__).parameters
        config = {k: v for k, v in parts.transformer.config.items() if k in known}
        torch.manual_seed(7)
        return getattr(diffusers, cls)(**parts.components, controlnet=_live(new(**{**config, **more}), 7))

    return build


def _qwen_vae(channels: int = 3, latents: int = 4) -> Any:
    """It scales by 32, as the pictures are scaled up to a megapixel."""
    import diffusers

    torch.manual_seed(5)
    return diffusers.AutoencoderKLQwenImage(
        base_dim=2,
        z_dim=latents,
        dim_mult=[1] * 6,
        num_res_blocks=0,
        temperal_downsample=[False] * 5,
        input_channels=channels,
        latents_mean=[0.0] * latents,
        latents_std=[1.0] * latents,
    ).eval()


def _qwen_layered() -> Any:
    import diffusers

    base = _qwen("QwenImageEditPipeline")()
    layered = {"use_additional_t_cond": True, "use_layer3d_rope": True}
    transformer = _changed(base.transformer, in_channels=32, out_channels=8, **layered)
    components = {**base.components, "vae": _qwen_vae(4, 8), "transformer": transformer}
    return diffusers.QwenImageLayeredPipeline(**components)


def _embeddings(image: Callable[[], Any], **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"image": image(), **_embedded(), **_embedded(5, negative=True), "true_cfg_scale": 4.0, **more}


def _last_latents(pipeline: Any, **arguments: Any) -> Any:
    """A call that takes the latents of the last step: diffusers 0.42 fails after it when it shall return them."""
    seen = []

    def keep(pipeline: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"])
        return tensors

    with suppress(UnboundLocalError):
        pipeline(**arguments, callback_on_step_end=keep, output_type="latent")
    return seen[-1]


class _Processor:
    """Has what the pipeline asks of its processor before it is given a prompt."""

    def __init__(self) -> None:
        self.tokenizer = text.tokenizer()

    def apply_chat_template(self, messages: Any, **more: Any) -> list[list[int]]:
        return [[0, 1]]


def _qwen21() -> Any:
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.QwenImage21Transformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=text.WIDTH,
        mlp_ratio=2,
        axes_dims_rope=(4, 6, 6),
    )
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=4, decoder_base_dim=4, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    return diffusers.QwenImage21Pipeline(
        scheduler=_scheduler(),
        vae=vae.eval(),
        text_encoder=None,
        processor=_Processor(),
        transformer=_live(transformer),
    )


def _sd3_inpaint() -> Any:
    import diffusers

    base = _sd3()
    transformer = _changed(base.transformer, in_channels=16, out_channels=16)
    return diffusers.StableDiffusion3InpaintPipeline(**{**base.components, "transformer": transformer, "vae": _kl(16)})


def _cogview_transformer(cls: str, channels: int = 4, **more: Any) -> Any:
    import diffusers

    torch.manual_seed(0)
    return _live(
        getattr(diffusers, cls)(
            patch_size=2,
            in_channels=channels,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=text.WIDTH,
            time_embed_dim=16,
            condition_dim=8,
            pos_embed_max_size=16,
            sample_size=16,
            **more,
        )
    )


def _cogview3() -> Any:
    import diffusers

    return diffusers.CogView3PlusPipeline(
        tokenizer=text.tokenizer(),
        text_encoder=text.t5(),
        vae=_kl(4),
        transformer=_cogview_transformer("CogView3PlusTransformer2DModel"),
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )


def _cogview4(cls: str, channels: int = 4) -> Callable[[], Any]:
    def build() -> Any:
        import diffusers

        return getattr(diffusers, cls)(
            tokenizer=text.tokenizer(),
            text_encoder=text.llama(),
            vae=_kl(4),
            transformer=_cogview_transformer("CogView4Transformer2DModel", channels, rope_axes_dim=(16, 16)),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
                base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
            ),
        )

    return build


def _dc() -> Any:
    import diffusers

    torch.manual_seed(5)
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        decoder_norm_types=("rms_norm", "rms_norm"),
        decoder_act_fns=("silu", "silu"),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    ).eval()


def _sana(cls: str, **more: Any) -> Callable[[], Any]:
    def build() -> Any:
        import diffusers

        torch.manual_seed(0)
        sprint = "Sprint" in cls
        transformer = diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=text.WIDTH,
            sample_size=16,
            guidance_embeds=sprint,
        )
        return getattr(diffusers, cls)(
            tokenizer=text.tokenizer(),
            text_encoder=text.llama(),
            vae=_dc(),
            transformer=_live(transformer),
            scheduler=diffusers.SCMScheduler() if sprint else _scheduler(),
            **{k: v() if callable(v) else v for k, v in more.items()},
        )

    return build


def _plain(**more: Any) -> Callable[[], dict[str, Any]]:
    """Of Sana: the instruction that goes before the prompt by default is long."""
    return _sized(
        height=32,
        width=32,
        max_sequence_length=16,
        use_resolution_binning=False,
        complex_human_instruction=None,
        **more,
    )


def _noise(*shape: int, seed: int = 6) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _vq(blocks: int, latents: int = 4, codes: int = 16, **more: Any) -> Any:
    import diffusers

    torch.manual_seed(5)
    return diffusers.VQModel(
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=latents,
        num_vq_embeddings=codes,
        norm_num_groups=4,
        mid_block_add_attention=False,
        **more,
    ).eval()


def _kandinsky3(cls: str) -> Callable[[], Any]:
    def build() -> Any:
        import diffusers

        torch.manual_seed(0)
        unet = diffusers.Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=16,
            groups=4,
            attention_head_dim=8,
            layers_per_block=3,
            block_out_channels=(16, 16, 32, 32),
            cross_attention_dim=16,
            encoder_hid_dim=text.WIDTH,
        )
        return getattr(diffusers, cls)(
            tokenizer=text.tokenizer(),
            text_encoder=text.t5(),
            unet=_live(unet),
            scheduler=diffusers.DDPMScheduler(),
            movq=_vq(4),
        )

    return build


def _kandinsky5(cls: str, conditioned: bool) -> Callable[[], Any]:
    def build() -> Any:
        import diffusers

        torch.manual_seed(0)
        transformer = diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=text.WIDTH,
            in_text_dim2=text.WIDTH,
            time_dim=16,
            model_dim=24,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 4, 4),
            visual_cond=conditioned,
        )
        pipeline = getattr(diffusers, cls)(
            transformer=_live(transformer),
            vae=_kl(4, 4),
            text_encoder=text.qwen_vl(),
            tokenizer=text.tokenizer(),  # not called: the embeddings are given
            text_encoder_2=text.clip(),
            tokenizer_2=text.tokenizer(),
            scheduler=_scheduler(),
        )
        pipeline.resolutions = [(64, 64)]  # instead of those of a megapixel
        return pipeline

    return build


def _kandinsky5_arguments(**more: Any) -> Callable[[], dict[str, Any]]:
    def arguments() -> dict[str, Any]:
        embeds: dict[str, Any] = {}
        for prefix, length in ("prompt", 7), ("negative_prompt", 5):
            embeds[f"{prefix}_embeds_qwen"] = _noise(1, length, text.WIDTH)
            embeds[f"{prefix}_embeds_clip"] = _noise(1, text.WIDTH)
            embeds[f"{prefix}_cu_seqlens"] = torch.tensor([0, length], dtype=torch.int32)
        return {"height": 64, "width": 64, **embeds, **{k: v() if callable(v) else v for k, v in more.items()}}

    return arguments


def _dit() -> Any:
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        in_channels=4,
        out_channels=8,
        sample_size=8,
        num_embeds_ada_norm=1001,
    )
    return diffusers.DiTPipeline(transformer=_live(transformer), vae=_kl(4), scheduler=diffusers.DDIMScheduler())


def _decoded(pipeline: Any, **arguments: Any) -> Any:
    """A call of a pipeline that has no latent output."""
    return pipeline(**arguments, output_type="pt")[0]


def _negative(**more: Any) -> Callable[[], dict[str, Any]]:
    """Where no size is given."""
    return lambda: {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        **{k: v() if callable(v) else v for k, v in more.items()},
    }


def _lcm(cls: str) -> Callable[[], Any]:
    def build() -> Any:
        import diffusers

        base = _sd()
        unet = _changed(base.unet, time_cond_proj_dim=8)
        components = {**base.components, "unet": unet, "scheduler": diffusers.LCMScheduler()}
        return getattr(diffusers, cls)(**components, requires_safety_checker=False)

    return build


CASES: list[PipelineCase] = [
    PipelineCase(
        "QwenImageImg2ImgPipeline",
        _qwen("QwenImageImg2ImgPipeline"),
        _guided(image=_picture, strength=0.75, true_cfg_scale=4.0),
        branches=2,
    ),
    PipelineCase(
        "QwenImageInpaintPipeline",
        _qwen("QwenImageInpaintPipeline"),
        _guided(image=_picture, mask_image=_picture, strength=0.75, true_cfg_scale=4.0),
        branches=2,
    ),
    PipelineCase(
        "QwenImageEditPlusPipeline",
        _like("QwenImageEditPlusPipeline", _qwen("QwenImageEditPipeline"), vae=_qwen_vae),
        _embeddings(lambda: [_picture(), _picture()], height=64, width=64),
        branches=2,
    ),
    PipelineCase(
        "QwenImageEditInpaintPipeline",
        _like("QwenImageEditInpaintPipeline", _qwen("QwenImageEditPipeline"), vae=_qwen_vae),
        _embeddings(_picture, mask_image=_picture(64, 64), strength=0.75, height=64, width=64),
        branches=2,
    ),
    PipelineCase(
        "QwenImageLayeredPipeline",
        _qwen_layered,
        lambda: {
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "image": _picture().convert("RGBA"),
            "layers": 2,
            "true_cfg_scale": 4.0,
        },
        branches=2,
        call=_last_latents,
    ),
    PipelineCase(
        "QwenImageControlNetPipeline",
        _controlled("QwenImageControlNetPipeline", _qwen("QwenImagePipeline"), "QwenImageControlNetModel"),
        _guided(control_image=_picture, true_cfg_scale=4.0),
        branches=2,
    ),
    PipelineCase(
        "QwenImageControlNetInpaintPipeline",
        _controlled(
            "QwenImageControlNetInpaintPipeline",
            _qwen("QwenImagePipeline"),
            "QwenImageControlNetModel",
            extra_condition_channels=4,
        ),
        _guided(control_image=_picture, control_mask=_picture, true_cfg_scale=4.0),
        branches=2,
    ),
    PipelineCase(
        "QwenImage21Pipeline",
        _qwen21,
        lambda: {
            "height": 64,
            "width": 64,
            **_embedded(),
            **_embedded(5, negative=True),
            "true_cfg_scale": 4.0,
        },
        branches=2,
    ),
    PipelineCase(
        "StableDiffusion3Img2ImgPipeline",
        _like("StableDiffusion3Img2ImgPipeline", _sd3),
        _guided(image=_picture, strength=0.75, max_sequence_length=16),
    ),
    PipelineCase(
        "StableDiffusion3InpaintPipeline",
        _sd3_inpaint,
        _guided(image=_picture, mask_image=_picture, strength=0.75, max_sequence_length=16),
    ),
    PipelineCase(
        "StableDiffusion3ControlNetPipeline",
        _controlled("StableDiffusion3ControlNetPipeline", _sd3, "SD3ControlNetModel"),
        _guided(control_image=_picture, max_sequence_length=16),
    ),
    PipelineCase(
        "StableDiffusion3ControlNetInpaintingPipeline",
        _controlled(
            "StableDiffusion3ControlNetInpaintingPipeline", _sd3, "SD3ControlNetModel", extra_conditioning_channels=1
        ),
        _guided(control_image=_picture, control_mask=_picture, max_sequence_length=16),
    ),
    PipelineCase(
        "StableDiffusion3PAGPipeline",
        _like("StableDiffusion3PAGPipeline", _sd3, pag_applied_layers="blocks.1"),
        _guided(max_sequence_length=16, pag_scale=3.0),
    ),
    PipelineCase(
        "StableDiffusion3PAGImg2ImgPipeline",
        _like("StableDiffusion3PAGImg2ImgPipeline", _sd3, pag_applied_layers="blocks.1"),
        _guided(image=_picture, strength=0.75, max_sequence_length=16, pag_scale=3.0),
    ),
    PipelineCase("CogView3PlusPipeline", _cogview3, _guided(max_sequence_length=16)),
    PipelineCase("CogView4Pipeline", _cogview4("CogView4Pipeline"), _guided(max_sequence_length=16), branches=2),
    PipelineCase(
        "CogView4ControlPipeline",
        _cogview4("CogView4ControlPipeline", 8),
        _guided(control_image=_picture, max_sequence_length=16),
        branches=2,
        call=_seeded,
    ),
    PipelineCase(
        "PixArtAlphaPipeline",
        _like("PixArtAlphaPipeline", _pixart),
        _guided(max_sequence_length=16, use_resolution_binning=False, clean_caption=False),
    ),
    PipelineCase(
        "PixArtSigmaPAGPipeline",
        _like("PixArtSigmaPAGPipeline", _pixart, pag_applied_layers="blocks.1"),
        _guided(max_sequence_length=16, use_resolution_binning=False, clean_caption=False, pag_scale=3.0),
    ),
    PipelineCase("SanaPipeline", _sana("SanaPipeline"), _plain(negative_prompt=NEGATIVE)),
    PipelineCase(
        "SanaPAGPipeline",
        _sana("SanaPAGPipeline", pag_applied_layers="transformer_blocks.0"),
        _plain(negative_prompt=NEGATIVE, pag_scale=3.0),
    ),
    PipelineCase(
        "SanaControlNetPipeline",
        _controlled("SanaControlNetPipeline", _sana("SanaPipeline"), "SanaControlNetModel"),
        _plain(negative_prompt=NEGATIVE, control_image=_picture),
    ),
    PipelineCase("SanaSprintPipeline", _sana("SanaSprintPipeline"), _plain(intermediate_timesteps=None)),
    PipelineCase(
        "SanaSprintImg2ImgPipeline",
        _sana("SanaSprintImg2ImgPipeline"),
        _plain(intermediate_timesteps=None, image=_picture, strength=0.75),
    ),
    PipelineCase("Kandinsky3Pipeline", _kandinsky3("Kandinsky3Pipeline"), _guided(), denoisers=("unet",)),
    PipelineCase(
        "Kandinsky3Img2ImgPipeline",
        _kandinsky3("Kandinsky3Img2ImgPipeline"),
        _negative(image=lambda: _picture(64, 64), strength=0.75),
        denoisers=("unet",),
    ),
    PipelineCase(
        "Kandinsky5T2IPipeline",
        _kandinsky5("Kandinsky5T2IPipeline", False),
        _kandinsky5_arguments(),
        branches=2,
    ),
    PipelineCase(
        "Kandinsky5I2IPipeline",
        _kandinsky5("Kandinsky5I2IPipeline", True),
        _kandinsky5_arguments(image=lambda: _picture(64, 64)),
        branches=2,
    ),
    PipelineCase("DiTPipeline", _dit, lambda: {"class_labels": [3]}, call=_decoded),
    PipelineCase(
        "LatentConsistencyModelPipeline",
        _lcm("LatentConsistencyModelPipeline"),
        _sized(),
        denoisers=("unet",),
    ),
    PipelineCase(
        "LatentConsistencyModelImg2ImgPipeline",
        _lcm("LatentConsistencyModelImg2ImgPipeline"),
        lambda: {"prompt": PROMPT, "image": _picture(), "strength": 0.75},
        denoisers=("unet",),
    ),
]

LEFT_OUT: dict[str, str] = {}
