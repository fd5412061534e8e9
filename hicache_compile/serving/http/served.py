"""What requests that bring no policy are made under: a policy, or what a promise picks from a pack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.packs import Pack, as_pack, is_pack
from hicache_compile.policy.policy import Policy
from hicache_compile.serving.http.settings import OWNER

STEPS = 28


@dataclass(frozen=True, slots=True)
class Served:
    """``policy``: of requests that bring none; ``name``: how it is called. The promise picked it from ``pack``."""

    policy: Policy
    name: str
    pack: Pack | None = None
    max_error: float | None = None
    max_seconds: float | None = None

    @property
    def promise(self) -> dict[str, float | None]:
        """As arguments of ``hicache_compile``."""
        return {"max_error": self.max_error, "max_seconds": self.max_seconds}

    def steps(self, asked: int | None) -> int:
        """Of a request that does not say.

        Raises:
            HiCacheError: the pack was measured in another number.
        """
        if self.pack is None:
            return STEPS if asked is None else asked
        if asked not in (None, self.pack.steps):
            raise HiCacheError(
                f"{OWNER}.steps = {asked}: must be {self.pack.steps} with this pack, as many as it was measured in"
            )
        return self.pack.steps


def served(policy: Any, name: str, max_error: float | None = None, max_seconds: float | None = None) -> Served:
    """What ``policy``, in any form that ``hicache_compile`` takes, and the promise say.

    Args:
        name: of a policy that is of no pack.

    Raises:
        HiCacheError: it is no policy and no pack, nothing in the pack keeps the promise, or there is no pack for it.
    """
    if is_pack(policy):
        pack = as_pack(policy)
        entry = pack.pick(max_error, max_seconds)
        return Served(entry.policy, entry.name, pack, max_error, max_seconds)
    for field, value in (("max_error", max_error), ("max_seconds", max_seconds)):
        if value is not None:
            raise HiCacheError(
                f"{OWNER}.{field} = {value!r}: must be given with a pack, to pick a policy from; "
                "`hicache eval --pack` measures one"
            )
    return Served(as_policy(policy), name)
