"""More pipelines that make images with a transformer: FLUX and its kin, and Z-Image; others are in ``images_dit_2``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests import zoo
from tests.pipelines import text
from tests.pipelines.cases import (
    NEGATIVE,
    PROMPT,
    PipelineCase,
    _flux_transformer,
    _guided,
    _kl,
    _live,
    _picture,
    _scheduler,
    _sized,
)


def _denoiser(name: str, layers: int = 2, **more: Any) -> Any:
    """The model of the zoo with other arguments."""
    import diffusers

    config = next(case for case in zoo.CASES if case.name == name).config(layers)
    torch.manual_seed(0)
    return _live(getattr(diffusers, name)(**{**config, **more}))


def _pipeline(cls: str, **components: Any) -> Callable[[], Any]:
    """Builds a pipeline; components that are functions are called."""

    def build() -> Any:
        import diffusers

        components.setdefault("scheduler", _scheduler)
        return getattr(diffusers, cls)(**{k: v() if callable(v) else v for k, v in components.items()})

    return build


def _embeds(name: str = "prompt_embeds", length: int = 7, width: int = text.WIDTH) -> dict[str, Any]:
    return {name: torch.randn(1, length, width, generator=torch.Generator().manual_seed(length))}


def _flux(cls: str, channels: int = 4, **more: Any) -> Callable[[], Any]:
    return _pipeline(
        cls,
        vae=lambda: _kl(1),
        text_encoder=text.clip,
        tokenizer=text.tokenizer,
        text_encoder_2=text.t5,
        tokenizer_2=lambda: text.tokenizer(48),
        transformer=lambda: _flux_transformer(channels),
        **more,
    )


def _flux_controlnet() -> Any:
    import diffusers

    config = {k: v for k, v in _flux_transformer().config.items() if k not in ("out_channels", "_class_name")}
    torch.manual_seed(7)
    return _live(diffusers.FluxControlNetModel(**{**config, "num_layers": 1, "num_single_layers": 1}), 7)


def _flux_case(cls: str, arguments: dict[str, Any], channels: int = 4, branches: int = 1, **more: Any) -> PipelineCase:
    call = _guided if branches == 2 else _sized
    return PipelineCase(cls, _flux(cls, channels, **more), call(**arguments, max_sequence_length=48), branches=branches)


_IMAGE: dict[str, Any] = {"image": _picture, "strength": 0.75}
_CONTROL: dict[str, Any] = {"control_image": _picture}
_MASK: dict[str, Any] = {"mask_image": _picture}


def _flux2_vae() -> Any:
    import diffusers

    torch.manual_seed(5)
    return diffusers.AutoencoderKLFlux2(
        latent_channels=1,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        layers_per_block=1,
    ).eval()


def _flux2(cls: str, guidance: bool = False, **more: Any) -> PipelineCase:
    build = _pipeline(
        cls,
        vae=_flux2_vae,
        text_encoder=None,
        tokenizer=None,
        transformer=lambda: _denoiser("Flux2Transformer2DModel", guidance_embeds=guidance),
    )
    negative = {} if guidance or "KV" in cls else _embeds("negative_prompt_embeds", 5)

    def arguments() -> dict[str, Any]:
        called = {k: v() if callable(v) else v for k, v in more.items()}
        return {"height": 64, "width": 64, **_embeds(), **negative, **called}

    return PipelineCase(cls, build, arguments, branches=2 if negative else 1)


def _large() -> Any:
    return _picture(64, 64)


def _visual_cloze(cls: str, **more: Any) -> PipelineCase:
    def arguments() -> dict[str, Any]:
        rows = [[_picture(), _picture()], [_picture(), None]]
        return {"task_prompt": PROMPT, "content_prompt": PROMPT, "image": rows, "max_sequence_length": 96, **more}

    # latents, the masked picture, and the mask
    return PipelineCase(cls, _flux(cls, 4 + 4 + 4, resolution=16), arguments)


def _chroma_transformer() -> Any:
    model = _denoiser("ChromaTransformer2DModel")
    model.register_to_config(guidance_embeds=False)  # the inpainting pipeline reads it, though the class has none
    return model


def _chroma(cls: str, **more: Any) -> PipelineCase:
    build = _pipeline(
        cls,
        vae=lambda: _kl(1),
        text_encoder=text.t5,
        tokenizer=text.tokenizer,
        transformer=_chroma_transformer,
    )
    return PipelineCase(cls, build, _guided(max_sequence_length=48, **more), branches=2)


def _given(cls: str, build: Callable[[], Any], branches: int = 1, size: int = 16, **more: Any) -> PipelineCase:
    """A case that is given embeddings; arguments that are functions are called."""
    return PipelineCase(
        cls,
        build,
        lambda: {"height": size, "width": size, **{k: v() if callable(v) else v for k, v in more.items()}},
        branches=branches,
    )


def _both(mask: str = "", *shape: int, listed: bool = False) -> dict[str, Any]:
    """Embeddings ``[1, *shape]`` of a prompt and a negative prompt, with masks named ``prompt_`` and ``mask``."""
    given: dict[str, Any] = {}
    for seed, prefix in enumerate(("prompt", "negative_prompt")):
        embeds = torch.randn(1, *(shape or (7, text.WIDTH)), generator=torch.Generator().manual_seed(seed))
        given[f"{prefix}_embeds"] = list(embeds) if listed else embeds
        if mask:
            given[f"{prefix}_{mask}"] = torch.ones(embeds.shape[:2], dtype=torch.bool)
    return given


def _z_image(cls: str, control: int = 0, **more: Any) -> PipelineCase:
    def controlnet() -> Any:
        import diffusers

        torch.manual_seed(7)
        model = diffusers.ZImageControlNetModel(
            control_layers_places=[0, 1],
            control_refiner_layers_places=[0],
            control_in_dim=control,
            add_control_noise_refiner="control_noise_refiner" if control > 4 else None,
            dim=32,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
        )
        return _live(model, 7)

    build = _pipeline(
        cls,
        vae=lambda: _kl(4),
        text_encoder=None,
        tokenizer=None,
        transformer=lambda: _denoiser("ZImageTransformer2DModel", cap_feat_dim=text.WIDTH),
        **({"controlnet": controlnet} if control else {}),
    )
    return _given(cls, build, **_both(listed=True), **more)


def _z_image_omni() -> Any:
    import diffusers
    from transformers import Siglip2VisionConfig, Siglip2VisionModel
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    torch.manual_seed(6)
    config = Siglip2VisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_patches=16
    )
    return diffusers.ZImageOmniPipeline(
        scheduler=_scheduler(),
        vae=_kl(4, 3).bfloat16(),  # the pipeline always gives it pictures in this type
        text_encoder=text.llama(),
        tokenizer=text.tokenizer(),
        transformer=_denoiser("ZImageTransformer2DModel", cap_feat_dim=text.WIDTH, siglip_feat_dim=16),
        siglip=Siglip2VisionModel(config).eval(),
        siglip_processor=Siglip2ImageProcessorPil(max_num_patches=16),
    )


CASES: list[PipelineCase] = [
    _flux_case("FluxControlPipeline", _CONTROL, 8),
    _flux_case("FluxControlImg2ImgPipeline", {**_IMAGE, **_CONTROL}, 8),
    _flux_case("FluxControlInpaintPipeline", {**_IMAGE, **_CONTROL, **_MASK}, 8),
    _flux_case(
        "FluxControlNetPipeline",
        {**_CONTROL, "true_cfg_scale": 4.0},
        branches=2,
        controlnet=_flux_controlnet,
    ),
    _flux_case("FluxControlNetImg2ImgPipeline", {**_IMAGE, **_CONTROL}, controlnet=_flux_controlnet),
    _flux_case("FluxControlNetInpaintPipeline", {**_IMAGE, **_CONTROL, **_MASK}, controlnet=_flux_controlnet),
    _flux_case("FluxFillPipeline", {**_IMAGE, **_MASK}, 12),
    _flux_case(
        "FluxKontextInpaintPipeline",
        {**_IMAGE, **_MASK, "true_cfg_scale": 4.0, "max_area": 256, "_auto_resize": False},
        branches=2,
    ),
    _flux2("Flux2Pipeline", guidance=True),
    _flux2("Flux2KleinPipeline", image=_large),
    _flux2("Flux2KleinInpaintPipeline", image=_large, mask_image=_large),
    _flux2("Flux2KleinKVPipeline", image=_large),
    _visual_cloze("VisualClozePipeline", upsampling_height=32, upsampling_width=32),
    _visual_cloze("VisualClozeGenerationPipeline"),
    _chroma("ChromaPipeline"),
    _chroma("ChromaImg2ImgPipeline", **_IMAGE),
    _chroma("ChromaInpaintPipeline", **_IMAGE, **_MASK),
    _z_image("ZImagePipeline"),
    _z_image("ZImageImg2ImgPipeline", **_IMAGE),
    _z_image("ZImageInpaintPipeline", **_IMAGE, **_MASK),
    _z_image("ZImageControlNetPipeline", 4, **_CONTROL),
    _z_image("ZImageControlNetInpaintPipeline", 9, **_CONTROL, image=_picture, **_MASK),
    PipelineCase(
        "ZImageOmniPipeline",
        _z_image_omni,
        lambda: {"prompt": PROMPT, "negative_prompt": NEGATIVE, "image": _large(), "max_sequence_length": 64},
    ),
]

LEFT_OUT: dict[str, str] = {
    "FluxPriorReduxPipeline": "no denoiser in it (maps an image to embeddings)",
}
