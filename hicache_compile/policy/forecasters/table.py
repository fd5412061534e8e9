"""The calibration table of a model, stored with the policy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hicache_compile.errors import HiCacheError, is_real, whole_number
from hicache_compile.policy.files import read_text, write_whole
from hicache_compile.policy.plain_data import plain_data
from hicache_compile.policy.sealed import SEAL, sealed, unsealed

Weights = tuple[float, ...] | tuple[tuple[float, ...], ...]  # common to all slots, or one tuple per slot
Row = tuple[int, tuple[int, ...], Weights]  # a step, its anchors newest first, their weights


@plain_data
class Table:
    """Distances between the steps of a run, and the best weights under one schedule.

    Args:
        num_steps: length ``T`` of the measured runs.
        distances: the squared distance between the features of two steps, relative to their mean square and summed over
            slots, for the pairs of steps (0, 1), (0, 2), ... (0, T-1), (1, 2), ...; ``T (T - 1) / 2`` numbers.
        rows: ``(step, anchors newest first, their weights)``, for the steps and anchors of one schedule.
        slots: ``None``, or the number of slots with separate weights in ``rows``: one tuple of weights per slot.

    Raises:
        HiCacheError: a field is not of this form.
    """

    num_steps: int
    distances: tuple[float, ...]
    rows: tuple[Row, ...] = ()
    slots: int | None = None

    def __post_init__(self) -> None:
        whole_number("Table", "num_steps", self.num_steps, 2)
        pairs = self.num_steps * (self.num_steps - 1) // 2
        given = _floats(self.distances)
        if given is None or len(given) != pairs or min(given) < 0:
            raise HiCacheError(
                f"Table.distances = {str(self.distances)[:60]!r}: must be {pairs} numbers >= 0, one for each two of "
                f"{self.num_steps} steps"
            )
        if self.slots is not None:
            whole_number("Table", "slots", self.slots, 1)
        object.__setattr__(self, "distances", given)
        object.__setattr__(self, "rows", tuple(self._checked(row) for row in self.rows))

    def _checked(self, row: Any) -> Row:
        try:
            step, anchors = int(row[0]), tuple(map(int, row[1]))
            each = [_floats(one) for one in ([row[2]] if self.slots is None else row[2])]
        except (TypeError, ValueError, IndexError):
            step, anchors, each = 0, (), []
        falling = bool(anchors) and list(anchors) == sorted(set(anchors), reverse=True)
        weights = tuple(one for one in each if one is not None and len(one) == len(anchors))
        if not falling or len(weights) != (self.slots or 1) or len(each) != len(weights):
            each_of = "" if self.slots is None else f" in each of {self.slots} slots"
            raise HiCacheError(
                f"Table.rows: {row!r} must be a step, anchors newest first, and a weight for each{each_of}"
            )
        if not 0 <= anchors[-1] <= anchors[0] < step < self.num_steps:
            raise HiCacheError(f"Table.rows: {row!r} must go from earlier steps to one below {self.num_steps}")
        return step, anchors, weights[0] if self.slots is None else weights

    @staticmethod
    def of(value: Any) -> Table:
        """A Table from a Table, a dict of its fields, or a path to a file written by ``save``.

        Raises:
            HiCacheError: ``value`` is none of these.
        """
        if isinstance(value, Table):
            return value
        if isinstance(value, str | Path):
            return Table.load(value)
        names = {field.name for field in fields(Table)}
        if not isinstance(value, Mapping) or not {"num_steps", "distances"} <= set(value) <= names:
            raise HiCacheError(f"Calibrated.table = {value!r}: must be a Table or a path to a file of one")
        return Table(**value)

    @property
    def matrix(self) -> np.ndarray:
        """``distances`` as a symmetric matrix ``[T, T]``, float64."""
        return _matrix(self)

    def save(self, path: str | Path) -> None:
        """Write the table to ``path``: safetensors if the suffix is ``.safetensors``, else JSON."""
        path = Path(path)
        data = sealed({field.name: getattr(self, field.name) for field in fields(Table)})
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            kept = {name: json.dumps(data[name]) for name in ("rows", "num_steps", "slots", SEAL)}
            distances = {"distances": np.array(self.distances)}
            write_whole(path, lambda unfinished: save_file(distances, unfinished, metadata=kept))
            return
        write_whole(path, json.dumps(data) + "\n")

    @staticmethod
    def load(path: str | Path) -> Table:
        """Read a table written by ``save``.

        Raises:
            HiCacheError: the file does not exist or is not a table.
        """
        try:
            if Path(path).suffix == ".safetensors":
                from safetensors import safe_open

                with safe_open(path, framework="numpy") as kept:
                    data = {name: json.loads(text) for name, text in kept.metadata().items()}
                    data["distances"] = kept.get_tensor("distances").tolist()
            else:
                data = json.loads(read_text("table", path))
            return Table.of(unsealed("table", data))
        except HiCacheError as error:
            raise HiCacheError(f"table file {str(path)!r}: {error}") from None
        except Exception as error:  # any error of the file's reader
            raise HiCacheError(f"table = {str(path)!r}: must be a file that Table.save wrote ({error})") from None


@lru_cache(maxsize=16)
def _matrix(table: Table) -> np.ndarray:
    full = np.zeros((table.num_steps, table.num_steps))
    full[np.triu_indices(table.num_steps, 1)] = table.distances
    full += full.T
    full.flags.writeable = False
    return full


def _floats(value: Any) -> tuple[float, ...] | None:
    """``value`` as finite floats, or None if it is anything else."""
    if not isinstance(value, tuple | list):
        return None
    return tuple(map(float, value)) if all(map(is_real, value)) else None
