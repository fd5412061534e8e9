"""Modular pipelines for video and sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.pipelines import text, video, video_2
from tests.pipelines.cases import NEGATIVE, PipelineCase, _scheduler
from tests.pipelines.modular import assembled, called, components_of
from tests.pipelines.video import TIMED, W, _arguments, _diffusers, _image, _images, _model, _numbers, _wan_vae

Components = Callable[[], dict[str, Any]]


def _of(name: str, **parts: Any) -> Components:
    """The components of the plain pipeline of a case for video, with ``parts`` over them."""
    case = next(case for case in (*video.CASES, *video_2.CASES) if case.name == name)
    return lambda: {**case.build().components, **{part: make() for part, make in parts.items()}}


def _embedded(blocks: str, components: Components, **config: Any) -> Callable[[], Any]:
    """Without its text encoder, which needs ftfy, which is not installed, or is a large model: embeddings are given."""

    def build() -> Any:
        import diffusers.modular_pipelines as modular

        made = getattr(modular, blocks)()
        made.sub_blocks.pop("text_encoder")
        pipeline = made.init_pipeline()
        given = {name: part for name, part in components().items() if part is not None and name in pipeline.components}
        pipeline.update_components(**given, **config)
        return pipeline

    return build


def _prompts(**more: Any) -> Callable[[], dict[str, Any]]:
    embeds = {"prompt_embeds": _numbers(1, 16, W), "negative_prompt_embeds": _numbers(1, 16, W, seed=7)}
    return lambda: {
        "height": 32,
        "width": 32,
        "num_frames": 9,
        **embeds,
        **{name: value() if callable(value) else value for name, value in more.items()},
    }


def _two(model: str = "WanTransformer3DModel", **config: Any) -> Components:
    """Wan with a transformer for much noise and one for little."""
    parts = {name: _model(model, seed=seed, text_dim=W, **config) for seed, name in enumerate(BOTH)}
    return lambda: {name: part() for name, part in {**video.WAN, **parts}.items()}


BOTH = ("transformer", "transformer_2")
WAN_CASES: list[PipelineCase] = [
    PipelineCase(
        "WanModularPipeline",
        _embedded("WanBlocks", components_of("WanPipeline")),
        _prompts(),
        branches=2,
        call=called(),
    ),
    PipelineCase(
        "WanImage2VideoModularPipeline",
        _embedded("WanImage2VideoAutoBlocks", _of("WanImageToVideoPipeline")),
        _prompts(image=_image),
        branches=2,
        call=called(),
    ),
    PipelineCase(
        "Wan22ModularPipeline", _embedded("Wan22Blocks", _two()), _prompts(), denoisers=BOTH, branches=2, call=called()
    ),
    PipelineCase(
        "Wan22Image2VideoModularPipeline",
        _embedded("Wan22Image2VideoBlocks", _two(in_channels=12)),
        _prompts(image=_image),
        denoisers=BOTH,
        branches=2,
        call=called(),
    ),
    PipelineCase(
        "Wan22VaceModularPipeline",
        _embedded("Wan22VaceBlocks", _two("WanVACETransformer3DModel", vace_in_channels=72)),
        _prompts(video=_images(), reference_images=_image),
        denoisers=BOTH,
        branches=2,
        call=called(),
    ),
]


# Other plain pipelines' components


def _made(**parts: Any) -> Components:
    """``parts`` are made by calling them."""
    return lambda: {name: part() for name, part in parts.items()}


def _guider(scale: float) -> Callable[[], Any]:
    return _diffusers("ClassifierFreeGuidance", guidance_scale=scale)


def _by_sigmas(pipeline: Any, num_inference_steps: int, **arguments: Any) -> Any:
    return pipeline(**arguments, sigmas=torch.linspace(1, 0, num_inference_steps + 1).tolist(), output="latents")


def _pyramid(pipeline: Any, num_inference_steps: int, **arguments: Any) -> Any:
    return pipeline(**arguments, pyramid_num_inference_steps_list=[num_inference_steps] * 2, output="latents")


def _sound(**more: Any) -> Callable[[], dict[str, Any]]:
    return _arguments(64, **{"num_frames": 9, "max_sequence_length": 16, "output_type": "latent", **more})


LTX2_GUIDER = _diffusers(
    "LTX2Guidance",
    guidance_scale=3.0,
    stg_scale=1.0,
    modality_scale=3.0,
    guidance_rescale=0.7,
    spatio_temporal_guidance_blocks=[1],
)
DECODER = _diffusers(
    "LTX2VideoDiffusionDecoderModel",
    latent_channels=4,
    decoder_head_dim=16,
    decoder_stage_channels=(128, 64, 32, 32, 16),
    decoder_stage_depths=(1, 1, 1, 1, 1),
    decoder_stage_kernels=((1, 1, 1),) * 4,
    decoder_stage5_kernel=(1, 1, 1),
    decoder_t_emb_dim=16,
)
TALKERS = {"tokenizer": video_2._talker, "tokenizer_2": text.tokenizer}
OTHER_CASES: list[PipelineCase] = [
    PipelineCase(
        "LTXModularPipeline",
        assembled("LTXAutoBlocks", components_of("LTXPipeline")),
        _arguments(**TIMED),
        branches=2,
        call=called(),
    ),
    PipelineCase(
        "LTXModularPipeline, a picture",
        assembled("LTXAutoBlocks", components_of("LTXPipeline")),
        _arguments(image=_image, **TIMED),
        branches=2,
        call=called(),
    ),
    PipelineCase(
        "HeliosModularPipeline",
        _embedded("HeliosAutoBlocks", _of("HeliosPipeline")),
        _prompts(num_latent_frames_per_chunk=3),
        branches=2,
        call=called(),
    ),
    PipelineCase(
        "HeliosPyramidModularPipeline",
        _embedded("HeliosPyramidAutoBlocks", _of("HeliosPyramidPipeline")),
        _prompts(num_latent_frames_per_chunk=3),
        branches=2,
        call=_pyramid,
    ),
    PipelineCase(
        "HeliosPyramidDistilledModularPipeline",
        _embedded(
            "HeliosPyramidDistilledAutoBlocks",
            _of(
                "HeliosPyramidPipeline",
                scheduler=_diffusers("HeliosDMDScheduler", stages=2, stage_range=[0, 0.5, 1], gamma=0.3),
                guider=_guider(1.0),
            ),
        ),
        _prompts(num_latent_frames_per_chunk=3),
        call=_pyramid,
    ),
    PipelineCase(
        "HunyuanVideo15ModularPipeline",
        assembled(
            "HunyuanVideo15AutoBlocks",
            _of(
                "HunyuanVideo15Pipeline",
                text_encoder=text.llama,
                transformer=_model(
                    "HunyuanVideo15Transformer3DModel",
                    in_channels=9,
                    text_embed_dim=W,
                    text_embed_2_dim=W,
                    image_embed_dim=W,
                ),
                **TALKERS,
            ),
        ),
        _arguments(num_frames=9, negative_prompt=NEGATIVE),
        branches=2,
        call=called(),
    ),
    PipelineCase(
        "LTX2ModularPipeline",
        assembled("LTX2AutoBlocks", _of("LTX2Pipeline", guider=LTX2_GUIDER)),
        _sound(),
        branches=4,
        call=called(),
    ),
    PipelineCase(
        "LTX25ModularPipeline",
        assembled("LTX25AutoBlocks", _of("LTX2Pipeline", guider=LTX2_GUIDER, diffusion_decoder=DECODER)),
        _sound(negative_prompt=NEGATIVE, image=_image, image_crf=0),
        branches=4,
        call=called(),
    ),
    PipelineCase(
        "EchoModularPipeline",
        assembled("EchoBlocks", _of("LTX2Pipeline")),
        _sound(),
        call=_by_sigmas,
    ),
    PipelineCase(
        "EchoModularPipeline, a picture and a memory",
        assembled("EchoBlocks", _of("LTX2Pipeline")),
        _sound(image=_image, memory_images=_images(2)),
        call=_by_sigmas,
    ),
]


# Cosmos 3, and those without a plain pipeline


def _cosmos3(blocks: str, components: Components, **config: Any) -> Callable[[], Any]:
    """Without the safety checker, which is another package and a language model."""

    def build() -> Any:
        pipeline = assembled(blocks, components)()
        pipeline.disable_safety_checker()
        pipeline.update_components(**config)
        return pipeline

    return build


def _animate2(guidance: float, scheduler: Any) -> Components:
    return _made(
        text_encoder=text.umt5,
        tokenizer=text.tokenizer,
        image_encoder=_seeing,
        vae=_wan_vae(16),
        transformer=_model("WanAnimate2Transformer3DModel", text_dim=W),
        scheduler=scheduler,
        guider=_guider(guidance),
    )


def _solver() -> Any:
    from diffusers import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)


def _seeing() -> Any:
    """Of the width that the transformer of Wan-Animate-2 expects."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(7)
    config = CLIPVisionConfig(
        hidden_size=1280, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2, patch_size=112
    )
    return CLIPVisionModel(config).eval()


def _driven(**more: Any) -> Callable[[], dict[str, Any]]:
    return _arguments(
        image=_image,
        driving_video=_images(),
        segment_frame_length=9,
        max_sequence_length=16,
        output_type="pt",
        **more,
    )


def _h3(**parts: Any) -> Components:
    return _made(
        vae=_diffusers(
            "AutoencoderKLMiniMaxH3",
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            decoder_num_layers=1,
            decoder_num_attention_heads=2,
            decoder_attention_head_dim=16,
            latents_mean=(0.0,) * 4,
            latents_std=(1.0,) * 4,
        ),
        audio_vae=_diffusers(
            "AutoencoderKLMiniMaxH3Audio",
            encoder_dim=2,
            latent_dim=48,
            latent_channels=6,
            num_attention_heads=2,
            decoder_dim=128,
            latents_mean=[0.0] * 6,
            latents_std=[1.0] * 6,
        ),
        scheduler=_diffusers("MiniMaxH3Scheduler"),
        audio_scheduler=_diffusers("MiniMaxH3Scheduler", shift=3.0),
        **parts,
    )


def _h3_arguments(**more: Any) -> Callable[[], dict[str, Any]]:
    """Embeddings: its text encoder has more than 50 layers, and what reads pictures for it needs torchvision."""
    return _arguments(
        prompt=None,
        prompt_embeds=_numbers(1, 8, 16),
        text_token_tags=torch.ones(8, dtype=torch.long),
        num_frames=124,  # it makes five seconds or more
        output_type="pt",
        **more,
    )


def _references() -> list[Any]:
    from diffusers.modular_pipelines.minimax_h3 import MiniMaxH3ImageReference

    return [MiniMaxH3ImageReference(_image())]


H3 = _model("MiniMaxH3Transformer3DModel")


def _composer() -> Any:
    """The vocabulary is that of the released model: its codes are numbered after the words."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(9)
    config = Qwen3Config(
        vocab_size=151675 + 16384,
        hidden_size=16,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


def _song() -> dict[str, Any]:
    return {"prompt": "a slow waltz", "lyrics": "snow falls on the cat", "audio_duration": 0.4}


def _chunk(pipeline: Any, **arguments: Any) -> Any:
    return pipeline(**arguments, output="latent_chunks")[0]


NEW_CASES: list[PipelineCase] = [
    PipelineCase(
        "Cosmos3OmniModularPipeline",
        _cosmos3("Cosmos3OmniBlocks", _of("Cosmos3OmniPipeline")),
        _arguments(negative_prompt=NEGATIVE, num_frames=9),
        branches=2,
        call=called(),
    ),
    PipelineCase(
        "Cosmos3DistilledModularPipeline",
        _cosmos3(
            "Cosmos3DistilledBlocks",
            _of(
                "Cosmos3OmniPipeline",
                scheduler=_diffusers("FlowMatchEulerDiscreteScheduler", stochastic_sampling=True),
            ),
            distilled_sigmas=[1.0, 0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1],
        ),
        _arguments(num_frames=9),
        call=called(),
    ),
    PipelineCase(
        "WanAnimate2ModularPipeline",
        assembled("WanAnimate2Blocks", _animate2(3.0, _solver)),
        _driven(),
        branches=2,
        call=called("videos"),
    ),
    PipelineCase(
        "WanAnimate2DistilledModularPipeline",
        assembled("WanAnimate2DistilledBlocks", _animate2(1.0, _scheduler)),
        _driven(),
        call=called("videos"),
    ),
    PipelineCase(
        "MiniMaxH3ModularPipeline", _embedded("MiniMaxH3Blocks", _h3(transformer=H3)), _h3_arguments(), call=called()
    ),
    PipelineCase(
        "MiniMaxH3ModularPipeline, two pictures",
        _embedded("MiniMaxH3Blocks", _h3(transformer=H3)),
        _h3_arguments(image=_image, last_image=_image),
        call=called(),
    ),
    PipelineCase(
        "MiniMaxH3ModularPipeline, a reference",
        _embedded("MiniMaxH3Blocks", _h3(transformer_ref=H3), reference_image_short_edge=32),
        _h3_arguments(references=_references),
        denoisers=("transformer_ref",),
        call=called(),
    ),
    PipelineCase(
        "MiniMaxMusic3ModularPipeline",
        assembled(
            "MiniMaxMusic3Blocks",
            _made(
                tokenizer=text.tokenizer,
                language_model=_composer,
                rvq_depth_decoder=_model("MiniMaxMusic3RVQDepthDecoder", hidden_size=16),
                condition_encoder=_diffusers(
                    "MiniMaxMusic3ConditionEncoder", condition_hidden_dim=16, num_condition_layers=4, out_dim=16
                ),
                transformer=_model("MiniMaxMusic3Transformer1DModel"),
                scheduler=_diffusers("FlowMatchEulerDiscreteScheduler", num_train_timesteps=1, invert_sigmas=True),
                vocoder=_diffusers(
                    "MiniMaxMusic3Vocoder", latent_channels=4, decoder_input_dim=8, decoder_hidden_dim=16
                ),
            ),
        ),
        _song,
        branches=2,
        call=_chunk,
    ),
]

CASES: list[PipelineCase] = [*WAN_CASES, *OTHER_CASES, *NEW_CASES]
LEFT_OUT: dict[str, str] = {}
