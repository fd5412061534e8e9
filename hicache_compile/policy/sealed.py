"""Plain data with a checksum of itself: a file that was damaged is refused, and does not become another policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hicache_compile.errors import HiCacheError

SEAL = "sha256"


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """``data``, JSON, with its checksum."""
    return {**data, SEAL: _checksum(data)}


def unsealed(name: str, data: Mapping[str, Any], *, optional: bool = True) -> dict[str, Any]:
    """``data`` without its checksum, which may be ``optional``. ``name``: of what it is, for messages.

    Raises:
        HiCacheError: the checksum is that of other data.
    """
    fields = {key: value for key, value in data.items() if key != SEAL}
    if optional and SEAL not in data:
        return fields
    found = data.get(SEAL)
    if found != _checksum(fields):
        raise HiCacheError(
            f"{name}.{SEAL} = {found!r}: must be the checksum of what was written, which is damaged; or leave out "
            f"{SEAL}, where it was changed by hand"
        )
    return fields


def _checksum(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
