"""Time of full and forecast steps of the 70 M FLUX in ONNX Runtime, where one ``If`` selects the branch."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hicache_compile import HiCache
from hicache_compile.benchmarks.record import environment
from hicache_compile.benchmarks.scenarios import SCENARIOS

STEPS = 50


def measure(scopes: tuple[str, ...] = ("module", "stack")) -> Iterator[Callable[[], dict[str, Any]]]:
    """One line per scope: medians over one trajectory of 50 steps."""
    for scope in scopes:
        yield partial(_at_scope, scope)


def _at_scope(scope: str) -> dict[str, Any]:
    import onnxruntime

    from hicache_compile.export import OnnxDenoiser, export_onnx

    shape = SCENARIOS["flux-70m"].shape
    arguments = {"hidden_states": shape.noise(), **shape.branches()["cond"], "timestep": torch.ones(1)}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "denoiser.onnx"
        began = time.perf_counter()
        manifest = export_onnx(
            shape.model(), HiCache(interval=7, scope=scope), {**arguments, "return_dict": False}, path
        )
        exporting = time.perf_counter() - began
        denoiser = OnnxDenoiser(path, session_options=options)
    given = {name: value.numpy() for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with denoiser.trajectory(STEPS):
        for computing in manifest.plan["computing"]:
            began = time.perf_counter()
            denoiser(**given)
            seconds[computing].append(time.perf_counter() - began)
    full, forecast = (1e3 * statistics.median(seconds[computing]) for computing in (True, False))
    return {
        "measured": "onnxruntime",
        "scope": scope,
        "full_step_ms": full,
        "forecast_step_ms": forecast,
        "forecast_over_full": forecast / full,
        "export_s": exporting,
        "onnxruntime": onnxruntime.__version__,
        **environment(),
    }
