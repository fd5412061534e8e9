"""The run: items, what is left of them, the processes that make them, what it came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.generate.items import Item
from hicache_compile.generate.launch import Launcher, Settings
from hicache_compile.generate.ranks import Ranks
from hicache_compile.generate.record import Record
from hicache_compile.policy.files import only_one
from hicache_compile.policy.progress import kept

ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to, on one of its processes; what is said of items in place, rank 0 alone knows.

    ``items``: how many are in place, ``skipped`` of them from before; ``failed`` could not be made. ``decisions``: of
    the last item, denoiser -> context -> letters. ``errors``: of all processes, each with its ``rank``.
    """

    rank: int
    items: int
    skipped: int
    failed: int
    seconds_median: float | None
    decisions: dict[str, dict[str, str]]
    errors: list[dict[str, Any]]

    def as_data(self) -> dict[str, Any]:
        """The summary as plain data."""
        return {name: value for name, value in asdict(self).items() if name != "rank"}


def generate(items: Sequence[Item], folder: Path, settings: Settings) -> Outcome:
    """Make every item that ``folder`` does not have yet.

    What a process fails at, the processes that failed at nothing try again, ``ROUNDS`` rounds in all.

    Raises:
        HiCacheError: the model is no pipeline, or takes none of the arguments.
    """
    with Ranks().together() as ranks, only_one(folder / f".rank{ranks.rank}.lock", "generates into this folder"):
        record = Record(folder, ranks.rank)
        ranks.gather(None)  # every torn line is mended before any is read
        done = {Path(name).with_suffix("").as_posix() for name in record.done()}
        left = [item for item in items if item.file not in done]
        quiet = ranks.rank > 0
        launcher: Launcher | None = None
        errors: list[dict[str, Any]] = []
        healthy = list(range(ranks.size))
        for _ in range(ROUNDS):
            mine = ranks.share(left, healthy)
            failed: dict[Item, str] = {}
            if mine:
                try:
                    launcher = launcher or Launcher(settings, folder, record, quiet)
                    with kept(f"what was made is in {folder}; the same command makes the rest"):
                        failed = launcher.run(mine)
                except HiCacheError:
                    raise
                except Exception as error:  # this process cannot work at all, out of memory perhaps
                    failed = dict.fromkeys(mine, f"{type(error).__name__}: {error}")
            told = ranks.gather(failed)
            for rank, fails in enumerate(told):
                errors += [{"rank": rank, "error": f"{item.file}: {why}"} for item, why in fails.items()]
            left = [item for fails in told for item in fails]
            healthy = [rank for rank, fails in enumerate(told) if not fails] or list(range(ranks.size))
            if not left:
                break
        ranks.gather(None)  # all lines are written before they are joined
        lines = record.merge() if ranks.rank == 0 else []
        ranks.gather(None)
    seconds = sorted(line["seconds"] for line in lines)
    median = seconds[len(seconds) // 2] if seconds else None
    decisions = lines[-1]["decisions"] if lines else {}
    return Outcome(ranks.rank, len(lines), len(done), len(left), median, decisions, errors)
