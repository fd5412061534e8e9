"""Cold and warm compile time, each in a separate process: ``python -m hicache_compile.benchmarks.compile_time``.

One compile thread. Cold: an empty cache folder. Warm: a second process with the folder filled by the first. For this
library it covers all programs of a static policy, compiled by ``warmup``. The time of the steps is subtracted.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from hicache_compile.benchmarks.memory import in_own_process

WAYS = ("plain 4 8", "regional 4 8", "ours 4 8 stack", "ours 4 8 module", "plain 19 38", "ours 19 38 stack")


def measure(ways: tuple[str, ...] = WAYS) -> Iterator[Callable[[], dict[str, Any]]]:
    """Seconds until everything is compiled, cold and warm."""
    for way in ways:
        yield partial(_line, way)


def _line(way: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        one_thread = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
        cold, warm = (
            in_own_process(__name__, *way.split(), environment={"TORCHINDUCTOR_CACHE_DIR": cache, **one_thread})
            for _ in range(2)
        )
    seconds = {"cold_s": cold.pop("seconds"), "warm_s": warm["seconds"]}
    return {"measured": "compile time", "way": way, **seconds, **cold}


def compare(lines: Sequence[dict[str, Any]]) -> None:
    """Add the ratios to plain ``torch.compile``, cold."""
    cold = {line["way"].split()[1]: line["cold_s"] for line in lines if line["way"].startswith("plain")}
    for line in lines:
        plain = cold.get(line["way"].split()[1])
        if plain is not None:
            line |= {"cold_over_plain": line["cold_s"] / plain, "warm_over_plain_cold": line["warm_s"] / plain}


def _once(way: str, layers: str, single_layers: str, scope: str = "stack") -> dict[str, Any]:
    import torch

    from hicache_compile import HiCache, hicache_compile
    from hicache_compile.benchmarks.models import Flux
    from hicache_compile.benchmarks.record import environment

    heads = 11 if layers == "4" else 2  # at full width, 57 blocks would take longer to run than to compile
    shape = Flux(int(layers), int(single_layers), heads, head_dim=64, image_tokens=576, text_tokens=64)
    model = shape.model().requires_grad_(False)
    arguments = {"hidden_states": shape.noise(), "timestep": torch.ones(1), **shape.branches()["cond"]}
    denoiser: Any = model
    with torch.no_grad():
        if way == "ours":
            denoiser = hicache_compile(model, HiCache(interval=5, warmup=1, scope=scope))
        elif way == "regional":
            model.compile_repeated_blocks()  # type: ignore[operator]
        else:
            denoiser = torch.compile(model)
        began = time.perf_counter()
        if way == "ours":
            denoiser.warmup(arguments)
        denoiser(**arguments)
        first = time.perf_counter() - began
        began = time.perf_counter()
        denoiser(**arguments)
        step = time.perf_counter() - began
    computed = 2 if way == "ours" else 1  # `warmup` computes one step as well
    return {
        "seconds": first - computed * step,
        "blocks": f"{layers}+{single_layers}",
        "compile_threads": 1,
        **environment(),
    }


if __name__ == "__main__":
    print(json.dumps(_once(*sys.argv[1:])))
