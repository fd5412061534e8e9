"""What requests have of their own, and what they share: components that one thread at a time calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch

from hicache_compile.serving.pipeline_copy import OneAtATime


class Tokenizer:
    """Keeps the padding of the call under way on itself, as those of transformers do."""

    def __init__(self, components: OneAtATime) -> None:
        self.components = components
        self.calls = 0

    def __call__(self, text: str) -> list[str]:
        return self.tokenize(text)

    def tokenize(self, text: str) -> list[str]:
        assert not self._free()
        self.calls += 1
        return text.split()

    def parts(self, text: str) -> Iterator[str]:
        yield from text

    def _free(self) -> bool:
        """Whether another thread could begin a call now."""
        found: list[bool] = []

        def ask() -> None:
            found.append(self.components._lock.acquire(blocking=False))
            if found[0]:
                self.components._lock.release()

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        return found[0]


def test_one_thread_at_a_time_calls_each_method() -> None:
    components = OneAtATime()
    tokenizer = Tokenizer(components)
    one, other = components.of(tokenizer), components.of(tokenizer)
    assert one("a red cube") == other.tokenize("a red cube") == ["a", "red", "cube"]
    assert list(one.parts("ab")) == ["a", "b"]
    assert isinstance(one, Tokenizer)
    assert tokenizer.calls == 2
    assert tokenizer._free()


def test_a_module_keeps_its_weights() -> None:
    module = torch.nn.Linear(2, 2)
    made = OneAtATime().of(module)
    module.half()
    assert made.weight is module.weight
    assert [*made.parameters()] == [*module.parameters()]
    assert made(torch.ones(1, 2, dtype=torch.half)).dtype == torch.half
