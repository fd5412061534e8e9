"""What is to be generated: prompts, seeds and files, in the plain layout or GenEval's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import isfile
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.files import lines_of, read_text


@dataclass(frozen=True, slots=True)
class Item:
    """One picture or video.

    Args:
        index: of its prompt.
        sample: of the pictures of that prompt.
        prompt: the text.
        seed: of its noise.
        file: where it goes, below the output folder, without a suffix.
        image: the picture to edit, if any.
        metadata: GenEval's line for this prompt.
    """

    index: int
    sample: int
    prompt: str
    seed: int
    file: str
    image: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)


def items_of(
    prompts: Sequence[str],
    prompt_file: Path | None,
    metadata_file: Path | None,
    samples: int,
    seed: int,
    image: str | None,
) -> list[Item]:
    """The items of the one source of prompts that is given; ``metadata_file`` is GenEval's.

    Raises:
        HiCacheError: none or several are given, the file is not what it should be, or there is no file ``image``.
    """
    if image is not None and not isfile(image):
        raise HiCacheError(f"generate.image = {image!r}: must be a file")
    sources = {"prompt": prompts, "prompt_file": prompt_file, "metadata_file": metadata_file}
    given = [name for name, value in sources.items() if value]
    if len(given) != 1:
        raise HiCacheError(
            f"generate: {' and '.join(given) or 'no prompt'} given; must be one of --prompt, --prompt-file and "
            "--metadata-file"
        )
    if metadata_file is not None:
        return geneval_items(read_prompts(metadata_file), samples, seed)
    lines = read_prompts(prompt_file) if prompt_file else [{"prompt": prompt} for prompt in prompts]
    return plain_items(lines, samples, seed, image)


def plain_items(prompts: Sequence[dict[str, Any]], samples: int, seed: int, image: str | None) -> list[Item]:
    """``00000.png``, ``00001.png``, ...: one file a prompt, or ``00000_1.png`` and so on for more samples.

    Each file has a seed of its own: ``seed`` plus its number.
    """
    items = []
    for index, given in enumerate(prompts):
        for sample in range(samples):
            name = f"{index:05d}_{sample}" if samples > 1 else f"{index:05d}"
            number = index * samples + sample
            items.append(Item(index, sample, given["prompt"], seed + number, name, given.get("image", image)))
    return items


def geneval_items(metadata: Sequence[dict[str, Any]], samples: int, seed: int) -> list[Item]:
    """GenEval's layout: ``00000/metadata.jsonl`` and ``00000/samples/0000.png``, ... for each prompt.

    As in its own scripts the samples of a prompt start from ``seed`` and its successors, the same for all prompts.
    """
    return [
        Item(index, sample, line["prompt"], seed + sample, f"{index:05d}/samples/{sample:04d}", metadata=line)
        for index, line in enumerate(metadata)
        for sample in range(samples)
    ]


def read_prompts(path: Path, owner: str = "generate") -> list[dict[str, Any]]:
    """Prompts of a text file, one a line, or of a ``.jsonl`` file with ``prompt`` (and ``image``) in each line.

    Args:
        owner: the command whose option it is, for messages.

    Raises:
        HiCacheError: the file cannot be read, a line is not what it should be, or there is none.
    """
    text = read_text(f"{owner}.prompt_file", path)
    lines = [line.strip() for line in lines_of(text) if line.strip()]
    if not lines:
        raise HiCacheError(f"{owner}.prompt_file = {str(path)!r}: must have at least one prompt")
    if path.suffix.lower() != ".jsonl":
        return [{"prompt": line} for line in lines]
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise HiCacheError(f"{path}, line {number}: must be JSON ({error})") from None
        if not isinstance(given, dict) or not isinstance(given.get("prompt"), str):
            raise HiCacheError(f"{path}, line {number}: must be an object with a string `prompt`")
        prompts.append(given)
    return prompts
