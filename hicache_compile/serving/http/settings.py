"""What a service is told when it starts: the model's name, the policy, the keys, the limits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hicache_compile.errors import HiCacheError, real_number, whole_number
from hicache_compile.policy.policy import Policy

OWNER = "serve"
MEBIBYTE = 2**20
DAY = 86_400.0
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """Width and height of a picture in pixels; as text ``1024x768``."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> Size | None:
        """The size that ``text`` is, or ``None`` where it is none."""
        found = _SIZE.fullmatch(text)
        return None if found is None else cls(int(found[1]), int(found[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may ask for, and how much of everything is kept.

    Args:
        body_bytes: of a request's body.
        prompt: characters of a prompt.
        n: pictures of one request.
        steps: sampling steps.
        frames: of a clip.
        edge: pixels of the longer edge of a picture.
        sizes: the sizes that may be asked for; none: every size within ``edge``.
        queue: pictures that are accepted and not yet made.
        seconds: from a request's acceptance to its end.
        body_seconds: for a request's head, and again for its body, to arrive.
        write_seconds: for a piece of a response to be taken.
        kept: pictures that wait under an address of their own.
        kept_bytes: of all of those together.
        kept_seconds: how long each of those waits.

    Raises:
        HiCacheError: a limit is not above 0, or ``n`` is beyond ``queue``.
    """

    body_bytes: int = MEBIBYTE
    prompt: int = 4000
    n: int = 10
    steps: int = 200
    frames: int = 129
    edge: int = 2048
    sizes: tuple[Size, ...] = ()
    queue: int = 64
    seconds: float = 600.0
    body_seconds: float = 20.0
    write_seconds: float = 60.0
    kept: int = 64
    kept_bytes: int = 256 * MEBIBYTE
    kept_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("body_bytes", "prompt", "n", "steps", "frames", "edge", "queue", "kept", "kept_bytes"):
            whole_number(OWNER, name, getattr(self, name), 1)
        for name in ("seconds", "body_seconds", "write_seconds", "kept_seconds"):
            real_number(OWNER, name, getattr(self, name), 0, 7 * DAY)
        if self.n > self.queue:
            raise HiCacheError(f"{OWNER}.n = {self.n}: must be at most the queue's {self.queue}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a service presents itself.

    Args:
        model: the name that ``/v1/models`` tells.
        policy: what requests are made under that do not bring one.
        policy_name: how the page and the start-up table call it.
        steps: of a request that does not say.
        size: of a request that does not say; ``None``: what the pipeline takes by itself.
        keys: any of which a request must bring; none: every request is served.
        call: what the pipeline's call is given besides, where a request does not say.
        fixed_policy: whether requests can only choose between the service's policy and none, and the policies of its
            pack by a promise.
        limits: see there.

    Raises:
        HiCacheError: the steps or the negative prompt are beyond the limits.
    """

    model: str
    policy: Policy | None = None
    policy_name: str = "none"
    steps: int = 28
    size: Size | None = None
    keys: tuple[str, ...] = field(default=(), repr=False)
    call: Mapping[str, Any] = field(default_factory=dict)
    fixed_policy: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        whole_number(OWNER, "steps", self.steps, 1, self.limits.steps)
        negative = self.call.get("negative_prompt") or ""
        if len(negative) > self.limits.prompt:
            raise HiCacheError(
                f"{OWNER}.negative_prompt: a text of {len(negative)} characters; must have at most {self.limits.prompt}"
            )


def whole_seconds(seconds: float) -> int:
    """``seconds`` for a ``Retry-After``: from 1 to 60."""
    return max(1, min(60, math.ceil(seconds)))
