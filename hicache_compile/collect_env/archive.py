"""The archive of a case: a zip of JSON and text, read back without unpacking anything to the disk."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hicache_compile.collect_env.form import Each, Form, Maybe, check_form
from hicache_compile.collect_env.scrubbing import scrubbed
from hicache_compile.errors import HiCacheError
from hicache_compile.policy.files import LARGEST, file_path, write_whole

VERSION = 1  # of the format
_PARTS = ("environment", "policy", "options", "model", "inputs", "report", "failure")  # a JSON file each
_FORMS: dict[str, Form] = {
    "case": {"version": int, "num_steps": int, "decisions": Each(str), "notes": [str]},
    "environment": {"packages": Each(str), "python": str, "variables": Each(str)},
    "policy": Maybe({}),
    "options": {},
    "model": Maybe(
        {
            "class": str,
            "config": {},
            "dtype": str,
            "other_dtypes": Each(str),
            "devices": [str],
            "training": bool,
            "parameters": int,
            "bytes": int,
            "shapes": str,
        }
    ),
    "inputs": Each({"args": [], "kwargs": {}}),
    "report": Maybe({}),
    "failure": Maybe({"type": str, "message": str, "step": Maybe(int), "context": Maybe(str)}),
}
_DAMAGED = (  # what zipfile, zlib and json raise for a damaged file; RuntimeError: "encrypted"
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    ValueError,
    RuntimeError,
)
_DATE = (1980, 1, 1, 0, 0, 0)  # of every file: the same case is the same archive


@dataclass(frozen=True, slots=True)
class Case:
    """What an archive holds.

    Args:
        environment: versions, machine, environment variables.
        policy: as JSON data; ``None`` where it cannot be written as JSON.
        options: of ``hicache_compile``, those that were given.
        model: its class and configuration, see ``model.describe``; ``None`` where it is not known.
        inputs: by context, the arguments of a call, see ``arguments.described``.
        num_steps: of the run.
        decisions: of the newest run by context, one letter a step.
        failure: ``type``, ``message``, ``step`` and ``context``; ``None`` where nothing failed.
        report: ``report()`` as data; ``None`` where nothing was compiled.
        notes: what could not be collected, and why.
        texts: other files by name: the traceback, ``explain()``, the dump.
    """

    environment: dict[str, Any]
    policy: dict[str, Any] | None
    options: dict[str, Any]
    model: dict[str, Any] | None
    inputs: dict[str, Any]
    num_steps: int
    decisions: dict[str, str] = field(default_factory=dict)
    failure: dict[str, Any] | None = None
    report: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    texts: Mapping[str, str] = field(default_factory=dict)


def write(path: str | Path, case: Case) -> Path:
    """Write ``case`` to ``path``, whole or not at all; every text in it without secrets (``scrubbing.scrubbed``).

    Raises:
        HiCacheError: it cannot be written there.
    """
    path = file_path("collect.path", path)
    about = {name: getattr(case, name) for name in ("num_steps", "decisions", "notes")}
    parts = {"case": {"version": VERSION, **about}, **{name: getattr(case, name) for name in _PARTS}}
    files = {f"{name}.json": json.dumps(part, indent=2) + "\n" for name, part in parts.items()} | dict(case.texts)

    def fill(unfinished: Path) -> None:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in files.items():
                archive.writestr(zipfile.ZipInfo(name, _DATE), scrubbed(text), zipfile.ZIP_DEFLATED)

    write_whole(path, fill)
    return path


def read(path: str | Path) -> Case:
    """The case in the archive ``path``.

    Raises:
        HiCacheError: it is no archive of a case, or of another format.
    """
    path = file_path("rerun.path", path)
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name: _json(archive, f"{name}.json") for name in ("case", *_PARTS)}
            names = [name for name in archive.namelist() if not name.endswith(".json") and "/" not in name]
            texts = {name: _text(archive, name) for name in names}
    except _DAMAGED as error:
        raise HiCacheError(f"rerun.path = {str(path)!r}: must be an archive of hicache collect-env ({error})") from None
    about = parts["case"]
    if not isinstance(about, dict) or about.get("version") != VERSION:
        found = about.get("version") if isinstance(about, dict) else None
        raise HiCacheError(f"rerun.path: version = {found!r}: must be {VERSION}, the format this release reads")
    for name, part in parts.items():
        check_form(f"{name}.json", part, _FORMS[name])
    del parts["case"]
    return Case(**parts, **{name: about[name] for name in ("num_steps", "decisions", "notes")}, texts=texts)


def _json(archive: zipfile.ZipFile, name: str) -> Any:
    return json.loads(_text(archive, name))


def _text(archive: zipfile.ZipFile, name: str) -> str:
    if archive.getinfo(name).file_size > LARGEST:
        raise ValueError(f"{name} is larger than {LARGEST // 2**20} MiB")
    return archive.read(name).decode("utf-8")
