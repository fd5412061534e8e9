"""The run: items, what is left of them, the processes that make them, the summary."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hicache_compile.errors import HiCacheError
from hicache_compile.generate.items import Item
from hicache_compile.generate.launch import Launcher, Settings
from hicache_compile.generate.ranks import Ranks
from hicache_compile.generate.record import Record

ROUNDS = 3


def generate(items: Sequence[Item], folder: Path, settings: Settings, *, as_json: bool = False) -> int:
    """Make every item that ``folder`` does not have yet; returns how many could not be made.

    What a process fails at, the processes that failed at nothing try again, ``ROUNDS`` rounds in all.
    """
    with Ranks().together() as ranks:
        record = Record(folder, ranks.rank)
        ranks.gather(None)  # every torn line is mended before any is read
        done = {Path(name).with_suffix("").as_posix() for name in record.done()}
        left = [item for item in items if item.file not in done]
        quiet = ranks.rank > 0
        launcher: Launcher | None = None
        reported: list[tuple[int, str]] = []
        healthy = list(range(ranks.size))
        for _ in range(ROUNDS):
            mine = ranks.share(left, healthy)
            failed: dict[Item, str] = {}
            if mine:
                try:
                    launcher = launcher or Launcher(settings, folder, record, quiet)
                    failed = launcher.run(mine)
                except HiCacheError:
                    raise
                except Exception as error:  # this process cannot work at all, out of memory perhaps
                    failed = dict.fromkeys(mine, f"{type(error).__name__}: {error}")
            told = ranks.gather(failed)
            reported += [
                (rank, f"{item.file}: {why}") for rank, fails in enumerate(told) for item, why in fails.items()
            ]
            left = [item for fails in told for item in fails]
            healthy = [rank for rank, fails in enumerate(told) if not fails] or list(range(ranks.size))
            if not left:
                break
        ranks.gather(None)  # all lines are written before they are joined
        if ranks.rank == 0:
            lines = record.merge()
            _tell(lines, len(done), reported, left, as_json)
        ranks.gather(None)
    return len(left)


def _tell(
    lines: list[dict[str, Any]], skipped: int, reported: list[tuple[int, str]], left: list[Item], as_json: bool
) -> None:
    new = lines[skipped:] if skipped < len(lines) else []
    seconds = [line["seconds"] for line in lines]
    summary = {
        "items": len(lines),
        "skipped": skipped,
        "failed": len(left),
        "seconds_median": sorted(seconds)[len(seconds) // 2] if seconds else None,
        "decisions": lines[-1]["decisions"] if lines else {},
        "errors": [{"rank": rank, "error": error} for rank, error in reported],
    }
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    console = Console(width=min(100, shutil.get_terminal_size().columns))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("items", f"{len(lines)} in place, {skipped} of them from before, {len(new)} new")
    if seconds:
        table.add_row("seconds", f"{summary['seconds_median']} an item (median)")
    for denoiser, contexts in (lines[-1]["decisions"] if lines else {}).items():
        for context, letters in contexts.items():
            table.add_row(f"{denoiser}, {context}", letters)
    console.print(table)
    for rank, error in reported:
        console.print(f"[red]rank {rank}: {error}")
    if left:
        console.print(f"[red]{len(left)} items could not be made; run the same command again to try them again")
