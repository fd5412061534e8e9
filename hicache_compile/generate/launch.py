"""Load a pipeline, compile it, run items through it."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hicache_compile.backends import BACKENDS
from hicache_compile.errors import HiCacheError, one_of
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.generate.items import Item
from hicache_compile.generate.pipelines import DTYPES, folder_of_pipeline, load_pipeline, usual_dtype
from hicache_compile.generate.ranks import Ranks
from hicache_compile.generate.record import Record
from hicache_compile.policy.files import write_whole
from hicache_compile.policy.json_codec import as_policy, to_dict
from hicache_compile.policy.layout import ANCHORS
from hicache_compile.policy.progress import look, progress
from hicache_compile.policy.sparsity.chipmunk import as_sparsity
from hicache_compile.runtime.storage.budget import parse_bytes


@dataclass(slots=True, kw_only=True)
class Settings:
    """How to run: the model folder, the policy and what is handed to the pipeline's call.

    ``device``: by default a GPU if there is any. ``dtype``: by default float32 on the CPU, else bfloat16.

    Raises:
        HiCacheError: a field is not what is allowed.
    """

    model: Path
    policy: Any
    steps: int = 50
    backend: str = "inductor"
    device: str = ""
    dtype: str = ""
    memory_budget: str | None = None
    offload: bool = False
    anchors: str | None = None
    sparsity: Any = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        one_of("generate", "backend", self.backend, BACKENDS)
        self.device = self.device or (f"cuda:{Ranks().local_rank}" if torch.cuda.is_available() else "cpu")
        self.dtype = self.dtype or usual_dtype(self.device)
        one_of("generate", "dtype", self.dtype, DTYPES)
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, ValueError) as error:  # torch's own, which differ
            raise HiCacheError(f"generate.device = {self.device!r}: must be one of this machine ({error})") from None
        parse_bytes(self.memory_budget)
        if self.anchors is not None:
            one_of("generate", "anchors", self.anchors, ANCHORS)
        self.policy, self.sparsity = as_policy(self.policy), as_sparsity(self.sparsity)
        self.policy.decisions(self.steps)  # a mask of another length says so before anything is loaded


class Launcher:
    """A compiled pipeline and where its results go.

    Raises:
        HiCacheError: the folder holds no pipeline, or the pipeline does not take one of the arguments.
    """

    def __init__(self, settings: Settings, folder: Path, record: Record, quiet: bool) -> None:
        self.settings = settings
        self.folder = folder
        self.record = record
        self.quiet = quiet
        self.pipeline = self._load()
        self.accepted = inspect.signature(self.pipeline.__call__).parameters
        for name in settings.arguments:
            if name not in self.accepted:
                raise HiCacheError(
                    f"generate.{name}: {type(self.pipeline).__name__} takes no such argument; must be one of "
                    f"{', '.join(self.accepted)}"
                )

    def _load(self) -> Any:
        settings = self.settings
        pipeline = load_pipeline(folder_of_pipeline(settings.model, "generate"), settings.dtype, settings.device)
        pipeline.set_progress_bar_config(**look("steps", "step", within=True, quiet=self.quiet))
        return hicache_compile(
            pipeline,
            settings.policy,
            backend=settings.backend,
            memory_budget=settings.memory_budget,
            offload=settings.offload,
            anchors=settings.anchors,
            sparsity=settings.sparsity,
        )

    def run(self, items: Sequence[Item]) -> dict[Item, str]:
        """Make every item; returns those that failed, with the error."""
        failed = {}
        for item in progress(items, what="prompts", unit="item", quiet=self.quiet):
            try:
                self.make(item)
            except HiCacheError:  # no other prompt could be made or written either
                raise
            except Exception as error:  # one bad prompt must not stop the others
                failed[item] = f"{type(error).__name__}: {error}"
        return failed

    def make(self, item: Item) -> None:
        """Make one item: its file first, then its line."""
        began = time.perf_counter()
        output = self.pipeline(**self._arguments(item))
        seconds = time.perf_counter() - began
        path = self.folder / f"{item.file}{suffix(output)}"
        write_whole(path, lambda unfinished: write(output, unfinished))
        if item.metadata:
            _describe(path.parent.parent / "metadata.jsonl", item)
        self.record.add(
            {
                "index": item.index,
                "sample": item.sample,
                "file": str(path.relative_to(self.folder)),
                "prompt": item.prompt,
                "seed": item.seed,
                "steps": self.settings.steps,
                "policy": to_dict(self.settings.policy),
                **({"sparsity": self.settings.sparsity.to_dict()} if self.settings.sparsity else {}),
                "decisions": self._decisions(),
                "seconds": round(seconds, 3),
            }
        )

    def _arguments(self, item: Item) -> dict[str, Any]:
        generator = torch.Generator(device="cpu").manual_seed(item.seed)
        arguments = {**self.settings.arguments, "prompt": item.prompt, "generator": generator}
        if item.image is not None:
            from diffusers.utils import load_image

            arguments["image"] = load_image(item.image)
        return {**arguments, "num_inference_steps": self.settings.steps}

    def _decisions(self) -> dict[str, dict[str, str]]:
        """Denoiser -> context -> the letters of the run just made."""
        compiled = {n: c for n, c in self.pipeline.components.items() if isinstance(c, CompiledDenoiser)}
        return {
            name: {context: runs[-1] for context, runs in denoiser.report().history.items() if runs}
            for name, denoiser in compiled.items()
        }


def suffix(output: Any) -> str:
    """``.mp4`` for a video, ``.png`` for a picture."""
    return ".mp4" if getattr(output, "frames", None) is not None else ".png"


def write(output: Any, path: Path) -> None:
    """Write the first picture or video of what a pipeline returned."""
    frames = getattr(output, "frames", None)
    if frames is None:
        output.images[0].save(path)
        return
    from diffusers.utils import export_to_video

    export_to_video(list(frames[0]), str(path), fps=16)


def _describe(path: Path, item: Item) -> None:
    write_whole(path, json.dumps(item.metadata))
