"""Growth of costs with depth, tokens, order, guidance branches and steps, on a narrow FLUX; one plot per axis.

At stack scope, where only the computed steps may grow with depth.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hicache_compile import HiCache, hicache_compile
from hicache_compile.benchmarks.host import at_scope
from hicache_compile.benchmarks.memory import forget_peak, in_own_process, peak_bytes
from hicache_compile.benchmarks.models import Flux
from hicache_compile.benchmarks.record import environment
from hicache_compile.inspection.figures import save_figure
from hicache_compile.passes import capture, rewrite
from hicache_compile.policy.layout import Layout

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """One measured configuration."""

    depth: int = 12
    tokens: int = 256
    order: int = 2
    branches: int = 1
    steps: int = 20

    @property
    def shape(self) -> Flux:
        double = max(1, self.depth // 3)
        return Flux(double, self.depth - double, heads=4, head_dim=32, image_tokens=self.tokens, text_tokens=32)


AXES: dict[str, tuple[int, ...]] = {
    "depth": (4, 12, 28, 57),
    "tokens": (64, 256, 1024),
    "order": (1, 2, 3),
    "branches": (1, 2, 4),
    "steps": (10, 50, 200),
}
FIGURES = {
    "full_step_ms": "full step, ms",
    "forecast_step_ms": "forecast step, ms",
    "trajectory_s": "trajectory, s",
    "compile_s": "compile, s",
    "pass_s": "passes, s",
    "host_us": "host time, us",
    "state_mb": "anchors, MB",
    "peak_mb": "peak memory, MB",
}


def measure() -> Iterator[Callable[[], Line]]:
    """One line per value of each axis, with the other axes at their defaults."""
    for axis, values in AXES.items():
        for value in values:
            yield partial(_line, axis, value)


def _line(axis: str, value: Any) -> Line:
    measured = in_own_process(__name__, axis, str(value))
    return {"measured": "growth", "axis": axis, "value": value, **measured, **environment()}


@torch.no_grad()
def _point(point: Point) -> Line:
    shape = point.shape
    model = shape.model()
    arguments = {"hidden_states": shape.noise(), **shape.branches()["cond"], "return_dict": False}
    compiled = hicache_compile(model, HiCache(interval=5, order=point.order, scope="stack"))
    began = time.perf_counter()
    compiled.warmup({**arguments, "timestep": torch.ones(1)})
    compiling = time.perf_counter() - began
    seconds: list[float] = []
    forget_peak()
    with compiled.trajectory(point.steps):
        for step in range(point.steps):
            for branch in range(point.branches):
                with compiled.cache_context(f"branch {branch}"):
                    when = torch.tensor([1 - step / point.steps])
                    began = time.perf_counter()
                    compiled(**arguments, timestep=when)
                    seconds.append(time.perf_counter() - began)
    letters = compiled.report().decisions("branch 0")
    peak = peak_bytes()
    by_step = [(letters[place // point.branches], took) for place, took in enumerate(seconds)]
    report = compiled.report()
    return {
        "full_step_ms": 1e3 * statistics.median(took for letter, took in by_step if letter == "F"),
        "forecast_step_ms": 1e3 * statistics.median(took for letter, took in by_step if letter == "."),
        "trajectory_s": sum(took for _, took in by_step),
        "compile_s": compiling,
        "pass_s": _pass_seconds(model, arguments, point),
        "host_us": at_scope(shape, "stack", 1)["ours_us"],
        "state_mb": report.state_bytes / 1e6,
        "peak_mb": peak / 1e6,
        "programs": report.programs,
        "recompiles": report.recompiles,
    }


def _pass_seconds(model: torch.nn.Module, arguments: dict[str, Any], point: Point) -> float:
    """The time of our passes within the compile time."""
    took: list[float] = []

    def receive(program: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        began = time.perf_counter()
        rewrite(capture(program), Layout("stack", depth=point.order + 1))
        took.append(time.perf_counter() - began)
        return program.forward

    torch.compiler.reset()
    torch.compile(model, backend=receive)(**arguments, timestep=torch.ones(1))
    return sum(took)


def draw(lines: Sequence[Line], folder: Path) -> list[Path]:
    """``growth-AXIS.png`` for each axis: every figure over the values of the axis."""
    import matplotlib.pyplot as plt

    paths = []
    for axis in dict.fromkeys(line["axis"] for line in lines):
        along = [line for line in lines if line["axis"] == axis]
        values = [line["value"] for line in along]
        figure, panels = plt.subplots(2, 4, figsize=(13, 5.4), layout="constrained")
        for panel, (key, label) in zip(panels.flat, FIGURES.items(), strict=True):
            panel.plot(values, [line[key] for line in along], marker="o", color="#1f6f8b")
            panel.set_ylim(bottom=0)
            panel.set_xticks(values)
            panel.set_title(label, fontsize=10, loc="left")
            panel.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"growth with {axis}: FLUX of width 128, stack scope, {along[0]['hardware']}", fontsize=11)
        paths.append(folder / f"growth-{axis}.png")
        save_figure(figure, paths[-1], dpi=120)
        plt.close(figure)
    return paths


if __name__ == "__main__":
    print(json.dumps(_point(replace(Point(), **{sys.argv[1]: int(sys.argv[2])}))))
