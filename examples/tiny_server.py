"""``serving("flux")``: what ``hicache serve FOLDER`` serves, in a thread of this process, for ``--tiny``."""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hicache_compile import HiCache
from hicache_compile.serving.http import Settings, create_app, server
from hicache_compile.serving.http.settings import Size
from hicache_compile.serving.http.source import Source, open_service
from tiny import tiny


@contextmanager
def serving(name: str, edge: int = 16) -> Iterator[str]:
    """The address of a service of ``tiny(name)``, with pictures of ``edge`` pixels, until the block ends."""
    policy = HiCache(interval=4)
    settings = Settings(model=name, policy=policy, policy_name="HiCache", size=Size(edge, edge))
    with tempfile.TemporaryDirectory() as folder:
        tiny(name).save_pretrained(folder)
        source = Source(folder=Path(folder), policy=policy, backend="eager", device="cpu")
        service = open_service(source, settings, warm=False)
        listening, started = server.bind("127.0.0.1", 0), threading.Event()
        running = server.made(create_app(service, settings), settings.limits, 30, started.set)
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            started.wait(60)
            yield server.address_of(listening)
        finally:
            running.should_exit = True
            thread.join()
            service.batcher.close()
