"""Several processes, started by ``torchrun``: prompts are shared out, and what one could not make others try again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterator

Thing = TypeVar("Thing")


class Ranks:
    """The processes of this run. One process alone needs no group."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))

    @contextmanager
    def together(self) -> Iterator[Ranks]:
        """The processes know one another inside. On gloo: only words are exchanged, no tensors."""
        if self.size == 1:
            yield self
            return
        dist.init_process_group("gloo")
        try:
            yield self
        finally:
            dist.destroy_process_group()

    def share(self, things: Sequence[Thing], among: Sequence[int] | None = None) -> list[Thing]:
        """This process's part of ``things``, which are dealt out in turn to the ranks ``among`` (all)."""
        dealt = list(range(self.size)) if among is None else list(among)
        return [thing for turn, thing in enumerate(things) if dealt[turn % len(dealt)] == self.rank]

    def gather(self, mine: Any) -> list[Any]:
        """What every process has to say, by rank."""
        if self.size == 1:
            return [mine]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, mine)
        return everyone
