"""Threads that are kept: what convolutions and allocators prepare they prepare once a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

Task = Callable[[], None]


class Workers:
    """Runs each task in a thread that it has for itself: one that is idle, or a new one. An exit waits for none."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._idle: list[SimpleQueue[Task | None]] = []
        self._lock = threading.Lock()
        self._closed = False

    def run(self, task: Task) -> None:
        """Begin ``task``, which raises nothing."""
        with self._lock:
            tasks = self._idle.pop() if self._idle else None
        if tasks is None:
            tasks = SimpleQueue()
            threading.Thread(target=self._work, args=(tasks,), name=self._name, daemon=True).start()
        tasks.put(task)

    def close(self) -> None:
        """End the threads that are idle, and others once they are."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for tasks in idle:
            tasks.put(None)

    def _work(self, tasks: SimpleQueue[Task | None]) -> None:
        while (task := tasks.get()) is not None:
            task()
            del task
            with self._lock:
                if self._closed:
                    return
                self._idle.append(tasks)
