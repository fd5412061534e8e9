"""A Batcher that makes plain pictures, and whose requests do what their prompts say.

``wait ...``: runs until it is cancelled or ``release`` is called. ``break ...``: fails. ``refuse ...``: the pipeline
refuses a value. Promises pick from the pack of the tests. ``python -m tests.serving.http.fake_service PORT
[SECONDS A STEP]`` serves it.
"""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from PIL import Image, ImageDraw, ImageFilter

from hicache_compile.errors import HiCacheError
from hicache_compile.policy.json_codec import as_policy
from hicache_compile.policy.policy import Policy
from hicache_compile.policy.presets import HiCache
from hicache_compile.serving.http.service import Abilities, Service
from hicache_compile.serving.progress import Progress
from hicache_compile.serving.promise import as_promise, pick
from hicache_compile.serving.statistics import Statistics
from tests.serving.packs import PACK

ARGUMENTS = frozenset({"prompt", "generator", "num_inference_steps", "guidance_scale", "height", "width"})
SECONDS_OF_A_TEST = 30  # a wait that lasts as long is a failure
POLICY = HiCache(interval=3, warmup=1)


class FakeRequest(Future):  # type: ignore[type-arg]
    """A request that runs in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions = self.entry = ""
        self.released, self.left = threading.Event(), threading.Event()

    def cancel(self) -> bool:
        """Also once it runs."""
        self.left.set()
        self.released.set()
        return not self.done()


class FakeBatcher:
    """Args:
    seconds: of a full step; a forecast one takes a tenth.
    workers: requests that run at a time.
    policy: of requests that bring none.
    """

    def __init__(self, seconds: float = 0.0, workers: int = 8, policy: Policy = POLICY) -> None:
        self.seconds, self.policy = seconds, policy
        self.calls: list[dict[str, Any]] = []
        self.requests: list[FakeRequest] = []
        self.rows = Counter[str]()
        self.running = self.submitted = self.ended = 0
        self.changed = threading.Condition()
        self._pool = ThreadPoolExecutor(workers)

    def submit(
        self, *, cache: Any = None, on_step: Callable[[Progress], None] | None = None, **call: Any
    ) -> FakeRequest:
        promise = as_promise(cache)
        entry = None if promise is None else pick(PACK, promise)
        policy = entry.policy if entry is not None else self.policy if cache is None else cache
        if policy != "off":
            policy = as_policy(policy)
            if policy.scope == "block":
                raise HiCacheError("policy.scope = 'block': must be another, for this model")
        request = FakeRequest()
        request.entry = "" if entry is None else entry.name
        self.calls.append({**call, "cache": cache})
        self._note("submitted", 1)
        self.requests.append(request)
        self._pool.submit(self._run, request, policy, on_step, call)
        return request

    def statistics(self) -> Statistics:
        waiting = self.submitted - self.ended - self.running
        full, forecast = self.rows["F"], self.rows["."]
        return Statistics(waiting, self.running, 8, self.running, {1: full, 4: forecast // 4}, full, forecast)

    def close(self) -> None:
        for request in self.requests:
            request.cancel()
        self._pool.shutdown()

    def release(self) -> None:
        """Let requests that wait go on."""
        for request in self.requests:
            request.released.set()

    def until(self, condition: Callable[[FakeBatcher], bool]) -> None:
        """Wait for ``condition``."""
        with self.changed:
            assert self.changed.wait_for(lambda: condition(self), SECONDS_OF_A_TEST)

    def _note(self, name: str, by: int) -> None:
        with self.changed:
            setattr(self, name, getattr(self, name) + by)
            self.changed.notify_all()

    def _run(self, request: FakeRequest, policy: Any, on_step: Any, call: dict[str, Any]) -> None:
        self._note("running", 1)
        try:
            output, error = self._sampled(request, policy, on_step, call), None
        except BaseException as problem:
            output, error = None, problem
        self._note("running", -1)
        self._note("ended", 1)
        if error is None:
            request.set_result(output)
        else:
            request.set_exception(error)

    def _sampled(self, request: FakeRequest, policy: Any, on_step: Any, call: dict[str, Any]) -> Any:
        steps, prompt = call["num_inference_steps"], call["prompt"]
        letters = "F" * steps if policy == "off" else letters_of(policy, steps)
        for step, letter in enumerate(letters):
            request.left.wait(self.seconds if letter == "F" else self.seconds / 10)
            if prompt.startswith("wait") and step == 1:
                request.released.wait(SECONDS_OF_A_TEST)
            if request.left.is_set():
                raise CancelledError
            if prompt.startswith("break") and step == 1:
                raise RuntimeError("a secret of the machine")
            if prompt.startswith("refuse"):
                raise ValueError("`prompt` has to be another\n" + 500 * "long ")
            self.rows[letter] += 1
            request.decisions += letter
            for context in ("cond", "uncond"):
                if on_step is not None:
                    on_step(Progress(step, steps, letter, context))
        return SimpleNamespace(images=[picture(call)])


def letters_of(policy: Policy, steps: int) -> str:
    """The decisions of a schedule."""
    return "".join(policy.decisions(steps))


def picture(call: dict[str, Any]) -> Image.Image:
    """A picture that differs by prompt and seed."""
    width, height = call.get("width", 64), call.get("height", 64)
    text = f"{call['prompt']} {call['generator'].initial_seed()}"
    bytes_ = hashlib.sha256(text.encode()).digest()
    made = Image.new("RGB", (width, height), tuple(value // 2 + 96 for value in bytes_[:3]))
    draw = ImageDraw.Draw(made)
    for at in range(3, 27, 3):
        x, y, radius = bytes_[at] * width // 255, bytes_[at + 1] * height // 255, width // 6 + bytes_[at + 2] % 9
        colour = tuple(bytes_[(at + turn) % 32] // 2 + 96 for turn in (5, 6, 7))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return made.filter(ImageFilter.GaussianBlur(width / 40))


def fake_service(
    seconds: float = 0.0, arguments: frozenset[str] = ARGUMENTS, workers: int = 8, policy: Policy = POLICY
) -> Service:
    """A service of a ``FakeBatcher``."""
    return Service(FakeBatcher(seconds, workers, policy), Abilities("FakePipeline", arguments, 16))


if __name__ == "__main__":
    from hicache_compile.serving.http.app import create_app
    from hicache_compile.serving.http.server import bind, made
    from hicache_compile.serving.http.settings import Settings, Size

    shown = Settings(model="fake", policy=POLICY, policy_name="HiCache", steps=20, size=Size(256, 256))
    service = fake_service(float(sys.argv[2]) if len(sys.argv) > 2 else 0.0, ARGUMENTS | {"negative_prompt"}, 3)
    server = made(create_app(service, shown), shown.limits, 5, lambda: print("listening", flush=True))
    server.run([bind("127.0.0.1", int(sys.argv[1]))])
