"""A schedule for each branch of guidance: what each branch runs, in runs, rows and snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hicache_compile import Always, HiCacheError, Interval, PerBranch, PerKind, Policy, Reuse, hicache_compile
from tests.support.models import ToyDiT

STEPS = 6
PER_BRANCH = PerBranch({"uncond": Interval(3, 1)}, Interval(2, 1))


def compiled(schedule: Any = PER_BRANCH) -> Any:
    return hicache_compile(ToyDiT(), Policy(schedule, Reuse(), "stack"), backend="eager")


def step(model: Any, x: Tensor, at: int) -> None:
    t = torch.full((1,), 1 - at / STEPS)
    for name, shift in (("cond", 0.3), ("uncond", 0.0)):
        with torch.no_grad(), model.cache_context(name):
            model(x, t + shift)


def test_each_branch_follows_its_own_schedule() -> None:
    model, x = compiled(), torch.randn(1, 5, 16)
    with model.trajectory(STEPS):
        for at in range(STEPS):
            step(model, x, at)
    report = model.report()
    assert (report.decisions("cond"), report.decisions("uncond")) == ("F.F.F.", "F..F..")
    assert (report.programs, report.recompiles) == (2, 0)


def test_a_branch_that_is_always_computed() -> None:
    model, x = compiled(PerBranch({"uncond": Always()}, Interval(3, 1))), torch.randn(1, 5, 16)
    with model.trajectory(STEPS):
        for at in range(STEPS):
            step(model, x, at)
    report = model.report()
    assert (report.decisions("cond"), report.decisions("uncond")) == ("F..F..", "FFFFFF")


def test_a_branch_whose_prompt_changes_keeps_its_schedule() -> None:
    assert PER_BRANCH.for_branch("uncond.1") == PER_BRANCH.for_branch("uncond.2[1]") == PER_BRANCH.for_branch("uncond")
    named = PerBranch({"default": Interval(3, 1), "default.1": Always()}, Interval(2, 1))
    found = [named.for_branch(name) for name in ("default", "default.1", "default.2")]
    assert [one.interval for one in found] == [3, 1, 2]  # branches that nobody names are told by their numbers


def test_rows_of_a_branch_follow_it_too() -> None:
    model, x = compiled(), torch.randn(2, 5, 16)
    run = model.run(STEPS)
    with torch.no_grad():
        for at in range(STEPS):
            with model.rows([run, run], ["uncond", "uncond"]):
                model(x, torch.full((2,), 1 - at / STEPS))
    assert (run.decisions("uncond"), run.decisions("uncond[1]")) == ("F..F..", "F..F..")


def test_a_suspended_run_goes_on_by_branch(tmp_path: Path) -> None:
    model, x = compiled(), torch.randn(1, 5, 16)
    with model.trajectory(STEPS):
        for at in range(3):
            step(model, x, at)
        model.suspend(tmp_path / "run.safetensors")
    other = compiled()
    with other.resume(tmp_path / "run.safetensors"):
        for at in range(3, STEPS):
            step(other, x, at)
    report = other.report()
    assert (report.decisions("cond")[-3:], report.decisions("uncond")[-3:]) == (".F.", "F..")


def test_schedules_with_programs_of_their_own_are_refused() -> None:
    with pytest.raises(HiCacheError, match="must be schedules of whole steps"):
        PerBranch({"uncond": PerKind({"mlp": Interval(2)})}, Interval(2))
