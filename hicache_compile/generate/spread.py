"""One sampling over the ranks that ``torchrun`` started, as diffusers spreads it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.pipeline import denoisers


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Over how many ranks each denoiser is spread, and how.

    Args:
        ulysses: ranks that have parts of the tokens, and of the heads inside of an attention.
        ring: ranks that have parts of the tokens, and hand keys and values around.
        tensor_parallel: ranks that have parts of the weights.

    Raises:
        HiCacheError: a number is below 1, or tokens and weights are both in parts.
    """

    ulysses: int = 1
    ring: int = 1
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        for name in ("ulysses", "ring", "tensor_parallel"):
            if getattr(self, name) < 1:
                raise HiCacheError(f"generate.{name} = {getattr(self, name)}: must be at least 1")
        if self.tensor_parallel > 1 and self.ulysses * self.ring > 1:
            raise HiCacheError(
                f"generate.tensor_parallel = {self.tensor_parallel}: must be 1 with ulysses or ring: diffusers divides "
                "the weights of a denoiser or its tokens, not both"
            )

    @property
    def ranks(self) -> int:
        return prod((self.ulysses, self.ring, self.tensor_parallel))

    def check(self, started: int) -> None:
        """Raise ``HiCacheError`` unless ``started`` processes are as many as the sampling is spread over."""
        if self.ranks == started:
            return
        if self.ranks == 1:
            raise HiCacheError(
                f"generate: torchrun started {started} processes: must be told how they divide one sampling (--ulysses "
                f"{started}, --ring {started} or --tensor-parallel {started}); prompts are shared out by --ray "
                f"--workers {started}, without torchrun"
            )
        raise HiCacheError(
            f"generate: ulysses {self.ulysses} x ring {self.ring} x tensor-parallel {self.tensor_parallel} are "
            f"{self.ranks} ranks, {started} run: must be as many (torchrun --nproc-per-node {self.ranks} -m "
            "hicache_compile generate ...)"
        )

    def apply(self, pipeline: Any) -> None:
        """Have diffusers spread every denoiser of ``pipeline``.

        Raises:
            HiCacheError: diffusers cannot spread one of them so.
        """
        if self.ranks == 1:
            return
        from diffusers import ContextParallelConfig, TensorParallelConfig

        config: Any
        if self.tensor_parallel > 1:
            config = TensorParallelConfig(tp_degree=self.tensor_parallel)
        else:
            config = ContextParallelConfig(ulysses_degree=self.ulysses, ring_degree=self.ring)
        for name, denoiser in denoisers(pipeline).items():
            try:
                denoiser.enable_parallelism(config=config)  # type: ignore[operator]  # of diffusers' models
            except Exception as error:  # of many classes: no plan, heads that do not divide, no accelerator, ...
                raise HiCacheError(f"generate: {name} cannot be spread over {self.ranks} ranks ({error})") from error
