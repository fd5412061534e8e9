"""The body of ``POST /v1/images/generations``: OpenAI's fields and ours, with their types."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from hicache_compile.errors import nearest
from hicache_compile.serving.http.errors import ApiError

SHOWN = 60  # characters of a value
MOST_TEXT = 256  # of names that only pass through


class ImageRequest(BaseModel):
    """The fields, each of exactly its type: no number in text, no whole number that is true or false."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = None
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = None
    style: Literal["vivid", "natural"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    stream: bool | None = None
    partial_images: int | None = None
    # beyond OpenAI's
    seed: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    negative_prompt: str | None = None
    num_frames: int | None = None
    cache: str | dict[str, Any] | None = Field(
        default=None,
        description='A policy: the name of a preset, or an object with the fields of one. Or "off". Or a promise, '
        'to pick a policy of the service\'s pack by: {"max_error": 0.02}, {"max_seconds": 1.2}, or both.',
    )


def read_request(body: bytes) -> ImageRequest:
    """The request in the JSON ``body``.

    Raises:
        ApiError: 400, which names the first field that is wrong, its value and what is allowed; of a prompt only the
            type is told, and of what holds other values.
    """
    try:
        return ImageRequest.model_validate_json(body)
    except ValidationError as error:
        raise _told(error.errors(include_url=False)[0]) from None


def _told(error: ErrorDetails) -> ApiError:
    kind = error["type"]
    if kind == "json_invalid":
        return ApiError(400, f"the body must be JSON ({_reason(error)})", code="invalid_json")
    if not error["loc"]:
        return ApiError(400, "the body must be a JSON object with a prompt", code="invalid_json")
    field = str(error["loc"][0])
    if kind == "missing":
        return ApiError(400, f"{field} is missing: must be given", param=field, code="missing_field")
    if kind == "extra_forbidden":
        names = list(ImageRequest.model_fields)
        message = f"{field[:SHOWN]}: no such field{nearest(field, names)}; must be one of {', '.join(names)}"
        return ApiError(400, message, param=field[:SHOWN], code="unknown_field")
    value = shown(error["input"], private="prompt" in field)
    return ApiError(400, f"{field} = {value}: must be {_allowed(field, error)}", param=field, code="invalid_value")


def _reason(error: ErrorDetails) -> str:
    return str(error.get("ctx", {}).get("error", "malformed"))[:120]


def _allowed(field: str, error: ErrorDetails) -> str:
    if field == "cache":  # either of two types
        return 'a policy\'s name, an object with its fields or with a promise, or "off"'
    allowed = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return _NAMED.get(allowed, allowed)


_NAMED = {"integer": "an integer", "number": "a number", "string": "a text", "boolean": "true or false"}


def shown(value: object, private: bool = False) -> str:
    """``value`` for a message, cut short; of one that is ``private`` or holds others, its type alone."""
    if private or isinstance(value, list | dict):
        return f"({_TYPES.get(type(value), type(value).__name__)})"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**SHOWN else "(a number of very many digits)"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


_TYPES: dict[type, str] = {
    list: "a list",
    dict: "an object",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}
