"""One JSON line per contender of a race: medians, spread, ratios, fidelity, versions, hardware, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from hicache_compile.benchmarks.floor import bandwidth, bytes_touched
from hicache_compile.benchmarks.lockstep import Race, Racer
from hicache_compile.inspection.hardware import hardware


def records(race: Race, command: str) -> list[dict[str, Any]]:
    """The results of every contender.

    ``trajectory_ms``: median full step times the number of computed steps plus median forecast step times the others,
    with the scenario's number of computed steps, so a contender that computes one more step has no disadvantage.
    ``clock_speedup``: against plain ``torch.compile`` in the same race. ``relative_error``: of the last sample against
    that of plain ``torch.compile``, 2-norm.
    """
    plain = next(racer for racer in race.racers if racer.contender.name == "torch.compile")
    uncached = statistics.median(_steps(plain, "F"))
    about = {
        "scenario": race.scenario.name,
        "shape": {"class": type(race.scenario.shape).__name__, **_plain(asdict(race.scenario.shape))},  # type: ignore[call-overload]
        "interval": race.scenario.interval,
        "steps": race.scenario.steps,
        "computed": race.scenario.decisions.count("F"),
        "parameters": race.parameters,
        "dtype": str(race.racers[0].x.dtype).removeprefix("torch."),
        "rounds": len(plain.seconds),
        **environment(),
        "command": command,
    }
    lines = [_record(racer, plain, uncached, race) | about for racer in race.racers]
    return lines + [{"contender": name, "refused": why} | about for name, why in race.refused.items()]


def _record(racer: Racer, plain: Racer, uncached: float, race: Race) -> dict[str, Any]:
    full = _steps(racer, "F")
    cached = _steps(racer, ".")
    computed = race.scenario.decisions.count("F")
    steps = race.scenario.steps
    trajectory = steps * statistics.median(full)
    if cached:
        trajectory = computed * statistics.median(full) + (steps - computed) * statistics.median(cached)
    line: dict[str, Any] = {
        "contender": racer.contender.name,
        "kind": racer.contender.kind,
        "decisions": racer.prepared.decisions,
        "full_step_ms": 1e3 * statistics.median(full),
        "forecast_step_ms": 1e3 * statistics.median(cached) if cached else None,
        "forecast_spread_ms": [1e3 * value for value in _quartiles(cached)] if cached else None,
        "full_spread_ms": [1e3 * value for value in _quartiles(full)],
        "trajectory_ms": 1e3 * trajectory,
        "clock_speedup": steps * uncached / trajectory,
        "full_over_plain": statistics.median(full) / uncached,
        "forecast_over_full": statistics.median(cached) / statistics.median(full) if cached else None,
        "relative_error": float((racer.x - plain.x).norm() / plain.x.norm()),
        "first_trajectory_s": racer.compiling,
        "peak_bytes": racer.peak_bytes,
    }
    report = getattr(racer.prepared.denoiser, "report", None)
    if racer.contender.name.startswith("ours") and report is not None:
        found = report()
        touched = bytes_touched(racer.prepared.denoiser.graphs["forecast"])  # type: ignore[attr-defined]  # ours
        floor = len(race.scenario.shape.branches()) * touched / bandwidth(racer.x.device.type)
        line |= {
            "forecast_bytes": touched,
            "forecast_floor_ms": 1e3 * floor,
            "forecast_over_floor": line["forecast_step_ms"] / 1e3 / floor,
            "flops_speedup": found.flops_speedup,
            "forecast_flops_over_full": found.flops_forecast / found.flops_full,
            "clock_over_flops": line["clock_speedup"] / found.flops_speedup,
            "state_bytes": found.state_bytes,
            "programs": found.programs,
            "recompiles": found.recompiles,
            "graph_breaks": found.graph_breaks,
        }
    return line


def _plain(shape: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, torch.dtype) else value for key, value in shape.items()}


def _steps(racer: Racer, letter: str) -> list[float]:
    return [
        seconds
        for run in racer.seconds
        for seconds, decision in zip(run, racer.prepared.decisions, strict=True)
        if decision == letter
    ]


def _quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4)[::2] if len(values) > 1 else list(values) * 2


def environment() -> dict[str, Any]:
    """Versions, hardware and date."""
    versions = {}
    for package in ("torch", "diffusers", "transformers", "cache-dit"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "hardware": hardware(), "date": datetime.date.today().isoformat()}
