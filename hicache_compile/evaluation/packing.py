"""A pack of what was measured of several policies."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from hicache_compile.evaluation.comparison import IN_FULL
from hicache_compile.evaluation.runs import Line
from hicache_compile.evaluation.subjects import Subject
from hicache_compile.inspection.hardware import hardware
from hicache_compile.policy.packs import Entry, Pack
from hicache_compile.policy.policy import Policy


def pack_of(subject: Subject, policies: Mapping[str, Policy], lines: Mapping[str, Sequence[Line]]) -> Pack:
    """The pack of ``policies``, of which ``lines`` are what ``compare`` measured with ``subject``, one a picture.

    Raises:
        HiCacheError: a policy was measured on nothing.
    """
    entries = [
        Entry(
            name,
            policy,
            tuple((line["squared_error"] / max(line["squared_size"], 1e-12)) ** 0.5 for line in lines[name]),
            _median(lines[name], "seconds"),
            statistics.mean(line["flops_speedup"] for line in lines[name]),
            statistics.mean(line["computed"] for line in lines[name]),
        )
        for name, policy in policies.items()
    ]
    seconds = _median(lines[IN_FULL], "seconds")
    return Pack(tuple(entries), subject.steps, seconds, hardware(), subject.signature)


def _median(lines: Sequence[Line], name: str) -> float:
    return float(statistics.median(line[name] for line in lines))
