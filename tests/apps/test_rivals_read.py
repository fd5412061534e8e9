"""What is read off the pictures of the race: as asked, and as in the picture in full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hicache_compile import FORA, HiCache, Policy
from hicache_compile.benchmarks.rivals_read import Reader
from hicache_compile.demo.emoji.judge import Hits

NAMES = 30


class Drawing:
    """In full caption ``n`` shows name ``n``; FORA shows the next name in every third picture, HiCache none but 0."""

    def __init__(self) -> None:
        self.policy: Policy | None = None
        self.sigmas: list[Any] = []

    def under(self, policy: Policy) -> None:
        self.policy = policy

    @contextmanager
    def in_full(self) -> Iterator[None]:
        self.policy = None
        yield

    def draw(self, numbers: Sequence[int], seed: int, sigmas: Any = None) -> Any:
        self.sigmas.append(sigmas)
        shift = {None: lambda n: 0, FORA(): lambda n: n % 3 == 0, HiCache(): lambda n: -n}[self.policy]
        shown = torch.tensor([number + shift(number) for number in numbers])
        return type("Drawn", (), {"images": torch.nn.functional.one_hot(shown, NAMES + 1)})()


def test_pictures_are_read_as_asked_and_as_in_full() -> None:
    labels = torch.arange(NAMES)
    labels[1] = 0  # in full this one is not read as asked
    drawing: Any = Drawing()
    reader = Reader(drawing, torch.nn.Identity(), labels)  # type: ignore[arg-type]
    full, fora, hicache = (reader.line("", policy) for policy in (None, FORA(), HiCache()))
    assert (full["read"], full["same"]) == (str(Hits(NAMES - 1, NAMES)), str(Hits(NAMES, NAMES)))
    assert (fora["read"], fora["same"]) == (str(Hits(19, NAMES)), str(Hits(20, NAMES)))
    assert (hicache["read"], hicache["same"]) == (str(Hits(2, NAMES)), str(Hits(1, NAMES)))
    assert len(drawing.sigmas) == 3 * 2  # in batches of 23
