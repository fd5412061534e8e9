"""Draw ``docs/pictures/branch.svg``, the guarded branch: ``python docs/scripts/draw_branch.py``.

All text stands on filled shapes and all lines are a middle grey, so it reads on a light and on a dark page.
"""

from __future__ import annotations

from pathlib import Path

OUT = Path(__file__).parents[1] / "pictures" / "branch.svg"
DARK, LINE = "#1d2333", "#78829a"
GREY, BLUE, GREEN, AMBER = "#dfe3ea", "#cfdcff", "#cdeed3", "#ffe3b0"
TITLE = (
    "The guarded branch. A schedule or a guard decides whether a step computes. In a full step the site's attention or "
    "MLP runs and its output, the slot, is written into a ring of anchors. In a forecast step the slot is the weighted "
    "sum of the anchors in the ring, and the site does not run. Either way the gate and the residual sum run live."
)


def box(x: int, y: int, width: int, height: int, fill: str, *lines: str) -> str:
    """A box with centred lines; the first is bold."""
    first = y + height / 2 - 10 * (len(lines) - 1) + 5
    texts = [
        f'<text x="{x + width / 2:g}" y="{first + 20 * number:g}" fill="{DARK}" text-anchor="middle"'
        f"{' font-weight=' + chr(34) + '700' + chr(34) if not number else ''}>{line}</text>"
        for number, line in enumerate(lines)
    ]
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="{fill}"/>' + "".join(texts)


def arrow(path: str, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="2.5"{dashes} marker-end="url(#head)"/>'


def strip(x: int, y: int, decisions: str) -> str:
    """One cell a step."""
    cells = []
    for number, letter in enumerate(decisions):
        left, fill = x + 25 * number, BLUE if letter == "F" else GREEN
        cells.append(
            f'<rect x="{left}" y="{y}" width="22" height="26" rx="4" fill="{fill}"/>'
            f'<text x="{left + 11}" y="{y + 18}" fill="{DARK}" text-anchor="middle">{letter}</text>'
        )
    return "".join(cells)


def drawing() -> str:
    parts = [
        box(130, 10, 220, 52, GREY, "residual stream x", "[batch, tokens, width]"),
        arrow("M240 62 V92"),
        box(90, 94, 300, 74, AMBER, "full or forecast?", "schedule: the step's number", "guard: a measurement"),
        arrow("M150 168 V214"),
        arrow("M330 168 V214"),
        box(10, 216, 215, 74, BLUE, "full step", "the site runs:", "attention or MLP"),
        box(255, 216, 215, 74, GREEN, "forecast step", "the site does not run:", "sum of weight * anchor"),
        box(130, 338, 220, 54, GREY, "ring of a slot", "the last K anchors"),
        arrow("M195 290 V336"),
        arrow("M310 338 V292", dashed=True),
        arrow("M60 290 V440"),
        arrow("M420 290 V440"),
        box(10, 442, 460, 54, GREY, "x + gate * slot", "gate, modulation and residual sum run in every step"),
        arrow("M240 496 V526"),
        box(130, 528, 220, 34, GREY, "the next site"),
        strip(15, 586, "FFF.....F.....F..."),
    ]
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 622" role="img" font-size="15" '
        'font-family="system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif">'
        f"<title>{TITLE}</title>"
        '<defs><marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0 0 L10 5 L0 10 z" fill="{LINE}"/></marker></defs>'
    )
    return head + "\n" + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    OUT.write_text(drawing(), encoding="utf-8")
