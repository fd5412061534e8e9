"""What a request asks for, once its values are within the limits: the calls of the pipeline, one a picture."""

from __future__ import annotations

import secrets
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from hicache_compile.errors import HiCacheError, find_name, nearest
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets import PRESETS
from hicache_compile.serving.http.errors import ApiError
from hicache_compile.serving.http.schema import MOST_TEXT, ImageRequest, shown
from hicache_compile.serving.http.service import Abilities
from hicache_compile.serving.http.settings import OWNER, Limits, Settings, Size
from hicache_compile.serving.promise import as_promise, pick

LARGEST_SEED = 2**62
MOST_GUIDANCE = 1000.0
OFF = "off"  # computes every step
OWN = "of the request"
Cache = Policy | Mapping[str, Any] | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The pictures of one request.

    ``seeds``: one a picture. ``cache``: the policy, ``"off"``, a promise, or ``None`` for the service's own.
    ``policy``: how that is called. ``call``: what the pipeline's call is given for every picture, all but the
    generator. ``quality``: of JPEG and WebP, 0 to 100.
    """

    seeds: tuple[int, ...]
    steps: int
    size: Size | None
    cache: Cache
    policy: str
    call: dict[str, Any]
    format: str
    quality: int
    by_address: bool
    stream: bool

    @property
    def alike(self) -> Hashable:
        """What orders have in common whose full steps take equally long."""
        shape = tuple(self.call.get(name) for name in ("width", "height", "num_frames"))
        return shape, "negative_prompt" in self.call


def order_of(request: ImageRequest, settings: Settings, abilities: Abilities) -> Order:
    """The order that ``request`` is.

    Raises:
        ApiError: 400 where a value is not allowed, the pipeline takes no such argument, or the policy does not fit the
            steps, or the promise cannot be kept; 404 where another model is asked for.
    """
    limits = settings.limits
    if request.model is not None and request.model != settings.model:
        message = f"model = {shown(request.model)}: must be {settings.model!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    _check_text("prompt", request.prompt, limits.prompt)
    if not request.prompt.strip():
        raise _wrong("prompt", "", "a text that is not empty")
    for name in ("user", "safety_identifier"):
        _check_text(name, getattr(request, name) or "", MOST_TEXT)
    pictures = _whole("n", request.n, 1, limits.n, 1)
    _whole("partial_images", request.partial_images, 0, 3, 0)
    seed = _whole("seed", request.seed, 0, LARGEST_SEED, secrets.randbelow(2**31))
    steps = _whole("num_inference_steps", request.num_inference_steps, 1, limits.steps, settings.steps)
    size = _size(request, settings, abilities)
    if abilities.video and request.output_format == "jpeg":
        raise _wrong("output_format", "jpeg", "png or webp, which hold clips")
    return Order(
        seeds=tuple(seed + number for number in range(pictures)),
        steps=steps,
        size=size,
        cache=_cache(request.cache, steps, settings, abilities),
        policy=_name(request.cache, settings),
        call={**settings.call, **_asked(request, settings, abilities), **_usual(steps, size, abilities)},
        format=request.output_format or "png",
        quality=_whole("output_compression", request.output_compression, 0, 100, 100),
        by_address=request.response_format == "url",
        stream=bool(request.stream),
    )


def _asked(request: ImageRequest, settings: Settings, abilities: Abilities) -> dict[str, Any]:
    """Arguments that the request names itself."""
    limits = settings.limits
    asked: dict[str, Any] = {"prompt": request.prompt}
    if request.negative_prompt is not None:
        asked["negative_prompt"] = _check_text("negative_prompt", request.negative_prompt, limits.prompt)
    if request.num_frames is not None:
        asked["num_frames"] = _whole("num_frames", request.num_frames, 1, limits.frames, 1)
    for name in ("guidance_scale", "true_cfg_scale"):
        scale = getattr(request, name)
        if scale is not None:
            asked[name] = scale
            if not 0 <= scale <= MOST_GUIDANCE:
                raise _wrong(name, scale, f"a number from 0 to {MOST_GUIDANCE:g}")
    for name in asked:
        if name not in abilities.arguments:
            message = f"{name}: {abilities.pipeline} takes no such argument; must be left out"
            raise ApiError(400, message, param=name, code="unsupported_field")
    return _with_true_guidance(asked, abilities)


def _with_true_guidance(asked: dict[str, Any], abilities: Abilities) -> dict[str, Any]:
    """Guidance beyond 1 that has a negative prompt beside it is the true one, for pipelines that have two kinds."""
    wanted = "negative_prompt" in asked and asked.get("guidance_scale", 0) > 1
    if wanted and "true_cfg_scale" in abilities.arguments and "true_cfg_scale" not in asked:
        asked["true_cfg_scale"] = asked.pop("guidance_scale")
    return asked


def _usual(steps: int, size: Size | None, abilities: Abilities) -> dict[str, Any]:
    """Arguments of every call, as far as the pipeline takes them."""
    usual: dict[str, Any] = {"num_inference_steps": steps, "output_type": "pil"}
    if size is not None:
        usual |= {"width": size.width, "height": size.height}
    return {name: value for name, value in usual.items() if name in abilities.arguments}


def _size(request: ImageRequest, settings: Settings, abilities: Abilities) -> Size | None:
    text = request.size or "auto"
    if text == "auto":
        return settings.size
    size = Size.parse(text)
    if size is None:
        raise _wrong("size", text, 'WIDTHxHEIGHT, like "1024x768", or "auto"')
    allowed = _allowed_instead(size, settings.limits, abilities)
    if allowed:
        raise _wrong("size", text, allowed)
    return size


def check_usual_size(settings: Settings, abilities: Abilities) -> None:
    """Raise ``HiCacheError`` where requests could not ask for the size of those that do not say."""
    allowed = "" if settings.size is None else _allowed_instead(settings.size, settings.limits, abilities)
    if allowed:
        raise HiCacheError(f"{OWNER}.size = '{settings.size}': must be {allowed}")


def _allowed_instead(size: Size, limits: Limits, abilities: Abilities) -> str:
    """What is allowed in place of ``size``; empty where it is."""
    if not {"width", "height"} <= abilities.arguments:
        return f'"auto": {abilities.pipeline} makes one size'
    if limits.sizes and size not in limits.sizes:
        return f"auto or one of {', '.join(map(str, limits.sizes))}"
    if max(size.width, size.height) > limits.edge:
        return f"at most {limits.edge} pixels wide and high"
    if size.width % abilities.multiple or size.height % abilities.multiple:
        return f"a width and a height that are multiples of {abilities.multiple}"
    return ""


def _cache(given: str | dict[str, Any] | None, steps: int, settings: Settings, abilities: Abilities) -> Cache:
    """The policy, ``"off"``, a promise or ``None``. Names of files and of environment variables are not for clients to
    give."""
    if given is None or given == OFF:
        _check_steps(settings.policy if given is None else None, steps)
        return given
    promise = as_promise(given)
    if promise is not None:
        return _promise(promise, steps, abilities)
    if settings.fixed_policy:
        allowed = '"off", or left out: this service has one policy'
        raise _wrong("cache", given, allowed if abilities.pack is None else f"a promise, {allowed}, and a pack")
    if isinstance(given, str) and find_name(given, PRESETS) is None and not given.lstrip().startswith("{"):
        raise _wrong(
            "cache",
            given,
            f'"off", an object with a policy\'s fields, or one of {", ".join(PRESETS)}{nearest(given, PRESETS)}',
        )
    try:
        policy = as_policy(given)
    except HiCacheError as error:
        raise ApiError(400, f"cache: {error}", param="cache", code="invalid_policy") from None
    _check_steps(policy, steps, "cache")
    return policy


def _promise(given: Mapping[str, Any], steps: int, abilities: Abilities) -> Mapping[str, Any]:
    """``given``, which the Batcher picks by: where the service's policy stepped back, not what it stepped back from."""
    try:
        pick(abilities.pack, given, steps)
    except HiCacheError as error:
        raise ApiError(400, str(error), param="cache", code="invalid_policy") from None
    return given


def _name(given: str | dict[str, Any] | None, settings: Settings) -> str:
    """How the answer calls the policy, where it is of no pack."""
    if given is None or given == OFF:
        return settings.policy_name if given is None else OFF
    return find_name(given.get("preset") if isinstance(given, dict) else given, PRESETS) or OWN


def _check_steps(policy: Policy | None, steps: int, param: str = "num_inference_steps") -> None:
    try:
        if policy is not None:
            policy.decisions(steps)
    except HiCacheError as error:  # of a mask, or of anything planned for another number of steps
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_policy") from None


def _check_text(field: str, text: str, most: int) -> str:
    if len(text) > most:
        message = f"{field}: a text of {len(text)} characters; must have at most {most}"
        raise ApiError(400, message, param=field, code="too_long")
    return text


def _whole(field: str, value: int | None, least: int, most: int, usual: int) -> int:
    if value is None:
        return usual
    if not least <= value <= most:
        raise _wrong(field, value, f"an integer from {least} to {most}")
    return value


def _wrong(field: str, value: object, allowed: str) -> ApiError:
    return ApiError(400, f"{field} = {shown(value)}: must be {allowed}", param=field, code="invalid_value")
