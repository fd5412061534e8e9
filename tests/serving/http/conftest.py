"""One server for the tests that only ask it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hicache_compile.serving.http import Limits
from hicache_compile.serving.http.settings import Size
from tests.serving.http.fake_service import ARGUMENTS, fake_service
from tests.serving.http.live import Live, live


@pytest.fixture(scope="session")
def served() -> Iterator[Live]:
    limits = Limits(prompt=500, n=4, steps=50, edge=512, queue=16, body_bytes=20_000)
    service = fake_service(arguments=ARGUMENTS | {"negative_prompt"})
    with live(service, limits, size=Size(64, 64)) as running:
        yield running
