"""``enum.StrEnum``, which Python has from 3.11 on."""

from __future__ import annotations

from enum import Enum


class StrEnum(str, Enum):
    """Names that are strings: a member equals, hashes and prints as its value."""

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)
