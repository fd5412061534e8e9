"""Pipelines in two stages or with tokens as latents, and those that make sound or proteins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.pipelines import text
from tests.pipelines.cases import (
    PROMPT,
    PipelineCase,
    _guided,
    _kl,
    _live,
    _picture,
)
from tests.pipelines.images_text import _decoded, _negative, _noise, _vq


def _cascade_unet(seed: int, **more: Any) -> Any:
    import diffusers

    torch.manual_seed(seed)
    return _live(
        diffusers.StableCascadeUNet(
            in_channels=4,
            out_channels=4,
            timestep_ratio_embedding_dim=16,
            conditioning_dim=32,
            block_out_channels=(32, 32),
            num_attention_heads=(2, 2),
            down_num_layers_per_block=(2, 2),
            up_num_layers_per_block=(2, 2),
            clip_text_pooled_in_channels=text.WIDTH,
            **more,
        ),
        seed,
    )


def _cascade_prior() -> Any:
    return _cascade_unet(0, clip_text_in_channels=text.WIDTH, clip_image_in_channels=text.WIDTH, switch_level=(False,))


def _cascade_decoder() -> Any:
    blocks = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    return _cascade_unet(
        1,
        patch_size=2,
        effnet_in_channels=4,
        block_types_per_layer=(blocks, (*blocks, "SDCascadeAttnBlock")),
        timestep_conditioning_type=("sca",),
    )


def _wuerstchen_prior() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenPrior

    torch.manual_seed(0)
    return _live(WuerstchenPrior(c_in=4, c=32, c_cond=text.WIDTH, c_r=16, depth=2, nhead=2))


def _wuerstchen_decoder() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import WuerstchenDiffNeXt

    torch.manual_seed(1)
    model = WuerstchenDiffNeXt(
        c_r=16,
        c_cond=32,
        c_hidden=[16, 32],
        nhead=[-1, 2],
        blocks=[2, 2],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=4,
        clip_embd=text.WIDTH,
    )
    return _live(model, 1)


def _paella() -> Any:
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    torch.manual_seed(5)
    return PaellaVQModel(bottleneck_blocks=1, embed_dim=8, num_vq_embeddings=16).eval()


def _two_stages(cls: str, prior: Callable[[], Any], decoder: Callable[[], Any], projected: bool) -> Callable[[], Any]:
    """Stable Cascade and Würstchen: a prior makes what a decoder is given; some classes are only one of them."""

    def build() -> Any:
        import diffusers

        parts = {
            "tokenizer": text.tokenizer(),
            "text_encoder": text.clip(projected),
            "scheduler": diffusers.DDPMWuerstchenScheduler(),
        }
        first = {("prior_" if "Combined" in cls else "") + name: part for name, part in parts.items()}
        second = {**parts, "decoder": decoder(), "vqgan": _paella()}
        if cls.endswith("PriorPipeline"):
            return getattr(diffusers, cls)(**first, prior=prior())
        if cls.endswith("DecoderPipeline"):
            return getattr(diffusers, cls)(**second)
        return getattr(diffusers, cls)(**first, prior_prior=prior(), **second)

    return build


def _both(pipeline: Any, num_inference_steps: int, **arguments: Any) -> Any:
    steps = {"prior_num_inference_steps": num_inference_steps, "num_inference_steps": num_inference_steps}
    return pipeline(**arguments, **steps, output_type="latent")[0]


def _stages(family: str, prior: Callable[[], Any], decoder: Callable[[], Any], projected: bool) -> list[PipelineCase]:
    def built(part: str) -> Callable[[], Any]:
        return _two_stages(f"{family}{part}Pipeline", prior, decoder, projected)

    # the prior makes 3x3 tokens of 128 pixels, the decoder 32x32 latents of 3x3 tokens
    return [
        PipelineCase(f"{family}PriorPipeline", built("Prior"), _guided(height=128, width=128), denoisers=("prior",)),
        PipelineCase(
            f"{family}DecoderPipeline",
            built("Decoder"),
            lambda: {"prompt": PROMPT, "image_embeddings": _noise(1, 4, 3, 3)},
            denoisers=("decoder",),
        ),
        PipelineCase(
            f"{family}CombinedPipeline",
            built("Combined"),
            _guided(height=128, width=128),
            denoisers=("prior_prior", "decoder"),
            call=_both,
        ),
    ]


def _amused(cls: str) -> Callable[[], Any]:
    def build() -> Any:
        import diffusers

        torch.manual_seed(0)
        transformer = diffusers.UVit2DModel(
            hidden_size=32,
            cond_embed_dim=text.WIDTH,
            micro_cond_encode_dim=8,
            micro_cond_embed_dim=40,
            encoder_hidden_size=text.WIDTH,
            vocab_size=65,
            codebook_size=64,
            in_channels=32,
            block_out_channels=32,
            num_res_blocks=1,
            block_num_heads=2,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            sample_size=8,
        )
        return getattr(diffusers, cls)(
            vqvae=_vq(2, 8, 64),
            tokenizer=text.tokenizer(),
            text_encoder=text.clip(projected=True),
            transformer=_live(transformer),
            scheduler=diffusers.AmusedScheduler(mask_token_id=64),
        )

    return build


def _oobleck(channels: int) -> Any:
    import diffusers

    torch.manual_seed(5)
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 2],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=channels,
        sampling_rate=32,
    ).eval()


def _ace() -> Any:
    import diffusers

    torch.manual_seed(0)
    width = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 16,
    }
    transformer = diffusers.AceStepTransformer1DModel(
        num_hidden_layers=2, in_channels=24, audio_acoustic_hidden_dim=8, **width
    )
    conditions = diffusers.AceStepConditionEncoder(
        text_hidden_dim=text.WIDTH,
        timbre_hidden_dim=8,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        **width,
    )
    return diffusers.AceStepPipeline(
        vae=_oobleck(8),
        text_encoder=text.llama(),
        tokenizer=text.tokenizer(),
        transformer=_live(transformer),
        condition_encoder=_live(conditions),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1),
    )


def _stable_audio() -> Any:
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.StableAudioDiTModel(
        sample_size=15,
        in_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=16,
        global_states_input_dim=32,
        cross_attention_input_dim=16,
    )
    projection = diffusers.StableAudioProjectionModel(
        text_encoder_dim=text.WIDTH, conditioning_dim=16, min_value=0, max_value=32
    )
    return diffusers.StableAudioPipeline(
        vae=_oobleck(4),
        text_encoder=text.t5(),
        projection_model=projection.eval(),
        tokenizer=text.tokenizer(),
        transformer=_live(transformer),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(
            solver_order=2, sigma_data=1.0, sigma_schedule="exponential"
        ),
    )


def _stable_audio3(cls: str, distilled: bool) -> Callable[[], Any]:
    def build() -> Any:
        import diffusers

        torch.manual_seed(0)
        transformer = diffusers.StableAudio3DiTModel(
            io_channels=4,
            embed_dim=32,
            depth=2,
            num_heads=2,
            cond_token_dim=text.WIDTH,
            global_cond_dim=text.WIDTH,
            local_add_cond_dim=5,
            timestep_features_dim=16,
            ff_mult=2,
            num_memory_tokens=3,
        )
        vae = diffusers.AutoencoderSAME(
            patch_size=4,
            encoder_channels=16,
            encoder_c_mults=[1],
            encoder_strides=[2],
            encoder_transformer_depths=[1],
            latent_dim=4,
            dim_heads=8,
            sampling_rate=32,
        )
        return getattr(diffusers, cls)(
            vae=vae.eval(),
            text_encoder=text.t5(),
            tokenizer=text.tokenizer(),
            duration_embedder=diffusers.StableAudio3DurationEmbedder(output_dim=text.WIDTH, fourier_dim=16).eval(),
            transformer=_live(transformer),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, stochastic_sampling=distilled),
        )

    return build


def _longcat() -> Any:
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.LongCatAudioDiTTransformer(
        dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=text.WIDTH, latent_dim=4, text_conv=False
    )
    vae = diffusers.LongCatAudioDiTVae(
        channels=8,
        c_mults=[1, 1],
        strides=[2],
        latent_dim=4,
        encoder_latent_dim=8,
        downsampling_ratio=2,
        sample_rate=16,
    )
    return diffusers.LongCatAudioDiTPipeline(
        vae=vae.eval(),
        text_encoder=text.umt5(),
        tokenizer=text.tokenizer(),
        transformer=_live(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True),
    )


def _vocoder() -> Any:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(8)
    config = SpeechT5HifiGanConfig(
        model_in_dim=8,
        upsample_initial_channel=16,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
    )
    return SpeechT5HifiGan(config).eval()


def _clap(whole: bool) -> Any:
    from transformers import ClapConfig, ClapModel, ClapTextConfig, ClapTextModelWithProjection

    written = {
        "vocab_size": 400,
        "hidden_size": text.WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 37,
        "projection_dim": text.WIDTH,
        "pad_token_id": 2,
    }
    heard = {
        "hidden_size": 32,
        "patch_embeds_hidden_size": 8,
        "depths": [1],
        "num_attention_heads": [2],
        "spec_size": 64,
        "window_size": 4,
        "num_mel_bins": 16,
        "projection_dim": text.WIDTH,
    }
    torch.manual_seed(1)
    if whole:
        return ClapModel(ClapConfig(text_config=written, audio_config=heard, projection_dim=text.WIDTH)).eval()
    return ClapTextModelWithProjection(ClapTextConfig(**written)).eval()


def _spectrogram_unet(cls: type, **more: Any) -> Any:
    torch.manual_seed(0)
    return _live(
        cls(
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            **more,
        )
    )


def _spectrograms() -> dict[str, Any]:
    import diffusers

    vae = _kl(4, 2)
    return {
        "vae": type(vae).from_config(vae.config, in_channels=1, out_channels=1).eval(),
        "tokenizer": text.tokenizer(),
        "scheduler": diffusers.DDIMScheduler(),
        "vocoder": _vocoder(),
    }


def _ldm_unet() -> Any:
    import diffusers

    return _spectrogram_unet(
        diffusers.UNet2DConditionModel,
        cross_attention_dim=(8, 16),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=text.WIDTH,
        class_embeddings_concat=True,
    )


def _audioldm() -> Any:
    import diffusers

    return diffusers.AudioLDMPipeline(**_spectrograms(), text_encoder=_clap(False), unet=_ldm_unet())


def _musicldm() -> Any:
    import diffusers

    return diffusers.MusicLDMPipeline(
        **_spectrograms(), text_encoder=_clap(True), feature_extractor=None, unet=_ldm_unet()
    )


def _audioldm2() -> Any:
    import diffusers
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    language = GPT2Config(vocab_size=400, n_embd=text.WIDTH, n_layer=1, n_head=2, n_positions=64)
    width = (None, text.WIDTH, text.WIDTH)  # itself, what the language model says, and the prompt
    return diffusers.AudioLDM2Pipeline(
        **_spectrograms(),
        text_encoder=_clap(True),
        text_encoder_2=text.t5(),
        tokenizer_2=text.tokenizer(),
        projection_model=diffusers.AudioLDM2ProjectionModel(text.WIDTH, text.WIDTH, text.WIDTH).eval(),
        language_model=GPT2LMHeadModel(language).eval(),
        feature_extractor=None,
        unet=_spectrogram_unet(diffusers.AudioLDM2UNet2DConditionModel, cross_attention_dim=(width, width)),
    )


def _musicldm_arguments() -> dict[str, Any]:
    """With a prompt diffusers 0.42 fails, as transformers 5 returns the features of a text in another form."""
    embeds = {"prompt_embeds": _noise(1, text.WIDTH), "negative_prompt_embeds": _noise(1, text.WIDTH, seed=7)}
    return {"audio_length_in_s": 0.004, **embeds}


def _audioldm2_arguments() -> dict[str, Any]:
    arguments: dict[str, Any] = {"audio_length_in_s": 0.004}
    for prefix, seed in ("", 6), ("negative_", 7):
        arguments[f"{prefix}prompt_embeds"] = _noise(1, 7, text.WIDTH, seed=seed)
        arguments[f"{prefix}attention_mask"] = torch.ones(1, 7, dtype=torch.long)
        arguments[f"{prefix}generated_prompt_embeds"] = _noise(1, 8, text.WIDTH, seed=seed + 2)
    return arguments


def _dance() -> Any:
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet1DModel(sample_size=64, sample_rate=64, extra_in_channels=64, block_out_channels=(32, 32, 32))
    return diffusers.DanceDiffusionPipeline(unet=_live(unet), scheduler=diffusers.IPNDMScheduler())


def _dance_call(pipeline: Any, **arguments: Any) -> Any:
    return torch.from_numpy(pipeline(**arguments)[0])


def _proteina() -> Any:
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.RFD4ProteinaTransformer(
        nlayers=2,
        token_dim=32,
        nheads=2,
        dim_cond=16,
        pair_repr_dim=16,
        latent_dim=4,
        token_type_emb_dim=8,
        cath_emb_dim=8,
        t_emb_dim=16,
        seq_sep_dim=8,
        xt_pair_dist_dim=8,
        tri_mult_c=16,
        feats_seq=("xt_bb_ca", "xt_local_latents"),
        feats_cond_seq=("time_emb_bb_ca", "time_emb_local_latents"),
        feats_pair_repr=("xt_bb_ca_pair_dists",),
        num_sequence_classes=5,
    )
    vae = diffusers.RFD4ProteinaAutoencoder(
        atom37_mask=[[True] * 37] * 5,
        allowed_residue_types=[[True] * 5] * 2,
        latent_dim=4,
        n_residue_types=5,
        num_token_types=2,
        nlayers=1,
        token_dim=32,
        nheads=2,
        dim_cond=16,
        pair_repr_dim=16,
        token_type_emb_dim=8,
        encoder_feats_seq=("x1_a37coors_nm",),
        decoder_feats_seq=("ca_coors_nm", "z_latent_seq"),
    )
    return diffusers.RFD4ProteinaPipeline(
        transformer=_live(transformer),
        vae=_live(vae),
        bb_ca_scheduler=diffusers.RFD4ProteinaScheduler("log", "1/t", 1.0, 1.0, tail_steps=2),
        local_latents_scheduler=diffusers.RFD4ProteinaScheduler("power", "tan", 1.0, 1.0, tail_steps=2),
    )


def _proteina_arguments() -> dict[str, Any]:
    tokens = torch.ones(1, 8, dtype=torch.bool)
    return {
        "padding_mask": tokens,
        "is_in_context_conditioning": ~tokens,
        "supports_local_latent": tokens,
        "conditioning_features": {
            "condition_sequence_1_residue": torch.zeros(1, 8, dtype=torch.long),
            "molecule_iid": torch.zeros(1, 8, dtype=torch.long),
        },
    }


def _proteina_call(pipeline: Any, num_inference_steps: int, **arguments: Any) -> Any:
    """Its steps are the entries of its list of recycling depths."""
    pipeline.register_to_config(recycle_depths=[1] * num_inference_steps)
    output = pipeline(**arguments)
    return torch.cat([output.bb_ca, output.local_latents], dim=-1)


CASES: list[PipelineCase] = [
    *_stages("StableCascade", _cascade_prior, _cascade_decoder, projected=True),
    *_stages("Wuerstchen", _wuerstchen_prior, _wuerstchen_decoder, projected=False),
    PipelineCase("AmusedPipeline", _amused("AmusedPipeline"), _guided()),
    PipelineCase(
        "AmusedImg2ImgPipeline",
        _amused("AmusedImg2ImgPipeline"),
        _negative(image=_picture, strength=0.75),
    ),
    PipelineCase(
        "AmusedInpaintPipeline",
        _amused("AmusedInpaintPipeline"),
        _negative(image=_picture, mask_image=_picture, strength=0.75),
    ),
    PipelineCase(
        "AceStepPipeline",
        _ace,
        lambda: {"prompt": PROMPT, "lyrics": "snow and a cat", "audio_duration": 2.0, "guidance_scale": 4.0},
    ),
    PipelineCase("StableAudioPipeline", _stable_audio, _negative()),
    PipelineCase(
        "StableAudio3Pipeline",
        _stable_audio3("StableAudio3Pipeline", False),
        _negative(duration=4.0, guidance_scale=4.0),
    ),
    PipelineCase(
        "StableAudio3AudioToAudioPipeline",
        _stable_audio3("StableAudio3AudioToAudioPipeline", True),
        lambda: {"prompt": PROMPT, "duration": 4.0, "audio": _noise(1, 2, 128), "init_noise_level": 0.75},
    ),
    PipelineCase(
        "StableAudio3InpaintPipeline",
        _stable_audio3("StableAudio3InpaintPipeline", True),
        lambda: {
            "prompt": PROMPT,
            "duration": 4.0,
            "audio": _noise(1, 2, 128),
            "mask_start_seconds": 1.0,
            "mask_end_seconds": 3.0,
        },
    ),
    PipelineCase("LongCatAudioDiTPipeline", _longcat, _negative(audio_duration_s=1.0), branches=2),
    PipelineCase("AudioLDM2Pipeline", _audioldm2, _audioldm2_arguments, denoisers=("unet",)),
    PipelineCase("AudioLDMPipeline", _audioldm, _negative(audio_length_in_s=0.004), denoisers=("unet",), call=_decoded),
    PipelineCase(
        "MusicLDMPipeline",
        _musicldm,
        _musicldm_arguments,
        denoisers=("unet",),
    ),
    PipelineCase("DanceDiffusionPipeline", _dance, dict, denoisers=("unet",), call=_dance_call),
    PipelineCase("RFD4ProteinaPipeline", _proteina, _proteina_arguments, call=_proteina_call),
]

LEFT_OUT: dict[str, str] = {
    "SpectrogramDiffusionPipeline": "needs package note_seq, which is not installed",
    "AudioDiffusionPipeline": "needs package librosa, which is not installed",
    "LLaDA2Pipeline": "language model that fills in tokens: it is called without a time",
    "DiffusionGemmaPipeline": "language model that fills in tokens: it is called without a time",
}
