"""How tests run: one thread a process, every graph verified, and of tests with many costly cases a sample.

The models are tiny, and two OpenMP threads on a busy machine wait for each other.
"""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter

import pytest
import torch

from tests.support.sampled_cases import ONE_IN

torch.set_num_threads(1)
gc.set_threshold(50_000, 10, 10)  # looking for garbage took a tenth of the time
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
os.environ.setdefault("HICACHE_VERIFY", "1")  # every graph is checked after every pass

if not torch.cuda.is_available():
    # Triton's kernels are interpreted where there is no GPU. It has to know before it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="all cases, also of tests with many costly ones")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of tests in ``ONE_IN``, keep one case in so many, unless ``--exhaustive``, ``-k`` or a name asks for more."""
    named = config.option.keyword or any("::" in argument for argument in config.args)
    if config.getoption("exhaustive") or named:
        return
    seen = Counter[str]()
    kept, left_out = [], []
    for item in items:
        name = item.nodeid.removeprefix("tests/").partition("[")[0]
        every = ONE_IN.get(name, 1)
        taken = every and seen[name] % every == 0
        (kept if taken else left_out).append(item)
        seen[name] += 1
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)
