"""Policies held against one another on the same prompts and noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hicache_compile.errors import HiCacheError
from hicache_compile.evaluation.intervals import Interval95, summary
from hicache_compile.evaluation.journal import Journal, once
from hicache_compile.evaluation.quality import real_features
from hicache_compile.evaluation.runs import Judge, Line
from hicache_compile.evaluation.sheet import COLUMNS
from hicache_compile.policy.json_codec import as_policy, to_dict
from hicache_compile.policy.policy import Policy

IN_FULL = "in full"


@dataclass(frozen=True, slots=True)
class Comparison:
    """By policy, ``IN_FULL`` first. ``lines``: one a picture; ``found``: their summary; ``pictures``: the first
    ``COLUMNS`` or those of the first run, where they were asked for."""

    lines: dict[str, list[Line]]
    found: dict[str, dict[str, Interval95]]
    pictures: dict[str, torch.Tensor]


def compare(
    judge: Judge,
    policies: Mapping[str, Policy],
    batches: Sequence[tuple[list[int], int]],
    journal: Journal | None = None,
    *,
    pictures: bool = False,
    on_run: Callable[[], object] = lambda: None,
) -> Comparison:
    """Draw ``batches`` in full and under each of ``policies``; ``on_run`` is called after each run.

    What is in ``journal`` is not drawn again.
    """
    lines: dict[str, list[Line]] = {}
    kept: dict[str, torch.Tensor] = {}
    for name, policy in {IN_FULL: None, **policies}.items():
        key = json.dumps(policy and to_dict(policy))  # a file of the same name may be another policy
        for place, batch in enumerate(batches):
            lines.setdefault(name, []).extend(once(journal, key, place, lambda: judge.lines(policy, *batch)))  # noqa: B023  # called at once
            on_run()
        if pictures:
            first = batches[: max(1, COLUMNS // len(batches[0][0]))]
            kept[name] = torch.cat([judge.pictures(policy, *batch) for batch in first])
    real = real_features(judge.subject)
    return Comparison(lines, {name: summary(rows, real) for name, rows in lines.items()}, kept)


def named_policies(policies: Sequence[str]) -> dict[str, Policy]:
    """Policies by a short name: a preset's, a file's, or what was given.

    Raises:
        HiCacheError: one is no policy, or there is none.
    """
    if not policies:
        raise HiCacheError("eval.policy: must be given, once or several times")
    found: dict[str, Policy] = {}
    for given in policies:
        policy = as_policy(given)
        name = _name(given)
        found[name if name not in found else given] = policy
    return found


def _name(given: str) -> str:
    if given.endswith(".json"):
        return Path(given).stem
    if not given.lstrip().startswith("{"):
        return given
    fields = json.loads(given)
    if "preset" not in fields:
        return given
    return " ".join([fields.pop("preset"), *(f"{key}={value}" for key, value in fields.items())])
