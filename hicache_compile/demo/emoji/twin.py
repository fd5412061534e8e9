"""The few-step twin: ``python -m hicache_compile.demo.emoji.twin OUT``, after ``train``; writes ``OUT/twin``.

Reflow (Liu et al., 2209.03003, section 2.2): the model draws pictures with guidance in many steps, and a copy of it
learns the straight line from each noise to the picture that came of it. So 8 or 4 steps of Euler suffice, without
guidance.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from torch.nn import functional

from hicache_compile.demo.emoji import GUIDANCE, SIZE, STEPS, TOKENS, train
from hicache_compile.demo.emoji.captions import Subject
from hicache_compile.demo.emoji.flow import BATCH, GRID, TextToPicture
from hicache_compile.demo.emoji.pipeline import assemble, save
from hicache_compile.demo.training import LossOf, Plan
from hicache_compile.demo.training import train as train_by
from hicache_compile.policy.files import write_whole
from hicache_compile.policy.progress import progress, script

TIMES = 8  # the twin learns the times of 8 steps, of which those of 4, 2 and 1 are a part
SHARD = 32  # pairs of one file


def captions_of(shard: int, subjects: Sequence[Subject]) -> list[str]:
    """The ``SHARD`` captions of a file of pairs: always the same ones."""
    random = Random(shard)
    return [random.choice(subjects).caption(random.random() < 0.3, random.random() < 0.85) for _ in range(SHARD)]


@torch.no_grad()
def make_pairs(pipeline: FluxPipeline, subjects: Sequence[Subject], shards: int, out: Path, steps: int = STEPS) -> None:
    """Write ``shards`` files to ``out``: ``noise`` and what came of it, ``clean``: float16 tokens ``[SHARD, 64, 32]``.

    A file that is there is left as it is.
    """
    out.mkdir(parents=True, exist_ok=True)
    pipeline.set_progress_bar_config(disable=True)
    for shard in progress(range(shards), what="pairs", unit="shard"):
        path = out / f"{shard:05}.safetensors"
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(shard)
        noise = torch.randn(SHARD, GRID * GRID, pipeline.transformer.config.in_channels, generator=generator)
        clean = pipeline(
            captions_of(shard, subjects),
            negative_prompt=[""] * SHARD,
            true_cfg_scale=GUIDANCE,
            num_inference_steps=steps,
            height=SIZE,
            width=SIZE,
            max_sequence_length=TOKENS,
            latents=noise,
            output_type="latent",
        ).images
        pairs = {"noise": noise.half(), "clean": clean.half()}
        write_whole(path, functools.partial(save_file, pairs))


def twin_loss(noise: torch.Tensor, clean: torch.Tensor, captions: Sequence[str]) -> LossOf[TextToPicture]:
    """The loss of a batch of pairs ``noise`` and ``clean``, ``[N, 64, 32]`` each, at the times of ``TIMES`` steps."""

    def loss(model: TextToPicture, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(noise), (BATCH,), generator=generator)
        time = torch.randint(1, TIMES + 1, (BATCH,), generator=generator) / TIMES
        start, end = noise[chosen].float(), clean[chosen].float()
        velocity = model(torch.lerp(end, start, time[:, None, None]), time, [captions[index] for index in chosen])
        return functional.mse_loss(velocity, start - end)

    return loss


def train_twin(model: TextToPicture, subjects: Sequence[Subject], plan: Plan, out: Path) -> TextToPicture:
    """Train ``model`` on all pairs in ``out/pairs``."""
    paths = sorted((out / "pairs").glob("*.safetensors"))
    pairs = [load_file(path) for path in paths]
    noise, clean = (torch.cat([pair[name] for pair in pairs]) for name in ("noise", "clean"))
    captions = [caption for path in paths for caption in captions_of(int(path.stem), subjects)]
    return train_by(model, twin_loss(noise, clean, captions), plan, out / "twin.pt")


def make(out: Path, shards: int, plan: Plan, compiled: bool) -> None:
    """Make the pairs, train the twin on them and write it to ``out/twin``."""
    subjects, _ = train.shown_icons(out)
    teacher, autoencoder = train.load(out)
    make_pairs(assemble(teacher, autoencoder), subjects, shards, out / "pairs")
    if compiled:
        teacher.transformer.compile()
    twin = train_twin(teacher.requires_grad_(True), subjects, plan, out)
    save(assemble(twin, autoencoder), out / "twin")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=int, default=250, help=f"of {SHARD} pairs")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compiled", action="store_true", help="compile the transformer: minutes first, then faster")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with script():
        make(given.out, given.shards, Plan(given.steps, rate=5e-4), given.compiled)


if __name__ == "__main__":
    main()
