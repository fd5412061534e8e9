"""What one call of a submodule looked like, and what another one will."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

Sizes = tuple[Any, ...]  # of a tensor
Output = tuple[list[Any], torch.dtype, torch.device]


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """The sizes a call of a submodule was given, what it returned, its FLOPs (two per multiply-add)."""

    given: tuple[Sizes, ...]
    returned: tuple[tuple[Sizes, torch.dtype, torch.device], ...]
    flops: int

    def outputs(self, given: Sequence[Sizes]) -> list[Output]:
        """Sizes, dtype and device of the outputs where the inputs have the sizes ``given``."""
        found = []
        for tensor, (sizes, dtype, device) in enumerate(self.returned):
            places = [self._origin(size, tensor, dim) for dim, size in enumerate(sizes)]
            now = [size if at is None else given[at[0]][at[1]] for size, at in zip(sizes, places, strict=True)]
            found.append((now, dtype, device))
        return found

    def _origin(self, size: int, tensor: int, dim: int) -> tuple[int, int] | None:
        """Which dimension of which input has ``size``: by preference one at the same place as in the output."""
        same = [(t, d) for t, sizes in enumerate(self.given) for d, found in enumerate(sizes) if found == size]
        return min(same, key=lambda place: (place[1] != dim, place[0] != tensor, place), default=None)
