"""Detect changed parameters."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from operator import attrgetter

import torch

from hicache_compile.runtime.storage.rings import Token, Witness

_version = attrgetter("_version")


class Parameters:
    """The parameters and buffers that one call of a captured graph reads."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.tensors = tensors
        self._ids = tuple(map(id, tensors))
        self._versioned = [tensor for tensor in tensors if not tensor.is_inference()]

    def token(self, epoch: int) -> Token:
        """Changes when a parameter is replaced or written to; ``epoch`` counts the changes no version shows."""
        return epoch, self._ids, tuple(map(_version, self._versioned))

    def witness(self) -> Witness:
        """What gives the token later on; ``None`` once one of them is gone. It keeps none alive."""
        known = [weakref.ref(tensor) for tensor in self.tensors]

        def token(epoch: int) -> Token | None:
            found = [tensor for reference in known if (tensor := reference()) is not None]
            return Parameters(found).token(epoch) if len(found) == len(known) else None

        return token
