"""A part of the library that needs what torch does not promise to keep."""

from __future__ import annotations

import logging
from types import TracebackType

import torch

from hicache_compile.errors import HiCacheError

log = logging.getLogger("hicache_compile")

FEATURES: list[Feature] = []


class Feature:
    """Import within ``with FEATURE:`` what a feature needs of torch. Where this torch lacks some of it, a warning says
    so once, the feature is false, and nothing uses the names.

    Args:
        name: what people know it as.
        without: what happens where it is off. Empty: nothing works without it.
    """

    def __init__(self, name: str, without: str = "") -> None:
        self.name = name
        self.without = without
        self.lacks = ""
        FEATURES.append(self)

    def __bool__(self) -> bool:
        return not self.lacks

    def __enter__(self) -> Feature:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if not isinstance(error, ImportError | AttributeError):
            return False
        self.lacks = str(error)
        if not self.without:
            raise HiCacheError(self.message) from error
        log.warning(self.message)
        return True

    @property
    def message(self) -> str:
        """What is missing and what follows; empty if nothing is."""
        if self:
            return ""
        follows = self.without or "needs a release of torch that has it, 2.11 or newer"
        return f"torch {torch.__version__} lacks what is needed for {self.name} ({self.lacks}): {follows}"

    def require(self) -> None:
        """Raise a ``HiCacheError`` that says what is missing, if anything is."""
        if not self:
            raise HiCacheError(self.message)
