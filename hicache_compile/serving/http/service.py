"""What the application stands on: a Batcher, and what its pipeline's call takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hicache_compile.frontend.pipeline import denoisers_of
from hicache_compile.policy.packs import Pack
from hicache_compile.serving.progress import Progress
from hicache_compile.serving.statistics import Statistics

MULTIPLE = 16  # of the edges of a picture, for pipelines that do not tell


class Pending(Protocol):
    """A request that was handed to a Batcher: a future of what the pipeline returns."""

    @property
    def decisions(self) -> str: ...
    @property
    def entry(self) -> str: ...
    def result(self, timeout: float | None = None) -> Any: ...
    def cancel(self) -> bool: ...
    def add_done_callback(self, fn: Callable[[Any], object], /) -> None: ...


class Batching(Protocol):
    """What takes requests: a Batcher, one on other machines, or a stand-in of a test."""

    def submit(
        self, *, cache: Any = None, on_step: Callable[[Progress], None] | None = None, **call: Any
    ) -> Pending: ...
    def statistics(self) -> Statistics: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a pipeline can be asked for.

    ``pipeline``: the name of its class. ``arguments``: what its call takes. ``multiple``: what the edges of a picture
    must be multiples of. ``pack``: that its denoiser was compiled with, for requests that bring a promise.
    """

    pipeline: str
    arguments: frozenset[str]
    multiple: int = MULTIPLE
    pack: Pack | None = None

    @classmethod
    def of(cls, pipeline: Any) -> Abilities:
        """Those of a diffusers pipeline, read off the signature of its call and the scale of its autoencoder."""
        scale = getattr(pipeline, "vae_scale_factor", None) or getattr(pipeline, "vae_scale_factor_spatial", None)
        multiple = 2 * scale if isinstance(scale, int) else MULTIPLE  # patches of two latents
        contract = next((each.contract for each in denoisers_of(pipeline)), None)
        pack = None if contract is None else contract.pack
        return cls(type(pipeline).__name__, frozenset(inspect.signature(pipeline.__call__).parameters), multiple, pack)

    @property
    def video(self) -> bool:
        """Whether it makes clips."""
        return "num_frames" in self.arguments


@dataclass(frozen=True, slots=True)
class Service:
    """A Batcher and what can be asked of it."""

    batcher: Batching
    abilities: Abilities
