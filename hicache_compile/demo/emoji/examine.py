"""Look at a model and have it judged: ``python -m hicache_compile.demo.emoji.examine FOLDER OUT``.

``FOLDER`` is a ``FluxPipeline`` folder, ``OUT`` the folder that it was trained in, with the icons. One picture is drawn
of each held-out pair and of as many pairs that the model was trained on; ``OUT/held_out.png`` and ``OUT/shown.png``
show each below the real picture.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FluxPipeline

from hicache_compile.demo.emoji import GUIDANCE, STEPS, icons
from hicache_compile.demo.emoji.captions import Subject
from hicache_compile.demo.emoji.judge import Hits, Judge, names_of, read, train_judge
from hicache_compile.demo.emoji.pipeline import draw
from hicache_compile.demo.training import Plan
from hicache_compile.policy.progress import script

JUDGE_STEPS = 4000
AT_ONCE = 16  # pictures of one call
COLUMNS = 20
FIRST = (1, 5)


def choose(subjects: Sequence[Subject], held_out: bool, count: int | None = None) -> list[int]:
    """The indices of ``count`` held-out or shown ``subjects``, evenly spread; of all of them without a count."""
    found = [index for index, subject in enumerate(subjects) if subject.held_out == held_out]
    return found if count is None else [found[index * len(found) // count] for index in range(min(count, len(found)))]


def draw_all(
    pipeline: FluxPipeline, subjects: Sequence[Subject], steps: int, guidance: float, seed: int
) -> torch.Tensor:
    """One picture, uint8 ``[N, 3, 64, 64]``, of the caption of each of ``subjects``."""
    captions = [subject.caption() for subject in subjects]
    parts = [captions[start : start + AT_ONCE] for start in range(0, len(captions), AT_ONCE)]
    return torch.cat([draw(pipeline, part, steps, guidance, seed + number) for number, part in enumerate(parts)])


def score(judge: Judge, names: Sequence[str], subjects: Sequence[Subject], pictures: torch.Tensor) -> dict[int, Hits]:
    """The top-1 and top-5 of ``pictures``, uint8 ``[N, 3, 64, 64]``, of ``subjects``, for a judge of ``names``."""
    labels = torch.tensor([names.index(subject.name) for subject in subjects])
    return {first: read(judge, pictures, labels, first) for first in FIRST}


def save_sheet(rows: Sequence[torch.Tensor], path: Path) -> None:
    """Write pictures, ``rows`` of uint8 ``[N, 3, 64, 64]``, as a PNG of ``COLUMNS``: the first of each row together."""
    from PIL import Image

    blocks = zip(*(row.split(COLUMNS) for row in rows), strict=True)
    lines = [torch.cat(list(line), dim=2) for block in blocks for line in block]
    width = max(line.shape[2] for line in lines)
    padded = [torch.nn.functional.pad(line, (0, width - line.shape[2]), value=255) for line in lines]
    Image.fromarray(torch.cat(padded, dim=1).permute(1, 2, 0).numpy()).save(path)


def examine(
    pipeline: FluxPipeline, out: Path, steps: int, guidance: float, seed: int, count: int | None
) -> list[dict[str, object]]:
    """A row, as plain data, of the real pictures, of the held-out pairs and of pairs that were shown."""
    subjects, pictures = icons.load(out / "icons.safetensors")
    judge = train_judge(subjects, pictures, Plan(JUDGE_STEPS, rate=3e-3), out)
    names = names_of(subjects)
    held_out = choose(subjects, True, count)
    chosen = {"held_out": held_out, "shown": choose(subjects, False, len(held_out))}
    rows = [_row("real", score(judge, names, subjects, pictures))]
    for group, indices in chosen.items():
        wanted = [subjects[index] for index in indices]
        drawn = draw_all(pipeline, wanted, steps, guidance, seed)
        save_sheet([pictures[indices], drawn], out / f"{group}.png")
        rows.append(_row(group, score(judge, names, wanted, drawn)))
    return rows


def _row(group: str, hits: dict[int, Hits]) -> dict[str, object]:
    return {"pictures": group, **{f"top-{first}": str(found) for first, found in hits.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="pairs of each group; default: all that are held out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with script():
        pipeline = FluxPipeline.from_pretrained(given.folder)
        for row in examine(pipeline, given.out, given.steps, given.guidance, given.seed, given.count):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
