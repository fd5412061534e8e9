"""A search: policies tried on a subject, the best measured on fresh noise, three of them recommended."""

from __future__ import annotations

import json
from pathlib import Path

from hicache_compile.evaluation.runs import quietly
from hicache_compile.evaluation.subjects import Subject
from hicache_compile.policy.files import only_one, write_whole
from hicache_compile.policy.progress import kept
from hicache_compile.tune.presentation import show
from hicache_compile.tune.recommend import Recommendation, choose
from hicache_compile.tune.tuner import Search, Tuner


def run(subject: Subject, search: Search, folder: Path) -> list[Recommendation]:
    """Search, write everything into ``folder``, and return what is recommended.

    An earlier search into the same folder goes on where it was stopped.

    Raises:
        HiCacheError: an option is not what is allowed, ``folder`` holds a search of another kind, or another process
            searches into it.
    """
    with only_one(folder / ".lock", "tunes into this folder"):
        return _run(Tuner(subject, search, folder), search, folder)


def _run(tuner: Tuner, search: Search, folder: Path) -> list[Recommendation]:
    with quietly(), kept(f"what was measured is in {folder}; the same command goes on"):
        candidates = tuner.candidates()
        found, left = tuner.search(candidates)
        chosen = choose({name: found[name] for name in left}, search.errors)
        recommended = [tuner.promised(level, candidates[name].policy, name) for level, name in chosen.items()]
        show(tuner, candidates, found, chosen, recommended)
    data = [one.as_data() for one in recommended]
    write_whole(folder / "recommendations.json", json.dumps(data, indent=2) + "\n")
    return recommended
