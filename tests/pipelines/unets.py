"""Pipelines with the UNets of Stable Diffusion and Stable Diffusion XL."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.pipelines import text
from tests.pipelines.cases import NEGATIVE, PROMPT, PipelineCase, _guided, _kl, _live, _picture, _sd, _sdxl

W = text.WIDTH
UNET: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": W,
}
UNET_XL: dict[str, Any] = {
    **UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "cross_attention_dim": 2 * W,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + W,
}


def _seeded(cls: str, live: bool = False, **config: Any) -> Any:
    """A model or a scheduler of diffusers."""
    import diffusers

    torch.manual_seed(7)
    made = getattr(diffusers, cls)(**config)
    if not isinstance(made, torch.nn.Module):
        return made
    return _live(made) if live else made.eval()


def _scheduler(cls: str, **config: Any) -> Callable[[], Any]:
    return partial(_seeded, cls, **config)


def _unet(**config: Any) -> Callable[[], Any]:
    return partial(_seeded, "UNet2DConditionModel", live=True, **{**UNET, **config})


def _unet_xl(**config: Any) -> Callable[[], Any]:
    return partial(_seeded, "UNet2DConditionModel", live=True, **{**UNET_XL, **config})


def _vision(size: int = 16) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(8)
    config = CLIPVisionConfig(
        hidden_size=W,
        intermediate_size=37,
        projection_dim=W,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=8,
    )
    return CLIPVisionModelWithProjection(config).eval()


def _clip_projected() -> Any:
    return text.clip(projected=True)


def _processor(size: int = 16) -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def _from(base: Callable[[], Any], cls: str, **parts: Any) -> Callable[[], Any]:
    """A pipeline of the class: what its constructor takes of the components of ``base``, and of ``parts``, which are
    called if they can be."""

    def build() -> Any:
        import diffusers

        kind = getattr(diffusers, cls)
        made = {name: part() if callable(part) else part for name, part in parts.items()}
        made = {**base().components, "requires_safety_checker": False, "add_watermarker": False, **made}
        taken = inspect.signature(kind.__init__).parameters
        return kind(**{name: part for name, part in made.items() if name in taken})

    return build


def _base_xl() -> Any:
    pipeline = _sdxl()
    pipeline.vae.register_to_config(force_upcast=False)  # it is float32
    return pipeline


_of_sd = partial(_from, _sd)
_of_sdxl = partial(_from, _base_xl)


def _prompted(**more: Any) -> Callable[[], dict[str, Any]]:
    """Two prompts, and no size; what can be called is called."""
    return lambda: {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        **{name: value() if callable(value) else value for name, value in more.items()},
    }


def _mask() -> Any:
    return _picture().convert("L").point(lambda value: 255 * (value > 100))


_image = {"image": _picture, "strength": 0.8}
_masked = {"image": _picture, "mask_image": _mask, "strength": 0.8}
_size = {"height": 16, "width": 16}


_sde = _scheduler("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", solver_order=2)


def _controlnet(xl: bool, union: bool = False) -> Callable[[], Any]:
    config = {**(UNET_XL if xl else UNET), "conditioning_embedding_out_channels": (8, 16)}
    for name in ("sample_size", "out_channels", "up_block_types"):
        del config[name]
    if union:
        small = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8, "addition_embed_type_num_heads": 2}
        return partial(_seeded, "ControlNetUnionModel", live=True, **config, **small)
    return partial(_seeded, "ControlNetModel", live=True, **config)


def _adapter(kind: str, factor: int) -> Callable[[], Any]:
    config = {"adapter_type": kind, "channels": [8, 16], "num_res_blocks": 1, "downscale_factor": factor}
    return partial(_seeded, "T2IAdapter", **config)


def _controlnet_xs(unet: Callable[[], Any]) -> Callable[[], Any]:
    def build() -> Any:
        from diffusers import ControlNetXSAdapter

        torch.manual_seed(7)
        return _live(ControlNetXSAdapter.from_unet(unet(), size_ratio=0.5, conditioning_embedding_out_channels=(8, 16)))

    return build


def _vector_of_image() -> Any:
    from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection

    torch.manual_seed(7)
    return CLIPImageProjection(W)


def _example_encoder() -> Any:
    from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder
    from transformers import CLIPVisionConfig

    torch.manual_seed(7)
    config = CLIPVisionConfig(**{**_vision().config.to_dict(), "num_hidden_layers": 4})
    return PaintByExampleImageEncoder(config).eval()


def _roberta() -> Any:
    from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
        RobertaSeriesConfig,
        RobertaSeriesModelWithTransformation,
    )

    torch.manual_seed(7)
    config = RobertaSeriesConfig(
        vocab_size=400,
        hidden_size=W,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=2,
        project_dim=W,
        pad_token_id=2,
        max_position_embeddings=100,
    )
    return RobertaSeriesModelWithTransformation(config).eval()


def _versatile(cls: str) -> Callable[[], Any]:
    def text_unet() -> Any:
        from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel

        torch.manual_seed(7)
        blocks = {
            name: tuple(block.replace("2D", "Flat") for block in UNET[name])
            for name in ("down_block_types", "up_block_types")
        }
        return _live(UNetFlatConditionModel(**{**UNET, **blocks}))

    return _of_sd(
        cls,
        text_encoder=_clip_projected,
        image_encoder=_vision,
        image_feature_extractor=_processor,
        image_unet=_unet(),
        text_unet=text_unet,
    )


def _random(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _decoded(pipeline: Any, **arguments: Any) -> Tensor:
    """For pipelines that do not return latents."""
    return torch.as_tensor(pipeline(**arguments, output_type="np")[0])


def _diffedit(pipeline: Any, prompt: str, source: str, image: Any, mask_image: Any, **more: Any) -> Tensor:
    """The picture is inverted first, by the same UNet with another scheduler."""
    more.pop("negative_prompt")
    latents = pipeline.invert(prompt=source, image=image, inpaint_strength=0.8, **more).latents
    output = pipeline(prompt=prompt, mask_image=mask_image, image_latents=latents, output_type="latent", **more)
    return output[0]


def _ledits(pipeline: Any, num_inference_steps: int, generator: Any, image: Any, source: str, **more: Any) -> Tensor:
    """The picture is inverted first, by the same UNet and scheduler."""
    pipeline.invert(
        image=image, source_prompt=source, num_inversion_steps=num_inference_steps, skip=0.1, generator=generator
    )
    return pipeline(**more, output_type="latent")[0]


def _case(name: str, build: Callable[[], Any], arguments: Callable[[], dict[str, Any]], **more: Any) -> PipelineCase:
    return PipelineCase(name, build, arguments, **{"denoisers": ("unet",), **more})


def _sd_case(cls: str, arguments: Callable[[], dict[str, Any]], call: Any = None, **parts: Any) -> PipelineCase:
    return _case(cls, _of_sd(cls, **parts), arguments, call=call)


def _xl_case(cls: str, arguments: Callable[[], dict[str, Any]], call: Any = None, **parts: Any) -> PipelineCase:
    return _case(cls, _of_sdxl(cls, **parts), arguments, call=call)


def _versatile_case(cls: str, arguments: Callable[[], dict[str, Any]], call: Any = None) -> PipelineCase:
    return PipelineCase(cls, _versatile(cls), arguments, ("image_unet",), call=call)


SD = [
    _sd_case("StableDiffusionImg2ImgPipeline", _prompted(**_image)),
    _sd_case("StableDiffusionInpaintPipeline", _guided(**_masked), unet=_unet(in_channels=9)),
    _sd_case("StableDiffusionControlNetPipeline", _guided(image=_picture), controlnet=_controlnet(False)),
    _sd_case(
        "StableDiffusionControlNetImg2ImgPipeline",
        _guided(**_image, control_image=_picture),
        controlnet=_controlnet(False),
    ),
    _sd_case(
        "StableDiffusionControlNetInpaintPipeline",
        _guided(**_masked, control_image=_picture),
        controlnet=_controlnet(False),
    ),
    _sd_case("StableDiffusionInstructPix2PixPipeline", _prompted(image=_picture), unet=_unet(in_channels=8)),
    _sd_case("StableDiffusionAdapterPipeline", _guided(image=_picture), adapter=_adapter("full_adapter", 2)),
    _sd_case("StableDiffusionPAGPipeline", _guided()),
    _sd_case("StableDiffusionPAGImg2ImgPipeline", _prompted(**_image)),
    _sd_case("StableDiffusionPAGInpaintPipeline", _guided(**_masked), unet=_unet(in_channels=9)),
    _sd_case("StableDiffusionControlNetPAGPipeline", _guided(image=_picture), controlnet=_controlnet(False)),
    _sd_case(
        "StableDiffusionControlNetPAGInpaintPipeline",
        _guided(**_masked, control_image=_picture),
        controlnet=_controlnet(False),
    ),
    _sd_case(
        "StableDiffusionUpscalePipeline",
        _prompted(image=_picture),
        unet=_unet(in_channels=7, num_class_embeds=1000),
        low_res_scheduler=_scheduler("DDPMScheduler"),
    ),
    _sd_case(
        "StableDiffusionLatentUpscalePipeline",
        _prompted(image=_picture),
        unet=_unet(in_channels=8, out_channels=5, time_cond_proj_dim=128 + W),
        scheduler=_scheduler("EulerDiscreteScheduler"),
    ),
    _sd_case(
        "StableDiffusionDepth2ImgPipeline",
        _prompted(**_image, depth_map=lambda: _random(1, 16, 16)),
        unet=_unet(in_channels=5),
        depth_estimator=None,
    ),
    _sd_case(
        "StableDiffusionImageVariationPipeline",
        lambda: {"image": _picture(), **_size},
        image_encoder=_vision,
        feature_extractor=_processor,
    ),
    _case(
        "LEditsPPPipelineStableDiffusion",
        _of_sd("LEditsPPPipelineStableDiffusion", scheduler=_sde),
        lambda: {"image": _picture(32, 32), "source": PROMPT, "editing_prompt": ["a dog"], "use_intersect_mask": False},
        call=_ledits,
    ),
    _case(
        "LEditsPPPipelineStableDiffusion, attention masks",  # read at a quarter of the resolution, so in a third level
        _of_sd(
            "LEditsPPPipelineStableDiffusion",
            scheduler=_sde,
            unet=_unet(
                block_out_channels=(8, 16, 16),
                down_block_types=("CrossAttnDownBlock2D",) * 3,
                up_block_types=("CrossAttnUpBlock2D",) * 3,
            ),
        ),
        lambda: {"image": _picture(32, 32), "source": PROMPT, "editing_prompt": ["a dog"]},
        call=_ledits,
    ),
    _sd_case(
        "StableDiffusionControlNetXSPipeline",
        _guided(image=_picture),
        unet=_unet(layers_per_block=2),
        controlnet=_controlnet_xs(_unet(layers_per_block=2)),
    ),
    _sd_case(
        "StableDiffusionGLIGENPipeline",
        _guided(gligen_phrases=lambda: ["a cat"], gligen_boxes=lambda: [[0.1, 0.2, 0.6, 0.8]]),
        unet=_unet(attention_type="gated"),
    ),
    _case(
        "StableDiffusionGLIGENTextImagePipeline",
        _of_sd(
            "StableDiffusionGLIGENTextImagePipeline",
            unet=_unet(attention_type="gated-text-image"),
            processor=_processor,
            image_encoder=_vision,
            image_project=_vector_of_image,
        ),
        _guided(
            gligen_phrases=lambda: ["a cat"],
            gligen_images=lambda: [_picture()],
            gligen_boxes=lambda: [[0.1, 0.2, 0.6, 0.8]],
        ),
        branches=2,
    ),
    _sd_case(
        "StableDiffusionLDM3DPipeline",
        _guided(),
        call=_decoded,
        vae=partial(
            _seeded,
            "AutoencoderKL",
            in_channels=6,
            out_channels=6,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
    ),
    _case(
        "StableDiffusionPanoramaPipeline",
        _of_sd("StableDiffusionPanoramaPipeline", vae=partial(_kl, 4, 4)),
        _guided(height=16, width=8 * 72),  # two views
        branches=2,
    ),
    _case("StableDiffusionSAGPipeline", _of_sd("StableDiffusionSAGPipeline"), _guided(), branches=2),
    _sd_case(
        "StableDiffusionDiffEditPipeline",
        _prompted(source="a photo of a dog", image=_picture, mask_image=lambda: torch.ones(1, 8, 8).tril()),
        call=_diffedit,
        inverse_scheduler=_scheduler("DDIMInverseScheduler"),
    ),
    _case(
        "StableDiffusionAttendAndExcitePipeline",
        _of_sd("StableDiffusionAttendAndExcitePipeline"),
        _guided(token_indices=lambda: [3, 5], attn_res=(8, 8)),
        branches=2,
    ),
    _case(
        "StableDiffusionPix2PixZeroPipeline",
        _of_sd(
            "StableDiffusionPix2PixZeroPipeline",
            inverse_scheduler=_scheduler("DDIMInverseScheduler"),
            caption_generator=None,
            caption_processor=None,
        ),
        _guided(source_embeds=lambda: _random(1, 77, W), target_embeds=lambda: _random(1, 77, W, seed=10)),
        branches=2,
    ),
    _sd_case("StableDiffusionPipelineSafe", _guided(sld_warmup_steps=1, sld_threshold=1.0), call=_decoded),
    _sd_case("SemanticStableDiffusionPipeline", _guided(editing_prompt=lambda: ["a dog"], edit_warmup_steps=1)),
    _sd_case(
        "CycleDiffusionPipeline",
        lambda: {"image": _picture(), "prompt": PROMPT, "source_prompt": "a dog"},
        scheduler=_scheduler("DDIMScheduler", set_alpha_to_one=False, steps_offset=1),
    ),
    _sd_case(
        "PaintByExamplePipeline",
        lambda: {"image": _picture(), "mask_image": _mask(), "example_image": _picture(), **_size},
        unet=_unet(in_channels=9),
        image_encoder=_example_encoder,
        feature_extractor=_processor,
    ),
    _sd_case("StableDiffusionInpaintPipelineLegacy", _prompted(**_masked)),
    _sd_case("StableDiffusionModelEditingPipeline", _guided()),
    _sd_case("AltDiffusionPipeline", _guided(), text_encoder=_roberta),
    _sd_case("AltDiffusionImg2ImgPipeline", _prompted(**_image), text_encoder=_roberta),
    _versatile_case("VersatileDiffusionTextToImagePipeline", _guided()),
    _versatile_case("VersatileDiffusionImageVariationPipeline", lambda: {"image": _picture(), **_size}),
    _versatile_case(
        "VersatileDiffusionPipeline",
        lambda: {"image": _picture(), **_size},
        call=lambda pipeline, **arguments: pipeline.image_variation(**arguments, output_type="latent")[0],
    ),
    _sd_case("StableDiffusionParadigmsPipeline", _guided(parallel=4), scheduler=_scheduler("DDIMParallelScheduler")),
]
SDXL = [
    _xl_case("StableDiffusionXLImg2ImgPipeline", _prompted(**_image)),
    _xl_case("StableDiffusionXLInpaintPipeline", _guided(**_masked), unet=_unet_xl(in_channels=9)),
    _xl_case("StableDiffusionXLControlNetPipeline", _guided(image=_picture), controlnet=_controlnet(True)),
    _xl_case(
        "StableDiffusionXLControlNetImg2ImgPipeline",
        _guided(**_image, control_image=_picture),
        controlnet=_controlnet(True),
    ),
    _xl_case(
        "StableDiffusionXLControlNetInpaintPipeline",
        _guided(**_masked, control_image=_picture),
        controlnet=_controlnet(True),
    ),
    _xl_case(
        "StableDiffusionXLControlNetUnionPipeline",
        _guided(control_image=lambda: [_picture()], control_mode=lambda: [1]),
        controlnet=_controlnet(True, union=True),
    ),
    _xl_case(
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        _guided(**_image, control_image=lambda: [_picture()], control_mode=lambda: [1]),
        controlnet=_controlnet(True, union=True),
    ),
    _xl_case(
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        _guided(**_masked, control_image=lambda: [_picture()], control_mode=lambda: [1]),
        controlnet=_controlnet(True, union=True),
    ),
    _xl_case("StableDiffusionXLInstructPix2PixPipeline", _guided(image=_picture), unet=_unet_xl(in_channels=8)),
    _xl_case("StableDiffusionXLAdapterPipeline", _guided(image=_picture), adapter=_adapter("full_adapter_xl", 4)),
    _xl_case("StableDiffusionXLPAGPipeline", _guided()),
    _xl_case("StableDiffusionXLPAGImg2ImgPipeline", _prompted(**_image)),
    _xl_case("StableDiffusionXLPAGInpaintPipeline", _guided(**_masked), unet=_unet_xl(in_channels=9)),
    _xl_case("StableDiffusionXLControlNetPAGPipeline", _guided(image=_picture), controlnet=_controlnet(True)),
    _xl_case(
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        _guided(**_image, control_image=_picture),
        controlnet=_controlnet(True),
    ),
    _case(
        "LEditsPPPipelineStableDiffusionXL",
        _of_sdxl("LEditsPPPipelineStableDiffusionXL", scheduler=_sde),
        lambda: {"image": _picture(32, 32), "source": PROMPT, "editing_prompt": ["a dog"]},
        call=_ledits,
    ),
    _xl_case(
        "StableDiffusionXLControlNetXSPipeline",
        _guided(image=_picture),
        unet=_unet_xl(layers_per_block=2),
        controlnet=_controlnet_xs(_unet_xl(layers_per_block=2)),
    ),
]

CASES: list[PipelineCase] = [*SD, *SDXL]
_SENTENCEPIECE = "needs package sentencepiece, which is not installed"
_BLIP = "diffusers 0.42 fails itself: 'Blip2QFormerModel' object has no attribute 'invert_attention_mask'"
LEFT_OUT: dict[str, str] = {
    "KolorsPipeline": _SENTENCEPIECE,
    "KolorsImg2ImgPipeline": _SENTENCEPIECE,
    "KolorsPAGPipeline": _SENTENCEPIECE,
    "BlipDiffusionPipeline": _BLIP,
    "BlipDiffusionControlNetPipeline": _BLIP,
    "VersatileDiffusionDualGuidedPipeline": (
        "diffusers 0.42 fails itself: DualTransformer2DModel.forward() got an unexpected keyword argument "
        "'encoder_attention_mask'"
    ),
}
