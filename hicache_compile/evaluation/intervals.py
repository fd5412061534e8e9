"""Means over pictures with 95 % intervals, by the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hicache_compile.evaluation.quality import frechet

DRAWS = 1000
Rows = Sequence[Mapping[str, Any]]  # a picture each


class Interval95(NamedTuple):
    """A value, and the 2.5 % and 97.5 % quantiles of it over resampled pictures."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def summary(rows: Rows, real: np.ndarray | None = None) -> dict[str, Interval95]:
    """Of all pictures: ``relative_error`` (2-norm over all), the means of what else each has, and with ``real``
    features ``frechet``, the distance of theirs from those.

    Pictures are resampled with replacement, ``DRAWS`` times, always in the same way.
    """
    if not rows:
        return {}
    squares = np.array([[row["squared_error"], row["squared_size"]] for row in rows], dtype=float)
    found = {"relative_error": _bootstrap(squares, _relative)}
    for name in ("psnr", "ssim", "lpips", "read", "clip", "image_reward", "computed", "flops_speedup", "clock_speedup"):
        if all(row.get(name) is not None for row in rows):
            found[name] = _bootstrap(
                np.array([row[name] for row in rows], dtype=float), lambda drawn: float(drawn.mean())
            )
    if real is not None and all("features" in row for row in rows) and len(rows) > 1:
        features = np.array([row["features"] for row in rows], dtype=float)
        found["frechet"] = _bootstrap(features, lambda drawn: frechet(drawn, real), DRAWS // 5)
    return found


def as_data(found: Mapping[str, Interval95]) -> dict[str, dict[str, float]]:
    """A summary as plain data."""
    return {metric: value._asdict() for metric, value in found.items()}


def _relative(drawn: np.ndarray) -> float:
    return float(np.sqrt(drawn[:, 0].sum() / drawn[:, 1].sum()))


def _mean(drawn: np.ndarray) -> float:
    return float(drawn.mean())


def _bootstrap(values: np.ndarray, statistic: Callable[[np.ndarray], float], draws: int = DRAWS) -> Interval95:
    generator = np.random.default_rng(0)
    picked = generator.integers(0, len(values), size=(draws, len(values)))
    found, drawn = statistic(values), [statistic(values[one]) for one in picked]
    low, high = np.quantile(drawn, [0.025, 0.975])
    # Resampled pictures vary less than pictures do, which makes a distance of distributions larger: not its interval.
    bias = float(np.mean(drawn)) - found if statistic is not _mean else 0.0
    return Interval95(found, float(low) - bias, float(high) - bias)
