"""The answers to a request for pictures: one JSON object, or a stream of events."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from hicache_compile.serving.http.errors import ApiError
from hicache_compile.serving.http.making import Making, Picture, Stepped
from hicache_compile.serving.http.order import Order

HEARTBEAT = 10.0  # seconds: what lies in between closes connections on which nothing is said
Address = Callable[[bytes, str], str]  # keeps a file of this format and returns where it can be fetched


def as_object(order: Order, pictures: Sequence[Picture], address: Address) -> dict[str, Any]:
    """The pictures as OpenAI has them, and in ``hicache`` what their steps were."""
    return {
        "created": int(time.time()),
        "data": [_file(order, picture, address) for picture in pictures],
        "output_format": order.format,
        **({} if order.size is None else {"size": str(order.size)}),
        "hicache": {
            "seeds": list(order.seeds),
            "num_inference_steps": order.steps,
            "policies": [picture.policy for picture in pictures],
            "decisions": [picture.decisions for picture in pictures],
            "seconds": [round(picture.timing.whole, 3) for picture in pictures],
            "timings": [picture.timing.as_data() for picture in pictures],
        },
    }


async def as_events(making: Making, address: Address) -> AsyncIterator[bytes]:
    """Server-sent events: ``hicache.progress`` for steps, ``image_generation.completed`` for pictures, ``error``."""
    try:
        async for event in making.events(HEARTBEAT):
            if event is None:
                yield b": waiting\n\n"
            elif isinstance(event, Stepped):
                yield _event("hicache.progress", _progress(making.order, event))
            else:
                yield _event("image_generation.completed", _completed(making.order, event, address))
    except ApiError as error:
        yield _event("error", error.as_data())


def _progress(order: Order, event: Stepped) -> dict[str, Any]:
    progress = event.progress
    return {
        "index": event.index,
        "seed": order.seeds[event.index],
        "step": progress.step,
        "num_steps": progress.num_steps or order.steps,
        "decision": progress.decision,
        "uncached_seconds": None if event.estimate is None else round(event.estimate, 3),
    }


def _completed(order: Order, picture: Picture, address: Address) -> dict[str, Any]:
    return {
        **_file(order, picture, address),
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": order.format,
        "quality": "auto",
        "size": "auto" if order.size is None else str(order.size),
        "usage": _NO_TOKENS,
        "index": picture.index,
        "hicache": {
            "seed": order.seeds[picture.index],
            "num_inference_steps": order.steps,
            "policy": picture.policy,
            "decisions": picture.decisions,
            **picture.timing.as_data(),
        },
    }


# nothing is charged for, and OpenAI's clients expect the field
_NO_TOKENS = {
    "input_tokens": 0,
    "output_tokens": 0,
    "total_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
}


def _file(order: Order, picture: Picture, address: Address) -> dict[str, str]:
    if order.by_address:
        return {"url": address(picture.data, order.format)}
    return {"b64_json": base64.b64encode(picture.data).decode()}


def _event(kind: str, data: dict[str, Any]) -> bytes:
    named = data if kind == "error" else {"type": kind, **data}
    return f"event: {kind}\ndata: {json.dumps(named)}\n\n".encode()
