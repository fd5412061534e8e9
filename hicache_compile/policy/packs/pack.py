"""A pack: policies with what was measured of each on one model, in a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError, numbers, real_number, whole_number
from hicache_compile.policy.files import read_text, write_whole
from hicache_compile.policy.json_codec import as_policy, from_dict, to_dict
from hicache_compile.policy.packs.signature import Signature
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets import Uncached
from hicache_compile.policy.sealed import SEAL, sealed, unsealed

IN_FULL = "in full"
SHARE = 0.95  # of the runs that a promise is kept in
LEAST = 19  # runs, for the share to be known
FORMAT = "hicache pack"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One policy, and what was measured of it.

    Args:
        policy: a policy, its name or its data.
        errors: of each run, its picture against that of the same noise in full: relative, 2-norm.
        seconds: of a run, the median.
        flops_speedup: FLOPs of a run in full over those made.
        computed: steps computed in a run, the mean.

    Raises:
        HiCacheError: a field is not what is allowed.
    """

    name: str
    policy: Policy
    errors: tuple[float, ...]
    seconds: float
    flops_speedup: float
    computed: float

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise HiCacheError(f"pack.name = {self.name!r}: must be a text")
        object.__setattr__(self, "policy", as_policy(self.policy))
        object.__setattr__(self, "errors", tuple(sorted(numbers("pack", "errors", self.errors, 0.0))))
        real_number("pack", "seconds", self.seconds, 0, math.inf)
        real_number("pack", "flops_speedup", self.flops_speedup, 0, math.inf)
        real_number("pack", "computed", self.computed, 0, math.inf)

    @property
    def bound(self) -> float:
        """The error that another run stays below in 95 of 100 cases: of ``n`` measured ones the ``.95 (n + 1)``-th
        smallest (split conformal prediction, 1604.04173, eq. 2.5); infinite where fewer than 19 were measured."""
        rank = math.ceil(SHARE * (len(self.errors) + 1))
        return self.errors[rank - 1] if rank <= len(self.errors) else math.inf


@dataclass(frozen=True, slots=True)
class Pack:
    """What was measured of several policies on one model: the front to choose from.

    Args:
        entries: the policies.
        steps: of a run in full.
        seconds: of a run in full, the median, on ``hardware``.
        signature: the model and scheduler.

    Raises:
        HiCacheError: a field is not what is allowed, two policies have one name, fewer than 19 errors of one were
            measured, which promise nothing, or one is a plan, which needs its sigmas in the call.
    """

    entries: tuple[Entry, ...]
    steps: int
    seconds: float
    hardware: str
    signature: Signature = field(default_factory=Signature)

    def __post_init__(self) -> None:
        whole_number("pack", "steps", self.steps, 1)
        real_number("pack", "seconds", self.seconds, 0, math.inf)
        names = [entry.name for entry in self.entries]
        if not names or len(set(names)) < len(names):
            raise HiCacheError(f"pack.entries: {', '.join(names) or 'none'}: must be one or more, of different names")
        if IN_FULL in names:
            raise HiCacheError(f"pack.entries: {IN_FULL!r} is every step computed: must have another name")
        for entry in self.entries:
            if len(entry.errors) < LEAST:
                raise HiCacheError(
                    f"pack.errors of {entry.name!r}: {len(entry.errors)} runs, must be {LEAST} or more, for a bound "
                    f"that {SHARE:.0%} of runs keep; measure more prompts or samples"
                )
            if entry.policy.sigmas is not None:
                raise HiCacheError(
                    f"pack.policy of {entry.name!r}: plans noise levels, which each call has to be given: must be a "
                    "policy without; use a plan by itself"
                )

    @property
    def in_full(self) -> Entry:
        """Every step computed: true, and the slowest."""
        return Entry(IN_FULL, Uncached(), (0.0,) * LEAST, self.seconds, 1.0, float(self.steps))

    def pick(
        self, max_error: float | None = None, max_seconds: float | None = None, without: Sequence[str] = ()
    ) -> Entry:
        """The fastest policy whose runs stay within ``max_error`` in 95 of 100 cases; the most accurate of those that
        take at most ``max_seconds``; of both, the most accurate that keeps both.

        Args:
            without: names of policies that are not to be picked.

        Raises:
            HiCacheError: neither is given, one is no number > 0, or nothing in the pack is that fast.
        """
        for name, value in (("max_error", max_error), ("max_seconds", max_seconds)):
            if value is not None:
                real_number("pack", name, value, 0, math.inf)
        if max_error is None and max_seconds is None:
            raise HiCacheError(
                "pack: max_error or max_seconds must be given, to choose a policy by; errors here are "
                f"{', '.join(f'{one.bound:.3g} ({one.name})' for one in self.entries)}"
            )
        every = [self.in_full, *(entry for entry in self.entries if entry.name not in without)]
        quick = [one for one in every if max_seconds is None or one.seconds <= max_seconds]
        if not quick:
            least = min(every, key=lambda one: one.seconds)
            raise HiCacheError(
                f"pack.max_seconds = {max_seconds}: must be {least.seconds:.3g} or more, which {least.name!r} takes on "
                f"{self.hardware}"
            )
        true = [one for one in quick if max_error is None or one.bound <= max_error]
        if not true:
            least = min(quick, key=lambda one: one.bound)
            raise HiCacheError(
                f"pack.max_error = {max_error}: must be {least.bound:.3g} or more within {max_seconds} s, which "
                f"{least.name!r} keeps"
            )
        if max_seconds is None:
            return min(true, key=lambda one: (one.seconds, one.bound))
        return min(true, key=lambda one: (one.bound, one.seconds))

    def save(self, path: str | Path) -> None:
        """Write the pack to ``path``, JSON with a checksum."""
        rows = [
            {
                "name": entry.name,
                "policy": to_dict(entry.policy),
                "errors": list(entry.errors),
                "seconds": entry.seconds,
                "flops_speedup": entry.flops_speedup,
                "computed": entry.computed,
            }
            for entry in self.entries
        ]
        signature = {"model": self.signature.model, "scheduler": self.signature.scheduler}
        data = {"format": FORMAT, "version": VERSION, **signature, "hardware": self.hardware}
        data |= {"steps": self.steps, "seconds": self.seconds, "entries": rows}
        write_whole(path, json.dumps(sealed(data), indent=1) + "\n")

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Pack:
        """The pack of the JSON that ``save`` writes.

        Raises:
            HiCacheError: it is damaged, or of another release.
        """
        if data.get("version") != VERSION:
            raise HiCacheError(f"pack.version = {data.get('version')!r}: must be {VERSION}, which this release reads")
        fields = unsealed("pack", data)
        try:
            rows = [Entry(**{**row, "policy": from_dict(row["policy"])}) for row in fields["entries"]]
            signature = Signature(str(fields["model"]), str(fields["scheduler"]))
            return Pack(tuple(rows), fields["steps"], fields["seconds"], str(fields["hardware"]), signature)
        except (LookupError, TypeError, AttributeError) as error:
            raise HiCacheError(f"pack: must be as Pack.save wrote it ({error!r})") from None


def is_pack(value: Any) -> bool:
    """Whether ``value`` is a pack, its data, or the path of its file."""
    if isinstance(value, Mapping):
        return value.get("format") == FORMAT
    if isinstance(value, str | Path) and str(value).endswith(".json") and os.path.isfile(value):
        return f'"{FORMAT}"' in read_text("policy", value)
    return isinstance(value, Pack)


def as_pack(value: Any) -> Pack:
    """A Pack from a Pack, its data, or a path.

    Raises:
        HiCacheError: ``value`` is none of these.
    """
    if isinstance(value, Pack):
        return value
    if isinstance(value, Mapping):
        return Pack.from_dict(value)
    try:
        data = json.loads(read_text("pack", value))
    except (ValueError, RecursionError) as error:
        raise HiCacheError(f"pack = {str(value)!r}: must be a file that Pack.save wrote ({error})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise HiCacheError(f"pack = {str(value)!r}: must be a file that Pack.save wrote; {SEAL} and format are missing")
    return Pack.from_dict(data)
