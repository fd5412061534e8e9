"""Errors in the form that OpenAI's clients read, whatever went wrong."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from hicache_compile.errors import one_line

INVALID, LIMITED, SERVER = "invalid_request_error", "rate_limit_error", "server_error"
CLIENT_LEFT = 499  # nobody reads it: for the log and the metrics

log = logging.getLogger(__name__)


class ApiError(Exception):
    """What a client is told: one line of at most 400 characters.

    Args:
        status: of HTTP.
        message: names the field, its value and what is allowed.
        param: the field of the request, where it is one's fault.
        code: for programs.
        kind: ``invalid_request_error``, ``rate_limit_error`` or ``server_error``.
        retry_after: seconds after which another try makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(one_line(message))
        self.status, self.param, self.code, self.kind = status, param, code, kind
        self.retry_after = retry_after

    def as_data(self) -> dict[str, dict[str, str | None]]:
        """The object that a response holds."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Those that go with the status; a client that is still sending is not listened to any longer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE):
            headers["Connection"] = "close"
        return headers

    def response(self) -> Response:
        """The response that says it."""
        return JSONResponse(self.as_data(), self.status, self.headers())


def closing() -> ApiError:
    """The service takes no requests any longer."""
    message = "the service is closing: must be asked again, where it runs by then"
    return ApiError(503, message, code="closing", kind=SERVER, retry_after=5)


def client_left() -> ApiError:
    """Nobody is there any longer to be told."""
    return ApiError(CLIENT_LEFT, "the client left", code="client_left")


def internal() -> ApiError:
    """Something of ours broke; what, is in the log alone."""
    return ApiError(500, "the service failed at this request; its log says why", code="internal_error", kind=SERVER)


def handle_errors(app: FastAPI) -> None:
    """Have every error of ``app`` answered in this form."""
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _broken)


async def _told(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http(request: Request, error: Exception) -> Response:
    """What the framework says of addresses and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"{_short(request.url.path)}: no such address; must be one of {_addresses(request)}"
        return ApiError(404, message, code="not_found").response()
    if error.status_code != HTTPStatus.METHOD_NOT_ALLOWED:
        return ApiError(error.status_code, str(error.detail)).response()
    allowed = {name.lower(): value for name, value in (error.headers or {}).items()}.get("allow", "")
    message = f"{request.method[:10]} {_short(request.url.path)}: must be {allowed or 'another method'}"
    response = ApiError(error.status_code, message, code="method_not_allowed").response()
    if allowed:
        response.headers["Allow"] = allowed
    return response


async def _broken(_request: Request, error: Exception) -> Response:
    log.error("a request failed", exc_info=error)
    return internal().response()


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _addresses(request: Request) -> str:
    routes: list[Any] = request.app.router.routes
    return ", ".join(sorted({route.path for route in routes if hasattr(route, "path")}))
