"""Make the emoji model: ``python -m hicache_compile.demo.emoji.train OUT``.

The icons, the autoencoder, the flow with its text encoders, and ``OUT/pipeline``, a ``FluxPipeline`` folder in fp16.
Every stage is skipped if it is done and taken up again where it was killed; with a larger ``--steps`` the flow goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderTiny

from hicache_compile.demo.emoji import icons
from hicache_compile.demo.emoji.autoencoder import encode, new_autoencoder, train_autoencoder
from hicache_compile.demo.emoji.captions import Subject, every_caption
from hicache_compile.demo.emoji.flow import TextToPicture, train_flow
from hicache_compile.demo.emoji.pipeline import assemble, save
from hicache_compile.demo.training import Plan, load_average
from hicache_compile.policy.progress import script


def shown_icons(out: Path) -> tuple[list[Subject], torch.Tensor]:
    """The subjects that are not held out and their pictures, uint8 ``[N, 3, 64, 64]``; fetched if not in ``out``."""
    if not (out / "icons.safetensors").exists():
        icons.make(out)
    subjects, pictures = icons.load(out / "icons.safetensors")
    shown = [index for index, subject in enumerate(subjects) if not subject.held_out]
    return [subjects[index] for index in shown], pictures[shown]


def train(out: Path, steps: int, autoencoder_steps: int, compiled: bool) -> tuple[TextToPicture, AutoencoderTiny]:
    """Train the models on all pairs that are not held out, with their checkpoints in ``out``."""
    subjects, pictures = shown_icons(out)
    autoencoder = train_autoencoder(pictures, Plan(autoencoder_steps, rate=2e-3), out)
    plan = Plan(steps, rate=1e-3, average=0.9995)
    torch.manual_seed(plan.seed)
    model = TextToPicture(every_caption(subjects), compiled)
    return train_flow(model, encode(autoencoder, pictures), subjects, plan, out), autoencoder


def load(out: Path) -> tuple[TextToPicture, AutoencoderTiny]:
    """The models as far as they were trained in ``out``; the training may be going on."""
    model = TextToPicture(every_caption(shown_icons(out)[0]))
    return load_average(model, out / "flow.pt"), load_average(new_autoencoder(), out / "autoencoder.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40000, help="of the flow")
    parser.add_argument("--autoencoder-steps", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compiled", action="store_true", help="compile the transformer: minutes first, then faster")
    parser.add_argument("--write-only", action="store_true", help="write the folder of what is trained so far")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with script():
        if not given.write_only:
            train(given.out, given.steps, given.autoencoder_steps, given.compiled)
        save(assemble(*load(given.out)), given.out / "pipeline")


if __name__ == "__main__":
    main()
