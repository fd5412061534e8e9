"""What must not leave the machine in a text: values of secret environment variables, passwords in URLs, the home."""

from __future__ import annotations

import html
import json
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
    """``text``, JSON or HTML too, without secrets of ``environ``, tokens, logins in URLs; the home is ``~``."""
    secrets = {value for name, value in environ.items() if is_secret(name) and len(value) >= _SHORTEST}
    for value in sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True):
        text = text.replace(value, REMOVED)
    text = _KNOWN.sub(REMOVED, _LOGIN.sub(f"{REMOVED}@", text))
    home = str(Path.home())
    for form in _forms(home) if len(home) > 1 else ():
        text = re.sub(rf"{re.escape(form)}(?![\w.-])", "~", text)
    return text


def _forms(value: str) -> set[str]:
    """``value`` as it stands in a text, in JSON, in a Python literal and in HTML."""
    quoted = json.dumps(value), json.dumps(value, ensure_ascii=False), repr(value)
    return {value, html.escape(value), *(one[1:-1] for one in quoted)}
