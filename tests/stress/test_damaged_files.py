"""A file with a bit flipped, or cut short, is refused in one line, or comes to what the whole file comes to."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hicache_compile import CompiledDenoiser, HiCache, HiCacheError, Policy, StepMask, TeaCache, hicache_compile
from hicache_compile.evaluation.journal import Journal
from hicache_compile.policy.forecasters import Calibrated, Table
from hicache_compile.policy.json_codec import as_policy, write_policy
from tests.stress.size import size
from tests.support.any_value import refusal
from tests.support.models import ToyDiT

STEPS, HALF = 8, 4
DAMAGES = size(150, 1000)
NOISE = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))


def damaged(whole: bytes, count: int) -> Iterator[bytes]:
    """``count`` times ``whole`` with a bit flipped; every fifth cut short instead."""
    chance = random.Random(0)
    for number in range(count):
        place = chance.randrange(len(whole))
        if number % 5 == 0:
            yield whole[:place]
            continue
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        yield bytes(flipped)


def outcomes(path: Path, read: Callable[[], Any], same: Callable[[Any, Any], bool] = lambda a, b: a == b) -> int:
    """How many damages of the file ``path`` are refused; all others must be harmless."""
    whole, wanted, refused = path.read_bytes(), read(), 0
    for content in damaged(whole, DAMAGES):
        path.write_bytes(content)
        try:
            assert same(read(), wanted), f"another outcome: {_where(whole, content)}"
        except HiCacheError as error:
            refusal(error)
            refused += 1
    path.write_bytes(whole)
    assert same(read(), wanted)
    return refused


def _where(whole: bytes, content: bytes) -> str:
    at = next((n for n, (a, b) in enumerate(zip(whole, content, strict=False)) if a != b), len(content))
    return f"at {at} of {len(whole)}, {whole[max(0, at - 30) : at + 30]!r} is {content[max(0, at - 30) : at + 30]!r}"


@torch.no_grad()
def walk(denoiser: CompiledDenoiser, x: Tensor, places: range) -> Tensor:
    for step in places:
        x = x - denoiser(x, torch.full((1,), 1 - step / STEPS)) / STEPS
    return x


RUNS: dict[str, tuple[Policy, dict[str, Any]]] = {
    "static": (HiCache(interval=4, warmup=2), {}),
    "guarded": (TeaCache(0.1, coefficients=(1.0, 0.0)), {}),
    "offloaded": (HiCache(interval=3, scope="stack"), {"offload": True, "anchors": "int8"}),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_suspended_run(kind: str, tmp_path: Path) -> None:
    policy, options = RUNS[kind]
    path = tmp_path / "run.safetensors"
    first, second = (hicache_compile(ToyDiT(2), policy, backend="eager", **options) for _ in range(2))
    with first.trajectory(STEPS):
        x = walk(first, NOISE, range(HALF))
        first.suspend(path)

    def go_on() -> Tensor:
        with second.resume(path):
            return walk(second, x, range(HALF, STEPS))

    assert outcomes(path, go_on, torch.equal) > 0.9 * DAMAGES


TABLE = Table(5, tuple(0.1 * n for n in range(10)), ((2, (1, 0), (1.25, -0.25)), (4, (3, 1), (1.5, -0.5))))
POLICIES = {
    "preset": HiCache(interval=6, order=2),
    "guard": TeaCache(0.125, coefficients=(3.25, -1.5, 0.75)),
    "calibrated": Policy(StepMask("11010"), Calibrated(TABLE), scope="stack"),
}


@pytest.mark.parametrize("kind", POLICIES)
def test_a_policy_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    write_policy(path, POLICIES[kind])
    assert outcomes(path, lambda: as_policy(path)) > 0.7 * DAMAGES  # what is left are spaces, and the newline


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_table(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"table.{suffix}"
    TABLE.save(path)
    assert outcomes(path, lambda: Table.load(path)) > 0.9 * DAMAGES


def measured(candidate: str, run: int) -> list[dict[str, Any]]:
    """What a picture under a candidate comes to: two pictures a run."""
    chance = random.Random(f"{candidate} {run}")
    return [{"prompt": f"a {n}", "squared_error": chance.random(), "decisions": "F.F."} for n in range(2)]


def test_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"

    def search() -> dict[str, list[dict[str, Any]]]:
        """A search that goes on from what is in the file."""
        journal = Journal(path, {"model": "demo", "steps": 12})
        for candidate in ("a, stack @ 3", "b, module @ 0.1"):
            for run in range(3):
                if not journal.has(candidate, run):
                    journal.add(candidate, run, measured(candidate, run))
        return {c: sorted(journal.of(c), key=lambda line: line["run"]) for c in ("a, stack @ 3", "b, module @ 0.1")}

    search()
    assert outcomes(path, search) > 0.7 * DAMAGES


def test_what_is_none_of_a_search_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("my own notes, without an end of line")
    with pytest.raises(HiCacheError, match=r"line 1 of .* is none of the results"):
        Journal(path, {"steps": 12})
    assert path.read_text() == "my own notes, without an end of line"


def test_a_policy_changed_by_hand_needs_no_checksum(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    write_policy(path, HiCache(interval=6))
    changed = path.read_text().replace('"interval": 6', '"interval": 5')
    path.write_text(changed)
    with pytest.raises(HiCacheError, match="leave out sha256"):
        as_policy(path)
    path.write_text(json.dumps({key: value for key, value in json.loads(changed).items() if key != "sha256"}))
    assert as_policy(path) == HiCache(interval=5)
