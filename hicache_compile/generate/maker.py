"""A pipeline, loaded and compiled, that makes one item at a time; files and lines are its caller's."""

from __future__ import annotations

import inspect
import os
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.generate.items import Item
from hicache_compile.generate.pipelines import folder_of_pipeline, load_pipeline, sampled_over, usual_dtype
from hicache_compile.generate.settings import Settings
from hicache_compile.policy.progress import look


@dataclass(frozen=True, slots=True)
class Made:
    """An item: ``content`` of its file, and the decisions of its run, denoiser -> context -> letters."""

    suffix: str
    content: bytes
    decisions: dict[str, dict[str, str]]
    seconds: float


class Maker:
    """A compiled pipeline.

    Args:
        quiet: shows no bar of its steps.

    Raises:
        HiCacheError: there is no such device, the folder holds no pipeline, or the pipeline does not take one of the
            arguments.
    """

    def __init__(self, settings: Settings, quiet: bool = False) -> None:
        self._settings = settings
        self.pipeline = self._load(quiet)
        accepted = inspect.signature(self.pipeline.__call__).parameters
        for name in settings.arguments:
            if name not in accepted:
                raise HiCacheError(
                    f"generate.{name}: {type(self.pipeline).__name__} takes no such argument; must be one of "
                    f"{', '.join(accepted)}"
                )

    def make(self, item: Item) -> Made:
        """Make one picture or video."""
        began = time.perf_counter()
        output = self.pipeline(**self._arguments(item))
        seconds = time.perf_counter() - began
        suffix = ".mp4" if getattr(output, "frames", None) is not None else ".png"
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"made{suffix}"
            _write(output, path)
            return Made(suffix, path.read_bytes(), self._decisions(), round(seconds, 3))

    def _load(self, quiet: bool) -> Any:
        settings, device = self._settings, self._device()
        folder = folder_of_pipeline(settings.model, "generate")
        pipeline = load_pipeline(folder, settings.dtype or usual_dtype(device), device)
        pipeline.set_progress_bar_config(**look("steps", "step", within=True, quiet=quiet))
        settings.spread.apply(pipeline)
        return hicache_compile(
            pipeline,
            settings.policy,
            backend=settings.backend,
            memory_budget=settings.memory_budget,
            offload=settings.offload,
            anchors=settings.anchors,
            sparsity=settings.sparsity,
        )

    def _device(self) -> str:
        usual = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        device = self._settings.device or usual
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, ValueError) as error:  # torch's own, which differ
            raise HiCacheError(f"generate.device = {device!r}: must be one of this machine ({error})") from None
        return device

    def _arguments(self, item: Item) -> dict[str, Any]:
        generator = torch.Generator(device="cpu").manual_seed(item.seed)
        arguments = {**self._settings.arguments, "prompt": item.prompt, "generator": generator}
        if item.image is not None:
            from diffusers.utils import load_image

            arguments["image"] = load_image(item.image)
        over = sampled_over(self.pipeline, self._settings.policy.sigmas)
        return {**arguments, **over, "num_inference_steps": self._settings.steps}

    def _decisions(self) -> dict[str, dict[str, str]]:
        compiled = {n: c for n, c in self.pipeline.components.items() if isinstance(c, CompiledDenoiser)}
        return {
            name: {context: runs[-1] for context, runs in denoiser.report().history.items() if runs}
            for name, denoiser in compiled.items()
        }


def _write(output: Any, path: Path) -> None:
    """Write the first picture or video of what a pipeline returned."""
    frames = getattr(output, "frames", None)
    if frames is None:
        output.images[0].save(path)
        return
    from diffusers.utils import export_to_video

    export_to_video(list(frames[0]), str(path), fps=16)
