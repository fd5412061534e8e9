"""Pipelines for video: Wan and its kin, those with a UNet, CogVideoX, LTX; the others are in ``video_2``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.pipelines import text
from tests.pipelines.cases import (
    NEGATIVE,
    PROMPT,
    PipelineCase,
    _cogvideo,
    _kl,
    _live,
    _ltx,
    _picture,
    _scheduler,
    _unet,
)
from tests.zoo import CASES as ZOO

W = text.WIDTH


def _pipeline(cls: str, **parts: Any) -> Callable[[], Any]:
    """``parts`` are made by calling them; what cannot be called is given as it is."""

    def build() -> Any:
        import diffusers

        return getattr(diffusers, cls)(**{name: part() if callable(part) else part for name, part in parts.items()})

    return build


def _model(name: str, layers: int = 2, seed: int = 0, **config: Any) -> Callable[[], Any]:
    """The model of the zoo, with ``config`` over its configuration."""

    def build() -> Any:
        import diffusers

        case = next(case for case in ZOO if case.name == name)
        torch.manual_seed(seed)
        return _live(getattr(diffusers, name)(**{**case.config(layers), **config}), seed)

    return build


def _again(cls: str, build: Callable[[], Any], **parts: Any) -> Callable[[], Any]:
    """Another pipeline of the components of one, with ``parts`` over them."""

    def again() -> Any:
        import diffusers

        made = {name: part() if callable(part) else part for name, part in parts.items()}
        return getattr(diffusers, cls)(**{**build().components, **made})

    return again


def _diffusers(cls: str, **config: Any) -> Callable[[], Any]:
    """A seeded model of diffusers, or a scheduler."""

    def build() -> Any:
        import diffusers

        torch.manual_seed(5)
        made = getattr(diffusers, cls)(**config)
        return made.eval() if isinstance(made, torch.nn.Module) else made

    return build


def _arguments(size: int = 32, **more: Any) -> Callable[[], dict[str, Any]]:
    """A prompt and a size, if any; what can be called is called."""
    return lambda: {
        "prompt": PROMPT,
        **({"height": size, "width": size} if size else {}),
        **{name: value() if callable(value) else value for name, value in more.items()},
    }


def _images(count: int = 9, size: int = 32) -> Callable[[], list[Any]]:
    return lambda: [_picture(size, size).rotate(7 * index) for index in range(count)]


def _image() -> Any:
    return _picture(32, 32)


def _numbers(*shape: int, seed: int = 6) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _clip_vision(projected: bool = False, size: int = 16) -> Callable[[], Any]:
    def build() -> Any:
        from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

        torch.manual_seed(7)
        config = CLIPVisionConfig(
            hidden_size=W,
            intermediate_size=37,
            projection_dim=W,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=size,
            patch_size=size // 2,
        )
        return (CLIPVisionModelWithProjection if projected else CLIPVisionModel)(config).eval()

    return build


def _clip_features(size: int = 16) -> Callable[[], Any]:
    def build() -> Any:
        from transformers import CLIPImageProcessorPil

        return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})

    return build


# Wan and what was made of it


def _wan_vae(channels: int = 4, **more: Any) -> Callable[[], Any]:
    return _diffusers(
        "AutoencoderKLWan",
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
        **more,
    )


def _unipc() -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


WAN = {"tokenizer": text.tokenizer, "text_encoder": text.umt5, "vae": _wan_vae(), "scheduler": _unipc}
SEES = {"image_encoder": _clip_vision(), "image_processor": _clip_features()}


def _wan(cls: str, model: str = "WanTransformer3DModel", **config: Any) -> Callable[[], Any]:
    parts = SEES if "image_dim" in config else {}
    return _pipeline(cls, **WAN, **parts, transformer=_model(model, text_dim=W, **config))


def _wan_arguments(frames: int | None = 9, **more: Any) -> Callable[[], dict[str, Any]]:
    """Embeddings, for the prompt is cleaned with ftfy, which is not installed."""
    count = {} if frames is None else {"num_frames": frames}
    embeds = {"prompt_embeds": _numbers(1, 16, W), "negative_prompt_embeds": _numbers(1, 16, W, seed=7)}
    return _arguments(prompt=None, **embeds, **count, **more)


SKY = "SkyReelsV2Transformer3DModel"
SEEN = {"in_channels": 12, "image_dim": W}  # noise, mask and picture
WAN_CASES: list[PipelineCase] = [
    PipelineCase(
        "WanImageToVideoPipeline", _wan("WanImageToVideoPipeline", **SEEN), _wan_arguments(image=_image), branches=2
    ),
    PipelineCase(
        "WanImageToVideoPipeline, two transformers",
        _pipeline(
            "WanImageToVideoPipeline",
            **WAN,
            transformer=_model("WanTransformer3DModel", text_dim=W, in_channels=12),
            transformer_2=_model("WanTransformer3DModel", seed=1, text_dim=W, in_channels=12),
            boundary_ratio=0.6,
        ),
        _wan_arguments(image=_image),
        denoisers=("transformer", "transformer_2"),
        branches=2,
    ),
    PipelineCase(
        "WanImageToVideoPipeline, a time for each token",
        _pipeline(
            "WanImageToVideoPipeline",
            **WAN,
            transformer=_model("WanTransformer3DModel", text_dim=W),
            expand_timesteps=True,
        ),
        _wan_arguments(image=_image),
        branches=2,
    ),
    PipelineCase(
        "WanVideoToVideoPipeline", _wan("WanVideoToVideoPipeline"), _wan_arguments(None, video=_images()), branches=2
    ),
    PipelineCase(
        "WanVACEPipeline",
        _wan("WanVACEPipeline", "WanVACETransformer3DModel", vace_in_channels=72),
        _wan_arguments(video=_images(), reference_images=_image),
        branches=2,
    ),
    PipelineCase(
        "WanAnimatePipeline",
        _wan("WanAnimatePipeline", "WanAnimateTransformer3DModel", image_dim=W),
        _wan_arguments(
            None, image=_image, pose_video=_images(), face_video=_images(), segment_frame_length=9, guidance_scale=3.0
        ),
        branches=2,
    ),
    PipelineCase(
        "LucyEditPipeline", _wan("LucyEditPipeline", in_channels=8), _wan_arguments(video=_images()), branches=2
    ),
    PipelineCase(
        "ChronoEditPipeline",
        _wan("ChronoEditPipeline", "ChronoEditTransformer3DModel", **SEEN),
        _wan_arguments(image=_image),
        branches=2,
    ),
    PipelineCase("SkyReelsV2Pipeline", _wan("SkyReelsV2Pipeline", SKY), _wan_arguments(), branches=2),
    PipelineCase(
        "SkyReelsV2ImageToVideoPipeline",
        _pipeline(
            "SkyReelsV2ImageToVideoPipeline",
            **WAN,
            image_encoder=_clip_vision(True),
            image_processor=_clip_features(),
            transformer=_model(SKY, text_dim=W, **SEEN),
        ),
        _wan_arguments(image=_image),
        branches=2,
    ),
    PipelineCase(
        "SkyReelsV2DiffusionForcingPipeline",
        _wan("SkyReelsV2DiffusionForcingPipeline", SKY, inject_sample_info=True),
        _wan_arguments(base_num_frames=9),
        branches=2,
    ),
    PipelineCase(
        "SkyReelsV2DiffusionForcingPipeline, asynchronous",
        _wan("SkyReelsV2DiffusionForcingPipeline", SKY),
        _wan_arguments(17, base_num_frames=9, overlap_history=5, ar_step=2, causal_block_size=1),
        branches=2,
    ),
    PipelineCase(
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        _wan("SkyReelsV2DiffusionForcingImageToVideoPipeline", SKY, inject_sample_info=True),
        _wan_arguments(image=_image, base_num_frames=9),
        branches=2,
    ),
    PipelineCase(
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
        _wan("SkyReelsV2DiffusionForcingVideoToVideoPipeline", SKY),
        _wan_arguments(17, video=_images(), base_num_frames=9, overlap_history=5),
        branches=2,
    ),
]


# UNets that learned to move


MOTION = _model("UNetMotionModel", layers=1, cross_attention_dim=W)
BLOCKS = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4}


def _ddim() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_schedule="linear", steps_offset=1, clip_sample=False)


def _vae() -> Any:
    return _kl(4, 2)


SD = {"vae": _vae, "text_encoder": text.clip, "tokenizer": text.tokenizer, "scheduler": _ddim}
SDXL = {**SD, "text_encoder_2": lambda: text.clip(projected=True), "tokenizer_2": text.tokenizer}
ADDED = {
    "cross_attention_dim": 2 * W,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + W,
}
CONTROLNET = _diffusers(
    "ControlNetModel",
    **BLOCKS,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    cross_attention_dim=W,
    attention_head_dim=2,
    conditioning_embedding_out_channels=(16, 32),
)


def _controlnet() -> Any:
    return _live(CONTROLNET(), 1)


def _sparse() -> Any:
    made = _diffusers(
        "SparseControlNetModel",
        **BLOCKS,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        cross_attention_dim=W,
        attention_head_dim=2,
        motion_num_attention_heads=2,
        conditioning_embedding_out_channels=(16, 32),
    )
    return _live(made(), 1)


def _animate(cls: str, parts: dict[str, Any] = SD, unet: Any = MOTION, **more: Any) -> Callable[[], Any]:
    return _pipeline(cls, **{"motion_adapter": None, **parts, "unet": unet, **more})


def _moving(**more: Any) -> Callable[[], dict[str, Any]]:
    return _arguments(16, **{"negative_prompt": NEGATIVE, "num_frames": 4, **more})


def _adapted() -> Any:
    """A UNet for images and what makes it move: the pipeline joins the two."""
    adapter = _diffusers(
        "MotionAdapter",
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
    )
    unet = _unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=W,
    )
    return _animate("AnimateDiffPipeline", unet=lambda: unet, motion_adapter=lambda: _live(adapter(), 1))()


def _zero(cls: str, parts: dict[str, Any], **unet: Any) -> Callable[[], Any]:
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return _pipeline(
        cls,
        **parts,
        **(more if parts is SD else {"add_watermarker": False}),
        unet=lambda: _unet(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **{"cross_attention_dim": W, **unet},
        ),
    )


UNET = ("unet",)
SYNTH = _model("UNet3DConditionModel", layers=1, cross_attention_dim=W)
UNET_CASES: list[PipelineCase] = [
    PipelineCase(
        "StableVideoDiffusionPipeline",
        _pipeline(
            "StableVideoDiffusionPipeline",
            vae=_diffusers(
                "AutoencoderKLTemporalDecoder",
                block_out_channels=(32, 32),
                down_block_types=("DownEncoderBlock2D",) * 2,
                force_upcast=False,
            ),
            image_encoder=_clip_vision(True, 224),
            unet=_model("UNetSpatioTemporalConditionModel", layers=1, cross_attention_dim=W),
            scheduler=_diffusers("EulerDiscreteScheduler", prediction_type="v_prediction", use_karras_sigmas=True),
            feature_extractor=_clip_features(),
        ),
        lambda: {"image": _picture(), "height": 16, "width": 16, "num_frames": 2},
        denoisers=UNET,
    ),
    PipelineCase("AnimateDiffPipeline", _animate("AnimateDiffPipeline"), _moving(), denoisers=UNET),
    PipelineCase("AnimateDiffPipeline, UNet and adapter", _adapted, _moving(), denoisers=UNET),
    PipelineCase(
        "AnimateDiffSDXLPipeline",
        _animate("AnimateDiffSDXLPipeline", SDXL, _model("UNetMotionModel", layers=1, **ADDED)),
        _moving(),
        denoisers=UNET,
    ),
    PipelineCase(
        "AnimateDiffControlNetPipeline",
        _animate("AnimateDiffControlNetPipeline", controlnet=_controlnet),
        _moving(conditioning_frames=_images(4, 16)),
        denoisers=UNET,
    ),
    PipelineCase(
        "AnimateDiffSparseControlNetPipeline",
        _animate("AnimateDiffSparseControlNetPipeline", controlnet=_sparse),
        _moving(conditioning_frames=_images(1, 16)),
        denoisers=UNET,
    ),
    PipelineCase(
        "AnimateDiffVideoToVideoPipeline",
        _animate("AnimateDiffVideoToVideoPipeline"),
        _arguments(16, negative_prompt=NEGATIVE, video=_images(4, 16)),
        denoisers=UNET,
    ),
    PipelineCase(
        "AnimateDiffVideoToVideoControlNetPipeline",
        _animate("AnimateDiffVideoToVideoControlNetPipeline", controlnet=_controlnet),
        _arguments(16, negative_prompt=NEGATIVE, video=_images(4, 16), conditioning_frames=_images(4, 16)),
        denoisers=UNET,
    ),
    PipelineCase("AnimateDiffPAGPipeline", _animate("AnimateDiffPAGPipeline"), _moving(), denoisers=UNET),
    PipelineCase(
        "PIAPipeline",
        _animate("PIAPipeline", unet=_model("UNetMotionModel", layers=1, cross_attention_dim=W, in_channels=9)),
        _moving(image=_picture),
        denoisers=UNET,
    ),
    PipelineCase(
        "I2VGenXLPipeline",
        _pipeline(
            "I2VGenXLPipeline",
            **SD,
            image_encoder=_clip_vision(True, 224),
            feature_extractor=_clip_features(224),
            unet=_model("I2VGenXLUNet", layers=1, cross_attention_dim=W),
        ),
        _moving(image=_picture, clip_skip=None),  # its default looks for a module that transformers 5 has not
        denoisers=UNET,
    ),
    PipelineCase(
        "TextToVideoSDPipeline", _pipeline("TextToVideoSDPipeline", **SD, unet=SYNTH), _moving(), denoisers=UNET
    ),
    PipelineCase(
        "VideoToVideoSDPipeline",
        _pipeline("VideoToVideoSDPipeline", **SD, unet=SYNTH),
        _arguments(0, negative_prompt=NEGATIVE, video=_images(4, 16)),
        denoisers=UNET,
    ),
    PipelineCase(
        "TextToVideoZeroPipeline",
        _zero("TextToVideoZeroPipeline", SD),
        _arguments(16, negative_prompt=NEGATIVE, video_length=3, t0=5, t1=6),
        denoisers=UNET,
    ),
    PipelineCase(
        "TextToVideoZeroSDXLPipeline",
        _zero("TextToVideoZeroSDXLPipeline", SDXL, **ADDED),
        _arguments(16, negative_prompt=NEGATIVE, video_length=3, t0=5, t1=6),
        denoisers=UNET,
    ),
]


# One transformer and one encoder of text


def _cogvideo_again(cls: str, channels: int = 8) -> Callable[[], Any]:
    config = {"text_embed_dim": W, "sample_width": 4, "sample_height": 4, "max_text_seq_length": 16}
    transformer = _model("CogVideoXTransformer3DModel", in_channels=channels, **config)
    return _again(cls, _cogvideo, transformer=transformer)


def _long(pipeline: Any, **arguments: Any) -> Tensor:
    return pipeline(**arguments, seed=None, output_type="latent")[0]


TIMED = {"num_frames": 9, "max_sequence_length": 16}
TRANSFORMER_CASES: list[PipelineCase] = [
    PipelineCase("LTXImageToVideoPipeline", _again("LTXImageToVideoPipeline", _ltx), _arguments(image=_image, **TIMED)),
    PipelineCase("LTXConditionPipeline", _again("LTXConditionPipeline", _ltx), _arguments(image=_image, **TIMED)),
    PipelineCase(
        "LTXI2VLongMultiPromptPipeline",
        _again("LTXI2VLongMultiPromptPipeline", _ltx),
        _arguments(cond_image=_image, max_sequence_length=16, num_frames=25, temporal_tile_size=16, temporal_overlap=4),
        call=_long,
    ),
    PipelineCase(
        "CogVideoXImageToVideoPipeline",
        _cogvideo_again("CogVideoXImageToVideoPipeline"),
        _arguments(image=_image, **TIMED),
    ),
    PipelineCase(
        "CogVideoXVideoToVideoPipeline",
        _cogvideo_again("CogVideoXVideoToVideoPipeline", 4),
        _arguments(video=_images(), max_sequence_length=16),
    ),
    PipelineCase(
        "CogVideoXFunControlPipeline",
        _cogvideo_again("CogVideoXFunControlPipeline"),
        _arguments(control_video=_images(), max_sequence_length=16),
    ),
    PipelineCase(
        "MochiPipeline",
        _pipeline(
            "MochiPipeline",
            text_encoder=text.t5,
            tokenizer=text.tokenizer,
            scheduler=_scheduler,
            vae=_diffusers(
                "AutoencoderKLMochi",
                encoder_block_out_channels=(32, 32, 32, 32),
                decoder_block_out_channels=(32, 32, 32, 32),
                layers_per_block=(1, 1, 1, 1, 1),
            ),
            transformer=_model("MochiTransformer3DModel", in_channels=12, text_embed_dim=W, max_sequence_length=16),
        ),
        _arguments(negative_prompt=NEGATIVE, num_frames=13, max_sequence_length=16),
    ),
    PipelineCase(
        "LattePipeline",
        _pipeline(
            "LattePipeline",
            text_encoder=text.t5,
            tokenizer=text.tokenizer,
            scheduler=_ddim,
            vae=_vae,
            transformer=_model("LatteTransformer3DModel", caption_channels=W),
        ),
        _arguments(16, negative_prompt=NEGATIVE, video_length=3, clean_caption=False),
    ),
    PipelineCase(
        "AllegroPipeline",
        _pipeline(
            "AllegroPipeline",
            text_encoder=text.t5,
            tokenizer=text.tokenizer,
            scheduler=_ddim,
            vae=_diffusers(
                "AutoencoderKLAllegro", block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
            ),
            transformer=_model("AllegroTransformer3DModel", caption_channels=W),
        ),
        _arguments(32, negative_prompt=NEGATIVE, num_frames=8, clean_caption=False, max_sequence_length=16),
    ),
]

CASES: list[PipelineCase] = [*WAN_CASES, *UNET_CASES, *TRANSFORMER_CASES]
LEFT_OUT: dict[str, str] = {}
