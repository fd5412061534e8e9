"""Where pictures come from: a pipeline's folder, loaded, compiled and put behind a Batcher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hicache_compile.backends import BACKENDS
from hicache_compile.errors import HiCacheError, one_of
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.generate.pipelines import DTYPES, folder_of_pipeline, load_pipeline, usual_dtype
from hicache_compile.policy.packs import Pack
from hicache_compile.policy.policy import Policy
from hicache_compile.serving.http.order import order_of
from hicache_compile.serving.http.schema import ImageRequest
from hicache_compile.serving.http.service import Abilities, Service
from hicache_compile.serving.http.settings import OWNER, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A pipeline and how it is run; plain data, so that another process can open it too.

    Args:
        folder: that ``save_pretrained`` wrote.
        policy: of requests that bring none; with ``pack``, the one that the promise picks.
        pack: that requests may bring promises of.
        max_error, max_seconds: the promise of requests that bring none.
        backend: what compiles its programs.
        device: by default a GPU if there is any.
        dtype: by default float32 on the CPU, else bfloat16.
        max_batch: rows of a call.
        max_wait: seconds that a full row waits for company.
        max_requests: that run at a time.

    Raises:
        HiCacheError: the folder holds no pipeline, or the backend or the dtype is none.
    """

    folder: Path
    policy: Policy
    pack: Pack | None = None
    max_error: float | None = None
    max_seconds: float | None = None
    backend: str = "inductor"
    device: str = ""
    dtype: str = ""
    max_batch: int = 8
    max_wait: float = 0.02
    max_requests: int = 32

    def __post_init__(self) -> None:
        folder_of_pipeline(self.folder, OWNER, "demo")
        one_of(OWNER, "backend", self.backend, BACKENDS)
        if self.dtype:
            one_of(OWNER, "dtype", self.dtype, DTYPES)

    def open(self) -> Service:
        """Load the pipeline; its Batcher is the caller's to close.

        Raises:
            HiCacheError: the folder is not whole, or the device none of this machine.
        """
        from hicache_compile.serving.batcher import Batcher

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, ValueError) as error:  # torch's own, which differ
            raise HiCacheError(f"{OWNER}.device = {device!r}: must be one of this machine ({error})") from None
        pipeline = load_pipeline(self.folder, self.dtype or usual_dtype(device), device)
        pipeline.set_progress_bar_config(disable=True)
        policy = self.policy if self.pack is None else self.pack
        promise = {"max_error": self.max_error, "max_seconds": self.max_seconds}
        batcher = Batcher(
            hicache_compile(pipeline, policy, backend=self.backend, **promise),
            max_batch=self.max_batch,
            max_wait=self.max_wait,
            max_requests=self.max_requests,
        )
        return Service(batcher, Abilities.of(pipeline))


def check_call(call: Mapping[str, Any], abilities: Abilities) -> None:
    """Raise ``HiCacheError`` where the pipeline's call does not take one of the arguments of ``call``."""
    for name in call:
        if name not in abilities.arguments:
            raise HiCacheError(
                f"{OWNER}.{name}: {abilities.pipeline} takes no such argument; must be one of "
                f"{', '.join(sorted(abilities.arguments))}"
            )


def warm_up(service: Service, settings: Settings, together: int) -> None:
    """Make a picture as a request makes one that says nothing but its prompt, then a few at once.

    So what one row and what several need is compiled.

    Args:
        service: who makes them.
        settings: of steps, size and the rest of the call.
        together: how many at once.

    Raises:
        HiCacheError: the policy cannot serve this pipeline, or it needs more than a request has.
    """
    order = order_of(ImageRequest(prompt="warm-up"), settings, service.abilities)
    for pictures in sorted({1, min(3, together)}):
        generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in range(pictures)]
        made = [service.batcher.submit(generator=generator, **order.call) for generator in generators]
        try:
            for pending in made:
                pending.result()
        except HiCacheError:
            raise
        except Exception as error:
            raise HiCacheError(
                f"{OWNER}: {service.abilities.pipeline} must make pictures of a prompt and a size, and what else is "
                f"given as `call`; the first one failed with {type(error).__name__}: {error}"
            ) from error


def open_service(source: Source, settings: Settings, warm: bool) -> Service:
    """Open ``source``, and warm it up where that is wanted.

    Raises:
        HiCacheError: see there; then nothing is left open.
    """
    service = source.open()
    try:
        check_call(settings.call, service.abilities)
        if warm:
            warm_up(service, settings, source.max_batch)
    except BaseException:
        service.batcher.close()
        raise
    return service
