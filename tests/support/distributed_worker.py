"""What one rank of a distributed test does, in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
import traceback
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hicache_compile import DiTango, FBCache, HiCache, config, hicache_compile
from hicache_compile.key_partitions import KeyPartitions
from hicache_compile.operators.partitioned_attention import _exchange
from tests.support.models import ToyDiT, flux_inputs, random_flux
from tests.support.parallel import CASES, build, parallelise, sampled, uneven_inputs

STEPS, TOKENS = 14, 16


def context_parallel(rank: int, world: int, toy: type[ToyDiT], ratio: float, groups: int) -> dict[str, object]:
    """A run of a toy DiT of which this rank has its cut of the tokens."""
    compiled = hicache_compile(toy(), DiTango(ratio, 2, 2, groups, distributed=True), backend="aot_eager")
    x = torch.randn(2, TOKENS, 16, generator=torch.Generator().manual_seed(0))
    mine = x.tensor_split(world, dim=1)[rank].contiguous()
    with compiled.trajectory(STEPS), torch.no_grad():
        for step in range(STEPS):
            mine = mine - compiled(mine, torch.full((2,), 1 - step / STEPS)) / STEPS
    report = compiled.report()
    return {"x": mine, "decisions": report.decisions(), "syncs": report.host_syncs}


def together(rank: int, world: int) -> dict[str, object]:
    """Guards on ranks whose noise is not quite the same, and whose graphs have no collectives."""
    model, inputs = random_flux(3, 5), flux_inputs(batch=1)
    other = flux_inputs(batch=1, seed=1)["hidden_states"]
    found = {}
    for name, decide_together in (("alone", None), ("together", True)):
        compiled = hicache_compile(model, FBCache(0.3), backend="eager", decide_together=decide_together)
        x = inputs["hidden_states"] + 0.3 * rank * other
        with compiled.trajectory(STEPS), torch.no_grad():
            for step in range(STEPS):
                time = torch.full((1,), 1 - step / STEPS)
                x = x - compiled(**{**inputs, "hidden_states": x}, timestep=time, return_dict=False)[0] / STEPS
        found[name] = compiled.report().decisions()
    return found


def dying(rank: int, world: int) -> dict[str, object]:
    """The last rank ends in the middle of a run, without a word."""
    compiled = hicache_compile(random_flux(), FBCache(0.2), backend="eager", decide_together=True)
    inputs = flux_inputs(batch=1)
    with compiled.trajectory(STEPS), torch.no_grad():
        for step in range(STEPS):
            if rank == world - 1 and step == 5:
                os._exit(3)
            compiled(**inputs, timestep=torch.full((1,), 1 - step / STEPS), return_dict=False)
    return {}


def exchange(rank: int, world: int, groups: int) -> dict[str, object]:
    """Whose keys and values arrive from each displacement."""
    split = KeyPartitions(groups, world, distributed=True)
    mine = torch.full((1, 1, 2, 4), float(rank))
    places = [place for group in range(groups) for place in split.displacements(group)]
    found = [_exchange((mine, mine + 100, None), split, rank, *place) for place in places]
    assert all(nothing is None for *_, nothing in found)
    keys, values = ([int(received[which][0, 0, 0, 0]) for received in found] for which in (0, 1))
    return {"keys": keys, "values": values}


def parting(rank: int, world: int, how: str) -> dict[str, object]:
    """One rank goes another way in the middle of a run, or is late."""
    config.idle_rank_seconds = 3.0
    last = rank == world - 1
    policy = HiCache(interval=4 if last and how == "other policy" else 3, scope="stack")
    steps = STEPS + 2 if last and how == "other steps" else STEPS
    compiled = hicache_compile(parallelise(random_flux(), "ulysses", world), policy, backend="eager")
    inputs = flux_inputs(batch=1)
    try:
        with compiled.trajectory(steps), torch.no_grad():
            for step in range(steps):
                if last and step == 6 and how == "late":
                    time.sleep(1.5)
                compiled(**inputs, timestep=torch.full((1,), 1 - step / steps), return_dict=False)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"decisions": compiled.report().decisions()}


def parallel(rank: int, world: int, engine: str, cases: str) -> dict[str, object]:
    """Runs of denoisers over the ranks, by case: the model, the policy and the backend."""
    found: dict[str, object] = {}
    for case in cases.split(";"):
        model, policy, backend = case.split(":")
        found[case] = sampled(model, policy, engine, world, backend)
        torch._dynamo.reset()
    return found


def suspending(rank: int, world: int, folder: Path) -> dict[str, object]:
    """A run under a guard, whole, and suspended and resumed by a new denoiser."""
    inputs = uneven_inputs()

    def denoiser() -> Any:
        torch._dynamo.reset()
        return hicache_compile(parallelise(build("uneven"), "ulysses", world), CASES["fbcache"][0](0), backend="eager")

    def steps(compiled: Any, x: Tensor, which: range) -> Tensor:
        for step in which:
            time = torch.full((1,), 1 - step / STEPS)
            with torch.no_grad():
                x = x - compiled(**{**inputs, "hidden_states": x}, timestep=time, return_dict=False)[0] / STEPS
        return x

    compiled, path = denoiser(), folder / "run.safetensors"
    with compiled.trajectory(STEPS):
        x = steps(compiled, inputs["hidden_states"], range(6))
        compiled.suspend(path)
        whole = steps(compiled, x, range(6, STEPS))
    again = denoiser()
    with again.resume(path):
        x = steps(again, x, range(6, STEPS))
    return {"equal": torch.equal(x, whole), "decisions": (compiled.report().decisions(), again.report().decisions())}


TASKS = {
    "exchange": exchange,
    "context_parallel": context_parallel,
    "together": together,
    "dying": dying,
    "parallel": parallel,
    "parting": parting,
    "suspending": suspending,
}

# Ranks are forked from a process that has imported everything: that takes longer than what most of them do.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__, "torch._dynamo.convert_frame", "diffusers.models.transformers"])


def start(task: str, world: int, folder: Path, *arguments: object) -> list[BaseProcess]:
    """The ranks of ``task``. Each leaves what it found in ``folder``, as RANK.pt, or why it ended, as RANK.txt."""
    ranks = [_PROCESSES.Process(target=_work, args=(task, rank, world, folder, arguments)) for rank in range(world)]
    for process in ranks:
        process.start()
    return ranks


def _work(task: str, rank: int, world: int, folder: Path, arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    logging.basicConfig()
    store, longest = f"file://{folder / 'store'}", timedelta(seconds=40)
    try:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=longest)
        torch.save(TASKS[task](rank, world, *arguments), folder / f"{rank}.pt")  # type: ignore[operator]
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise
