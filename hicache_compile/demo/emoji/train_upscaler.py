"""Train the upscaler on the icons: ``python -m hicache_compile.demo.emoji.train_upscaler OUT``, after ``icons``.

Writes ``OUT/upscaler.safetensors`` in fp16. No picture of a name that is held out in one style is trained on.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional

from hicache_compile.demo.emoji import SIZE, icons
from hicache_compile.demo.emoji.captions import STYLES, Subject
from hicache_compile.demo.emoji.flow import draw_times
from hicache_compile.demo.emoji.upscaler import Upscaler, shrunk
from hicache_compile.demo.training import Plan, train
from hicache_compile.policy.files import write_whole
from hicache_compile.policy.progress import script

BATCH = 8
MOVED = 8  # pixels at most


def is_unseen(subject: Subject) -> bool:
    """Whether the name of ``subject`` is held out, in whatever style."""
    return any(Subject(subject.name, style).held_out for style in STYLES)


def vary(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures ``[B, 3, 64, 64]`` in [-1, 1], mirrored, moved, their colours exchanged."""
    if torch.rand((), generator=generator) < 0.5:
        values = values.flip(3)
    down, across = torch.randint(2 * MOVED + 1, (2,), generator=generator).tolist()
    padded = functional.pad(values, (MOVED,) * 4, value=1.0)
    colours = torch.randperm(3, generator=generator)
    return padded[:, colours, down : down + SIZE, across : across + SIZE]


def loss_of(model: Upscaler, clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The rectified-flow loss of ``clean`` pictures ``[B, 3, 64, 64]``, given the same four times smaller."""
    noise = torch.randn(clean.shape, generator=generator)
    time = draw_times(len(clean), generator)
    noisy = torch.lerp(clean, noise, time[:, None, None, None])
    return functional.mse_loss(model(noisy, time, shrunk(clean)), noise - clean)


def train_upscaler(subjects: Sequence[Subject], pictures: torch.Tensor, plan: Plan, out: Path) -> Upscaler:
    """Train on those of ``pictures``, uint8 ``[N, 3, 64, 64]``, whose ``subjects`` are no unseen ones."""
    shown = pictures[[not is_unseen(subject) for subject in subjects]]

    def loss(model: Upscaler, generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(shown), (BATCH,), generator=generator)
        return loss_of(model, vary(icons.to_values(shown[chosen]), generator), generator)

    torch.manual_seed(plan.seed)
    model = Upscaler()
    for layer in model.layers:  # one by one: the whole unrolls every row
        layer.compile()
    return train(model, loss, plan, out / "upscaler.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with script():
        subjects, pictures = icons.load(given.out / "icons.safetensors")
        model = train_upscaler(subjects, pictures, Plan(given.steps, rate=1e-3, average=0.9995), given.out)
        weights = {name: weight.half().contiguous() for name, weight in model.state_dict().items()}
        write_whole(given.out / "upscaler.safetensors", functools.partial(save_file, weights))


if __name__ == "__main__":
    main()
