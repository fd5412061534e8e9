"""What requests have of their own, and what they share: components that one thread at a time calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from diffusers import ConfigMixin, DiffusionPipeline
from diffusers.configuration_utils import register_to_config

from hicache_compile.serving.pipeline_copy import OneAtATime, copy_of


def free(components: OneAtATime) -> bool:
    """Whether another thread could begin a call now."""
    found: list[bool] = []

    def ask() -> None:
        found.append(components._lock.acquire(blocking=False))
        if found[0]:
            components._lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found[0]


class Tokenizer:
    """Keeps the padding of the call under way on itself, as those of transformers do."""

    def __init__(self, components: OneAtATime) -> None:
        self.components = components
        self.calls = 0

    def __call__(self, text: str) -> list[str]:
        return self.tokenize(text)

    def tokenize(self, text: str) -> list[str]:
        assert not free(self.components)
        self.calls += 1
        return text.split()

    def parts(self, text: str) -> Iterator[str]:
        yield from text


def test_one_thread_at_a_time_calls_each_method() -> None:
    components = OneAtATime()
    tokenizer = Tokenizer(components)
    one, other = components.of(tokenizer), components.of(tokenizer)
    assert one("a red cube") == other.tokenize("a red cube") == ["a", "red", "cube"]
    assert list(one.parts("ab")) == ["a", "b"]
    assert isinstance(one, Tokenizer)
    assert tokenizer.calls == 2
    assert free(components)


class Guider(ConfigMixin):  # type: ignore[misc]
    """Keeps what it saw of a run."""

    config_name = "guider.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, step: int) -> list[int]:
        self.seen.append(step)
        return self.seen


class Guided(DiffusionPipeline):  # type: ignore[misc]
    def __init__(self, components: OneAtATime) -> None:
        super().__init__()
        self.guider = Guider()
        self.others = components

    def encode_prompt(self, text: str) -> list[str]:
        assert not free(self.others)
        return text.split()


def test_a_guider_is_of_one_request_and_one_at_a_time_encodes() -> None:
    components = OneAtATime()
    pipe = Guided(components)
    one, other = (copy_of(pipe, components) for _ in range(2))
    assert (one.guider(1), other.guider(2), pipe.guider.seen) == ([1], [2], [])
    assert one.encode_prompt("a red cube") == ["a", "red", "cube"]
    assert free(components)


def test_a_module_keeps_its_weights() -> None:
    module = torch.nn.Linear(2, 2)
    made = OneAtATime().of(module)
    module.half()
    assert made.weight is module.weight
    assert [*made.parameters()] == [*module.parameters()]
    assert made(torch.ones(1, 2, dtype=torch.half)).dtype == torch.half
