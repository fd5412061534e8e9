"""The rules of all guards as tensor functions, for programs that decide on the device.

Each rule gives the same result as the guard's Python code. A rule is data, so guards share programs: ``numbers``
``[RULE]`` holds the index of the rule (the place of its row in ``asks``) and its thresholds (``Guard.numbers``);
``watched`` ``[WATCHED]`` is the guard's state. Everything is float64, like Python's floats.

``course`` ``[HEAD + K]`` is the state of the run: computed steps, consecutive skips, count of non-finite measurements,
the decision of the step (0: full; ``n``: skipped by guard ``n - 1``), then the newest computed steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

RULE, WATCHED, HEAD = 48, 4, 4
GAPS = 64  # gaps between steps in a table of weights are below this


def asks(numbers: Tensor, watched: Tensor, course: Tensor, forced: Tensor, step: Tensor, measured: Tensor) -> Tensor:
    """Decide a step: ``[3 + WATCHED]``: whether it is skipped, whether it is forced from here on, whether the
    measurement was not finite, and the guard's new state.

    ``measured`` ``[n]``: the measurement of the guard's probe; zeros if it measures only after a step.
    """
    found = measured.double()
    change = found[0]
    progress = found[-1]
    finite = change.isfinite()
    p, s = numbers[2:], watched
    zero = torch.zeros_like(change)
    accumulated = s[0] + _polynomial(p, change)
    total = s[1] + change
    similar = (p[4] > 0) & (p[0] >= 1) | (change < p[0])
    budget = ~((p[1] >= 0) & (s[0] >= p[1])) & ~((p[2] >= 0) & (s[1] >= p[2])) & (s[2] < p[3])
    rated = torch.where(s[0] < 2, s[1], total)
    answers = torch.stack(
        [
            torch.stack([(p[0] > 0) & (accumulated < p[0]), accumulated, zero, zero, zero]),
            torch.stack([budget & (p[0] > 0) & similar, s[0], s[1], s[2], change]),
            torch.stack([(s[0] >= 2) & (p[0] > 0) & (total < p[0]), s[0], rated, zero, zero]),
            torch.stack([(p[0] > 0) & (total < p[0]), s[0], total, progress, zero]),
            torch.stack([step[0] < s[1], s[0], s[1], zero, zero]),
            torch.stack([(p[0] > 0) & (s[1] == 0), s[0], s[1], zero, zero]),
        ]
    )
    answer = _row(answers, numbers[0])
    asked = ~forced[0] & finite
    skips = asked & (answer[0] > 0)
    remembered = torch.where(asked, answer[1:], s)
    head = torch.stack([skips.double(), (forced[0] | ~finite).double(), (~forced[0] & ~finite).double()])
    return torch.cat([head, remembered])


def after_full(numbers: Tensor, watched: Tensor, course: Tensor, step: Tensor, measured: Tensor) -> Tensor:
    """The guard's state after a computed step, ``[WATCHED]``."""
    p, s = numbers[2:], watched
    zero, one = torch.zeros_like(s[0]), torch.ones_like(s[0])
    change = measured.double()[0]
    known = (s[0] >= 0) & (course[0] > 0) & change.isfinite()
    gap = torch.where(known, step[0] - s[0], one)
    bounds, intervals = p[0:32:2], p[1:33:2]
    within = (change / gap <= bounds).double()
    first = torch.cat([within[:1], within[1:] * (1 - within.cummax(0).values[:-1])])
    interval = torch.where(known & (within.sum() > 0), (first * intervals).sum(), one)
    rows = [
        [zero, zero, zero, zero],
        [s[0], zero, zero, s[3]],
        [s[0] + 1, zero, zero, zero],
        [s[0] + 1, zero, s[2], zero],
        [step[0], step[0] + interval, zero, zero],
        [zero, zero, zero, zero],
    ]
    return _row(torch.stack([torch.stack(row) for row in rows]), numbers[0])


def after_forecast(numbers: Tensor, watched: Tensor, course: Tensor, step: Tensor, measured: Tensor) -> Tensor:
    """The guard's state after a skipped step, ``[WATCHED]``."""
    p, s = numbers[2:], watched
    zero = torch.zeros_like(s[0])
    change = measured.double()[0]
    limit = torch.maximum(p[2], p[0] * p[1] ** (step[0] / p[4]))
    rejected = (s[0] + 1 >= p[3]) & ~(change <= limit)
    rows = [
        [s[0], s[1], s[2], s[3]],
        [s[0] + 1, s[1] + 1, s[2] + s[3], s[3]],
        [s[0], s[1], s[2], s[3]],
        [s[0], s[1], s[2], s[3]],
        [s[0], s[1], s[2], s[3]],
        [s[0] + 1, rejected.double(), zero, zero],
    ]
    return _row(torch.stack([torch.stack(row) for row in rows]), numbers[0])


def _row(table: Tensor, place: Tensor) -> Tensor:
    """Row ``place`` of ``table``. (Indexing by a zero-dimensional tensor would read it on the host.)"""
    return table.index_select(0, place.long().reshape(1)).squeeze(0)


def _polynomial(p: Tensor, change: Tensor) -> Tensor:
    """TeaCache's polynomial, highest power first; clamped at 0 unless ``p[1]``."""
    total = torch.zeros_like(change)
    for place in range(2, 12):
        total = total * change + p[place]
    return torch.where(p[1] > 0, total, total.clamp(min=0))


def starts_forced(computing: Tensor, course: Tensor, step: Tensor, *numbers: Tensor) -> Tensor:
    """Whether the step is computed whatever is measured, ``[1]``: forced window, no anchor, or a cap on skips."""
    capped = torch.stack([course[1] >= each[1] for each in numbers]).any()
    far = step[0] - course[HEAD] >= GAPS
    return (computing | (course[0] == 0) | capped | far).reshape(1)


def counted(course: Tensor, answer: Tensor) -> Tensor:
    """``course`` with the count of non-finite measurements updated from the result of ``asks``."""
    return torch.cat([course[:2], course[2:3] + answer[2:3], course[3:]])


def skips(answer: Tensor) -> Tensor:
    """The skip decision in the result of ``asks``."""
    return answer[0] > 0


def still_forced(answer: Tensor) -> Tensor:
    """Whether the step is forced after ``asks``, ``[1]``."""
    return answer[1:2] > 0


def remembered(answer: Tensor) -> Tensor:
    """The guard's state after ``asks``."""
    return answer[3:] + 0.0


def course_after_full(course: Tensor, step: Tensor) -> Tensor:
    """``course`` after a computed step."""
    zero = torch.zeros_like(course[:1])
    return torch.cat([course[:1] + 1, zero, course[2:3], zero, step, course[HEAD:-1]])


def course_after_forecast(course: Tensor, code: int) -> Tensor:
    """``course`` after a step skipped by guard ``code - 1``."""
    return torch.cat([course[:1], course[1:2] + 1, course[2:3], torch.full_like(course[:1], code), course[HEAD:]])


def position(course: Tensor) -> Tensor:
    """The ring row that a computed step writes, ``[1]`` int64."""
    return (course[:1] % (course.shape[0] - HEAD)).long()


def weights(course: Tensor, step: Tensor, table: Tensor, numbers: Tensor, watched: Tensor) -> Tensor:
    """Weights in ring order, ``[K]``, from the ``table`` ``[GAPS ** K, K]``, which is indexed by the gaps between the
    step and the newest computed steps (0: no step); or DiCache's alignment weights, from its probe.
    """
    depth = course.shape[0] - HEAD
    known = course[0]
    steps = torch.cat([step, course[HEAD:]])
    places = torch.arange(depth, device=course.device)
    gaps = torch.where(places < known, steps[:-1] - steps[1:], 0.0).clamp(0, GAPS - 1).long()
    flat = torch.zeros_like(gaps[0])
    for axis in range(depth):
        flat = flat * GAPS + gaps[axis]
    row = _row(table, flat)
    if depth > 1:
        p = numbers[2:]
        reach = watched[2]
        gamma = torch.where(reach.isnan(), p[2], torch.minimum(torch.maximum(reach, p[2]), p[3]))
        aligned = torch.cat([torch.stack([gamma, 1 - gamma]).to(row.dtype), torch.zeros_like(row[2:])])
        row = torch.where((numbers[0] == 3) & (p[1] > 0) & (watched[0] >= 2), aligned, row)
    newest = known.long() - 1
    return torch.zeros_like(row).scatter(0, (newest - places) % depth, row)
