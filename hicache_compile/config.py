"""Settings of the process. The switch: ``HICACHE_ENABLE=0`` at start, or ``hicache_compile.config.enabled = False``.

While it is off, every denoiser runs uncached (and compiled), bit for bit as without a policy. A warning is logged once,
when a denoiser first runs uncached for this reason.
"""

from __future__ import annotations

import logging
from functools import cache

from hicache_compile.errors import switched_on

log = logging.getLogger(__name__)

enabled: bool = switched_on("HICACHE_ENABLE", default="1")
idle_rank_seconds: float = 20.0  # that a rank may spend between two steps of a run while others wait for it


def caching() -> bool:
    """Whether the switch is on. If it is off, logs a warning the first time."""
    if not enabled:
        _say_that_it_is_off()
    return enabled


@cache
def _say_that_it_is_off() -> None:
    log.warning("caching is switched off (HICACHE_ENABLE=0 or hicache_compile.config.enabled), policies are ignored")
