"""``--policy`` or ``--pack`` of ``hicache serve``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hicache_compile.errors import HiCacheError, find_name

if TYPE_CHECKING:
    from hicache_compile.serving.http import Settings
    from hicache_compile.serving.http.served import Served
    from hicache_compile.serving.http.source import Source

USUAL = "HiCache"


def of_options(policy: str | None, pack: Path | None, max_error: float | None, max_seconds: float | None) -> Served:
    """What the options say.

    Raises:
        HiCacheError: both are given, or see ``served``.
    """
    from hicache_compile.policy.packs import as_pack, is_pack
    from hicache_compile.serving.http.served import served

    if pack is not None and policy is not None:
        raise HiCacheError(f"serve.policy = {policy!r}: must be left out with --pack, whose policies are served")
    if policy is not None and is_pack(policy):
        raise HiCacheError(f"serve.policy = {policy!r}: must be a policy, this is a pack: give it as --pack")
    if pack is not None:
        return served(as_pack(pack), "", max_error, max_seconds)
    return served(policy or USUAL, _name(policy or USUAL), max_error, max_seconds)


def described(source: Source, settings: Settings) -> str:
    """What the start-up table says of it."""
    may = ["promises"] if source.pack is not None else []
    may += [] if settings.fixed_policy else ["policies of their own"]
    promise = {"max_error": source.max_error, "max_seconds": source.max_seconds}
    asked = ", ".join(f"{name} {value:g}" for name, value in promise.items() if value is not None)
    name = settings.policy_name + (f", of the pack for {asked}" if asked else "")
    return f"{name}; requests may bring {' and '.join(may)}" if may else name


def _name(policy: str) -> str:
    from hicache_compile.policy.presets import PRESETS

    return find_name(policy, PRESETS) or ("of the environment" if policy == "env" else "one of its own")
