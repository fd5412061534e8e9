"""What a classifier reads off the pictures of the race: ``python -m hicache_compile.benchmarks.rivals_read LINES OUT``.

``LINES`` is what ``hicache bench rivals --out`` wrote, ``OUT`` the folder that the emoji model was trained in, with its
icons and the judge of their names. Each policy draws the held-out captions and as many that the model was trained on,
one noise each. A JSON line for each policy: how many pictures the judge reads as asked, and how many as it reads the
one drawn in full.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hicache_compile.benchmarks.record import environment
from hicache_compile.benchmarks.rivals import open_emoji
from hicache_compile.demo.emoji import icons
from hicache_compile.demo.emoji.examine import JUDGE_STEPS, choose
from hicache_compile.demo.emoji.judge import Hits, Judge, names_of, train_judge
from hicache_compile.demo.training import Plan
from hicache_compile.evaluation.subjects import Subject
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.progress import progress, script

SEED, AT_ONCE = 1, 23
IN_FULL = "in full"


class Reader:
    """Draws every caption of ``subject`` and reads the names off the pictures.

    Args:
        labels: ``[N]``, the index of the name asked for by each caption.
    """

    def __init__(self, subject: Subject, judge: Judge, labels: torch.Tensor) -> None:
        self._subject, self._judge, self._labels = subject, judge, labels
        with subject.in_full():
            self._in_full = self._names(None)

    def line(self, method: str, policy: Policy | None) -> dict[str, Any]:
        """What is read under ``policy``, as plain data; without one, in full."""
        if policy is None:
            names = self._in_full
        else:
            self._subject.under(policy)
            names = self._names(policy.sigmas)
        hits = {"read": names == self._labels, "same": names == self._in_full}
        return {"method": method, **{key: str(Hits(int(hit.sum()), len(names))) for key, hit in hits.items()}}

    @torch.no_grad()
    def _names(self, sigmas: Sequence[float] | None) -> torch.Tensor:
        """The index ``[N]`` of the name that is read off each picture."""
        numbers = list(range(len(self._labels)))
        found = []
        for start in range(0, len(numbers), AT_ONCE):
            drawn = self._subject.draw(numbers[start : start + AT_ONCE], SEED, sigmas=sigmas).images
            assert drawn is not None
            found.append(self._judge(drawn.float()).argmax(1))
        return torch.cat(found)


def read_all(lines: Sequence[Mapping[str, Any]], out: Path) -> Iterator[dict[str, Any]]:
    """What is read in full, then under the policy of each of ``lines``."""
    subjects, pictures = icons.load(out / "icons.safetensors")
    judge = train_judge(subjects, pictures, Plan(JUDGE_STEPS, rate=3e-3), out)
    held_out = choose(subjects, True)
    asked = [subjects[index] for index in [*held_out, *choose(subjects, False, len(held_out))]]
    names = names_of(subjects)
    labels = torch.tensor([names.index(subject.name) for subject in asked])
    reader = Reader(open_emoji([subject.caption() for subject in asked]), judge, labels)
    about = {"measured": "rivals-read", "pictures": len(asked), "environment": environment()}
    yield {**about, **reader.line(IN_FULL, None)}
    for line in progress(lines, what="policies", unit="policy"):
        yield {**about, "budget": line["budget"], **reader.line(line["method"], as_policy(line["policy"]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with script():
        lines = [json.loads(text) for text in given.lines.read_text(encoding="utf-8").splitlines()]
        for line in read_all(lines, given.out):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
