"""What must not leave the machine in a text: values of secret environment variables, passwords in URLs, the home."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

REMOVED = "[removed]"
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|AUTH|COOKIE|(^|_|API|ACCESS|PRIVATE)KEY", re.I)
_SHORTEST = 8  # characters of a secret: shorter values are words that occur in any text
_LOGIN = re.compile(r"(?<=://)[^/\s@\"']+@")
_KNOWN = re.compile(r"\b(hf_|sk-|gh[pousr]_|github_pat_|xox[abps]-|AKIA)[\w-]{12,}")  # forms of common tokens


def is_secret(name: str) -> bool:
    """Whether the environment variable ``name`` is named like one that holds a secret."""
    return _SECRET.search(name) is not None


def scrubbed(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """``text`` without secrets of ``environ``, tokens, logins in URLs; the home directory is ``~``."""
    secrets = {value for name, value in environ.items() if is_secret(name) and len(value) >= _SHORTEST}
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, REMOVED)
    text = _KNOWN.sub(REMOVED, _LOGIN.sub(f"{REMOVED}@", text))
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if len(home) > 1 else text
