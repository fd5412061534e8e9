"""More pipelines that make images with a transformer; FLUX, its kin and Z-Image are in ``images_dit``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import torch

from tests.pipelines import text
from tests.pipelines.cases import NEGATIVE, PROMPT, PipelineCase, _guided, _kl, _live, _picture, _scheduler, _sized
from tests.pipelines.images_dit import _both, _denoiser, _flux2_vae, _given, _large, _pipeline


def _wan_vae(latents: int, levels: int) -> Any:
    """Scales by ``2 ** (levels - 1)``."""
    import diffusers

    torch.manual_seed(5)
    return diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=latents,
        dim_mult=[1] * levels,
        num_res_blocks=1,
        temperal_downsample=[False] * (levels - 1),
        latents_mean=[0.0] * latents,
        latents_std=[1.0] * latents,
        scale_factor_spatial=2 ** (levels - 1),
    ).eval()


def _qwen_vae() -> Any:
    import diffusers

    torch.manual_seed(5)
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def _bria(cls: str) -> Callable[[], Any]:
    return _pipeline(
        cls,
        vae=lambda: _kl(1),
        text_encoder=text.t5,
        tokenizer=text.tokenizer,
        transformer=lambda: _denoiser("BriaTransformer2DModel"),
    )


def _bria_fibo(cls: str) -> Callable[[], Any]:
    def transformer() -> Any:
        return _denoiser("BriaFiboTransformer2DModel", joint_attention_dim=2 * text.WIDTH, text_encoder_dim=text.WIDTH)

    return _pipeline(
        cls,
        vae=lambda: _wan_vae(4, 5),
        text_encoder=text.llama,
        tokenizer=text.tokenizer,
        transformer=transformer,
    )


def _longcat() -> dict[str, Any]:
    return {
        "text_encoder": text.qwen_vl,
        "tokenizer": text.tokenizer,
        "text_processor": None,
        "transformer": lambda: _denoiser("LongCatImageTransformer2DModel", in_channels=64),
    }


class _Reader:
    """Stands in for a processor of text and pictures, and for its part that is given pictures: it reads the text."""

    merge_size = 1

    def __init__(self) -> None:
        self.tokenizer = text.tokenizer(2048)

    @property
    def image_processor(self) -> _Reader:
        return self

    def __call__(self, images: Any, text: Any = None, **more: Any) -> Any:
        if text is None:
            return {"pixel_values": torch.zeros(1, 3), "image_grid_thw": torch.ones(1, 3, dtype=torch.long)}
        return self.tokenizer(text, **more)


class _Blind(torch.nn.Module):
    """Stands in for a text encoder that is given pictures too: it does not look at them."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.encoder = text.qwen_vl()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **more: Any) -> Any:
        known = input_ids.clamp(max=self.encoder.config.text_config.vocab_size - 1)
        return self.encoder(input_ids=known, attention_mask=attention_mask, output_hidden_states=True)


def _longcat_edit() -> Any:
    import diffusers

    tokenizer = text.tokenizer()
    tokenizer.add_tokens(["<|vision_start|>"], special_tokens=True)
    parts = {k: v() if callable(v) else v for k, v in _longcat().items()}
    parts |= {"tokenizer": tokenizer, "text_encoder": _Blind(), "text_processor": _Reader()}
    return diffusers.LongCatImageEditPipeline(scheduler=_scheduler(), vae=_kl(16, 7), **parts)


def _joy(cls: str, transformer: str) -> Callable[[], Any]:
    return _pipeline(
        cls,
        vae=lambda: _wan_vae(4, 7),  # pictures are scaled to a megapixel
        text_encoder=text.qwen_vl,
        tokenizer=text.tokenizer,
        transformer=lambda: _denoiser(transformer, text_dim=text.WIDTH),
        processor=_Reader,
    )


def _dreamlite(cls: str) -> Callable[[], Any]:
    def unet() -> Any:
        import diffusers

        torch.manual_seed(0)
        return _live(
            diffusers.DreamLiteUNetModel(
                block_out_channels=(8, 16, 16),
                layers_per_block=1,
                norm_num_groups=4,
                attention_head_dim=8,
                cross_attention_dim=text.WIDTH,
                use_linear_projection=True,
                addition_embed_type="time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=2 * 8,
            )
        )

    def vae() -> Any:
        import diffusers

        torch.manual_seed(5)
        return diffusers.AutoencoderTiny(
            encoder_block_out_channels=(8,),
            decoder_block_out_channels=(8,),
            num_encoder_blocks=(1,),
            num_decoder_blocks=(1,),
        ).eval()

    return _pipeline(
        cls, text_encoder=text.qwen_vl, tokenizer=lambda: text.tokenizer(512), processor=None, vae=vae, unet=unet
    )


def _ideogram() -> Any:
    import diffusers
    from transformers import Qwen3VLConfig, Qwen3VLModel

    torch.manual_seed(4)
    config = Qwen3VLConfig(  # the pipeline takes what layers 0 to 35 put out
        text_config={
            "vocab_size": 400,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 36,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "rope_scaling": {"mrope_section": [2, 1, 1], "rope_type": "default", "mrope_interleaved": True},
        },
        vision_config={"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 8},
    )
    tokenizer = text.tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}"
    transformers = [_denoiser("Ideogram4Transformer2DModel", in_channels=4, llm_features_dim=13 * 8) for _ in range(2)]
    return diffusers.Ideogram4Pipeline(
        scheduler=_scheduler(),
        vae=_flux2_vae(),
        text_encoder=Qwen3VLModel(config).eval(),
        tokenizer=tokenizer,
        transformer=transformers[0],
        unconditional_transformer=transformers[1],
    )


def _without_text(cls: str, transformer: Callable[[], Any], vae: Callable[[], Any], *names: str) -> Callable[[], Any]:
    """A pipeline whose text encoders, ``names``, are not there."""
    return _pipeline(cls, vae=vae, transformer=transformer, **dict.fromkeys(names))


def _hidream_embeds() -> dict[str, Any]:
    given: dict[str, Any] = {}
    for seed, prefix in enumerate(("", "negative_")):
        generator = torch.Generator().manual_seed(seed)
        given[f"{prefix}prompt_embeds_t5"] = torch.randn(1, 7, 16, generator=generator)
        given[f"{prefix}prompt_embeds_llama3"] = torch.randn(2, 1, 7, 8, generator=generator)
        given[f"{prefix}pooled_prompt_embeds"] = torch.randn(1, 12, generator=generator)
    return given


def _small(pipeline: Any, **arguments: Any) -> Any:
    """A call of a pipeline that always makes pictures of its default area."""
    pipeline.default_sample_size = 8
    return pipeline(**arguments, output_type="latent")[0]


def _hunyuan_image(cls: str) -> Callable[[], Any]:
    def vae() -> Any:
        import diffusers

        torch.manual_seed(5)
        if "Refiner" in cls:
            return diffusers.AutoencoderKLHunyuanImageRefiner(
                latent_channels=2,
                block_out_channels=(32, 32),
                layers_per_block=1,
                spatial_compression_ratio=2,
                temporal_compression_ratio=1,
            ).eval()
        return diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32),
            layers_per_block=1,
            spatial_compression_ratio=2,
            sample_size=16,
            scaling_factor=1.0,
        ).eval()

    def guider() -> Any:
        from diffusers.guiders import AdaptiveProjectedMixGuidance

        return AdaptiveProjectedMixGuidance()

    sizes: dict[str, Any] = {"text_embed_dim": text.WIDTH}
    if "Refiner" in cls:
        sizes |= {
            "in_channels": 8,
            "patch_size": (1, 1, 1),
            "rope_axes_dim": (4, 6, 6),
            "text_embed_2_dim": None,
            "guidance_embeds": True,
        }
    second = {} if "Refiner" in cls else {"text_encoder_2": None, "tokenizer_2": None, "ocr_guider": guider}
    return _pipeline(
        cls,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=lambda: _denoiser("HunyuanImageTransformer2DModel", **sizes),
        guider=guider,
        **second,
    )


def _second_embeds() -> dict[str, Any]:
    given: dict[str, Any] = {}
    for seed, prefix in enumerate(("prompt", "negative_prompt")):
        given[f"{prefix}_embeds_2"] = torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(seed))
        given[f"{prefix}_embeds_mask_2"] = torch.ones(1, 4, dtype=torch.long)
    return given


def _hunyuan_dit(cls: str, **more: Any) -> PipelineCase:
    def controlnet() -> Any:
        import diffusers

        config = _denoiser("HunyuanDiT2DModel", 2).config
        known = inspect.signature(diffusers.HunyuanDiT2DControlNetModel.__init__).parameters
        given = {k: v for k, v in config.items() if k in known}
        torch.manual_seed(7)
        model = diffusers.HunyuanDiT2DControlNetModel(**given, transformer_num_layers=4)
        return _live(model, 7)

    def scheduler() -> Any:
        import diffusers

        return diffusers.DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction")

    build = _pipeline(
        cls,
        scheduler=scheduler,
        vae=lambda: _kl(4, 4),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=lambda: _denoiser("HunyuanDiT2DModel"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **({"controlnet": controlnet} if "ControlNet" in cls else {}),
    )
    given: dict[str, Any] = {"use_resolution_binning": False}
    for seed, prefix in enumerate(("prompt", "negative_prompt")):
        for end in ("", "_2"):
            embeds = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(seed + len(end)))
            given |= {f"{prefix}_embeds{end}": embeds, f"{prefix}_attention_mask{end}": torch.ones(1, 4)}
    return _given(cls, build, size=64, **given, **more)


CASES: list[PipelineCase] = [
    PipelineCase(
        "HiDreamImagePipeline",
        _without_text(
            "HiDreamImagePipeline",
            lambda: _denoiser("HiDreamImageTransformer2DModel"),
            lambda: _kl(4),
            *(f"{kind}{end}" for kind in ("text_encoder", "tokenizer") for end in ("", "_2", "_3", "_4")),
        ),
        _hidream_embeds,
        call=_small,
    ),
    _given(
        "HunyuanImagePipeline",
        _hunyuan_image("HunyuanImagePipeline"),
        branches=2,
        **_both("embeds_mask"),
        **_second_embeds(),
    ),
    _given(
        "HunyuanImageRefinerPipeline",
        _hunyuan_image("HunyuanImageRefinerPipeline"),
        branches=2,
        image=_picture,
        **_both("embeds_mask"),
    ),
    _hunyuan_dit("HunyuanDiTPipeline"),
    _hunyuan_dit("HunyuanDiTPAGPipeline", pag_scale=3.0),
    _hunyuan_dit("HunyuanDiTControlNetPipeline", control_image=_large),
    _given(
        "Lumina2Pipeline",
        _without_text(
            "Lumina2Pipeline",
            lambda: _denoiser("Lumina2Transformer2DModel", cap_feat_dim=text.WIDTH),
            lambda: _kl(4, 4),
            "text_encoder",
            "tokenizer",
        ),
        branches=2,
        size=64,
        **_both("attention_mask"),
    ),
    PipelineCase(
        "LuminaPipeline",
        _pipeline(
            "LuminaPipeline",
            vae=lambda: _kl(4, 4),
            text_encoder=text.llama,
            tokenizer=text.tokenizer,
            transformer=lambda: _denoiser("LuminaNextDiT2DModel", cross_attention_dim=text.WIDTH),
        ),
        _guided(height=64, width=64, clean_caption=False),
    ),
    PipelineCase(
        "AuraFlowPipeline",
        _pipeline(
            "AuraFlowPipeline",
            vae=lambda: _kl(4),
            text_encoder=text.umt5,
            tokenizer=text.tokenizer,
            transformer=lambda: _denoiser("AuraFlowTransformer2DModel", joint_attention_dim=text.WIDTH),
        ),
        _guided(max_sequence_length=16),
    ),
    PipelineCase("BriaPipeline", _bria("BriaPipeline"), _guided(max_sequence_length=16)),
    PipelineCase("BriaFiboPipeline", _bria_fibo("BriaFiboPipeline"), _guided(height=64, width=64)),
    PipelineCase(
        "BriaFiboEditPipeline",
        _bria_fibo("BriaFiboEditPipeline"),
        lambda: {
            "prompt": json.dumps({"edit_instruction": PROMPT}),
            "negative_prompt": NEGATIVE,
            "image": _large(),
            "height": 64,
            "width": 64,
        },
    ),
    _given(
        "BriaFibo2Pipeline",
        _without_text(
            "BriaFibo2Pipeline",
            lambda: _denoiser("BriaFibo2Transformer2DModel", cap_feat_dim=text.WIDTH),
            _flux2_vae,
            "text_encoder",
            "processor",
        ),
        branches=2,
        size=64,
        **_both("embeds_mask", 2, 7, text.WIDTH),
    ),
    PipelineCase(
        "LongCatImagePipeline",
        _pipeline("LongCatImagePipeline", vae=lambda: _kl(16), **_longcat()),
        _guided(enable_prompt_rewrite=False),
        branches=2,
    ),
    PipelineCase(
        "LongCatImageEditPipeline",
        _longcat_edit,
        lambda: {"prompt": PROMPT, "negative_prompt": NEGATIVE, "image": _picture()},
        branches=2,
    ),
    _given(
        "OvisImagePipeline",
        _without_text(
            "OvisImagePipeline",
            lambda: _denoiser("OvisImageTransformer2DModel"),
            lambda: _kl(1),
            "text_encoder",
            "tokenizer",
        ),
        branches=2,
        negative_prompt=None,
        **_both(),
    ),
    _given(
        "JoyImageEditPipeline",
        _joy("JoyImageEditPipeline", "JoyImageEditTransformer3DModel"),
        branches=2,
        size=1024,
        image=_picture,
        **_both("embeds_mask"),
    ),
    PipelineCase(
        "JoyImageEditPlusPipeline",
        _joy("JoyImageEditPlusPipeline", "JoyImageEditPlusTransformer3DModel"),
        lambda: {"prompt": PROMPT, "negative_prompt": NEGATIVE, "images": [_picture(), _picture()]},
    ),
    PipelineCase("DreamLitePipeline", _dreamlite("DreamLitePipeline"), _guided(), denoisers=("unet",)),
    PipelineCase("DreamLiteMobilePipeline", _dreamlite("DreamLiteMobilePipeline"), _sized(), denoisers=("unet",)),
    _given(
        "GlmImagePipeline",
        _without_text(
            "GlmImagePipeline",
            lambda: _denoiser("GlmImageTransformer2DModel", text_embed_dim=text.WIDTH),
            lambda: _kl(4),
            *("text_encoder", "tokenizer", "processor", "vision_language_encoder"),
        ),
        branches=2,
        prior_token_ids=lambda: (torch.arange(64) * 7 % 32)[None],
        **_both(),
    ),
    _given(
        "ErnieImagePipeline",
        _without_text(
            "ErnieImagePipeline",
            lambda: _denoiser("ErnieImageTransformer2DModel", text_in_dim=text.WIDTH),
            _flux2_vae,
            "text_encoder",
            "tokenizer",
        ),
        size=64,
        **_both(listed=True),
    ),
    PipelineCase(
        "Ideogram4Pipeline",
        _ideogram,
        _sized(height=64, width=64, max_sequence_length=24, guidance_scale=4.0, guidance_schedule=None),
        denoisers=("transformer", "unconditional_transformer"),
    ),
    _given(
        "Krea2Pipeline",
        _without_text(
            "Krea2Pipeline",
            lambda: _denoiser("Krea2Transformer2DModel"),
            _qwen_vae,
            "text_encoder",
            "tokenizer",
        ),
        branches=2,
        size=64,
        **_both("embeds_mask", 7, 3, 16),
    ),
    _given(
        "NucleusMoEImagePipeline",
        _without_text(
            "NucleusMoEImagePipeline",
            lambda: _denoiser("NucleusMoEImageTransformer2DModel", joint_attention_dim=text.WIDTH),
            _qwen_vae,
            "text_encoder",
            "processor",
        ),
        branches=2,
        size=64,
        **_both("embeds_mask"),
    ),
    _given(
        "PRXPipeline",
        _without_text(
            "PRXPipeline",
            lambda: _denoiser("PRXTransformer2DModel", context_in_dim=text.WIDTH),
            lambda: _kl(4),
            "text_encoder",
            "tokenizer",
        ),
        use_resolution_binning=False,
        **_both("attention_mask"),
    ),
    _given(
        "PRXPixelPipeline",
        _pipeline(
            "PRXPixelPipeline",
            text_encoder=None,
            tokenizer=None,
            transformer=lambda: _denoiser("PRXTransformer2DModel", in_channels=3, context_in_dim=text.WIDTH),
        ),
        use_resolution_binning=False,
        **_both("attention_mask"),
    ),
]

LEFT_OUT: dict[str, str] = {
    "OmniGenPipeline": "needs torchvision, which is not installed",
}
