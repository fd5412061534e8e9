"""The application: addresses, and what stands behind each."""

from __future__ import annotations

import time
from importlib.resources import files
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from hicache_compile.policy.packs import Pack
from hicache_compile.policy.presets import PRESETS
from hicache_compile.serving.http.encode import MEDIA_TYPES
from hicache_compile.serving.http.errors import ApiError, closing, handle_errors
from hicache_compile.serving.http.gate import Gate
from hicache_compile.serving.http.generations import Generations
from hicache_compile.serving.http.journal import GENERATIONS, Journal
from hicache_compile.serving.http.kept import KeptPictures
from hicache_compile.serving.http.keys import KeyCheck
from hicache_compile.serving.http.metrics import Metrics
from hicache_compile.serving.http.order import check_usual_size
from hicache_compile.serving.http.schema import ImageRequest
from hicache_compile.serving.http.service import Service
from hicache_compile.serving.http.settings import Settings
from hicache_compile.serving.http.timings import Timings

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob: 'self'; \
connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
READING = ["GET", "HEAD"]
_PAGE_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}


def create_app(service: Service, settings: Settings) -> FastAPI:
    """The ASGI application that serves pictures. ``app.state.gate`` closes it.

    Args:
        service: who makes them; it is the caller's to close.
        settings: name, policy, keys and limits.

    Raises:
        HiCacheError: requests could not ask for ``settings.size``.
    """
    check_usual_size(settings, service.abilities)
    app = FastAPI(title="hicache serve", docs_url=None, redoc_url=None)  # those pages load scripts from elsewhere
    metrics, gate, kept = Metrics(service.batcher), Gate(settings.limits.queue), KeptPictures(settings.limits)
    app.state.gate = gate
    handle_errors(app)
    app.add_middleware(Journal, metrics=metrics, write_seconds=settings.limits.write_seconds)
    with_key = [Depends(KeyCheck(settings.keys))]
    generations = Generations(service, settings, gate, kept, Timings(), metrics)

    @app.post(GENERATIONS, dependencies=with_key, openapi_extra=_BODY)
    async def generate(request: Request) -> Response:
        return await generations(request)

    _add_models(app, service, settings, with_key)
    _add_watching(app, gate, metrics)
    _add_pictures(app, kept)
    return app


_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": ImageRequest.model_json_schema()}}}
}


def _add_models(app: FastAPI, service: Service, settings: Settings, with_key: list[Any]) -> None:
    card = {
        "id": settings.model,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "hicache_compile",
        "hicache": _offer(service, settings),
    }

    @app.get("/v1/models", dependencies=with_key)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}", dependencies=with_key)
    async def model(name: str) -> dict[str, Any]:
        if name != settings.model:
            message = f"model = {name[:60]!r}: must be {settings.model!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return card


def _offer(service: Service, settings: Settings) -> dict[str, Any]:
    """What the page, or a program, can choose from."""
    limits, abilities = settings.limits, service.abilities
    return {
        "pipeline": abilities.pipeline,
        "arguments": sorted(abilities.arguments & set(ImageRequest.model_fields)),
        "policy": settings.policy_name,
        "policies": [] if settings.fixed_policy else sorted(PRESETS),
        "promises": [] if abilities.pack is None else _promises(abilities.pack),
        "num_inference_steps": settings.steps,
        "size": "auto" if settings.size is None else str(settings.size),
        "sizable": {"width", "height"} <= abilities.arguments,
        "sizes": [str(size) for size in limits.sizes],
        "multiple": abilities.multiple,
        "limits": {name: getattr(limits, name) for name in ("prompt", "n", "steps", "edge", "frames", "queue")},
    }


def _promises(pack: Pack) -> list[dict[str, Any]]:
    """What each policy of the pack keeps, in the order of its seconds."""
    ordered = sorted((*pack.entries, pack.in_full), key=lambda entry: entry.seconds)
    return [
        {"policy": entry.name, "max_error": entry.bound, "seconds": entry.seconds, "num_inference_steps": pack.steps}
        for entry in ordered
    ]


def _add_watching(app: FastAPI, gate: Gate, metrics: Metrics) -> None:
    @app.api_route("/healthz", methods=READING)
    async def healthz() -> Response:
        if gate.closed:
            raise closing()
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def tell_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


def _add_pictures(app: FastAPI, kept: KeptPictures) -> None:
    page = files("hicache_compile.serving.http").joinpath("page.html").read_text(encoding="utf-8")

    @app.api_route("/", methods=READING, include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    @app.get("/images/{name}")
    async def picture(name: str) -> Response:
        found = kept.find(name)
        if found is None:
            message = "no such picture: must be fetched sooner after it was made"
            raise ApiError(404, message, code="not_found")
        return Response(found.data, media_type=MEDIA_TYPES[found.kind], headers={"Cache-Control": "private"})
