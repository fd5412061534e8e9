"""The same service over several machines: a Batcher a replica on Ray Serve, and one front that hands requests to them.

The front is the HTTP application; its Batcher is a ``RayBatcher``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from hicache_compile.errors import HiCacheError
from hicache_compile.generate.cluster import connect
from hicache_compile.serving.http.service import Service
from hicache_compile.serving.http.settings import OWNER
from hicache_compile.serving.ray_batcher import RayBatcher
from hicache_compile.serving.replica import Replica

NAME = "hicache"
WAITING = 1000  # requests that are handed to a replica at a time; its Batcher has the limit that counts


def open_replicas(opener: Callable[[], Service], address: str, least: int, most: int) -> Service:
    """Start replicas on a Ray cluster, as many as there is work for.

    Args:
        opener: loads the pipeline; it is called on each.
        address: of the cluster; ``cluster.HERE`` starts one on this machine.
        least: replicas at any time.
        most: at most.

    Raises:
        HiCacheError: the cluster is not reached, or no replica could be started.
    """
    gpus = connect(address, OWNER, most)
    import ray
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
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
