"""Decision maps: what happened to each site in each step of a run, as cells, as a PNG and as FlexCache's PPM files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hicache_compile.errors import HiCacheError
from hicache_compile.inspection.decision_map_png import draw
from hicache_compile.inspection.decision_rows import (
    ANCHOR,
    COMPUTED,
    FORCED,
    REUSED,
    TOKENWISE,
    UNKNOWN,
    DecisionRows,
    Row,
)
from hicache_compile.key_partitions import Code
from hicache_compile.passes import Rewrite
from hicache_compile.policy.files import write_whole
from hicache_compile.policy.policy import Policy
from hicache_compile.runtime.deciders import Decider

CODES = {Code.FORCED: FORCED, Code.ANCHOR: ANCHOR, Code.COMPUTED: COMPUTED, Code.REUSED: REUSED}
MERGED = (ANCHOR, FORCED, COMPUTED, TOKENWISE, REUSED, UNKNOWN)  # what counts where guidance branches differ

Colour = tuple[int, int, int]
GRAY, ORANGE, BLUE, LIGHT, DEEP = (160, 160, 160), (255, 180, 40), (40, 140, 255), (120, 200, 255), (20, 80, 200)
VIOLET = (150, 100, 210)
TANGO = {FORCED: GRAY, ANCHOR: (30, 180, 80), COMPUTED: (50, 120, 230), REUSED: (250, 210, 70), UNKNOWN: GRAY}
ADAPTIVE = {FORCED: GRAY, ANCHOR: ORANGE, COMPUTED: ORANGE, TOKENWISE: VIOLET, REUSED: BLUE, UNKNOWN: GRAY}
BETWEEN_GROUPS, BETWEEN_LAYERS = (245, 245, 245), (30, 30, 30)


class DecisionMap(DecisionRows):
    """What happened to each row in each step; it draws itself."""

    __slots__ = ()

    def png(self, path: str | Path) -> Path:
        """Draw step x site as a picture at ``path``."""
        draw(self, Path(path))
        return Path(path)

    def ppm(self, folder: str | Path) -> Path:
        """Write the file FlexCache writes for this strategy (P6, 8 bit) into ``folder``; returns its path.

        DiTango: ``ditango_policy_step_layer_group.ppm``, cells of 8 x 8 pixels, a row for each group of each attention.
        All others: ``STRATEGY_policy_timestep_pos.ppm``, one row of cells of 12 x 12 pixels.

        Raises:
            HiCacheError: there is no run to draw.
        """
        if not self.steps:
            raise HiCacheError("map: there must have been a run under a policy that caches something")
        if self.strategy == "ditango":
            path = Path(folder) / "ditango_policy_step_layer_group.ppm"
            lines = [line for number, row in enumerate(self.rows) for line in self._lines(number, row)]
        else:
            path = Path(folder) / f"{self.strategy}_policy_timestep_pos.ppm"
            lines = [[colour for colour in self._strip() for _ in range(12)]] * 12
        header = f"P6\n{len(lines[0])} {len(lines)}\n255\n".encode()
        pixels = bytes(part for line in lines for colour in line for part in colour)
        write_whole(path, lambda unfinished: unfinished.write_bytes(header + pixels))
        return path

    def _lines(self, number: int, row: Row) -> list[list[Colour]]:
        """The eight pixel rows of a group of an attention; its first ones are what separates it from the one above."""
        cells = [colour for cell in row.cells for colour in [TANGO[cell]] * 8]
        rules = [BETWEEN_LAYERS] * 2 if number % self.groups == 0 else [BETWEEN_GROUPS]
        if number == 0:
            rules = []
        return [[rule] * len(cells) for rule in rules] + [cells] * (8 - len(rules))

    def _strip(self) -> list[Colour]:
        """One colour a step."""
        steps = ["".join(row.cells[step] for row in self.rows if step < len(row.cells)) for step in range(self.steps)]
        if self.strategy != "pab":
            return [ADAPTIVE[max(cells, key="-fatcr".index)] for cells in steps]
        return [self._broadcast(step, cells) for step, cells in enumerate(steps)]

    def _broadcast(self, step: int, cells: str) -> Colour:
        """Of what happened to the kinds of attention the furthest from forced: cross reuse, self reuse, computed."""
        reused = {row.kind for row in self.rows if row.cells[step] == REUSED}
        if "cross-attention" in reused:
            return DEEP
        return LIGHT if reused else ORANGE if COMPUTED in cells else GRAY


def strategy_of(policy: Policy) -> str:
    """What decides, in a word: the guards' names, or else the schedule's."""
    deciders = policy.guards or (policy.schedule,)
    names = [type(one).__name__.removesuffix("Guard").removesuffix("Schedule").lower() for one in deciders]
    return {"perkind": "pab"}.get(names[0], "_".join(names))


def rows_of(rewrite: Rewrite, decider: Decider, policy: Policy, letters: str) -> list[Row]:
    """The rows of one captured graph in one run: see ``DecisionMap``."""
    if rewrite.layout.partitions is not None:
        return _rows_of_attentions(rewrite, decider, len(letters))
    starts = policy.layout.starts
    rows = []
    for site in rewrite.sites:
        schedule: Any = policy.schedule
        if rewrite.layout.groups:
            schedule = policy.schedule.schedules[site.group]  # type: ignore[attr-defined]  # a PerKind
            computed = [_computes(decider, step, site.group) for step in range(len(letters))]
        else:
            inner = site.group.removeprefix("from_") if site.group else ""
            live_when_inner = len(starts) > 1 and inner.isdigit() and int(inner) < max(starts)
            computed = [
                _is_computed(decider, step, letter) or (letter == "s" and live_when_inner)
                for step, letter in enumerate(letters)
            ]
        forced = [_is_forced(policy, schedule, step, decider.num_steps) for step in range(len(letters))]
        skipped = [TOKENWISE if letter == "t" and site.name in rewrite.tokenwise else REUSED for letter in letters]
        cells = "".join(
            (FORCED if must else COMPUTED) if full else instead
            for full, must, instead in zip(computed, forced, skipped, strict=True)
        )
        rows.append(Row(site.name, site.kind, cells))
    return rows


def _is_computed(decider: Any, step: int, letter: str) -> bool:
    """Whether this graph computed ``step``: of several graphs each decides by itself, and the letter is the last's."""
    rows = getattr(decider, "rows", None)
    if rows is None or not rows.first <= step < len(rows.steps):
        return letter in "FS"
    return not rows.steps[step].forecasts


def _computes(decider: Any, step: int, group: str) -> bool:
    """Whether ``group`` was computed in ``step``."""
    return group not in decider.rows.steps[step].forecasts


def _is_forced(policy: Policy, schedule: Any, step: int, num_steps: int | None) -> bool:
    windows = [schedule, *policy.guards]
    return any(
        step < getattr(window, "warmup", 0)
        or (num_steps is not None and step >= num_steps - getattr(window, "cooldown", 0))
        for window in windows
    )


def _rows_of_attentions(rewrite: Rewrite, decider: Any, steps: int) -> list[Row]:
    rows = []
    for layer, name in enumerate(rewrite.partitioned):
        for group in range(decider.partitions.groups):
            codes = (decider.history.get(step) for step in range(steps))
            cells = "".join(CODES[Code(code[layer][group])] if code else UNKNOWN for code in codes)
            rows.append(Row(f"{name} group {group}", "attention", cells))
    return rows


def merged(of_contexts: Mapping[str, Sequence[Row]]) -> list[Row]:
    """One map of several guidance branches: of each cell what counts most."""
    first, *others = of_contexts.values()
    return [
        Row(row.name, row.kind, "".join(min(cells, key=MERGED.index) for cells in zip(*every, strict=False)))
        for row, every in ((row, [row.cells, *(other[n].cells for other in others)]) for n, row in enumerate(first))
    ]
