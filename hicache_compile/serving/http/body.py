"""A request's body, read within a size and a time."""

from __future__ import annotations

import anyio
from fastapi import Request
from starlette.requests import ClientDisconnect

from hicache_compile.serving.http.errors import ApiError, client_left
from hicache_compile.serving.http.settings import Limits

READ_ALONG = 32  # times the limit: what a client may still send before it is told, so that it reads the answer


async def read_body(request: Request, limits: Limits) -> bytes:
    """The JSON body.

    Raises:
        ApiError: 415 where it is said to be no JSON, 413 where it is too long, 408 where it does not come in time, 499
            where the client left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        with anyio.fail_after(limits.body_seconds):
            body = await _read(request, limits)
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_seconds:g} seconds: must be sent faster"
        raise ApiError(408, message, code="slow_body") from None
    except ClientDisconnect:
        raise client_left() from None
    if kind != "application/json":
        message = f"content-type = {kind[:60]!r}: must be 'application/json'"
        raise ApiError(415, message, code="unsupported_media_type")
    return body


async def _read(request: Request, limits: Limits) -> bytes:
    """Pieces beyond the limit are thrown away. Many clients read no answer before all is sent."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > READ_ALONG * limits.body_bytes:
        raise _too_long(limits)
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size <= limits.body_bytes:
            pieces.append(piece)
        elif size > READ_ALONG * limits.body_bytes:
            break
        else:
            pieces.clear()
    if size > limits.body_bytes:
        raise _too_long(limits)
    return b"".join(pieces)


def _too_long(limits: Limits) -> ApiError:
    message = f"the body is too long: must have at most {limits.body_bytes} bytes"
    return ApiError(413, message, code="body_too_long")
