"""Counts what the host reads from tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from torch import Tensor

READS = ("item", "tolist", "__bool__", "__float__", "__int__")


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Reads by method, from now on."""
    read = Counter[str]()
    for name in READS:
        original = getattr(Tensor, name)

        def counted(
            self: Tensor, *args: object, name: str = name, original: Callable[..., object] = original
        ) -> object:
            read[name] += 1
            return original(self, *args)

        monkeypatch.setattr(Tensor, name, counted)
    return read
