"""The trained parts as a ``FluxPipeline``: a folder in fp16 that plain diffusers loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler, FluxPipeline

from hicache_compile.demo.emoji import GUIDANCE, SIZE, STEPS, TOKENS
from hicache_compile.demo.emoji.flow import TextToPicture


def assemble(model: TextToPicture, autoencoder: AutoencoderTiny) -> FluxPipeline:
    """The pipeline of ``model`` and of the autoencoder that it was trained with; it shares their weights."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=autoencoder,
        text_encoder=model.text.clip,
        tokenizer=model.text.clip_tokenizer,
        text_encoder_2=model.text.t5,
        tokenizer_2=model.text.t5_tokenizer,
        transformer=model.transformer,
    )


def save(pipeline: FluxPipeline, folder: Path) -> None:
    """Write ``pipeline`` to ``folder`` in fp16, with the licences of the pictures; it is fp16 afterwards.

    Without a ``torch_dtype`` diffusers loads its models in float32, but transformers in what their config names.
    """
    pipeline.to(torch.float16).save_pretrained(folder)
    for name in ("text_encoder", "text_encoder_2"):
        path = folder / name / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
    (folder / "LICENCES.md").write_text(files("hicache_compile.demo.emoji").joinpath("LICENCES.md").read_text())


@torch.no_grad()
def draw(
    pipeline: FluxPipeline, captions: Sequence[str], steps: int = STEPS, guidance: float = GUIDANCE, seed: int = 0
) -> torch.Tensor:
    """Pictures, uint8 ``[B, 3, 64, 64]``, of ``captions``: one noise each, drawn in turn from ``seed``."""
    pipeline.set_progress_bar_config(disable=True)
    values = pipeline(
        list(captions),
        negative_prompt=[""] * len(captions),
        true_cfg_scale=guidance,
        num_inference_steps=steps,
        height=SIZE,
        width=SIZE,
        max_sequence_length=TOKENS,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).images
    return (values * 255).round().to(torch.uint8)
