"""The data of the emoji model: its pictures, names and captions."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("resvg_py", reason="the extra `emoji` is not installed")

from hicache_compile.demo.emoji import SIZE, icons
from hicache_compile.demo.emoji.captions import STYLES, Subject, every_caption, shared_names, vary

RED = '<path fill="#f00" d="M0 0h16v32H0z"/>'
CIRCLE = '<circle cx="16" cy="16" r="9" fill="#00f"/>'


def archive(bodies: dict[str, str]) -> bytes:
    """A package of icons of 32x32, all of them food."""
    files = {
        "icons": {"icons": {name: {"body": body} for name, body in bodies.items()}, "height": 32},
        "metadata": {"categories": {"Food & Drink": list(bodies)}},
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def test_an_icon_is_drawn_on_white() -> None:
    (flat,) = [icons.unpack(archive({"half": RED}))]
    picture = icons.render(flat.svg("half"))
    assert picture.shape == (3, SIZE, SIZE)
    assert picture[:, 0, 0].tolist() == [255, 0, 0]
    assert picture[:, 0, -1].tolist() == [255, 255, 255]


def test_the_data_are_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("first", "second"):
        styles = [icons.unpack(archive({"red-half": RED, "dot": CIRCLE, **more})) for more in ({"only": RED}, {})]
        icons.save(*icons.draw_all(styles), tmp_path / name)
    subjects, pictures = icons.load(tmp_path / "first")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert subjects == [Subject(name, style) for name in ("dot", "red half") for style in STYLES]
    assert pictures.shape == (4, 3, SIZE, SIZE)


def test_a_package_of_other_content_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(command: list[str], **_: object) -> None:
        (Path(command[command.index("--pack-destination") + 1]) / "some.tgz").write_bytes(b"something else")

    monkeypatch.setattr(icons.subprocess, "run", pack)
    with pytest.raises(ValueError, match="has sha256"):
        icons.fetch(icons.PACKAGES["flat"])


def test_names_are_those_that_every_style_has() -> None:
    flat = {"Food & Drink": ["pie", "egg"], "Flags": ["flag"], "Smileys & Emotion": ["red-heart", "sad-face"]}
    noto = {"Food & Drink": ["egg"], "Animals & Nature": ["pie"], "Flags": ["flag"], "Smileys & Emotion": ["red-heart"]}
    assert shared_names([flat, noto]) == ["egg", "pie", "red-heart"]


def test_a_name_is_held_out_in_one_style_only() -> None:
    names = [f"thing {index}" for index in range(2000)]
    held_out = [sum(Subject(name, style).held_out for style in STYLES) for name in names]
    assert set(held_out) == {0, 1}
    assert 0.05 < sum(held_out) / len(names) < 0.11  # 0.08 wanted: five standard deviations


def test_captions_say_what_and_how() -> None:
    assert Subject("owl", "flat").caption() == "owl, flat style"
    assert Subject("owl", "noto").caption(article=True, style=False) == "an owl"
    assert len(every_caption([Subject("owl", style) for style in STYLES])) == 6  # without the style both are the same
    random = Random(0)
    drawn = [vary(Subject("owl", "flat"), random) for _ in range(2000)]
    assert 0.07 < drawn.count("") / len(drawn) < 0.13  # 0.1 wanted: four standard deviations
