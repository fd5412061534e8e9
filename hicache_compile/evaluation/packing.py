"""A pack of what was measured of several policies."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from hicache_compile.errors import HiCacheError
from hicache_compile.evaluation.comparison import IN_FULL
from hicache_compile.evaluation.runs import Line
from hicache_compile.evaluation.subjects import Subject
from hicache_compile.inspection.hardware import hardware
from hicache_compile.policy.files import check_writable
from hicache_compile.policy.packs import Entry, Pack
from hicache_compile.policy.packs.pack import LEAST
from hicache_compile.policy.policy import Policy


def check_pack(path: Path) -> None:
    """Raise unless a pack can be written to ``path``, before anything is measured.

    Raises:
        HiCacheError: its name does not end in ``.json``, by which packs are known, or it cannot be written.
    """
    if path.suffix != ".json":
        raise HiCacheError(f"eval.pack = {str(path)!r}: must end in .json")
    check_writable(path)


def check_measured(runs: int, policies: Mapping[str, Policy]) -> None:
    """Raise unless a pack can be made of ``runs`` pictures or clips under ``policies``, before they are drawn.

    Raises:
        HiCacheError: they are fewer than ``LEAST``, or a policy plans noise levels.
    """
    if runs < LEAST:
        raise HiCacheError(
            f"eval.pack: must be of {LEAST} pictures or clips or more, not {runs}: give more prompts or samples"
        )
    for name, policy in policies.items():
        if policy.sigmas is not None:
            raise HiCacheError(
                f"eval.pack: {name} plans noise levels of its own, must be left out: a pack is of one number of steps"
            )


def pack_of(subject: Subject, policies: Mapping[str, Policy], lines: Mapping[str, Sequence[Line]]) -> Pack:
    """The pack of ``policies``, of which ``lines`` are what ``compare`` measured with ``subject``, one a picture.

    A clip, whose frames are lines, has one error.

    Raises:
        HiCacheError: a policy was measured on fewer than 19 pictures or clips, or plans noise levels.
    """
    entries = [
        Entry(
            name,
            policy,
            _errors(lines[name]),
            _median(lines[name], "seconds"),
            statistics.mean(line["flops_speedup"] for line in lines[name]),
            statistics.mean(line["computed"] for line in lines[name]),
        )
        for name, policy in policies.items()
    ]
    seconds = _median(lines[IN_FULL], "seconds")
    return Pack(tuple(entries), subject.steps, seconds, hardware(), subject.signature)


def _errors(lines: Sequence[Line]) -> tuple[float, ...]:
    """The relative error of each run: of its picture, or of all frames of its clip."""
    sums = defaultdict[tuple[str, int, int], list[float]](lambda: [0.0, 0.0])
    for line in lines:
        run = sums[line["prompt"], line["seed"], line.get("place", 0)]  # none in lines of earlier releases
        run[0] += line["squared_error"]
        run[1] += line["squared_size"]
    return tuple((error / max(size, 1e-12)) ** 0.5 for error, size in sums.values())


def _median(lines: Sequence[Line], name: str) -> float:
    return float(statistics.median(line[name] for line in lines))
