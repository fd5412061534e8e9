"""One value a thread."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerThread(Generic[T]):
    """One value a thread, made when it is first asked for; it goes with its thread, or with this object.

    A ``threading.local`` would keep what refers back to it for as long as the thread lives: the garbage collector does
    not see the references of a thread.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: weakref.WeakKeyDictionary[threading.Thread, T] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._near = threading.local()  # a weak reference to that of the thread: asked several times a step

    def mine(self) -> T:
        """That of this thread."""
        found: T | None = getattr(self._near, "value", lambda: None)()
        if found is None:
            found = self._make()
            with self._lock:
                self._values[threading.current_thread()] = found
            self._near.value = weakref.ref(found)
        return found

    def clear(self) -> None:
        """Drop them all."""
        with self._lock:
            self._values.clear()

    def all(self) -> list[T]:
        """Those of all threads that live."""
        with self._lock:
            return list(self._values.values())
