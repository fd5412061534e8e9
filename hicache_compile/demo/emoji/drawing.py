"""Draw captions with the emoji model, one step at a time."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import torch
from torch import nn

from hicache_compile.demo.emoji import GUIDANCE, SIZE, TOKENS
from hicache_compile.runtime.runs import Run

CAPTIONS = (
    "red heart, flat style",
    "lobster, flat style",
    "tiger, noto style",
    "cupcake, flat style",
    "sunflower, flat style",
    "peacock, noto style",
    "doughnut, noto style",
    "tropical drink, flat style",
)


def load_pipeline(few_steps: bool = False) -> Any:
    """The trained ``FluxPipeline``, in float32; what other libraries say as they load is not shown.

    ``few_steps``: with the transformer of its twin, which draws in 8 or 4 steps without guidance.
    """
    here = files("hicache_compile.demo.emoji")
    with _only_errors_shown(), as_file(here / "emoji-pipeline") as folder, as_file(here / "emoji-twin") as twin:
        from diffusers import FluxPipeline, FluxTransformer2DModel
        from diffusers.utils import logging as of_diffusers
        from transformers.utils import logging as of_transformers

        for library in (of_diffusers, of_transformers):
            library.set_verbosity_error()
            library.disable_progress_bar()
        if not few_steps:
            return FluxPipeline.from_pretrained(folder, dtype=torch.float32)
        transformer = FluxTransformer2DModel.from_pretrained(twin, torch_dtype=torch.float32)
        return FluxPipeline.from_pretrained(folder, transformer=transformer, dtype=torch.float32)


@contextmanager
def _only_errors_shown() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@dataclass(frozen=True, slots=True)
class Drawn:
    """The latents so far, ``[B, 64, 32]``, and the seconds of each step."""

    latents: torch.Tensor
    step_seconds: Sequence[float]


class Drawing:
    """``captions``, drawn with guidance from one noise each, of ``seed``: what ``FluxPipeline`` does, by steps.

    ``model`` is the transformer; ``branches``: for the caption and without it, what the model is given besides the
    latents and the time.
    """

    def __init__(self, captions: Sequence[str], num_steps: int, seed: int = 0) -> None:
        self._pipeline = load_pipeline()
        self.model: nn.Module = self._pipeline.transformer
        self.num_steps = num_steps
        self.branches = {
            "cond": self._conditioning(list(captions)),
            "uncond": self._conditioning([""] * len(captions)),
        }
        generator = torch.Generator().manual_seed(seed)
        self.noise, self._ids = self._pipeline.prepare_latents(
            len(captions),
            self._pipeline.transformer.config.in_channels // 4,
            SIZE,
            SIZE,
            torch.float32,
            torch.device("cpu"),
            generator,
        )

    @torch.no_grad()
    def _conditioning(self, captions: list[str]) -> dict[str, Any]:
        words, pooled, ids = self._pipeline.encode_prompt(captions, None, max_sequence_length=TOKENS)
        return {"encoder_hidden_states": words, "pooled_projections": pooled, "txt_ids": ids}

    def call(self, denoiser: nn.Module, latents: torch.Tensor, time_left: torch.Tensor, branch: str) -> torch.Tensor:
        """The velocity ``[B, 64, 32]`` of one branch; ``time_left`` ``[]``, 1 to 0."""
        with denoiser.cache_context(branch):  # type: ignore[operator]  # of diffusers' models
            velocity: torch.Tensor = denoiser(
                hidden_states=latents,
                timestep=time_left.expand(len(latents)),
                img_ids=self._ids,
                **self.branches[branch],
                return_dict=False,
            )[0]
        return velocity

    @torch.no_grad()
    def by_steps(self, denoiser: nn.Module, run: Run | None = None) -> Iterator[Drawn]:
        """What is drawn after each step; ``run``: of a compiled denoiser, which may make other steps in between."""
        count = self.num_steps
        scheduler = copy.deepcopy(self._pipeline.scheduler)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / count, count))
        latents = self.noise
        seconds: list[float] = []
        for timestep in scheduler.timesteps:
            began = time.perf_counter()
            with run or nullcontext():
                toward, away = (self.call(denoiser, latents, timestep / 1000, branch) for branch in self.branches)
            velocity = away + GUIDANCE * (toward - away)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            seconds.append(time.perf_counter() - began)
            yield Drawn(latents, seconds)

    @torch.no_grad()
    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """The pictures ``[B, 3, 64, 64]``, in [-1, 1], of ``latents``."""
        vae = self._pipeline.vae
        unpacked = self._pipeline._unpack_latents(latents, SIZE, SIZE, self._pipeline.vae_scale_factor)
        decoded: torch.Tensor = vae.decode(
            unpacked / vae.config.scaling_factor + vae.config.shift_factor, return_dict=False
        )[0]
        return decoded.clamp(-1, 1)
