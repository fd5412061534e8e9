"""More pipelines for video: HunyuanVideo, LTX-2, Cosmos, Kandinsky, Sana and others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.pipelines import text
from tests.pipelines.cases import (
    NEGATIVE,
    PipelineCase,
    _hunyuan,
    _scheduler,
)
from tests.pipelines.video import (
    TIMED,
    W,
    _again,
    _arguments,
    _diffusers,
    _image,
    _images,
    _model,
    _numbers,
    _pipeline,
    _unipc,
    _wan_vae,
)


def _siglip() -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(7)
    config = SiglipVisionConfig(
        hidden_size=W, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    return SiglipVisionModel(config).eval()


def _siglip_features() -> Any:
    from transformers import SiglipImageProcessorPil

    return SiglipImageProcessorPil(size={"height": 16, "width": 16})


def _again_hunyuan(cls: str, **config: Any) -> Callable[[], Any]:
    config = {"patch_size": 1, "patch_size_t": 1, **config}
    transformer = _model(HUNYUAN, layers=1, text_embed_dim=W, pooled_projection_dim=W, **config)
    more = {"image_processor": None} if "image_condition_type" in config else {}  # embeddings are given instead
    return _again(cls, _hunyuan, transformer=transformer, **more)


def _hunyuan15(cls: str, **more: Any) -> Callable[[], Any]:
    return _pipeline(
        cls,
        text_encoder=text.qwen_vl,
        tokenizer=text.tokenizer,
        text_encoder_2=text.t5,
        tokenizer_2=text.tokenizer,
        guider=_diffusers("ClassifierFreeGuidance", guidance_scale=4.0),
        scheduler=_scheduler,
        vae=_diffusers(
            "AutoencoderKLHunyuanVideo15", latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
        ),
        transformer=_model("HunyuanVideo15Transformer3DModel", in_channels=9, text_embed_dim=W, image_embed_dim=W),
        **more,
    )


def _hunyuan15_embeds() -> dict[str, Any]:
    """Embeddings: its tokenizer has a template for chats."""
    found = {}
    for seed, prefix in enumerate(("prompt_embeds", "negative_prompt_embeds"), start=6):
        found[prefix], found[f"{prefix}_mask"] = _numbers(1, 7, W, seed=seed), torch.ones(1, 7)
        found[f"{prefix}_2"], found[f"{prefix}_mask_2"] = _numbers(1, 5, 12, seed=seed), torch.ones(1, 5)
    return {"num_frames": 9, **found}


def _t5_that_sees() -> Any:
    encoder = text.t5()
    encoder.vision_tower = _siglip()
    return encoder


def _motif(cls: str) -> Callable[[], Any]:
    return _pipeline(
        cls,
        text_encoder=_t5_that_sees,
        tokenizer=text.tokenizer,
        vae=_wan_vae(),
        scheduler=_scheduler,
        guider=_diffusers("ClassifierFreeGuidance", guidance_scale=4.0),
        transformer=_model(
            "MotifVideoTransformer3DModel",
            in_channels=9,
            text_embed_dim=W,
            image_embed_dim=W if "Image" in cls else None,
        ),
        feature_extractor=_siglip_features,
    )


def _last_window(pipeline: Any, **arguments: Any) -> Tensor:
    return pipeline(**arguments, output_type="latent")[0][-1]


HUNYUAN = "HunyuanVideoTransformer3DModel"
POOLED = {
    "prompt_embeds": _numbers(1, 16, W),
    "pooled_prompt_embeds": _numbers(1, W),
    "prompt_attention_mask": torch.ones(1, 16),
}
HUNYUAN_CASES: list[PipelineCase] = [
    PipelineCase(
        "HunyuanVideoImageToVideoPipeline",
        _again_hunyuan("HunyuanVideoImageToVideoPipeline", image_condition_type="token_replace"),
        _arguments(prompt=None, image=_image, num_frames=9, **POOLED),
    ),
    PipelineCase(
        "HunyuanSkyreelsImageToVideoPipeline",
        _again_hunyuan("HunyuanSkyreelsImageToVideoPipeline", in_channels=8),
        _arguments(image=_image, negative_prompt=NEGATIVE, **TIMED),
        branches=2,
    ),
    PipelineCase(
        "HunyuanVideoFramepackPipeline",
        _again(
            "HunyuanVideoFramepackPipeline",
            _hunyuan,
            image_encoder=_siglip,
            feature_extractor=_siglip_features,
            transformer=_model(
                "HunyuanVideoFramepackTransformer3DModel",
                layers=1,
                text_embed_dim=W,
                pooled_projection_dim=W,
                image_proj_dim=W,
            ),
        ),
        _arguments(image=_image, latent_window_size=3, **TIMED),
        call=_last_window,
    ),
    PipelineCase(
        "HunyuanVideo15Pipeline",
        _hunyuan15("HunyuanVideo15Pipeline"),
        lambda: {"height": 32, "width": 32, **_hunyuan15_embeds()},
        branches=2,
    ),
    PipelineCase(
        "HunyuanVideo15ImageToVideoPipeline",
        _hunyuan15(
            "HunyuanVideo15ImageToVideoPipeline",
            image_encoder=_siglip,
            feature_extractor=_siglip_features,
        ),
        lambda: {"image": _image(), **_hunyuan15_embeds()},
        branches=2,
    ),
    PipelineCase(
        "MotifVideoPipeline", _motif("MotifVideoPipeline"), _arguments(negative_prompt=NEGATIVE, **TIMED), branches=2
    ),
    PipelineCase(
        "MotifVideoImage2VideoPipeline",
        _motif("MotifVideoImage2VideoPipeline"),
        _arguments(negative_prompt=NEGATIVE, image=_image, **TIMED),
        branches=2,
    ),
]


# Two modalities, chunks, and what is left


def _ltx2(cls: str, **more: Any) -> Callable[[], Any]:
    model = {"audio_in_channels": 4, "perturbed_attn": True, "caption_channels": W, **more.pop("model", {})}
    return _pipeline(
        cls,
        **{
            "scheduler": _scheduler,
            "vae": LTX2_VAE,
            "audio_vae": _diffusers(
                "AutoencoderKLLTX2Audio",
                base_channels=4,
                ch_mult=(1,),
                num_res_blocks=1,
                latent_channels=2,
                mel_bins=8,
            ),
            "text_encoder": text.llama,
            "tokenizer": text.tokenizer,
            "connectors": _connectors,
            "transformer": _model("LTX2VideoTransformer3DModel", **model),
            "vocoder": None,  # not called: the sound stays a latent
            **more,
        },
    )


def _connectors() -> Any:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    torch.manual_seed(8)
    parts = {
        f"{kind}_connector_{name}": value
        for kind in ("video", "audio")
        for name, value in {
            "num_attention_heads": 2,
            "attention_head_dim": W // 2,
            "num_layers": 1,
            "num_learnable_registers": 8,
        }.items()
    }
    # the states of a text encoder of 3 layers
    return LTX2TextConnectors(caption_channels=W, text_proj_in_factor=4, rope_double_precision=False, **parts).eval()


def _ltx2_upsampler() -> Any:
    from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel

    torch.manual_seed(8)
    return LTX2LatentUpsamplerModel(
        in_channels=4, mid_channels=32, num_blocks_per_stage=1, spatial_upsample=False, temporal_upsample=True
    ).eval()


def _by_sigmas(pipeline: Any, num_inference_steps: int, **arguments: Any) -> Tensor:
    sigmas = torch.linspace(1, 1 / num_inference_steps, num_inference_steps).tolist()
    return pipeline(**arguments, sigmas=sigmas, output_type="latent")[0]


class _Harmless(torch.nn.Module):
    """In place of the safety checker, which is another package and a language model."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def _cosmos(cls: str, channels: int, vae: Any = None, scheduler: Any = _scheduler) -> Callable[[], Any]:
    return _pipeline(
        cls,
        text_encoder=text.t5,
        tokenizer=text.tokenizer,
        transformer=_model("CosmosTransformer3DModel", in_channels=channels, text_embed_dim=W),
        vae=vae or _wan_vae(),
        scheduler=scheduler,
        safety_checker=_Harmless,
    )


def _talker() -> Any:
    tokenizer = text.tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def _easyanimate(cls: str, **config: Any) -> Callable[[], Any]:
    return _pipeline(
        cls,
        text_encoder=text.t5,
        tokenizer=text.tokenizer,
        scheduler=_scheduler,
        vae=_diffusers(
            "AutoencoderKLMagvit",
            latent_channels=4,
            block_out_channels=[8, 8, 8, 8],
            layers_per_block=1,
            norm_num_groups=4,
        ),
        transformer=_model("EasyAnimateTransformer3DModel", text_embed_dim=W, **config),
    )


def _masked(**more: Any) -> Callable[[], dict[str, Any]]:
    embeds = {}
    for seed, prefix in enumerate(("prompt", "negative_prompt"), start=6):
        embeds[f"{prefix}_embeds"] = _numbers(1, 8, W, seed=seed)
        embeds[f"{prefix}_attention_mask"] = torch.ones(1, 8, dtype=torch.long)
    return _arguments(**{"prompt": None, "num_frames": 9, **embeds, **more})


def _helios(cls: str, scheduler: str, **config: Any) -> Callable[[], Any]:
    return _pipeline(
        cls,
        text_encoder=text.umt5,
        tokenizer=text.tokenizer,
        vae=_wan_vae(),
        scheduler=_diffusers(scheduler, **config),
        transformer=_model("HeliosTransformer3DModel", text_dim=W),
    )


def _two_prompts(**more: Any) -> Callable[[], dict[str, Any]]:
    embeds = {"prompt_embeds": _numbers(1, 16, W), "negative_prompt_embeds": _numbers(1, 16, W, seed=7)}
    return _arguments(**{"prompt": None, "num_frames": 9, **embeds, **more})


def _pyramid(pipeline: Any, num_inference_steps: int, **arguments: Any) -> Tensor:
    return pipeline(**arguments, pyramid_num_inference_steps_list=[num_inference_steps] * 2, output_type="latent")[0]


def _kandinsky5(cls: str) -> Callable[[], Any]:
    config = {"in_text_dim": W, "in_text_dim2": W, "visual_cond": True}
    return _again(
        cls,
        _hunyuan,
        transformer=_model("Kandinsky5Transformer3DModel", **config),
        text_encoder=text.qwen_vl,
    )


def _kandinsky5_embeds(**more: Any) -> Callable[[], dict[str, Any]]:
    embeds = {}
    for seed, prefix in enumerate(("", "negative_"), start=6):
        embeds[f"{prefix}prompt_embeds_qwen"] = _numbers(1, 8, W, seed=seed)
        embeds[f"{prefix}prompt_embeds_clip"] = _numbers(1, W, seed=seed)
        embeds[f"{prefix}prompt_cu_seqlens"] = torch.tensor([0, 8], dtype=torch.int32)
    return _arguments(**{"prompt": None, "num_frames": 9, **embeds, **more})


def _kandinsky6(**config: Any) -> Callable[[], Any]:
    return _again(
        "Kandinsky6TI2VAPipeline",
        _hunyuan,
        text_encoder=text.qwen_vl,
        scheduler=_diffusers("PiflowScheduler"),
        audio_vae=_diffusers("MMAudioVAE", mel_bins=8, latent_channels=4, hidden_channels=8, layers_per_block=1),
        vocoder=_diffusers("MMAudioVocoder", num_mels=8, upsample_initial_channel=64),
        transformer=_model(
            "Kandinsky6Transformer3DModel",
            in_text_dim=W,
            in_text_dim2=W,
            out_visual_dim=40,
            out_audio_dim=40,
            visual_cond=True,
            **config,
        ),
    )


def _kandinsky6_embeds(**more: Any) -> Callable[[], dict[str, Any]]:
    embeds = {}
    for seed, prefix in enumerate(("", "negative_"), start=6):
        embeds[f"{prefix}prompt_embeds"] = _numbers(1, 8, W, seed=seed)
        embeds[f"{prefix}pooled_prompt_embeds"] = _numbers(1, W, seed=seed)
    return _arguments(**{"prompt": None, "num_frames": 9, "frame_rate": 300.0, **embeds, **more})


def _sana(cls: str, scheduler: Any) -> Callable[[], Any]:
    return _pipeline(
        cls,
        text_encoder=text.llama,
        tokenizer=text.tokenizer,
        vae=_wan_vae(),
        scheduler=scheduler,
        transformer=_model("SanaVideoTransformer3DModel", caption_channels=W),
    )


def _anyflow(cls: str, model: str, **config: Any) -> Callable[[], Any]:
    return _pipeline(
        cls,
        text_encoder=text.umt5,
        tokenizer=text.tokenizer,
        vae=_wan_vae(),
        scheduler=_diffusers("FlowMapEulerDiscreteScheduler", shift=5.0),
        transformer=_model(model, text_dim=W, **config),
    )


def _upscaled(pipeline: Any, **arguments: Any) -> Tensor:
    return pipeline(**arguments, output_type="pt")[0]


LTX2_VAE = _diffusers(
    "AutoencoderKLLTX2Video",
    latent_channels=4,
    block_out_channels=(8, 8, 8, 8),
    decoder_block_out_channels=(8, 8, 8),
    layers_per_block=(1, 1, 1, 1, 1),
    decoder_layers_per_block=(1, 1, 1, 1),
    spatial_compression_ratio=32,
    temporal_compression_ratio=8,
)
SOUND = {"num_frames": 9, "max_sequence_length": 16, "spatio_temporal_guidance_blocks": [1]}
SLOTS = {"use_keyframes_abs_pos_embedding": True}
COSMOS_VAE = _diffusers(
    "AutoencoderKLCosmos",
    latent_channels=4,
    encoder_block_out_channels=(8, 8, 8, 8),
    decode_block_out_channels=(8, 8, 8, 8),
    num_layers=1,
    latents_mean=[0.0] * 64,
    latents_std=[1.0] * 64,
)
KARRAS = _diffusers("FlowMatchEulerDiscreteScheduler", use_karras_sigmas=True)
SANA = {"frames": 9, "max_sequence_length": 16, "use_resolution_binning": False, "complex_human_instruction": None}
MORE_CASES: list[PipelineCase] = [
    PipelineCase("LTX2Pipeline", _ltx2("LTX2Pipeline"), _arguments(64, **SOUND), branches=3),
    PipelineCase(
        "LTX2ImageToVideoPipeline",
        _ltx2("LTX2ImageToVideoPipeline"),
        _arguments(64, image=_image, image_crf=0, **SOUND),
        branches=3,
    ),
    PipelineCase("LTX2ConditionPipeline", _ltx2("LTX2ConditionPipeline"), _arguments(64, **SOUND), branches=3),
    PipelineCase("LTX2InContextPipeline", _ltx2("LTX2InContextPipeline"), _arguments(64, **SOUND), branches=3),
    PipelineCase("LTX2HDRPipeline", _ltx2("LTX2HDRPipeline"), _arguments(64, num_frames=9, max_sequence_length=16)),
    PipelineCase(
        "LTX2DFRPipeline",
        _ltx2("LTX2DFRPipeline", model=SLOTS),
        _arguments(64, num_frames=17, max_sequence_length=16),
        call=_by_sigmas,
    ),
    PipelineCase(
        "LTX2DFRTemporalRefinePipeline",
        _ltx2(
            "LTX2DFRTemporalRefinePipeline",
            model=SLOTS,
            scheduler=_diffusers("LTXEulerAncestralRFScheduler"),
            temporal_latent_upsampler=_ltx2_upsampler,
        ),
        _arguments(
            64,
            num_frames=17,
            max_sequence_length=16,
            latents=_numbers(1, 4, 3, 2, 2),
            keyframes_latents=_numbers(1, 4, 1, 2, 2, seed=7),
            keyframe_positions=[16],
            audio_latents=_numbers(1, 2, 18, 2),
        ),
        call=_by_sigmas,
    ),
    PipelineCase(
        "CosmosTextToWorldPipeline",
        _cosmos("CosmosTextToWorldPipeline", 4, COSMOS_VAE, _diffusers("EDMEulerScheduler")),
        _arguments(negative_prompt=NEGATIVE, **TIMED),
        branches=2,
    ),
    PipelineCase(
        "CosmosVideoToWorldPipeline",
        _cosmos("CosmosVideoToWorldPipeline", 5, COSMOS_VAE, _diffusers("EDMEulerScheduler")),
        _arguments(negative_prompt=NEGATIVE, image=_image, **TIMED),
        branches=2,
    ),
    PipelineCase(
        "Cosmos2TextToImagePipeline",
        _cosmos("Cosmos2TextToImagePipeline", 4, scheduler=KARRAS),
        _arguments(negative_prompt=NEGATIVE, max_sequence_length=16),
        branches=2,
    ),
    PipelineCase(
        "Cosmos2VideoToWorldPipeline",
        _cosmos("Cosmos2VideoToWorldPipeline", 5, scheduler=KARRAS),
        _arguments(negative_prompt=NEGATIVE, image=_image, **TIMED),
        branches=2,
    ),
    PipelineCase(
        "Cosmos2_5_PredictBasePipeline",
        _cosmos("Cosmos2_5_PredictBasePipeline", 5, scheduler=_unipc),
        _two_prompts(),  # without a picture: reading one needs torchvision
        branches=2,
    ),
    PipelineCase(
        "Cosmos3OmniPipeline",
        _pipeline(
            "Cosmos3OmniPipeline",
            transformer=_model("Cosmos3OmniTransformer", vocab_size=400),
            text_tokenizer=_talker,
            vae=_wan_vae(),
            scheduler=_unipc,
            enable_safety_checker=False,
        ),
        _arguments(negative_prompt=NEGATIVE, num_frames=9),
        branches=2,
    ),
    PipelineCase("EasyAnimatePipeline", _easyanimate("EasyAnimatePipeline"), _masked()),
    PipelineCase(
        "EasyAnimateInpaintPipeline",
        _easyanimate("EasyAnimateInpaintPipeline", in_channels=12, resize_inpaint_mask_directly=False),
        _masked(
            video=torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(9)),
            mask_video=torch.ones(1, 1, 9, 32, 32).tril(),
        ),
    ),
    PipelineCase(
        "HeliosPipeline",
        _helios("HeliosPipeline", "HeliosScheduler", stages=1),
        _two_prompts(num_latent_frames_per_chunk=3),
        branches=2,
    ),
    PipelineCase(
        "HeliosPyramidPipeline",
        _helios(
            "HeliosPyramidPipeline",
            "HeliosScheduler",
            stages=2,
            stage_range=[0, 0.5, 1],
            gamma=0.3,  # with 1 / 3 its covariance has no Cholesky factor on a CPU
        ),
        _two_prompts(num_latent_frames_per_chunk=3),
        branches=2,
        call=_pyramid,
    ),
    PipelineCase("Kandinsky5T2VPipeline", _kandinsky5("Kandinsky5T2VPipeline"), _kandinsky5_embeds(), branches=2),
    PipelineCase(
        "Kandinsky5I2VPipeline",
        _kandinsky5("Kandinsky5I2VPipeline"),
        _kandinsky5_embeds(image=_image, num_frames=17),
        branches=2,
    ),
    PipelineCase("Kandinsky6TI2VAPipeline", _kandinsky6(), _kandinsky6_embeds(), branches=2),
    PipelineCase(
        "Kandinsky6TI2VAPipeline, a picture",
        _kandinsky6(visual_token_type_num_embeddings=2),
        _kandinsky6_embeds(image=_image),
        branches=2,
    ),
    PipelineCase(
        "Kandinsky6SRPipeline",
        _pipeline(
            "Kandinsky6SRPipeline",
            scheduler=_diffusers("PiflowScheduler"),
            vae=_diffusers(
                "Kandinsky6SRVAE",
                latent_channels=4,
                encoder_block_out_channels=(8, 8, 8, 8, 8),
                decoder_block_out_channels=(8, 8, 8, 8, 8),
                layers_per_block=1,
            ),
            transformer=_model("Kandinsky6SRTransformer3DModel", out_visual_dim=40, tile_sizes=((256, 256),)),
        ),
        lambda: {"video": _images(5, 128)(), "resolution_scale": 2},
        call=_upscaled,
    ),
    PipelineCase(
        "SanaVideoPipeline",
        _sana("SanaVideoPipeline", _unipc),
        _arguments(negative_prompt=NEGATIVE, **SANA),
    ),
    PipelineCase(
        "SanaImageToVideoPipeline",
        _sana("SanaImageToVideoPipeline", _scheduler),
        _arguments(negative_prompt=NEGATIVE, image=_image, **SANA),
    ),
    PipelineCase(
        "SanaWMPipeline",
        _pipeline(
            "SanaWMPipeline",
            text_encoder=text.llama,
            tokenizer=text.tokenizer,
            vae=LTX2_VAE,
            scheduler=_scheduler,
            transformer=_model("SanaWMTransformer3DModel", layers=3, caption_channels=W, chunk_plucker_channels=48),
        ),
        _arguments(
            64,
            image=_image,
            num_frames=17,
            max_sequence_length=16,
            chi_prompt=["Describe it: "],
            action="w-16",
            intrinsics=[50.0, 50.0, 32.0, 32.0],
        ),
    ),
    PipelineCase(
        "AnyFlowPipeline",
        _anyflow("AnyFlowPipeline", "AnyFlowTransformer3DModel"),
        _two_prompts(guidance_scale=4.0),
    ),
    PipelineCase(
        "AnyFlowFARPipeline",
        _anyflow("AnyFlowFARPipeline", "AnyFlowFARTransformer3DModel", full_chunk_limit=2),
        _two_prompts(guidance_scale=4.0, chunk_partition=[1, 2]),
    ),
]

CASES: list[PipelineCase] = [*HUNYUAN_CASES, *MORE_CASES]
LEFT_OUT: dict[str, str] = {
    "ConsisIDPipeline": "needs package opencv-python, which is not installed",
    "Cosmos2_5_TransferPipeline": "needs package torchvision, which is not installed: its ControlNet resizes with it",
    "EasyAnimateControlPipeline": "diffusers 0.42 fails itself: encode_prompt() got an unexpected keyword argument "
    "'text_encoder_index'",
    "LTXLatentUpsamplePipeline": "no denoiser in it (makes latents larger, in one pass)",
    "LTX2LatentUpsamplePipeline": "no denoiser in it (makes latents larger, in one pass)",
    "LTX2VideoDiffusionDecodePipeline": "no sampling loop in it (a decoder that samples inside, in one step)",
}
