"""Settings of the process. The switch: ``HICACHE_ENABLE=0`` at start, or ``hicache_compile.config.enabled = False``.

While it is off, every denoiser runs uncached (and compiled), bit for bit as without a policy. A warning is logged once,
when a denoiser first runs uncached for this reason.
"""

from __future__ import annotations

import logging
from functools import cache

from hicache_compile.errors import HiCacheError, switched_on

log = logging.getLogger(__name__)

_refused: HiCacheError | None = None  # told by the first step: an import that fails tells it badly
try:
    enabled: bool = switched_on("HICACHE_ENABLE", default="1")
except HiCacheError as error:
    enabled, _refused = True, error
idle_rank_seconds: float = 20.0  # that a rank may spend between two steps of a run while others wait for it


def caching() -> bool:
    """Whether the switch is on. If it is off, logs a warning the first time.

    Raises:
        HiCacheError: ``HICACHE_ENABLE`` holds no switch value.
    """
    if _refused is not None:
        raise _refused
    if not enabled:
        _say_that_it_is_off()
    return enabled


@cache
def _say_that_it_is_off() -> None:
    log.warning("caching is switched off (HICACHE_ENABLE=0 or hicache_compile.config.enabled), policies are ignored")
