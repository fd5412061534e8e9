"""Run scenarios: ``python -m benchmarks.run flux-70m-module flux-70m-stack``. One JSON line each.

Every scenario takes turns with plain ``torch.compile`` of the same weights in the same process: a whole
trajectory of one, then of the other, so that a machine whose speed drifts moves both. Medians are quoted.
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
from pathlib import Path
from typing import Any

import torch

from benchmarks.scenarios import SCENARIOS, Scenario
from hicache_compile import hicache_compile
from hicache_compile.serialize import to_dict

Denoiser = Callable[..., Any]


def sample(denoiser: Denoiser, inputs: dict[str, torch.Tensor], steps: int) -> tuple[torch.Tensor, list[float]]:
    """An Euler trajectory from ``inputs``; the last state and the seconds of each denoiser call."""
    x, seconds = inputs["hidden_states"], []
    for step in range(steps):
        arguments = {**inputs, "hidden_states": x, "timestep": torch.full_like(inputs["timestep"], 1 - step / steps)}
        began = time.perf_counter()
        with torch.no_grad():
            velocity = denoiser(**arguments, return_dict=False)[0]
        seconds.append(time.perf_counter() - began)
        x = x - velocity / steps
    return x, seconds


def run(scenario: Scenario, rounds: int) -> dict[str, Any]:
    """Measure one scenario in ``rounds`` turns after a warm-up of each."""
    model = scenario.model.model().to(getattr(torch, scenario.dtype))
    inputs = scenario.model.inputs()
    compiled = hicache_compile(model, scenario.policy, backend=scenario.backend)
    plain = torch.compile(model, backend=scenario.backend)

    def cached() -> tuple[torch.Tensor, list[float]]:
        with compiled.trajectory(scenario.steps):
            return sample(compiled, inputs, scenario.steps)

    began = time.perf_counter()
    cached()
    compile_seconds = time.perf_counter() - began
    reference, _ = sample(plain, inputs, scenario.steps)
    totals: list[float] = []
    full: list[float] = []
    forecast: list[float] = []
    baseline: list[float] = []
    uncached: list[float] = []
    for _ in range(rounds):
        last, seconds = cached()
        letters = compiled.report().decisions()
        totals.append(sum(seconds))
        full += [s for s, letter in zip(seconds, letters, strict=True) if letter == "F"]
        forecast += [s for s, letter in zip(seconds, letters, strict=True) if letter == "."]
        _, plain_seconds = sample(plain, inputs, scenario.steps)
        baseline += plain_seconds
        uncached.append(sum(plain_seconds))
    report = compiled.report()
    step = statistics.median(baseline)
    speedups = [slow / fast for slow, fast in zip(uncached, totals, strict=True)]
    return {
        "scenario": scenario.name,
        "policy": to_dict(scenario.policy),
        "steps": scenario.steps,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "decisions": report.decisions(),
        "plain_step_ms": 1e3 * step,
        "full_step_ms": 1e3 * statistics.median(full),
        "forecast_step_ms": 1e3 * statistics.median(forecast),
        "full_over_plain": statistics.median(full) / step,
        "forecast_over_full": statistics.median(forecast) / statistics.median(full),
        "forecast_flops_over_full": report.flops_forecast / report.flops_full,
        "flops_speedup": report.flops_speedup,
        "clock_speedup": statistics.median(speedups),
        "clock_speedup_range": [min(speedups), max(speedups)],
        "clock_over_flops": statistics.median(speedups) / report.flops_speedup,
        "relative_error": float((last - reference).norm() / reference.norm()),
        "state_bytes": report.state_bytes,
        "programs": report.programs,
        "recompiles": report.recompiles,
        "compile_seconds": compile_seconds,
        "backend": scenario.backend,
        "dtype": scenario.dtype,
        "rounds": rounds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
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
