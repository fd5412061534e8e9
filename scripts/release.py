"""``make release``: check that a release is consistent, build its distributions, check those. Uploads nothing.

``python scripts/release.py --tag`` also makes the git tag; ``--upload`` also uploads what was built, of a tag that is
checked out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")


class ReleaseError(SystemExit):
    """What keeps a release from being made, in one line."""


def version(root: Path = ROOT) -> str:
    """The version in pyproject.toml.

    Raises:
        ReleaseError: it is none, or CITATION.cff has another.
    """
    found = str(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
    if VERSION.fullmatch(found) is None:
        raise ReleaseError(f"pyproject.toml: version = {found!r}: must be like 1.2.3 or 1.2.3rc1")
    cited = re.search(r"^version: *(\S+)", (root / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    if cited is None or cited[1].strip("\"'") != found:
        raise ReleaseError(f"CITATION.cff: version = {cited and cited[1]}: must be {found}, as in pyproject.toml")
    return found


def notes(wanted: str, root: Path = ROOT) -> str:
    """What CHANGELOG.md says of the version ``wanted``.

    Raises:
        ReleaseError: there is no dated heading of it, or nothing under it, or something unreleased before it.
    """
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## \[([^\]]+)\][^\n]*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    if re.search(rf"^## \[{re.escape(wanted)}\] - \d{{4}}-\d\d-\d\d$", text, re.MULTILINE) is None:
        raise ReleaseError(f"CHANGELOG.md: must have a heading '## [{wanted}] - YYYY-MM-DD'")
    if not sections[wanted].strip():
        raise ReleaseError(f"CHANGELOG.md: must say what is in {wanted}")
    if sections.get("Unreleased", "").strip():
        raise ReleaseError(f"CHANGELOG.md: what is under Unreleased must be under {wanted}")
    return str(sections[wanted]).strip()


def check_git(tag: str, *, tagged: bool, root: Path = ROOT) -> None:
    """Raise unless the tree is clean, and ``tag`` is not there, or is this commit (``tagged``: it must be)."""
    changed = git("status", "--porcelain", root=root)
    if changed:
        raise ReleaseError(f"git: must have nothing uncommitted, it has {len(changed.splitlines())} files")
    there = git("rev-list", "-n", "1", tag, root=root) if tag in git("tag", root=root).split() else ""
    if there and there != git("rev-parse", "HEAD", root=root):
        raise ReleaseError(f"git: {tag} is another commit: raise the version")
    if tagged and not there:
        raise ReleaseError(f"git: {tag} must be there: make it with --tag, and push it")


def git(*words: str, root: Path = ROOT) -> str:
    """What git says."""
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def build(wanted: str, root: Path = ROOT) -> list[Path]:
    """Build the source distribution and the wheel into ``dist``, which is made anew, and check them."""
    shutil.rmtree(root / "dist", ignore_errors=True)
    subprocess.run([sys.executable, "-m", "build"], cwd=root, check=True)
    made = sorted((root / "dist").iterdir())
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, made)], check=True)
    names = {path.name for path in made}
    expected = {f"hicache_compile-{wanted}.tar.gz", f"hicache_compile-{wanted}-py3-none-any.whl"}
    if names != expected:
        raise ReleaseError(f"dist: {', '.join(sorted(names))}: must be {', '.join(sorted(expected))}")
    check_wheel(next(path for path in made if path.suffix == ".whl"), root)
    return made


def check_wheel(wheel: Path, root: Path = ROOT) -> None:
    """Raise unless ``wheel`` has the packages that pyproject.toml names, and nothing beside them."""
    packages = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {package.replace(".", "/") for package in packages}
    with zipfile.ZipFile(wheel) as archive:
        modules = {name.rpartition("/")[0] for name in archive.namelist() if name.endswith(".py")}
    if modules != folders:
        raise ReleaseError(f"{wheel.name}: has other packages than pyproject.toml: {', '.join(modules ^ folders)}")


def main() -> None:
    """Run the checks, build, and do what the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tag", action="store_true", help="make the git tag of the version")
    parser.add_argument("--upload", action="store_true", help="upload to PyPI, with twine; the tag must be there")
    parser.add_argument("--check", action="store_true", help="only the checks, nothing is built")
    asked = parser.parse_args()
    wanted = version()
    tag = f"v{wanted}"
    said = notes(wanted)
    check_git(tag, tagged=asked.upload)
    if asked.check:
        print(f"{tag} can be released")
        return
    made = build(wanted)
    if asked.tag:
        git("tag", "--annotate", tag, "--message", f"{tag}\n\n{said}")
        print(f"made the tag {tag}; push it with: git push origin {tag}")
    if asked.upload:
        subprocess.run([sys.executable, "-m", "twine", "upload", *map(str, made)], check=True)
    else:
        print(f"built {', '.join(path.name for path in made)}; not uploaded (--upload does)")


if __name__ == "__main__":
    main()
