"""Many requests, one compiled model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from hicache_compile.errors import HiCacheError

if TYPE_CHECKING:
    from hicache_compile.serving.http.in_process import Serving


def serve(
    pipe: Any,
    policy: Any,
    *,
    max_error: float | None = None,
    max_seconds: float | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    name: str | None = None,
    steps: int | None = None,
    size: str | None = None,
    call: Mapping[str, Any] | None = None,
    keys: Sequence[str] = (),
    fixed_policy: bool = False,
    backend: str = "inductor",
    max_batch: int = 8,
    max_wait: float = 0.02,
    max_requests: int = 32,
    warm_up: bool = False,
    grace: float = 30.0,
) -> AbstractContextManager[Serving]:
    """``with serve(pipe, policy) as server:`` answers at ``server.url`` what ``hicache serve`` answers, in a thread.

    It has stopped when the block ends, also by an exception: no request is taken any more, pictures in the making get
    ``grace`` seconds, the port is free.

    Args:
        pipe: a diffusers pipeline, on its device. It is compiled in place, unless it is compiled already.
        policy: of requests that bring none, as in ``hicache_compile``; or a pack.
        max_error, max_seconds: the promise of requests that bring none, with a pack, as in ``hicache_compile``.
        host, port: where it listens; port 0 takes a free one.
        name: of the model in the API; by default the pipeline's class.
        steps, size: of a request that does not say; by default the steps of the pack, else 28. A size is text like
            ``"1024x768"``.
        call: what the pipeline's call is given besides, where a request does not say.
        keys: any of which a request must bring; none: anybody is served.
        fixed_policy: requests choose between ``policy`` and none, and by a promise what is in the pack.
        backend: as in ``hicache_compile``.
        max_batch, max_wait, max_requests: as of ``Batcher``.
        warm_up: make a few pictures first, so that all is compiled when it listens.
        grace: seconds for pictures in the making.

    Raises:
        HiCacheError: an argument is not what is allowed, the address is taken, or the packages of the extra ``serve``
            are missing.
    """
    try:
        from hicache_compile.serving.http.in_process import Batches, Offer, serving
        from hicache_compile.serving.http.served import served
    except ImportError as error:
        raise HiCacheError(f"serve(): needs {error.name}: pip install 'hicache_compile[serve]'") from error
    batches = Batches(backend, max_batch, max_wait, max_requests)
    offer = Offer(name, steps, size, {} if call is None else call, keys, fixed_policy)
    wanted = served(policy, "the service's", max_error, max_seconds)
    return serving(pipe, wanted, batches, offer, (host, port), warm_up=warm_up, grace=grace)
