"""A Ray cluster: one that runs, or one that is started on this machine."""

from __future__ import annotations

import logging
import os
from typing import Any

from hicache_compile.errors import HiCacheError

HERE = "local"  # what ``--ray`` means without an address


def connect(address: str, owner: str, workers: int, device: str = "") -> int:
    """Reach the cluster at ``address``; returns how many GPUs a worker of it takes, 1 or 0.

    Args:
        owner: the command whose option it is, for messages.
        workers: how many there will be; a cluster that is started here has processor cores for them.
        device: of the workers; by default a GPU where the cluster has any.

    Raises:
        HiCacheError: Ray is not installed, or the cluster is not reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = _ray(owner)
    started = {"address": "local", "num_cpus": max(workers, os.cpu_count() or 1), "include_dashboard": False}
    where: dict[str, Any] = started if address == HERE else {"address": address}
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING, **where)
    except Exception as error:
        raise HiCacheError(f"{owner}.ray = {address!r}: must be a Ray cluster that can be reached ({error})") from None
    return 1 if ray.cluster_resources().get("GPU") and device != "cpu" else 0


def _ray(owner: str) -> Any:
    try:
        import ray
    except ImportError:
        raise HiCacheError(
            f"{owner}.ray: needs Ray, which is not installed: must be (pip install 'hicache_compile[ray]')"
        ) from None
    return ray
