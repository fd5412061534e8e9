"""From what was typed to items and settings, or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hicache_compile.backends import BACKENDS
from hicache_compile.errors import HiCacheError, one_of
from hicache_compile.generate.command import generate
from hicache_compile.generate.items import Item, geneval_items, plain_items, read_prompts
from hicache_compile.generate.launch import Settings
from hicache_compile.generate.pipelines import DTYPES
from hicache_compile.generate.ranks import Ranks
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.sparsity.chipmunk import as_sparsity
from hicache_compile.runtime.storage.budget import parse_bytes


def run(
    *,
    model: Path,
    policy: str,
    folder: Path,
    prompts: list[str],
    prompt_file: Path | None,
    metadata_file: Path | None,
    samples: int,
    steps: int,
    seed: int,
    image: str | None,
    backend: str,
    device: str | None,
    dtype: str | None,
    memory_budget: str | None,
    offload: bool,
    sparsity: str | None,
    arguments: dict[str, Any],
    as_json: bool,
) -> int:
    """Generate; returns how many items could not be made.

    Raises:
        HiCacheError: an option is not what is allowed, or none or several of the sources of prompts are given.
    """
    one_of("generate", "backend", backend, BACKENDS)
    device = device or (f"cuda:{Ranks().local_rank}" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    one_of("generate", "dtype", dtype, DTYPES)
    parse_bytes(memory_budget)
    if image is not None and not Path(image).exists():
        raise HiCacheError(f"generate.image = {image!r}: must be a file")
    settings = Settings(
        model=model,
        policy=as_policy(policy),
        backend=backend,
        device=device,
        dtype=dtype,
        memory_budget=memory_budget,
        offload=offload,
        sparsity=as_sparsity(sparsity),
        steps=steps,
        arguments=arguments,
    )
    settings.policy.decisions(steps)  # a mask of another length says so before anything is loaded
    items = _items(prompts, prompt_file, metadata_file, samples, seed, image)
    return generate(items, folder, settings, as_json=as_json)


def _items(
    prompts: list[str], prompt_file: Path | None, metadata_file: Path | None, samples: int, seed: int, image: str | None
) -> list[Item]:
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
