"""Draw pictures under a policy and hold each against the same one in full."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hicache_compile import runtime
from hicache_compile.evaluation.fidelity import fidelity
from hicache_compile.evaluation.quality import Score
from hicache_compile.evaluation.subjects import Drawn, Subject
from hicache_compile.policy.policy import Policy

Line = dict[str, Any]  # one picture under one policy, as plain data


@contextmanager
def quietly() -> Iterator[None]:
    """Inside, sessions do not warn: where thresholds are tried out, that a guard never skips is a result."""
    logger = logging.getLogger(runtime.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Judge:
    """Draws with ``subject`` and compares. Pictures in full are drawn once and kept.

    Args:
        scores: what else is said of each picture, see ``quality``.
    """

    def __init__(self, subject: Subject, scores: Sequence[Score] = ()) -> None:
        self.subject = subject
        self.scores = scores
        self._in_full: dict[tuple[tuple[int, ...], int], Drawn] = {}

    def in_full(self, numbers: Sequence[int], seed: int) -> Drawn:
        """The pictures of the prompts ``numbers`` without a cache."""
        key = (tuple(numbers), seed)
        if key not in self._in_full:
            with self.subject.in_full():
                if not self._in_full:
                    self.subject.draw(numbers, seed)  # compiles
                self._in_full[key] = self.subject.draw(numbers, seed)
        return self._in_full[key]

    def pictures(self, policy: Policy | None, numbers: Sequence[int], seed: int) -> torch.Tensor:
        """The pictures of one run under ``policy``; ``None``: in full."""
        if policy is None:
            images = self.in_full(numbers, seed).images
        else:
            self.subject.under(policy)
            images = self.subject.draw(numbers, seed, sigmas=policy.sigmas).images
        assert images is not None
        return images

    def lines(self, policy: Policy | None, numbers: Sequence[int], seed: int) -> list[Line]:
        """A line for each picture of one run under ``policy``; ``None``: in full."""
        wanted = self.in_full(numbers, seed)
        if policy is None:
            drawn = wanted
            counted: dict[str, Any] = {"computed": self.subject.steps, "flops_speedup": 1.0, "state_bytes": 0}
        else:
            self.subject.under(policy)
            drawn = self.subject.draw(numbers, seed, sigmas=policy.sigmas)
            counted = self._counted()
            counted["flops_speedup"] *= self.subject.steps / len(policy.sigmas or range(self.subject.steps))
        assert drawn.images is not None
        assert wanted.images is not None
        prompts = [self.subject.prompts[number] for number in numbers]
        frames = len(drawn.images) // len(prompts)  # of a clip
        prompts = [prompt for prompt in prompts for _ in range(frames)]
        columns: dict[str, list[Any]] = {**fidelity(drawn.images, wanted.images)}
        for score in self.scores:
            columns |= score(drawn.images, prompts)
        timed = {"seconds": drawn.seconds, "clock_speedup": wanted.seconds / drawn.seconds}
        return [
            {
                "prompt": prompt,
                "seed": seed,
                "place": n // frames,  # in its batch
                **counted,
                **timed,
                **{name: values[n] for name, values in columns.items()},
            }
            for n, prompt in enumerate(prompts)
        ]

    def _counted(self) -> dict[str, Any]:
        """Of the newest run, whose steps its denoisers share out among them, in their order."""
        reports = [report for denoiser in self.subject.denoisers if (report := denoiser.report()).history]
        decisions = [report.decisions() for report in reports]
        full = [len(letters) * report.flops_full for letters, report in zip(decisions, reports, strict=True)]
        made = sum(flops / report.flops_speedup for flops, report in zip(full, reports, strict=True))
        return {
            "computed": sum(letters.count("F") + letters.count("S") for letters in decisions),
            "flops_speedup": sum(full) / made if made else 1.0,
            "state_bytes": sum(report.state_bytes for report in reports),
            "decisions": "".join(decisions),
        }
