"""Peak resident memory of a trajectory on the 70 M FLUX after compilation, each variant in a separate process."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

WAYS = ("plain", "stack", "module")


def measure(ways: tuple[str, ...] = WAYS) -> Iterator[Callable[[], dict[str, Any]]]:
    """Bytes of each way.

    ``tensor_bytes``: the weights, the anchors and the peak of a trajectory above the idle process; ``peak_bytes``: the
    whole process, including the compiler's graphs and caches.
    """
    for way in ways:
        yield lambda way=way: {"measured": "peak memory", "way": way, **in_own_process(__name__, way)}  # type: ignore[misc]


def compare(lines: Sequence[dict[str, Any]]) -> None:
    """Add the ratios to plain ``torch.compile``."""
    (plain,) = (line for line in lines if line["way"] == "plain")
    for line in lines:
        line |= {f"{key}_over_plain": line[f"{key}_bytes"] / plain[f"{key}_bytes"] for key in ("tensor", "peak")}


def in_own_process(module: str, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """The last line that ``python -m module arguments`` prints, parsed as JSON."""
    command = [sys.executable, "-m", module, *arguments]
    found = subprocess.run(command, env=os.environ | (environment or {}), check=True, stdout=subprocess.PIPE, text=True)
    line: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return line


def forget_peak() -> None:
    """Reset the peak memory counter of this process (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found.group(1))


def rest_bytes() -> int:
    """Resident memory after garbage collection and returning free memory to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def _once(way: str) -> dict[str, Any]:
    import torch

    from hicache_compile import HiCache, hicache_compile
    from hicache_compile.benchmarks.record import environment
    from hicache_compile.benchmarks.scenarios import FLUX_70M

    model = FLUX_70M.model().requires_grad_(False)
    arguments = {"hidden_states": FLUX_70M.noise(), **FLUX_70M.branches()["cond"], "return_dict": False}
    denoiser: Any = torch.compile(model) if way == "plain" else hicache_compile(model, HiCache(interval=7, scope=way))

    def sample() -> None:
        for step in range(10):
            denoiser(**arguments, timestep=torch.tensor([1 - step / 10]))

    with torch.no_grad():
        sample()
        rest = rest_bytes()
        forget_peak()
        sample()
    peak = peak_bytes()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    anchors = 0 if way == "plain" else denoiser.report().state_bytes
    tensors = weights + anchors + peak - rest
    return {"peak_bytes": peak, "tensor_bytes": tensors, "anchor_bytes": anchors, **environment()}


if __name__ == "__main__":
    print(json.dumps(_once(*sys.argv[1:])))
