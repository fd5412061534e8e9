"""What a token-wise step costs beside a full and a forecast one; policies take turns in one process."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from hicache_compile import ClusCa, DuCa, Hermite, HiCache, Interval, Policy, ToCa, Tokens, hicache_compile
from hicache_compile.benchmarks.models import Flux
from hicache_compile.benchmarks.record import environment
from hicache_compile.benchmarks.scenarios import SCENARIOS
from hicache_compile.benchmarks.token_subsets import SHARES, errors_at

ROUNDS, STEPS, INTERVAL = 6, 9, 4
POLICIES: dict[str, Policy] = {
    "forecast": HiCache(INTERVAL, warmup=1),
    "ToCa": ToCa(INTERVAL),
    "DuCa": DuCa(INTERVAL),
    "ClusCa": ClusCa(INTERVAL, warmup=1),
    "a quarter, at random": Policy(Interval(INTERVAL, 1), Hermite(2, 0.5), tokens=Tokens("random", share=0.25)),
}
Line = dict[str, Any]


def measure() -> Iterator[Callable[[], Line]]:
    """A line for the steps of a FLUX, and one for each part of the tokens of the emoji model."""
    for part in (partial(_steps, "flux-70m"), *(partial(errors_at, share) for share in SHARES)):
        yield lambda part=part: {  # type: ignore[misc]
            "measured": "tokens",
            **part(),
            "command": "hicache bench tokens",
            **environment(),
        }


@torch.no_grad()
def _steps(scenario: str) -> Line:
    """Milliseconds of each kind of step of ``scenario``, and its time and FLOPs as a part of a full step's."""
    shape = SCENARIOS[scenario].shape
    assert isinstance(shape, Flux)
    model = shape.model()
    compiled = {name: hicache_compile(shape.twin(model), policy) for name, policy in POLICIES.items()}
    (branch,) = shape.branches().values()
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for turn in range(ROUNDS + 1):
        for name, denoiser in compiled.items():
            x = shape.noise()
            with denoiser.trajectory(STEPS):
                for step in range(STEPS):
                    now = torch.tensor([1 - step / STEPS])
                    began = time.perf_counter()
                    velocity = denoiser(hidden_states=x, timestep=now, **branch, return_dict=False)[0]
                    if turn:  # the first compiles
                        seconds[name, denoiser.report().decisions()[-1]].append(time.perf_counter() - began)
                    x = x - velocity / STEPS
    full = statistics.median(second for (_, letter), found in seconds.items() if letter == "F" for second in found)
    line: Line = {"what": scenario, "full_ms": 1e3 * full}
    for name, denoiser in compiled.items():
        report = denoiser.report()
        letters = report.decisions()
        spent = len(letters) * report.flops_full / report.flops_speedup
        spent -= letters.count("F") * report.flops_full + letters.count(".") * report.flops_forecast
        kind = "t" if "t" in letters else "."
        flops = spent / letters.count("t") if kind == "t" else report.flops_forecast
        clock = statistics.median(seconds[name, kind])
        line |= {
            f"{name}: ms": 1e3 * clock,
            f"{name}: of the FLOPs of a full step": flops / report.flops_full,
            f"{name}: of the time of a full step": clock / full,
        }
    return line
