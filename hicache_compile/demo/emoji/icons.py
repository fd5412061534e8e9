"""The pictures: colour emoji of two styles, fetched with ``npm pack`` and rendered with resvg.

``python -m hicache_compile.demo.emoji.icons OUT`` writes ``OUT/icons.safetensors``: the same bytes every time, from
packages of fixed version and content.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hicache_compile.demo.emoji import SIZE
from hicache_compile.demo.emoji.captions import STYLES, Subject, in_words, shared_names
from hicache_compile.policy.files import write_whole
from hicache_compile.policy.progress import progress


@dataclass(frozen=True, slots=True)
class Package:
    """An npm package of SVG icons in the Iconify format, of which ``sha256`` is the digest of the archive."""

    name: str
    version: str
    sha256: str


PACKAGES = dict(
    zip(
        STYLES,
        (
            Package(
                "@iconify-json/fluent-emoji-flat",
                "1.2.6",
                "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
            ),
            Package("@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
        ),
        strict=True,
    )
)


@dataclass(frozen=True, slots=True)
class Icons:
    """The icons of one style: the SVG ``body`` of each, their ``size`` in SVG units, and the icons of each category."""

    bodies: dict[str, str]
    size: int
    categories: dict[str, list[str]]

    def svg(self, icon: str) -> str:
        """The icon as an SVG document."""
        box = f'viewBox="0 0 {self.size} {self.size}"'
        namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f"<svg {namespaces} {box}>{self.bodies[icon]}</svg>"


def fetch(package: Package) -> Icons:
    """The icons of ``package``, from the npm registry; ``ValueError`` if the archive is not the expected one."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, f"{package.name}@{package.version}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        content = archive.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != package.sha256:
        raise ValueError(f"{package.name}@{package.version} has sha256 {found}, expected {package.sha256}")
    return unpack(content)


def unpack(archive: bytes) -> Icons:
    """The icons of a package's ``.tgz``."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        icons, metadata = (_json(files, f"package/{name}.json") for name in ("icons", "metadata"))
    bodies = {name: icon["body"] for name, icon in icons["icons"].items()}
    return Icons(bodies, icons["height"], metadata["categories"])


def _json(files: tarfile.TarFile, name: str) -> Any:
    member = files.extractfile(name)
    assert member is not None
    return json.load(member)


def render(svg: str, size: int = SIZE) -> torch.Tensor:
    """An SVG document as uint8 ``[3, size, size]``, red, green and blue on white."""
    import resvg_py
    from PIL import Image

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    pixels = numpy.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def draw_all(styles: Sequence[Icons]) -> tuple[list[Subject], torch.Tensor]:
    """The subjects, by name and then by style, and their pictures, uint8 ``[N, 3, 64, 64]``."""
    subjects, pictures = [], []
    for icon in progress(shared_names([icons.categories for icons in styles]), what="rendering", unit="icon"):
        for style, icons in zip(STYLES, styles, strict=True):
            subjects.append(Subject(in_words(icon), style))
            pictures.append(render(icons.svg(icon)))
    return subjects, torch.stack(pictures)


def save(subjects: Sequence[Subject], pictures: torch.Tensor, path: Path) -> None:
    """Write ``subjects`` and ``pictures`` to one safetensors file."""
    named = json.dumps([[subject.name, subject.style] for subject in subjects])
    write_whole(path, functools.partial(save_file, {"pictures": pictures}, metadata={"subjects": named}))


def load(path: Path) -> tuple[list[Subject], torch.Tensor]:
    """The subjects and pictures, uint8 ``[N, 3, 64, 64]``, that ``save`` wrote."""
    with safe_open(path, framework="pt") as file:
        return [Subject(*named) for named in json.loads(file.metadata()["subjects"])], file.get_tensor("pictures")


def to_values(pictures: torch.Tensor) -> torch.Tensor:
    """Pixels, uint8, as float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def make(out: Path) -> None:
    """Fetch, render and write ``out/icons.safetensors``."""
    save(*draw_all([fetch(package) for package in PACKAGES.values()]), out / "icons.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    make(parser.parse_args().out)


if __name__ == "__main__":
    main()
