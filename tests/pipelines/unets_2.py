"""Pipelines with other UNets and priors: IF, Kandinsky 2, unCLIP, Marigold, and the first ones of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.pipelines import text
from tests.pipelines.cases import NEGATIVE, PROMPT, PipelineCase, _guided, _kl, _live, _picture, _sd
from tests.pipelines.unets import (
    UNET,
    W,
    _clip_projected,
    _decoded,
    _from,
    _mask,
    _processor,
    _prompted,
    _random,
    _scheduler,
    _seeded,
    _size,
    _unet,
    _vision,
)


def _empty() -> Any:
    """For pipelines that share no component with others."""
    return type("Nothing", (), {"components": {}})


_of = partial(_from, _empty)


def _returned(kind: str) -> Callable[..., Tensor]:
    """Calls the pipeline for its output type that is the sample as it is."""
    return lambda pipeline, **arguments: pipeline(**arguments, output_type=kind)[0]


_tensor = _returned("pt")

SIMPLE: dict[str, Any] = {
    **UNET,
    "attention_head_dim": 4,
    "out_channels": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
    "encoder_hid_dim": W,
}


def _if(cls: str, sample: int = 16, **config: Any) -> Callable[[], Any]:
    pixels = {"in_channels": 3, "out_channels": 6, "sample_size": sample, "encoder_hid_dim_type": "text_proj"}
    added = {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}
    ddpm = _scheduler("DDPMScheduler", variance_type="learned_range", beta_schedule="squaredcos_cap_v2")
    return _of(
        cls,
        tokenizer=text.tokenizer,
        text_encoder=text.t5,
        unet=_unet(**{**SIMPLE, **pixels, **added, **config}),
        scheduler=ddpm,
        image_noising_scheduler=ddpm,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
    )


def _small() -> Any:
    return _picture(8, 8)


def _if_case(cls: str, larger: bool = False, **more: Any) -> PipelineCase:
    config = {"in_channels": 6, "class_embed_type": "timestep"} if larger else {}
    arguments = _prompted(clean_caption=False, **more)
    return PipelineCase(cls, _if(cls, **config), arguments, denoisers=("unet",), call=_tensor)


IF = [
    _if_case("IFPipeline"),
    _if_case("IFImg2ImgPipeline", image=_picture, strength=0.8),
    _if_case("IFInpaintingPipeline", image=_picture, mask_image=_mask, strength=0.8),
    _if_case("IFSuperResolutionPipeline", True, image=_small),
    _if_case("IFImg2ImgSuperResolutionPipeline", True, image=_small, original_image=_picture, strength=0.8),
    _if_case(
        "IFInpaintingSuperResolutionPipeline",
        True,
        image=_small,
        original_image=_picture,
        mask_image=_mask,
        strength=0.8,
    ),
]


def _prior(**config: Any) -> Callable[[], Any]:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2, "embedding_dim": W}
    return partial(_seeded, "PriorTransformer", live=True, **{**sizes, "num_embeddings": 77, **config})


_unclip_scheduler = _scheduler("UnCLIPScheduler", prediction_type="sample", variance_type="fixed_small_log")
PRIOR: dict[str, Any] = {
    "prior": _prior(),
    "image_encoder": _vision,
    "text_encoder": _clip_projected,
    "tokenizer": text.tokenizer,
    "scheduler": _unclip_scheduler,
    "image_processor": _processor,
}
_PRIOR_PARTS = {f"prior_{name}": part for name, part in PRIOR.items()}


def _movq() -> Any:
    return _seeded(
        "VQModel",
        block_out_channels=(32, 32),  # the norm has 32 groups
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        num_vq_embeddings=12,
        vq_embed_dim=4,
        norm_num_groups=4,
        norm_type="spatial",
    )


def _multilingual() -> Any:
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    torch.manual_seed(7)
    config = MCLIPConfig(
        transformerDimSize=W,
        imageDimSize=W,
        vocab_size=400,
        hidden_size=W,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=2,
    )
    return MultilingualCLIP(config).eval()


def _kandinsky(cls: str, **more: Any) -> Callable[[], Any]:
    """Kandinsky 2.1 and 2.2, which the name of the class says."""
    if "V22" in cls:
        kind = {"encoder_hid_dim_type": "image_proj", "addition_embed_type": "image"}
    else:
        kind = {"encoder_hid_dim_type": "text_image_proj", "addition_embed_type": "text_image"}
    channels = {"in_channels": 9} if "Inpaint" in cls else {}
    if "Controlnet" in cls:
        channels, kind["addition_embed_type"] = {"in_channels": 8}, "image_hint"
    ddpm = _scheduler("DDPMScheduler", variance_type="learned_range", beta_schedule="linear")
    return _of(
        cls,
        **{
            "text_encoder": _multilingual,
            "tokenizer": text.tokenizer,
            "unet": _unet(**{**SIMPLE, **kind, **channels}),
            "scheduler": _scheduler("DDIMScheduler") if "V22" not in cls else ddpm,
            "movq": _movq,
            **_PRIOR_PARTS,
            **more,
        },
    )


def _vectors(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {
        **_size,
        "image_embeds": _random(1, W),
        "negative_image_embeds": _random(1, W, seed=10),
        **{name: value() if callable(value) else value for name, value in more.items()},
    }


def _combined(kind: str) -> Callable[..., Tensor]:
    def call(pipeline: Any, num_inference_steps: int, **arguments: Any) -> Tensor:
        steps = {"num_inference_steps": num_inference_steps, "prior_num_inference_steps": num_inference_steps}
        return torch.as_tensor(pipeline(**arguments, **steps, output_type=kind)[0])

    return call


def _kandinsky_case(cls: str, arguments: Callable[[], dict[str, Any]], call: Any = None) -> PipelineCase:
    return PipelineCase(cls, _kandinsky(cls), arguments, denoisers=("unet",), call=call)


def _combined_case(cls: str, **more: Any) -> PipelineCase:
    call = _combined("latent" if "V22" in cls and "Inpaint" not in cls else "pt")
    arguments = _guided(**{**_size, **more})
    return PipelineCase(cls, _kandinsky(cls), arguments, denoisers=("prior_prior", "unet"), call=call)


_hint = partial(_random, 1, 3, 64, 64)
KANDINSKY = [
    _kandinsky_case("KandinskyV22Pipeline", _vectors()),
    _kandinsky_case("KandinskyV22Img2ImgPipeline", _vectors(image=_picture, strength=0.8)),
    _kandinsky_case("KandinskyV22InpaintPipeline", _vectors(image=_picture, mask_image=_mask)),
    _kandinsky_case("KandinskyV22ControlnetPipeline", _vectors(hint=_hint), _tensor),
    _kandinsky_case(
        "KandinskyV22ControlnetImg2ImgPipeline", _vectors(hint=_hint, image=_picture, strength=0.8), _tensor
    ),
    PipelineCase(
        "KandinskyV22PriorPipeline", _of("KandinskyV22PriorPipeline", **PRIOR), _prompted(), ("prior",), call=_tensor
    ),
    PipelineCase(
        "KandinskyV22PriorEmb2EmbPipeline",
        _of("KandinskyV22PriorEmb2EmbPipeline", **PRIOR),
        _prompted(image=_picture, strength=0.8),
        ("prior",),
        call=_tensor,
    ),
    _combined_case("KandinskyV22CombinedPipeline"),
    _combined_case("KandinskyV22Img2ImgCombinedPipeline", image=_picture, strength=0.8),
    _combined_case("KandinskyV22InpaintCombinedPipeline", image=_picture, mask_image=_mask),
    _kandinsky_case("KandinskyPipeline", _vectors(prompt=PROMPT, negative_prompt=NEGATIVE), _tensor),
    _kandinsky_case(
        "KandinskyImg2ImgPipeline",
        _vectors(prompt=PROMPT, negative_prompt=NEGATIVE, image=_picture, strength=0.8),
        _tensor,
    ),
    _kandinsky_case(
        "KandinskyInpaintPipeline",
        _vectors(prompt=PROMPT, negative_prompt=NEGATIVE, image=_picture, mask_image=_mask),
        _tensor,
    ),
    PipelineCase(
        "KandinskyPriorPipeline", _of("KandinskyPriorPipeline", **PRIOR), _prompted(), ("prior",), call=_tensor
    ),
    _combined_case("KandinskyCombinedPipeline"),
    _combined_case("KandinskyImg2ImgCombinedPipeline", image=_picture, strength=0.8),
    _combined_case("KandinskyInpaintCombinedPipeline", image=_picture, mask_image=_mask),
]


def _stable_unclip(cls: str) -> Callable[[], Any]:
    def normalizer() -> Any:
        from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

        return StableUnCLIPImageNormalizer(embedding_dim=W)

    return _from(
        _sd,
        cls,
        unet=_unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * W),
        image_normalizer=normalizer,
        image_noising_scheduler=_scheduler("DDPMScheduler"),
        image_encoder=_vision,
        feature_extractor=_processor,
        **{**_PRIOR_PARTS, "prior": _prior()},
    )


def _pixels(**config: Any) -> Callable[[], Any]:
    """The UNet of pictures without a prompt, without attention as in the zoo."""
    sizes = {name: UNET[name] for name in ("block_out_channels", "layers_per_block", "norm_num_groups")}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "add_attention": False}
    channels = {"in_channels": 3, "out_channels": 3, "sample_size": 16}
    return partial(_seeded, "UNet2DModel", live=True, **{**sizes, **blocks, **channels, **config})


def _unclip(cls: str) -> Callable[[], Any]:
    def projection() -> Any:
        from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel

        torch.manual_seed(7)
        return UnCLIPTextProjModel(clip_embeddings_dim=W, time_embed_dim=32, cross_attention_dim=W)

    residual = {"resnet_time_scale_shift": "scale_shift"}
    blocks = {"down_block_types": ("ResnetDownsampleBlock2D",) * 2, "up_block_types": ("ResnetUpsampleBlock2D",) * 2}
    decoder = {**SIMPLE, "in_channels": 3, "out_channels": 6, "encoder_hid_dim": None, "class_embed_type": "identity"}
    super_resolution = _pixels(in_channels=6, sample_size=32, **blocks, **residual)
    return _of(
        cls,
        prior=_prior(),
        decoder=_unet(**decoder),
        text_encoder=_clip_projected,
        tokenizer=text.tokenizer,
        text_proj=projection,
        super_res_first=super_resolution,
        super_res_last=super_resolution,
        prior_scheduler=_unclip_scheduler,
        decoder_scheduler=_scheduler("UnCLIPScheduler", prediction_type="epsilon", variance_type="learned_range"),
        super_res_scheduler=_scheduler("UnCLIPScheduler", prediction_type="epsilon"),
        feature_extractor=_processor,
        image_encoder=_vision,
    )


def _each(*names: str) -> Callable[..., Tensor]:
    """The same number of steps under several names."""

    def call(pipeline: Any, num_inference_steps: int, **arguments: Any) -> Tensor:
        return _decoded(pipeline, **arguments, **{f"{name}_num_inference_steps": num_inference_steps for name in names})

    return call


def _stable_unclip_call(pipeline: Any, num_inference_steps: int, **arguments: Any) -> Tensor:
    steps = {"num_inference_steps": num_inference_steps, "prior_num_inference_steps": num_inference_steps}
    return pipeline(**arguments, **steps, output_type="latent")[0]


UNCLIP = [
    PipelineCase(
        "StableUnCLIPPipeline",
        _stable_unclip("StableUnCLIPPipeline"),
        _guided(),
        ("prior", "unet"),
        call=_stable_unclip_call,
    ),
    PipelineCase(
        "StableUnCLIPImg2ImgPipeline", _stable_unclip("StableUnCLIPImg2ImgPipeline"), _guided(image=_picture), ("unet",)
    ),
    PipelineCase(
        "UnCLIPPipeline",
        _unclip("UnCLIPPipeline"),
        lambda: {"prompt": PROMPT},
        ("prior", "decoder", "super_res_first"),
        call=_each("prior", "decoder", "super_res"),
    ),
    PipelineCase(
        "UnCLIPImageVariationPipeline",
        _unclip("UnCLIPImageVariationPipeline"),
        lambda: {"image": _picture()},
        ("decoder", "super_res_first"),
        call=_each("decoder", "super_res"),
    ),
]


def _shap_e(cls: str, **config: Any) -> Callable[[], Any]:
    def vision() -> Any:
        from transformers import CLIPVisionModel

        torch.manual_seed(8)
        return CLIPVisionModel(_vision().config).eval()

    prior = _prior(
        embedding_dim=16,
        num_embeddings=8,
        embedding_proj_dim=W,
        clip_embed_dim=32,
        time_embed_dim=64,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
        **config,
    )
    return _of(
        cls,
        prior=prior,
        text_encoder=_clip_projected,
        tokenizer=text.tokenizer,
        image_encoder=vision,
        image_processor=_processor,
        scheduler=_scheduler(
            "HeunDiscreteScheduler", prediction_type="sample", use_karras_sigmas=True, clip_sample=True
        ),
        shap_e_renderer=None,
    )


SHAP_E = [
    PipelineCase(
        "ShapEPipeline", _shap_e("ShapEPipeline", additional_embeddings=0), lambda: {"prompt": PROMPT}, ("prior",)
    ),
    PipelineCase(
        "ShapEImg2ImgPipeline",
        _shap_e("ShapEImg2ImgPipeline", additional_embeddings=0, embedding_proj_norm_type="layer"),
        lambda: {"image": _picture()},
        ("prior",),
    ),
]


def _marigold(cls: str, **more: Any) -> PipelineCase:
    targets = 2 if "Intrinsics" in cls else 1
    return PipelineCase(
        cls,
        _from(
            _sd,
            cls,
            unet=_unet(in_channels=4 + 4 * targets, out_channels=4 * targets),
            default_processing_resolution=16,
            **more,
        ),
        lambda: {"image": _picture()},
        ("unet",),
        call=lambda pipeline, **arguments: pipeline(**arguments, output_latent=True).latent,
    )


MARIGOLD = [
    _marigold("MarigoldDepthPipeline", prediction_type="depth"),
    _marigold("MarigoldNormalsPipeline", prediction_type="normals"),
    _marigold(
        "MarigoldIntrinsicsPipeline",
        prediction_type="intrinsics",
        target_properties=lambda: {"target_names": ["albedo", "shading"]},
    ),
]


def _vq() -> Any:
    return _seeded(
        "VQModel",
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=12,
        vq_embed_dim=3,
        norm_num_groups=4,
    )


def _bert() -> Any:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    torch.manual_seed(7)
    config = LDMBertConfig(
        vocab_size=400, encoder_layers=2, encoder_ffn_dim=37, encoder_attention_heads=2, head_dim=16, d_model=W
    )
    return LDMBertModel(config).eval()


def _plain(cls: str, scheduler: str, call: Any = _decoded, branches: int = 1, **more: Any) -> PipelineCase:
    """A UNet and a scheduler; ``more`` are arguments of the call."""
    arguments = lambda: {name: value() if callable(value) else value for name, value in more.items()}  # noqa: E731
    build = _of(cls, unet=_pixels(), scheduler=_scheduler(scheduler), vqvae=_vq)
    return PipelineCase(cls, build, arguments, ("unet",), branches, call)


FIRST = [
    _plain("DDPMPipeline", "DDPMScheduler"),
    _plain("DDIMPipeline", "DDIMScheduler"),
    _plain("PNDMPipeline", "PNDMScheduler"),
    _plain("ConsistencyModelPipeline", "CMStochasticIterativeScheduler", _tensor),
    _plain("LDMPipeline", "DDIMScheduler"),
    PipelineCase(
        "LDMSuperResolutionPipeline",
        _of(
            "LDMSuperResolutionPipeline", unet=_pixels(in_channels=6), scheduler=_scheduler("DDIMScheduler"), vqvae=_vq
        ),
        lambda: {"image": _picture(32, 32)},
        ("unet",),
        call=_tensor,
    ),
    PipelineCase(
        "LDMTextToImagePipeline",
        _from(_sd, "LDMTextToImagePipeline", vqvae=partial(_kl, 4, 4), bert=_bert),
        lambda: {"prompt": PROMPT, "guidance_scale": 4.0},
        ("unet",),
        call=_tensor,
    ),
    _plain(
        "RePaintPipeline",
        "RePaintScheduler",
        image=partial(_picture, 32, 32),
        mask_image=lambda: _mask().resize((32, 32)),
        jump_length=2,
        jump_n_sample=2,
    ),
    _plain("ScoreSdeVePipeline", "ScoreSdeVeScheduler", branches=2),
    _plain("KarrasVePipeline", "KarrasVeScheduler", branches=2),
]


def _unidiffuser() -> Any:
    def text_decoder() -> Any:
        from diffusers.pipelines.deprecated.unidiffuser import UniDiffuserTextDecoder

        torch.manual_seed(7)
        sizes = {"vocab_size": 400, "n_positions": 128, "n_embd": W, "n_layer": 2, "n_head": 2}
        return UniDiffuserTextDecoder(prefix_length=77, prefix_inner_dim=W, prefix_hidden_dim=W, **sizes).eval()

    def unet() -> Any:
        from diffusers.pipelines.deprecated.unidiffuser import UniDiffuserModel

        torch.manual_seed(7)
        sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 4, "norm_num_groups": 4}
        picture = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4}
        return _live(UniDiffuserModel(text_dim=W, clip_img_dim=W, activation_fn="gelu", **sizes, **picture))

    return _from(
        _sd,
        "UniDiffuserPipeline",
        image_encoder=_vision,
        clip_image_processor=_processor,
        clip_tokenizer=text.tokenizer,
        text_decoder=text_decoder,
        text_tokenizer=text.tokenizer,
        unet=unet,
    )()


def _vq_diffusion() -> Any:
    def transformer() -> Any:
        return _seeded(
            "Transformer2DModel",
            live=True,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            sample_size=8,
            num_vector_embeds=13,
            num_embeds_ada_norm=100,
            cross_attention_dim=W,
            norm_num_groups=4,
            activation_fn="geglu-approximate",
            attention_bias=True,
        )

    def unprompted() -> Any:
        from diffusers.pipelines.deprecated.vq_diffusion.pipeline_vq_diffusion import (
            LearnedClassifierFreeSamplingEmbeddings,
        )

        return LearnedClassifierFreeSamplingEmbeddings(learnable=False)

    return _of(
        "VQDiffusionPipeline",
        vqvae=_vq,
        text_encoder=text.clip,
        tokenizer=text.tokenizer,
        transformer=transformer,
        scheduler=_scheduler("VQDiffusionScheduler", num_vec_classes=13),
        learned_classifier_free_sampling_embeddings=unprompted,
    )()


OTHERS = [
    PipelineCase("UniDiffuserPipeline", _unidiffuser, lambda: {"prompt": PROMPT, **_size}, ("unet",), branches=2),
    PipelineCase("VQDiffusionPipeline", _vq_diffusion, lambda: {"prompt": PROMPT}, call=_decoded),
]

CASES: list[PipelineCase] = [*IF, *KANDINSKY, *UNCLIP, *SHAP_E, *MARIGOLD, *FIRST, *OTHERS]
_ONNX = "its denoiser is a session of ONNX Runtime, no torch module"
LEFT_OUT: dict[str, str] = {
    "OnnxStableDiffusionPipeline": _ONNX,
    "StableDiffusionOnnxPipeline": _ONNX,
    "OnnxStableDiffusionImg2ImgPipeline": _ONNX,
    "OnnxStableDiffusionInpaintPipeline": _ONNX,
    "OnnxStableDiffusionUpscalePipeline": _ONNX,
    "OnnxStableDiffusionInpaintPipelineLegacy": "diffusers 0.42 fails itself: its modules have no such name",
}
