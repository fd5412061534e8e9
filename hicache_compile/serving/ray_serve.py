"""The same service over several machines: a Batcher a replica on Ray Serve, and one front that hands requests to them.

The front is the HTTP application; its Batcher is a ``RayBatcher``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from hicache_compile.errors import HiCacheError
from hicache_compile.serving.http.service import Service
from hicache_compile.serving.ray_batcher import RayBatcher
from hicache_compile.serving.replica import Replica

NAME = "hicache"
WAITING = 1000  # requests that are handed to a replica at a time; its Batcher has the limit that counts


def open_replicas(opener: Callable[[], Service], address: str | None, least: int, most: int) -> Service:
    """Start replicas on a Ray cluster, as many as there is work for.

    Args:
        opener: loads the pipeline; it is called on each.
        address: of the cluster; ``None`` starts one on this machine.
        least: replicas at any time.
        most: at most.

    Raises:
        HiCacheError: the cluster is not reached, or no replica could be started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except Exception as error:
        raise HiCacheError(f"serve.ray = {address!r}: must be a Ray cluster that can be reached ({error})") from None
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})  # the front speaks HTTP
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 8}
    deployment = serve.deployment(
        Replica,
        name=NAME,
        max_ongoing_requests=WAITING,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        **({"num_replicas": most} if least == most else {"autoscaling_config": scaling}),
    )

    def close() -> None:
        serve.shutdown()
        ray.shutdown()

    try:
        handle = serve.run(deployment.bind(opener), name=NAME, route_prefix=None)
        abilities = handle.abilities.remote().result()
    except Exception as error:
        close()
        raise HiCacheError(f"serve.replicas = {most}: none could be started: must be able to ({error})") from None
    return Service(RayBatcher(handle, close), abilities)
