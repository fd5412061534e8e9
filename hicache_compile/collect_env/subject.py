"""A denoiser by its name or folder, with small random inputs: what ``hicache collect-env`` samples with."""

from __future__ import annotations

import torch
from torch import nn

from hicache_compile.architectures import Request, example_inputs, resolve
from hicache_compile.architectures.inputs import INPUTS
from hicache_compile.collect_env.model import SEED, check_memory
from hicache_compile.collect_env.sampling import Arguments
from hicache_compile.errors import HiCacheError

DEMO = "demo"
HEIGHT, FRAMES, TEXT_TOKENS = 128, 9, 16  # where none are given: small, and what every architecture can have


def open_subject(name: str, dtype: torch.dtype | None, request: Request) -> tuple[nn.Module, Arguments]:
    """The denoiser ``name`` and the arguments of one call.

    Args:
        name: ``demo``, or what ``architectures.resolve`` takes. Without weights in its folder it has random ones.
        dtype: of the weights; ``None``: float32 on the CPU, bfloat16 on a GPU.

    Raises:
        HiCacheError: there is no such model, or there are no example inputs for its class or this size, or random
            weights do not fit into memory.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = _denoiser(name).to(dtype).to(device).requires_grad_(False).eval()
        try:
            return model, ((), example_inputs(model, request))
        except RuntimeError as error:  # torch's: of sizes that no tensor can have
            raise HiCacheError(f"model {name!r}: cannot be called at this size ({error})") from error


def _denoiser(name: str) -> nn.Module:
    if name == DEMO:
        from hicache_compile.demo.sampling import load_model

        return load_model()
    architecture = resolve(name)
    if architecture.cls.__name__ not in INPUTS:
        raise HiCacheError(
            f"model {name!r} is a {architecture.cls.__name__}: must be one of {', '.join(INPUTS)}; for any other, "
            "sample in Python and call hicache_compile.collect_env.collect(compiled, path, error)"
        )
    if architecture.folder is None:
        check_memory(sum(one.numel() for one in architecture.without_weights().parameters()))
    return architecture.with_weights() if architecture.folder is not None else architecture.with_random_weights()
