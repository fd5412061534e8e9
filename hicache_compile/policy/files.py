"""Files: read whole, written whole or not at all, lines added whole or not at all, and one error where that fails."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hicache_compile.errors import HiCacheError

LARGEST = 64 * 2**20  # bytes of a text that is read
LONGEST = 255  # bytes of a name, in all common file systems
UNFINISHED = ".part."  # in the name of what is not whole yet, between the process and the name it will have


def file_path(name: str, value: object) -> Path:
    """``value`` as a path; raises ``HiCacheError`` where it is none. ``name``: of the argument, for messages."""
    if not isinstance(value, str | os.PathLike) or "\0" in (text := os.fsdecode(value)):
        raise HiCacheError(f"{name} = {value!r}: must be a path")
    path = Path(text)
    if any(len(os.fsencode(part)) > LONGEST for part in path.parts):
        raise HiCacheError(f"{name} = {text[:40]!r}...: must be a path of names of at most {LONGEST} bytes")
    return path


def read_text(name: str, path: str | Path) -> str:
    """The text in the file ``path``. ``name``: of the argument, for messages.

    Raises:
        HiCacheError: it cannot be read, or it is larger than 64 MiB, or it is no text.
    """
    path = file_path(name, path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)  # a device may have no end
        if len(content) > LARGEST:
            raise HiCacheError(f"{name} = {str(path)!r}: must be a text of at most {LARGEST // 2**20} MiB")
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()  # editors on Windows write a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HiCacheError(f"{name} = {str(path)!r}: must be a readable text file ({reason})") from None


def lines_of(text: str) -> list[str]:
    """The lines of ``text`` as JSON Lines and editors count them: U+2028 and the like, which ``splitlines`` takes for
    ends, may be inside one."""
    return text.split("\n")


def write_whole(path: str | Path, content: str | Callable[[Path], object]) -> None:
    """Write ``content``, text or a function that writes a file, beside ``path``, and move it there once it is on disk.

    Raises:
        HiCacheError: the folder cannot be made or written; ``path`` is what it was.
    """
    path, unfinished = _places(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if isinstance(content, str):
                unfinished.write_text(content, encoding="utf-8")
            else:
                _made(content, unfinished)
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def write_together(path: str | Path, fill: Callable[[Path], object]) -> None:
    """Have ``fill`` write a file of the name of ``path``, and beside it others that it refers to, and move all there
    once they are whole.

    Raises:
        HiCacheError: see ``write_whole``.
    """
    path, unfinished = _places(path)
    with _explained(path):
        unfinished.mkdir(parents=True)
        try:
            _made(fill, unfinished / path.name)
            for made in sorted(unfinished.iterdir(), key=lambda made: made.name == path.name):  # what refers comes last
                os.replace(made, path.with_name(made.name))
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _made(content: Callable[[Path], object], unfinished: Path) -> None:
    """Have ``content`` write its file. Libraries have errors of their own for a disk that is full."""
    try:
        content(unfinished)
    except (OSError, HiCacheError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def make_folder(path: Path) -> None:
    """Make the folder ``path`` unless it is there; raises ``HiCacheError`` where it cannot be made."""
    with _explained(path):
        path.mkdir(parents=True, exist_ok=True)


def check_writable(path: str | Path) -> None:
    """Raise ``HiCacheError`` unless ``path`` can be written: before long work, of which it is the result."""
    path, probe = _places(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()


def _places(path: str | Path) -> tuple[Path, Path]:
    """Where a file is written to, through links, and where it stands until it is whole.

    Raises:
        HiCacheError: a folder or a device is there.
    """
    path = file_path("path", path)
    if not path.name or (os.path.lexists(path) and os.path.exists(path) and not os.path.isfile(path)):
        raise HiCacheError(f"{str(path)!r}: cannot be written: must be a file, or not be there")
    path = Path(os.path.realpath(path))
    return path, path.with_name(f".{os.getpid()}{UNFINISHED}{path.name}")


def add_line(path: str | Path, line: str) -> None:
    """Add ``line`` to the file ``path``; what another process left of a torn line stays a line of its own.

    Raises:
        HiCacheError: it cannot be written; the file is as long as it was.
    """
    path = Path(path)
    with _explained(path), path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        torn = file.read(1) not in (b"", b"\n")
        data = (b"\n" if torn else b"") + line.rstrip("\n").encode() + b"\n"
        try:
            if file.write(data) != len(data):
                raise OSError("the disk is full")
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, size)
            raise


@contextmanager
def only_one(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file ``path``, where the system has locks.

    Raises:
        HiCacheError: another process holds it: ``what`` says of which work.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HiCacheError(
                f"{str(path.parent)!r}: another process {what}: must end first, or another folder be used"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise HiCacheError(
            f"{str(path)!r}: cannot be written ({reason}): must be in a writable folder, with room for it"
        ) from error.__cause__
