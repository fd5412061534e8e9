"""What is drawn: the names of the icons, their styles, the pairs that are held out, and the captions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random

STYLES = ("flat", "noto")
# Of each category, the ending of the names that are drawn: faces differ by a line, and a small model averages them.
CATEGORIES = {"Animals & Nature": "", "Food & Drink": "", "Smileys & Emotion": "heart"}
HELD_OUT = 0.08  # of the names, in one of the two styles
STYLELESS, WITH_ARTICLE, DROPPED = 0.15, 0.3, 0.1


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """One picture to draw: the ``name`` of a thing, in words, in one of ``STYLES``."""

    name: str
    style: str

    @property
    def held_out(self) -> bool:
        """Whether no model is trained on this pair; it is on the same name in the other style."""
        digest = hashlib.sha256(self.name.encode()).digest()
        chosen = int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32
        return chosen and STYLES[digest[4] % len(STYLES)] == self.style

    def caption(self, article: bool = False, style: bool = True) -> str:
        """``"fox, flat style"``; with an article ``"a fox, flat style"``; without the style ``"fox"``."""
        words = f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}" if article else self.name
        return f"{words}, {self.style} style" if style else words


def in_words(icon: str) -> str:
    """The name of an icon as words: ``"hot-air-balloon"`` is ``"hot air balloon"``."""
    return icon.replace("-", " ")


def shared_names(categories: Iterable[Mapping[str, Iterable[str]]]) -> list[str]:
    """The icons, sorted, that ``CATEGORIES`` takes and every style has; ``categories``: of each style, its icons."""
    chosen = [
        {icon for category, ending in CATEGORIES.items() for icon in found.get(category, ()) if icon.endswith(ending)}
        for found in categories
    ]
    return sorted(set.intersection(*chosen))


def vary(subject: Subject, random: Random) -> str:
    """A caption to train on: with or without article and style; empty for a tenth, for guidance (2207.12598)."""
    dropped, article, style = random.random() < DROPPED, random.random() < WITH_ARTICLE, random.random() >= STYLELESS
    return "" if dropped else subject.caption(article, style)


def every_caption(subjects: Iterable[Subject]) -> list[str]:
    """All captions of ``subjects``, sorted: what the tokenizers are trained on."""
    forms = [(article, style) for article in (False, True) for style in (False, True)]
    return sorted({subject.caption(*form) for subject in subjects for form in forms})
