"""The code Inductor writes for a program, for people to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def generated_code() -> Iterator[list[str]]:
    """A list that fills with the Python that Inductor generates inside, or finds in its cache."""
    from hicache_compile.internals import inductor

    written: list[str] = []
    if not inductor.CODE:
        yield written
        return
    lowering = inductor.GraphLowering
    outer = lowering.save_output_code

    def save(code: str) -> None:
        written.append(code)
        if outer is not None:
            outer(code)

    lowering.save_output_code = staticmethod(save)  # the hook torch's own tests use
    try:
        yield written
    finally:
        lowering.save_output_code = outer
