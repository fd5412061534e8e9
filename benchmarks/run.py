"""Run scenarios: ``python -m benchmarks.run flux-70m-module flux-70m-stack``. One JSON line each.

Every scenario takes turns with plain ``torch.compile`` of the same weights in the same process, a step of one
and a step of the other, so that a machine whose speed drifts moves both. Medians are quoted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.scenarios import SCENARIOS, Scenario
from hicache_compile import CompiledDenoiser, hicache_compile
from hicache_compile.serialize import to_dict

Denoiser = Callable[..., Any]


@dataclass(slots=True)
class Run:
    """One denoiser's trajectory in progress: its state and the seconds of each call."""

    denoiser: Denoiser
    x: torch.Tensor
    seconds: list[float] = field(default_factory=list)

    def step(self, inputs: dict[str, torch.Tensor], index: int, steps: int) -> None:
        """One Euler step; only the denoiser call is timed."""
        time_left = torch.full_like(inputs["timestep"], 1 - index / steps)
        began = time.perf_counter()
        with torch.no_grad():
            velocity = self.denoiser(**{**inputs, "hidden_states": self.x, "timestep": time_left}, return_dict=False)[0]
        self.seconds.append(time.perf_counter() - began)
        self.x = self.x - velocity / steps


def lockstep(
    compiled: CompiledDenoiser, plain: Denoiser, inputs: dict[str, torch.Tensor], steps: int
) -> tuple[Run, Run]:
    """A cached and an uncached trajectory, a step of one and a step of the other in turn."""
    cached, uncached = Run(compiled, inputs["hidden_states"]), Run(plain, inputs["hidden_states"])
    with compiled.trajectory(steps):
        for index in range(steps):
            cached.step(inputs, index, steps)
            uncached.step(inputs, index, steps)
    return cached, uncached


def run(scenario: Scenario, rounds: int) -> dict[str, Any]:
    """Measure one scenario in ``rounds`` trajectories after one that compiles."""
    model = scenario.model.model()
    inputs = scenario.model.inputs()
    compiled = hicache_compile(model, scenario.policy, backend=scenario.backend)
    plain = torch.compile(model, backend=scenario.backend)
    lockstep(compiled, plain, inputs, scenario.steps)
    runs = [lockstep(compiled, plain, inputs, scenario.steps) for _ in range(rounds)]
    report = compiled.report()
    letters = report.decisions() * rounds
    cached = [seconds for mine, _ in runs for seconds in mine.seconds]
    step = statistics.median(seconds for _, theirs in runs for seconds in theirs.seconds)
    full = statistics.median(s for s, letter in zip(cached, letters, strict=True) if letter == "F")
    forecast = statistics.median(s for s, letter in zip(cached, letters, strict=True) if letter == ".")
    speedups = [sum(theirs.seconds) / sum(mine.seconds) for mine, theirs in runs]
    last, reference = runs[-1][0].x, runs[-1][1].x
    return {
        "scenario": scenario.name,
        "policy": to_dict(scenario.policy),
        "steps": scenario.steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "decisions": report.decisions(),
        "plain_step_ms": 1e3 * step,
        "full_step_ms": 1e3 * full,
        "forecast_step_ms": 1e3 * forecast,
        "full_over_plain": full / step,
        "forecast_over_full": forecast / full,
        "forecast_flops_over_full": report.flops_forecast / report.flops_full,
        "flops_speedup": report.flops_speedup,
        "clock_speedup": statistics.median(speedups),
        "clock_speedup_range": [min(speedups), max(speedups)],
        "clock_over_flops": statistics.median(speedups) / report.flops_speedup,
        "relative_error": float((last - reference).norm() / reference.norm()),
        "state_bytes": report.state_bytes,
        "programs": report.programs,
        "recompiles": report.recompiles,
        "backend": scenario.backend,
        "dtype": "float32",
        "rounds": rounds,
        "torch": torch.__version__,
        "hardware": _hardware(),
        "date": datetime.date.today().isoformat(),
        "command": f"python -m benchmarks.run {scenario.name} --rounds {rounds}",
    }


def _hardware() -> str:
    name = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return f"{name}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS), metavar="scenario")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="append the JSON lines to this file")
    arguments = parser.parse_args()
    for name in arguments.scenarios:
        if name not in SCENARIOS:
            sys.exit(f"scenario {name!r}: must be one of {', '.join(SCENARIOS)}")
    for name in arguments.scenarios:
        line = json.dumps(run(SCENARIOS[name], arguments.rounds))
        print(line, flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
