"""Contrast of colours as WCAG 2 defines it, and the colours that a style sheet declares."""

from __future__ import annotations

import re

Colour = tuple[int, int, int]


def colour(text: str) -> Colour:
    """``#rrggbb`` as numbers."""
    assert re.fullmatch(r"#[0-9a-f]{6}", text), text
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def contrast(one: Colour, other: Colour) -> float:
    """From 1 (equal) to 21 (black on white)."""
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(parts: Colour) -> float:
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (x / 255 for x in parts)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def schemes(css: str) -> dict[str, dict[str, Colour]]:
    """The variables of ``:root`` in each colour scheme."""
    light, dark = (
        {name: colour(value) for name, value in re.findall(r"--([\w-]+): (#\w+)", block)}
        for block in re.findall(r":root \{([^}]*)\}", css)
    )
    assert light.keys() == dark.keys()
    return {"light": light, "dark": dark}


def rules(css: str) -> list[tuple[str, dict[str, str]]]:
    """Selector and declarations of each rule but ``:root``."""
    found = []
    for selector, body in re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"@[^{}]*\{", "", css)):
        pairs = (part.partition(":") for part in body.split(";") if ":" in part)
        if selector.strip() != ":root":
            found.append((selector.strip(), {name.strip(): value.strip() for name, _, value in pairs}))
    return found
