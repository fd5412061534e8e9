"""The demo model, or a pipeline from a folder, as something that draws pictures of prompts."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.policy.presets import HiCache

DEMO = "demo"


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures of one run. ``latents``: what the sampler ended with, ``[B, ...]``. ``images``: ``[B, C, H, W]`` in
    [-1, 1], or None where they were not asked for. ``seconds``: of the run, decoding included where there is any."""

    latents: torch.Tensor
    images: torch.Tensor | None
    seconds: float


class Subject(ABC):
    """A denoiser with prompts to sample. ``denoiser`` is compiled; ``steps`` are those of a run."""

    name: str
    denoiser: CompiledDenoiser
    steps: int
    prompts: Sequence[str]

    @abstractmethod
    def draw(self, numbers: Sequence[int], seed: int, *, images: bool = True) -> Drawn:
        """One run: a picture of each of the prompts ``numbers``; the same seed gives the same noise."""

    def runs(self, seed: int, samples: int = 1, together: bool = False) -> list[Callable[[], torch.Tensor]]:
        """Runs that return their latents: one of each prompt and sample, or all ``together`` in a batch."""
        numbers = [number for _ in range(samples) for number in range(len(self.prompts))]
        batches = [numbers] if together else [[number] for number in numbers]

        def run(batch: Sequence[int], seed: int) -> torch.Tensor:
            return self.draw(batch, seed, images=False).latents

        return [lambda b=b, s=seed + n: run(b, s) for n, b in enumerate(batches)]  # type: ignore[misc]  # bound now


class DemoSubject(Subject):
    """The demo model; a prompt is a digit."""

    name = DEMO

    def __init__(self, prompts: Sequence[str], steps: int, backend: str) -> None:
        from hicache_compile.demo import digits
        from hicache_compile.demo.sampling import load_model

        self.prompts = prompts or [str(digit) for digit in range(digits.CLASSES)]
        if not all(prompt.isdigit() and int(prompt) < digits.CLASSES for prompt in self.prompts):
            raise HiCacheError(f"tune.prompt = {list(self.prompts)!r}: must be digits, for the demo model")
        self.steps = steps
        self.denoiser = hicache_compile(load_model(), HiCache(scope="stack"), backend=backend)

    def draw(self, numbers: Sequence[int], seed: int, *, images: bool = True) -> Drawn:
        from hicache_compile.demo import digits
        from hicache_compile.demo.sampling import sample

        labels = torch.tensor([int(self.prompts[number]) for number in numbers])
        drawn = sample(self.denoiser, labels, self.steps, seed)
        return Drawn(digits.pack(drawn.images), drawn.images.unsqueeze(1) if images else None, drawn.seconds)


class PipelineSubject(Subject):
    """A diffusers pipeline from its folder; its first denoiser is tuned."""

    def __init__(
        self, folder: Path, prompts: Sequence[str], steps: int, backend: str, arguments: Mapping[str, Any]
    ) -> None:
        from diffusers import DiffusionPipeline

        if not (folder / "model_index.json").exists():
            raise HiCacheError(
                f"tune.model = {str(folder)!r}: must be {DEMO!r} or a folder that save_pretrained wrote, with a "
                "model_index.json in it"
            )
        if not prompts:
            raise HiCacheError("tune.prompt: must be given, once or several times: what is sampled")
        on_gpu = torch.cuda.is_available()
        loaded = DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16 if on_gpu else torch.float32)
        loaded.to("cuda" if on_gpu else "cpu")
        loaded.set_progress_bar_config(disable=True)
        self.pipeline = hicache_compile(loaded, HiCache(scope="stack"), backend=backend)
        self.denoiser = next(p for p in self.pipeline.components.values() if isinstance(p, CompiledDenoiser))
        self.name, self.prompts, self.steps = folder.name, prompts, steps
        self.arguments = dict(arguments)

    def draw(self, numbers: Sequence[int], seed: int, *, images: bool = True) -> Drawn:
        generators = [torch.Generator().manual_seed(seed + 1000 * place) for place, _ in enumerate(numbers)]
        began = time.perf_counter()
        made = self.pipeline(
            prompt=[self.prompts[number] for number in numbers],
            num_inference_steps=self.steps,
            generator=generators,
            output_type="pt" if images else "latent",
            **self.arguments,
        )[0]
        seconds = time.perf_counter() - began
        found = made if isinstance(made, torch.Tensor) else torch.stack([torch.as_tensor(one) for one in made])
        if not images:
            return Drawn(found, None, seconds)
        pictures = found.flatten(0, 1) if found.dim() == 5 else found  # a clip is its frames
        return Drawn(found, pictures.float() * 2 - 1, seconds)


def open_subject(model: str, prompts: Sequence[str], steps: int, backend: str, arguments: Mapping[str, Any]) -> Subject:
    """The demo model, or the pipeline in a folder.

    Raises:
        HiCacheError: ``model`` is neither, or the prompts are not what it takes.
    """
    if model == DEMO:
        return DemoSubject(prompts, steps, backend)
    return PipelineSubject(Path(model), prompts, steps, backend, arguments)
