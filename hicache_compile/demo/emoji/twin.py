"""The few-step twin: ``python -m hicache_compile.demo.emoji.twin OUT`` writes its transformer to ``OUT/twin``.

Reflow (Liu et al., 2209.03003, section 2.2): the model draws pictures with guidance in many steps, and a copy of its
transformer learns the straight line from each noise to the picture that came of it. So 8 or 4 steps of Euler suffice,
without guidance. Text encoders and autoencoder stay what they are.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch.nn import functional

from hicache_compile import HiCache, Policy, hicache_compile
from hicache_compile.demo.emoji import GUIDANCE, SIZE, STEPS, TOKENS, train
from hicache_compile.demo.emoji.captions import Subject
from hicache_compile.demo.emoji.drawing import load_pipeline
from hicache_compile.demo.emoji.flow import BATCH, GRID
from hicache_compile.demo.training import LossOf, Plan
from hicache_compile.demo.training import train as train_by
from hicache_compile.policy.files import write_whole
from hicache_compile.policy.progress import progress, script

TIMES = 8  # the twin learns the times of 8 steps, of which those of 4, 2 and 1 are a part
SHARD = 32  # pairs of one file
POLICY = HiCache(interval=2)  # of the pairs: half the time, and closer to the uncached picture than a twin comes


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


@dataclass(frozen=True, slots=True)
class Pairs:
    """What the twin learns from: ``noise`` and ``clean`` ``[N, 64, 32]`` and the text of each, as FLUX is given it.

    ``pooled`` is ``[N, WIDTH]``, ``words`` ``[N, TOKENS, WIDTH]``, ``text_ids`` ``[TOKENS, 3]``, ``image_ids``
    ``[64, 3]``.
    """

    noise: torch.Tensor
    clean: torch.Tensor
    pooled: torch.Tensor
    words: torch.Tensor
    text_ids: torch.Tensor
    image_ids: torch.Tensor


@torch.no_grad()
def read_pairs(pipeline: FluxPipeline, subjects: Sequence[Subject], folder: Path) -> Pairs:
    """All pairs in ``folder``, with their captions as the text encoders of ``pipeline`` write them."""
    paths = sorted(folder.glob("*.safetensors"))
    shards = [load_file(path) for path in paths]
    noise, clean = (torch.cat([shard[name] for shard in shards]).float() for name in ("noise", "clean"))
    captions = [caption for path in paths for caption in captions_of(int(path.stem), subjects)]
    words, pooled, text_ids = pipeline.encode_prompt(captions, None, max_sequence_length=TOKENS)
    rows = torch.arange(GRID, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(rows, rows, indexing="ij"), dim=-1).reshape(-1, 2)
    return Pairs(noise, clean, pooled, words, text_ids, functional.pad(grid, (1, 0)))


def twin_loss(pairs: Pairs) -> LossOf[FluxTransformer2DModel]:
    """The loss of a batch of ``pairs`` at the times of ``TIMES`` steps."""

    def loss(model: Callable[..., tuple[torch.Tensor]], generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(pairs.noise), (BATCH,), generator=generator)
        time = torch.randint(1, TIMES + 1, (BATCH,), generator=generator) / TIMES
        start, end = pairs.noise[chosen], pairs.clean[chosen]
        velocity = model(
            hidden_states=torch.lerp(end, start, time[:, None, None]),
            timestep=time,
            encoder_hidden_states=pairs.words[chosen],
            pooled_projections=pairs.pooled[chosen],
            txt_ids=pairs.text_ids,
            img_ids=pairs.image_ids,
            return_dict=False,
        )[0]
        return functional.mse_loss(velocity, start - end)

    return loss


def make(out: Path, shards: int, plan: Plan, compiled: bool, policy: Policy = POLICY) -> None:
    """Draw the pairs with ``policy``, train the twin on them and write it to ``out/twin``, in fp16."""
    subjects, _ = train.shown_icons(out)
    pipeline = load_pipeline()
    twin: FluxTransformer2DModel = copy.deepcopy(pipeline.transformer)
    make_pairs(hicache_compile(pipeline, policy), subjects, shards, out / "pairs")
    pairs = read_pairs(pipeline, subjects, out / "pairs")
    if compiled:
        twin.compile()
    twin = train_by(twin.train().requires_grad_(True), twin_loss(pairs), plan, out / "twin.pt")
    twin.register_to_config(_name_or_path="")  # the place of this clone
    twin.half().save_pretrained(out / "twin")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=int, default=100, help=f"of {SHARD} pairs")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compiled", action="store_true", help="compile the transformer: minutes first, then faster")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with script():
        make(given.out, given.shards, Plan(given.steps, rate=5e-4), given.compiled)


if __name__ == "__main__":
    main()
