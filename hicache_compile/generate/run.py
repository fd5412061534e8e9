"""The run: items, what is left of them, the workers that make them, what it came to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.generate.items import Item
from hicache_compile.generate.maker import Made
from hicache_compile.generate.record import Record
from hicache_compile.generate.settings import Settings
from hicache_compile.generate.workers import Workers
from hicache_compile.policy.files import only_one, write_whole
from hicache_compile.policy.json_codec import to_dict
from hicache_compile.policy.progress import kept, progress


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    ``items``: how many are in place, ``skipped`` of them from before; ``failed`` could not be made. ``decisions``: of
    the last item, denoiser -> context -> letters. ``errors``: each with its ``item`` and ``worker``, those too of items
    that another worker then made.
    """

    items: int
    skipped: int
    failed: int
    seconds_median: float | None
    decisions: dict[str, dict[str, str]]
    errors: list[dict[str, Any]]

    def as_data(self) -> dict[str, Any]:
        """The summary as plain data."""
        return asdict(self)


def generate(items: Sequence[Item], folder: Path, settings: Settings, workers: Workers) -> Outcome:
    """Make every item that ``folder`` does not have yet.

    Raises:
        HiCacheError: no item can be made, or none can be written, or one was made in another way before.
    """
    with only_one(folder / ".lock", "generates into this folder"):
        record = Record(folder)
        done = record.done()
        left = _left(items, done, settings)
        errors: list[dict[str, Any]] = []
        failed = 0
        with kept(f"what was made is in {folder}; the same command makes the rest"):
            bar = progress(total=len(left), what="prompts", unit="item")
            with closing(bar), closing(workers.made(left)) as made:
                for item, result in made:
                    if isinstance(result, Made):
                        _write(item, result, settings, record)
                    else:
                        errors.append({"item": item.file, "worker": result.worker, "error": result.error})
                        failed += not result.again
                    bar.update(isinstance(result, Made) or not result.again)
        lines = record.sort()
    seconds = sorted(line["seconds"] for line in lines)
    median = seconds[len(seconds) // 2] if seconds else None
    decisions = lines[-1]["decisions"] if lines else {}
    return Outcome(len(lines), len(done), failed, median, decisions, errors)


def _left(items: Sequence[Item], done: Mapping[str, dict[str, Any]], settings: Settings) -> list[Item]:
    """The ``items`` that are not ``done``: files by name, each with its line.

    Raises:
        HiCacheError: a file is of another prompt or other settings, so it is not what is asked for.
    """
    lines = {Path(name).with_suffix("").as_posix(): line for name, line in done.items()}
    for item in items:
        line = lines.get(item.file)
        if line is None:
            continue
        wanted = json.loads(json.dumps(_asked(item, settings)))
        for key in wanted.keys() & line.keys():  # lines of earlier releases have fewer
            if line[key] != wanted[key]:
                raise HiCacheError(
                    f"generate.output_dir: {line['file']!r} was made with {key} = {line[key]!r:.80}, must be "
                    f"{wanted[key]!r:.80}; choose another folder, or remove the file"
                )
    return [item for item in items if item.file not in lines]


def _asked(item: Item, settings: Settings) -> dict[str, Any]:
    """What the content of the file of ``item`` depends on, as plain data."""
    return {
        "prompt": item.prompt,
        "seed": item.seed,
        "image": item.image,
        "model": settings.model.resolve().name,
        "weights": settings.weights,
        "steps": settings.steps,
        "policy": to_dict(settings.policy),
        "sparsity": settings.sparsity and settings.sparsity.to_dict(),
        "dtype": settings.dtype,
        "anchors": settings.anchors,
        "memory_budget": settings.memory_budget,
        "arguments": settings.arguments,
    }


def _write(item: Item, made: Made, settings: Settings, record: Record) -> None:
    """The file first, then its line: a kill loses nothing but this item."""
    path = record.folder / f"{item.file}{made.suffix}"
    write_whole(path, lambda unfinished: unfinished.write_bytes(made.content))
    if item.metadata:
        write_whole(path.parent.parent / "metadata.jsonl", json.dumps(item.metadata))
    record.add(
        {
            "index": item.index,
            "sample": item.sample,
            "file": str(path.relative_to(record.folder)),
            **_asked(item, settings),
            "decisions": made.decisions,
            "seconds": made.seconds,
        }
    )
