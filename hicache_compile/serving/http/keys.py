"""API keys: a file of them, and the comparison with what a request brings."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import Request

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.files import lines_of, read_text
from hicache_compile.serving.http.errors import ApiError

SHORTEST = 8  # characters


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys in the file ``path``: one a line; empty lines and what follows a ``#`` are not read.

    Raises:
        HiCacheError: the file cannot be read or holds no key, or a key is short or has a space in it; the message
            names the line and never the key.
    """
    keys = []
    for number, line in enumerate(lines_of(read_text("api-keys", path)), 1):
        key = line.partition("#")[0].strip()
        if key:
            _check(key, f"api-keys, line {number}")
        keys += [key] if key else []
    if not keys:
        raise HiCacheError(f"api-keys = {str(path)!r}: must hold at least one key, one a line")
    return tuple(keys)


def as_keys(keys: Any) -> tuple[str, ...]:
    """The list ``keys``.

    Raises:
        HiCacheError: it is no list, or one of them could be no key; the message never has a key.
    """
    if not isinstance(keys, list | tuple | set | frozenset):
        raise HiCacheError(f"serve.keys is a {type(keys).__name__}: must be a list of texts")
    for number, key in enumerate(keys):
        _check(key, f"serve.keys, number {number}")
    return tuple(keys)


def _check(key: Any, where: str) -> None:
    if not isinstance(key, str) or len(key) < SHORTEST or not key.isascii() or len(key.split()) != 1:
        raise HiCacheError(f"{where}: must be at least {SHORTEST} ASCII characters without a space in between")


class KeyCheck:
    """Whether a request may be served. Every key is compared, and each takes as long whatever was given."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def knows(self, given: str) -> bool:
        """Whether ``given`` is one of the keys."""
        digest = _digest(given)
        return sum(hmac.compare_digest(digest, one) for one in self._digests) > 0  # any() would end at the first

    async def __call__(self, request: Request) -> None:
        """Raise ``ApiError`` 401 unless the request brings a key, or none is asked for."""
        if not self._digests:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            message = "no API key: must be given in the header, as Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key")
        if not self.knows(given.strip()):
            raise ApiError(401, "the API key is not one of this service's: must be another", code="invalid_api_key")


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
