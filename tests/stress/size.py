"""How large stress tests are: small by default, ``HICACHE_STRESS=1`` runs them at the size they are reported at."""

from __future__ import annotations

from hicache_compile.errors import switched_on


def size(small: int, full: int) -> int:
    return full if switched_on("HICACHE_STRESS") else small
