"""A promise in place of a policy: an error or a time, for which a policy of the service's pack is picked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.packs import Entry, Pack

PROMISES = ("max_error", "max_seconds")


def as_promise(cache: Any) -> Mapping[str, Any] | None:
    """``cache``, or the JSON that it is, where it has ``max_error`` or ``max_seconds``, which no policy has."""
    if isinstance(cache, str) and cache.lstrip().startswith("{"):
        with suppress(ValueError, RecursionError):  # who reads it as a policy says so
            cache = json.loads(cache)
    if isinstance(cache, Mapping) and not cache.keys().isdisjoint(PROMISES):
        return cache
    return None


def pick(pack: Pack | None, promise: Mapping[str, Any], steps: int | None = None, without: Sequence[str] = ()) -> Entry:
    """The policy of ``pack`` for ``promise``, as ``Pack.pick`` picks it.

    Args:
        pack: ``None``: there is none.
        promise: ``max_error``, ``max_seconds`` or both.
        steps: of the request, where it says how many.
        without: names of policies that are not to be picked.

    Raises:
        HiCacheError: there is no pack, ``promise`` has other fields, the pack was measured in another number of steps,
            or see ``Pack.pick``.
    """
    for name in promise:
        if name not in PROMISES:
            raise HiCacheError(
                f"cache.{str(name)[:60]}: must be left out beside {' and '.join(PROMISES)}, which pick a policy of the "
                "pack as it is"
            )
    if pack is None:
        name = next(iter(promise))
        raise HiCacheError(
            f"cache.{name} = {promise[name]!r}: must be left out: this service has no pack to pick a policy from; "
            'start it with one: hicache serve --pack pack.json, or Batcher(pipe, "pack.json", max_error=...)'
        )
    if steps not in (None, pack.steps):
        raise HiCacheError(
            f"cache: num_inference_steps = {steps}: must be {pack.steps} with a promise, as many as the pack was "
            "measured in"
        )
    return pack.pick(promise.get("max_error"), promise.get("max_seconds"), without)
