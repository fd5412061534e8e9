"""The demo model, or a pipeline from a folder, as something that draws pictures of prompts."""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.frontend.pipeline import denoisers_of
from hicache_compile.generate.pipelines import folder_of_pipeline, load_pipeline, sampled_over, usual_dtype
from hicache_compile.policy.packs import Signature
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets import HiCache
from hicache_compile.policy.weights_of_folder import weights_of_folder
from hicache_compile.runtime.following.pipeline_calls import schedulers, times_from, timesteps_of

DEMO = "demo"


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures of one run. ``latents``: what the sampler ended with, ``[B, ...]``. ``images``: ``[B, C, H, W]`` in
    [-1, 1], or None where they were not asked for. ``seconds``: of the run, decoding included where there is any."""

    latents: torch.Tensor
    images: torch.Tensor | None
    seconds: float


class Subject(ABC):
    """A denoiser with prompts to sample. ``denoiser`` is compiled, the first of ``denoisers``; ``steps``: of a run."""

    name: str
    denoisers: Sequence[CompiledDenoiser]
    steps: int
    prompts: Sequence[str]

    @property
    def settings(self) -> dict[str, Any]:
        """What its pictures depend on besides policy and seed, as plain data."""
        return {"model": self.name, "prompts": list(self.prompts), "steps": self.steps}

    @property
    def denoiser(self) -> CompiledDenoiser:
        return self.denoisers[0]

    def under(self, policy: Policy) -> None:
        """Sample under ``policy`` from now on, with every denoiser."""
        for denoiser in self.denoisers:
            denoiser.policy = policy

    @contextmanager
    def in_full(self) -> Iterator[None]:
        """Inside, nothing is cached."""
        with ExitStack() as stack:
            for denoiser in self.denoisers:
                stack.enter_context(denoiser.disabled())
            yield

    @abstractmethod
    def draw(
        self, numbers: Sequence[int], seed: int, *, images: bool = True, sigmas: Sequence[float] | None = None
    ) -> Drawn:
        """One run: a picture of each of the prompts ``numbers``; the same seed gives the same noise.

        ``sigmas``: noise levels to sample over, one a step, in place of the ``steps`` of the scheduler's own.
        """

    def times(self) -> list[float]:
        """The timesteps of the newest run, in 0..1000."""
        raise HiCacheError(f"{self.name}: has no scheduler to read timesteps from: must be a pipeline in a folder")

    @property
    def signature(self) -> Signature:
        """What is sampled: the denoisers and their scheduler."""
        return Signature.of_all(self.denoisers, None)

    def runs(self, seed: int, samples: int = 1, together: bool = False) -> list[Callable[..., torch.Tensor]]:
        """Runs that return their latents: one of each prompt and sample, or all ``together`` in a batch. Each takes
        ``sigmas``, see ``draw``."""
        batches = batches_of(self, samples, samples * len(self.prompts) if together else 1, seed)

        def run(batch: Sequence[int], seed: int, sigmas: Sequence[float] | None = None) -> torch.Tensor:
            return self.draw(batch, seed, images=False, sigmas=sigmas).latents

        return [functools.partial(run, *batch) for batch in batches]


def batches_of(subject: Subject, samples: int, batch: int, seed: int) -> list[tuple[list[int], int]]:
    """Which prompts are drawn together, and the seed of each run: every prompt ``samples`` times."""
    numbers = [number for _ in range(samples) for number in range(len(subject.prompts))]
    parts = [numbers[start : start + batch] for start in range(0, len(numbers), batch)]
    return [(part, seed + place) for place, part in enumerate(parts)]


class DemoSubject(Subject):
    """The demo model; a prompt is a digit.

    Raises:
        HiCacheError: a prompt is none.
    """

    name = DEMO

    def __init__(
        self, prompts: Sequence[str], steps: int, backend: str, owner: str = "eval", *, sparsity: Any = None
    ) -> None:
        from hicache_compile.demo import digits
        from hicache_compile.demo.sampling import load_model

        self.prompts = prompts or [str(digit) for digit in range(digits.CLASSES)]
        if not all(prompt.isdigit() and int(prompt) < digits.CLASSES for prompt in self.prompts):
            raise HiCacheError(f"{owner}.prompt = {list(self.prompts)!r}: must be digits, for the demo model")
        self.steps = steps
        self.denoisers = [hicache_compile(load_model(), HiCache(scope="stack"), backend=backend, sparsity=sparsity)]

    def draw(
        self, numbers: Sequence[int], seed: int, *, images: bool = True, sigmas: Sequence[float] | None = None
    ) -> Drawn:
        from hicache_compile.demo import digits
        from hicache_compile.demo.sampling import sample

        if sigmas is not None:
            raise HiCacheError("demo.sigmas: must be none, the digits are sampled over their own noise levels")
        labels = torch.tensor([int(self.prompts[number]) for number in numbers])
        drawn = sample(self.denoiser, labels, self.steps, seed)
        return Drawn(digits.pack(drawn.images), drawn.images.unsqueeze(1) if images else None, drawn.seconds)


class PipelineSubject(Subject):
    """A diffusers pipeline from its folder; fitted to its first denoiser.

    Raises:
        HiCacheError: the folder holds no pipeline, or there is no prompt.
    """

    def __init__(
        self,
        folder: Path,
        prompts: Sequence[str],
        steps: int,
        backend: str,
        arguments: Mapping[str, Any],
        owner: str,
        *,
        sparsity: Any = None,
    ) -> None:
        folder_of_pipeline(folder, owner, repr(DEMO))
        if not prompts:
            raise HiCacheError(f"{owner}.prompt: must be given, once or several times: what is sampled")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load_pipeline(folder, usual_dtype(device), device)
        loaded.set_progress_bar_config(disable=True)
        self.pipeline = hicache_compile(loaded, HiCache(scope="stack"), backend=backend, sparsity=sparsity)
        self.denoisers = denoisers_of(self.pipeline)
        self.name, self.prompts, self.steps = folder.name, prompts, steps
        self._weights = weights_of_folder(folder)
        self.arguments = dict(arguments)

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "weights": self._weights, **self.arguments}

    def times(self) -> list[float]:
        return times_from(timesteps_of(next(schedulers(self.pipeline))), 0)

    @property
    def signature(self) -> Signature:
        return Signature.of_all(self.denoisers, next(schedulers(self.pipeline), None))

    def draw(
        self, numbers: Sequence[int], seed: int, *, images: bool = True, sigmas: Sequence[float] | None = None
    ) -> Drawn:
        generators = [torch.Generator().manual_seed(seed + 1000 * place) for place, _ in enumerate(numbers)]
        arguments = dict(self.arguments)
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(numbers)
        arguments |= sampled_over(self.pipeline, sigmas)
        began = time.perf_counter()
        made = self.pipeline(
            prompt=[self.prompts[number] for number in numbers],
            num_inference_steps=self.steps if sigmas is None else len(sigmas),
            generator=generators,
            output_type="pt" if images else "latent",
            **arguments,
        )[0]
        seconds = time.perf_counter() - began
        found = made if isinstance(made, torch.Tensor) else torch.stack([torch.as_tensor(one) for one in made])
        if not images:
            return Drawn(found, None, seconds)
        pictures = found.flatten(0, 1) if found.dim() == 5 else found  # a clip is its frames
        return Drawn(found, pictures.float() * 2 - 1, seconds)


def open_subject(
    model: str,
    prompts: Sequence[str],
    steps: int,
    backend: str,
    arguments: Mapping[str, Any],
    owner: str = "eval",
    *,
    sparsity: Any = None,
) -> Subject:
    """The demo model, or the pipeline in a folder.

    Args:
        arguments: of the pipeline's call.
        owner: the command, for messages: ``eval`` or ``tune``.
        sparsity: of computed steps, as for ``hicache_compile``; runs in full are dense.

    Raises:
        HiCacheError: ``model`` is neither, or the prompts are not what it takes.
    """
    if model == DEMO:
        return DemoSubject(prompts, steps, backend, owner, sparsity=sparsity)
    return PipelineSubject(Path(model), prompts, steps, backend, arguments, owner, sparsity=sparsity)
