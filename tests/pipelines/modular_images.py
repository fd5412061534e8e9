"""Modular pipelines for pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.pipelines import images_dit, images_dit_2, images_text, text
from tests.pipelines.cases import NEGATIVE, PROMPT, PipelineCase, _guided, _picture, _scheduler, _sized
from tests.pipelines.images_dit import _denoiser, _flux2_vae, _large
from tests.pipelines.images_dit_2 import _Blind, _Reader
from tests.pipelines.modular import assembled, called, components_of
from tests.pipelines.unets import _controlnet


def _parts(module: Any, name: str, **more: Any) -> Callable[[], dict[str, Any]]:
    """The components of the plain pipeline ``name`` of a table, and ``more``; functions are called."""
    case = next(case for case in module.CASES if case.name == name)
    return lambda: {**case.build().components, **_built(more)}


def _with(parts: Callable[[], dict[str, Any]], **more: Any) -> Callable[[], dict[str, Any]]:
    """``parts`` and ``more``; functions are called."""
    return lambda: {**parts(), **_built(more)}


def _built(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part() if callable(part) else part for name, part in parts.items()}


def _case(
    name: str, parts: Callable[[], dict[str, Any]], arguments: Callable[[], dict[str, Any]], **more: Any
) -> PipelineCase:
    """A case with the default blocks of the class that ``name`` starts with."""
    blocks = name.split(",", maxsplit=1)[0].replace("ModularPipeline", "AutoBlocks")
    return PipelineCase(name, assembled(blocks, parts), arguments, call=called(), **more)


def _chatting(length: int = 77) -> Any:
    """A tokenizer that writes the last message of a chat, which is text or a list with a text, as it is."""
    tokenizer = text.tokenizer(length)
    tokenizer.chat_template = (
        "{% set said = messages[-1]['content'] %}{{ said if said is string else said[-1]['text'] }}"
    )
    return tokenizer


class _Speaker(_Reader):
    """A processor that is given chats too. A picture is four times the token that begins a text."""

    def __init__(self) -> None:
        self.tokenizer = _chatting(2048)

    def __call__(self, images: Any = None, text: Any = None, **more: Any) -> Any:
        begin = self.tokenizer.bos_token
        return self.tokenizer([each.replace("<|image_pad|>", 4 * begin) for each in text], **more)

    def apply_chat_template(self, messages: Any, tokenize: bool, **more: Any) -> Any:
        said = self.tokenizer.apply_chat_template(messages, tokenize=tokenize, **more)
        return [said] if tokenize else said


def _writer() -> Any:
    """A language model that may write a prompt anew."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(3)
    return LlamaForCausalLM(text.llama().config).eval()


def _deep() -> Any:
    """A text encoder of 36 layers, 8 wide."""
    return images_dit_2._ideogram().text_encoder


def _ending() -> Any:
    """A tokenizer that leaves out the beginning of what is too long: a template."""
    tokenizer = text.tokenizer()
    tokenizer.truncation_side = "left"
    return tokenizer


def _guider(scale: float) -> Any:
    from diffusers import ClassifierFreeGuidance

    return ClassifierFreeGuidance(scale)


_FROM_PICTURE: dict[str, Any] = {"image": _picture, "strength": 0.75}
_READING: dict[str, Any] = {"vae": images_text._qwen_vae, "text_encoder": _Blind, "processor": _Reader}


def _qwen21() -> dict[str, Any]:
    return {**images_text._qwen21().components, "text_encoder": _writer(), "processor": _Speaker()}


def _krea2() -> dict[str, Any]:
    return {
        "scheduler": _scheduler(),
        "vae": images_dit_2._qwen_vae(),
        "text_encoder": _deep(),
        "tokenizer": _ending(),
        "transformer": _denoiser("Krea2Transformer2DModel", num_text_layers=12, text_hidden_dim=8),
    }


def _flux2(guidance: bool = False) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "scheduler": _scheduler(),
        "vae": _flux2_vae(),
        "text_encoder": text.llama(),
        "tokenizer": _chatting(),
        "transformer": _denoiser("Flux2Transformer2DModel", guidance_embeds=guidance),
    }


def _flux3(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "vae": _flux2_vae(),
        "prompt_upsampler": _writer(),
        "prompt_upsampler_processor": _chatting(),
        "text_encoder": text.llama(),
        "tokenizer": _Speaker(),
        "transformer": _denoiser("Flux3Transformer2DModel", **more),
    }


def _layer(**more: Any) -> Callable[[], dict[str, Any]]:
    """Arguments for a FLUX that is given what one layer of its text encoder puts out."""
    return _sized(height=64, width=64, max_sequence_length=16, text_encoder_out_layers=(1,), **more)


def _anima() -> dict[str, Any]:
    import diffusers

    torch.manual_seed(7)
    conditioner = diffusers.AnimaTextConditioner(
        source_dim=text.WIDTH,
        target_dim=16,
        model_dim=16,
        num_layers=1,
        num_attention_heads=2,
        target_vocab_size=400,
        min_sequence_length=8,
    )
    return {
        "scheduler": _scheduler(),
        "vae": images_dit_2._qwen_vae(),
        "text_encoder": text.llama(),
        "tokenizer": text.tokenizer(),
        "t5_tokenizer": text.tokenizer(),
        "text_conditioner": conditioner.eval(),
        "transformer": _denoiser("CosmosTransformer3DModel"),
    }


CASES: list[PipelineCase] = [
    _case("FluxModularPipeline", components_of("FluxPipeline"), _sized(max_sequence_length=8)),
    _case(
        "FluxKontextModularPipeline",
        components_of("FluxKontextPipeline"),
        _sized(image=_picture, max_area=256, _auto_resize=False, max_sequence_length=8),
    ),
    _case(
        "StableDiffusion3ModularPipeline",
        components_of("StableDiffusion3Pipeline"),
        _guided(max_sequence_length=16),
        branches=2,
    ),
    _case(
        "StableDiffusion3ModularPipeline, from a picture",
        components_of("StableDiffusion3Pipeline"),
        _guided(**_FROM_PICTURE, max_sequence_length=16),
        branches=2,
    ),
    _case(
        "StableDiffusionXLModularPipeline",
        components_of("StableDiffusionXLPipeline"),
        _guided(),
        denoisers=("unet",),
        branches=2,
    ),
    _case(
        "StableDiffusionXLModularPipeline, inpainting",
        components_of("StableDiffusionXLPipeline"),
        _guided(**_FROM_PICTURE, mask_image=_picture),
        denoisers=("unet",),
        branches=2,
    ),
    _case(
        "StableDiffusionXLModularPipeline, ControlNet",
        _with(components_of("StableDiffusionXLPipeline"), controlnet=_controlnet(True)),
        _guided(control_image=_picture),
        denoisers=("unet",),
        branches=2,
    ),
    _case("QwenImageModularPipeline", components_of("QwenImagePipeline"), _guided(), branches=2),
    _case(
        "QwenImageModularPipeline, ControlNet",
        _parts(images_text, "QwenImageControlNetPipeline"),
        _guided(control_image=_picture),
        branches=2,
    ),
    _case(
        "ZImageModularPipeline",
        _parts(images_dit, "ZImagePipeline", text_encoder=text.llama, tokenizer=_chatting),
        _sized(max_sequence_length=16),
    ),
    _case(
        "ZImageModularPipeline, guided, from a picture",
        _parts(
            images_dit,
            "ZImagePipeline",
            text_encoder=text.llama,
            tokenizer=_chatting,
            guider=lambda: _guider(5.0),
        ),
        _guided(**_FROM_PICTURE, max_sequence_length=16),
        branches=2,
    ),
    _case(
        "ErnieImageModularPipeline",
        _parts(images_dit_2, "ErnieImagePipeline", text_encoder=text.llama, tokenizer=text.tokenizer),
        _guided(height=64, width=64),
        branches=2,
    ),
    _case(
        "Ideogram4ModularPipeline",
        _parts(images_dit_2, "Ideogram4Pipeline"),
        _sized(height=64, width=64, max_sequence_length=24, guidance_schedule=lambda: [4.0] * 8),
        denoisers=("transformer", "unconditional_transformer"),
    ),
    _case(
        "QwenImageEditModularPipeline",
        _with(components_of("QwenImageEditPipeline"), **_READING),
        _guided(image=_picture, height=128, width=128),
        branches=2,
    ),
    _case(
        "QwenImageEditPlusModularPipeline",
        _with(components_of("QwenImageEditPipeline"), **_READING),
        _guided(image=lambda: [_picture(), _picture()], height=128, width=128),
        branches=2,
    ),
    _case(
        "QwenImageLayeredModularPipeline",
        _parts(images_text, "QwenImageLayeredPipeline", processor=_Reader),
        lambda: {
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE,
            "image": _picture().convert("RGBA"),
            "layers": 2,
        },
        branches=2,
    ),
    _case(
        "QwenImage21ModularPipeline",
        _with(_qwen21, guider=lambda: _guider(4.0)),
        _guided(height=64, width=64),
        branches=2,
    ),
    _case(
        "QwenImage21ModularPipeline, from a picture",
        _with(_qwen21, guider=lambda: _guider(4.0)),
        _guided(height=64, width=64, image=_picture, output_resolution=64),
        branches=2,
    ),
    _case("QwenImage21TurboModularPipeline", _qwen21, _sized(height=64, width=64)),
    _case("Krea2ModularPipeline", _krea2, _guided(height=64, width=64, max_sequence_length=24), branches=2),
    _case("Krea2TurboModularPipeline", _krea2, _sized(height=64, width=64, max_sequence_length=24)),
    _case("Flux2ModularPipeline", _flux2(guidance=True), _layer(image=_large)),
    _case("Flux2KleinModularPipeline", _flux2(), _layer(image=_large)),
    _case("Flux2KleinBaseModularPipeline", _flux2(), _layer(image=_large), branches=2),
    _case("Flux3ModularPipeline", _flux3(), _layer(image=_large, max_new_tokens=8), branches=2),
    _case("Flux3DistilledModularPipeline", _flux3(flow_map=True), _layer(image=_large, max_new_tokens=8)),
    _case("AnimaModularPipeline", _anima, _guided(height=32, width=32, max_sequence_length=16), branches=2),
]
LEFT_OUT: dict[str, str] = {}
