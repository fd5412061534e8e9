"""The policies of a batcher: of the pipeline when it starts, and of each request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.frontend.compile import hicache_compile
from hicache_compile.frontend.denoiser import CompiledDenoiser
from hicache_compile.frontend.pipeline import denoisers_of, is_pipeline
from hicache_compile.policy.packs import is_pack
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets import Uncached
from hicache_compile.serving.promise import as_promise, pick

OFF = "off"


@dataclass(frozen=True, slots=True)
class Chosen:
    """``policy``: of a request; ``None``: the denoiser's. ``entry``: its name in the pack, ``""``: it is of none."""

    policy: Policy | None
    entry: str


def compiled(pipe: Any, policy: Any, promise: Mapping[str, float | None]) -> tuple[Any, Policy | None]:
    """``pipe``, compiled under ``policy``; and for one that is compiled already, the policy that requests have instead
    of its own.

    Raises:
        HiCacheError: it is no pipeline or has no denoiser, the policy does not fit, or it was compiled with another
            pack or promise.
    """
    if not is_pipeline(pipe):
        raise HiCacheError(f"Batcher.pipe = {type(pipe).__name__}: must be a pipeline of diffusers")
    promised = {name: value for name, value in promise.items() if value is not None}
    if not denoisers_of(pipe) or promised or is_pack(policy):
        return hicache_compile(pipe, "HiCache" if policy is None else policy, **promised), None
    return pipe, None if policy is None else denoisers_of(pipe)[0]._fitted(policy)


def chosen(denoiser: CompiledDenoiser, cache: Any, steps: int | None) -> Chosen:
    """What a request is made under.

    Args:
        denoiser: the first of the pipeline.
        cache: a policy in any form, ``"off"``, a promise, or ``None``.
        steps: of the request, where it says how many.

    Raises:
        HiCacheError: it is no policy or does not fit, or the promise cannot be kept.
    """
    contract = denoiser.contract
    if cache is None:
        if contract is None or steps not in (None, contract.pack.steps):
            return Chosen(None, "")
        mine = denoiser.policy == denoiser._fitted(contract.entry.policy)
        return Chosen(None, contract.entry.name if mine else "")
    promise = as_promise(cache)
    if promise is None:
        return Chosen(denoiser._fitted(Uncached() if cache == OFF else cache), "")
    pack, broken = (None, ()) if contract is None else (contract.pack, contract.report().stepped_back)
    entry = pick(pack, promise, steps, broken)
    return Chosen(denoiser._fitted(entry.policy), entry.name)
