"""Several processes over gloo: context-parallel attention, guards that decide alike, a rank that dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hicache_compile import DiTango, FBCache, HiCacheError, hicache_compile
from tests.support.distributed_worker import STEPS, TOKENS, start
from tests.support.models import GroupedDiT, ToyDiT
from tests.support.parallel import build, sampled


def results(task: str, world: int, folder: Path, *arguments: object) -> list[dict[str, Any]]:
    for rank, process in enumerate(start(task, world, folder, *arguments)):
        process.join(timeout=300)
        assert process.exitcode == 0, (folder / f"{rank}.txt").read_text()[-1500:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize(
    ("toy", "world", "groups", "ratio"), [(ToyDiT, 2, 2, 0.0), (GroupedDiT, 4, 2, 0.5), (ToyDiT, 4, 4, 0.9)]
)
def test_context_parallel_runs_equal_those_of_one_device(
    toy: type[ToyDiT], world: int, groups: int, ratio: float, tmp_path: Path
) -> None:
    found = results("context_parallel", world, tmp_path, toy, ratio, groups)
    compiled = hicache_compile(toy(), DiTango(ratio, 2, 2, groups, partitions=world), backend="aot_eager")
    x = torch.randn(2, TOKENS, 16, generator=torch.Generator().manual_seed(0))
    with compiled.trajectory(STEPS), torch.no_grad():
        for step in range(STEPS):
            x = x - compiled(x, torch.full((2,), 1 - step / STEPS)) / STEPS
    torch.testing.assert_close(torch.cat([one["x"] for one in found], dim=1), x, rtol=1e-4, atol=1e-5)
    assert {one["decisions"] for one in found} == {compiled.report().decisions()}
    assert (set(found[0]["decisions"]) == {"F"}) == (ratio == 0)
    assert {one["syncs"] for one in found} == {compiled.report().host_syncs}


# The model, the policy of the record and the backend. Of "uneven" one rank holds nearly all the change.
ENGINES = [
    (
        "ulysses",
        2,
        [
            "uneven:fbcache:eager",
            "uneven:speca:cond_eager",
            "wan:hicache stack:aot_eager",
            "qwen:fbcache:eager",
        ],
    ),
    ("ulysses", 2, ["uneven:easycache:eager", "uneven:dicache:aot_eager", "uneven:dmd:eager", "wan:teacache:eager"]),
    ("tensor", 2, ["flux:hicache:eager", "flux:fbcache:aot_eager", "qwen:dbcache:eager"]),
    ("fsdp", 2, ["uneven:teacache:aot_eager", "wan:hicache:eager", "hunyuan:hicache:eager"]),
    ("ulysses, fsdp", 4, ["uneven:fbcache:eager", "wan:hicache:eager"]),
]


@pytest.mark.parametrize(("engine", "world", "cases"), ENGINES)
def test_ranks_sample_what_one_process_samples(engine: str, world: int, cases: list[str], tmp_path: Path) -> None:
    found = results("parallel", world, tmp_path, engine, ";".join(cases))
    for case in cases:
        model, policy, _ = case.split(":")
        expected = sampled(model, policy)
        torch._dynamo.reset()
        for rank in found:
            one = rank[case]
            torch.testing.assert_close(one["x"], expected["x"], rtol=1e-5, atol=1e-5, msg=case)
            assert one["decisions"] == expected["decisions"], case
            assert (one["breaks"], one["recompiles"]) == (0, 0), case
            assert one["collectives"][1] < one["collectives"][0], case
        if engine == "ulysses":  # what is kept is in parts like the tokens, but for a few numbers of guards
            assert found[0][case]["state"] < 0.65 * expected["state"], case
            assert found[0][case]["flops"][0] < 0.6 * expected["flops"][0], case
        if policy == "hicache stack" and engine == "ulysses":
            assert found[0][case]["collectives"][1] == 1, case  # the output is gathered


def test_each_rank_is_sparse_in_its_heads_and_hidden_units(tmp_path: Path) -> None:
    """Chipmunk under tensor parallel: as one process with the MLPs in parts that choose their hidden units alone."""
    case = "qwen:hicache, sparse:eager"
    found = results("parallel", 2, tmp_path, "tensor", case)
    expected = sampled("qwen", "hicache, sparse", parts=2)
    for rank in found:
        one = rank[case]
        torch.testing.assert_close(one["x"], expected["x"], rtol=1e-5, atol=1e-5)
        assert one["decisions"] == expected["decisions"]
        assert {*"FS."} <= set("".join(one["decisions"].values()))
        assert (one["breaks"], one["recompiles"]) == (0, 0)
        assert one["state"] < 0.8 * expected["state"]  # anchors are whole, what sparse steps keep is in parts


@pytest.mark.parametrize(
    ("how", "first", "last"),
    [
        ("other policy", "rank 1 at step 0 of 14", "rank 0 at step 0 of 14"),
        ("other steps", "rank 1 at step 0 of 16", "rank 0 at step 0 of 14"),
        ("late", "FFF..F..F..F..", "FFF..F..F..F.."),
    ],
)
def test_ranks_that_part_ways(how: str, first: str, last: str, tmp_path: Path) -> None:
    for process in start("parting", 2, tmp_path, how):
        process.join(timeout=120)
    for rank, expected in enumerate((first, last)):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert expected in str(found), found


def test_ranks_are_suspended_and_resumed_each_with_its_part(tmp_path: Path) -> None:
    for found in results("suspending", 2, tmp_path, tmp_path / "kept"):
        assert found["equal"]
        whole, resumed = found["decisions"]
        assert whole == resumed
        assert set(whole) == {"F", "."}
    kept = tmp_path / "kept"
    assert sorted(path.name for path in kept.iterdir()) == [f"run-rank{rank}of2.safetensors" for rank in (0, 1)]
    compiled = hicache_compile(build("uneven"), FBCache(0.2), backend="eager")
    refused = pytest.raises(HiCacheError, match="ranks suspended it, this is rank 0 of 1: must be continued by as many")
    with refused, compiled.resume(kept / "run.safetensors"):
        pass


def test_keys_arrive_from_the_rank_they_are_asked_of(tmp_path: Path) -> None:
    found = results("exchange", 4, tmp_path, 4)
    assert [one["keys"] for one in found] == [[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]]
    assert [one["values"] for one in found] == [[101, 102, 103], [102, 103, 100], [103, 100, 101], [100, 101, 102]]


def test_ranks_with_other_noise_decide_alike(tmp_path: Path) -> None:
    found = results("together", 2, tmp_path)
    assert found[0]["alone"] != found[1]["alone"]  # what would go wrong
    assert found[0]["together"] == found[1]["together"]
    assert "." in found[0]["together"]


def test_a_rank_that_dies_ends_the_others_with_an_error(tmp_path: Path) -> None:
    processes = start("dying", 2, tmp_path)
    for process in processes:
        process.join(timeout=120)
    assert processes[1].exitcode == 3
    assert processes[0].exitcode not in (None, 0, 3)
    assert "Error" in (tmp_path / "0.txt").read_text()
