"""Drawings of lines, dots and texts as SVG and as PDF, without a library: a page of each is a short text.

Text is Helvetica, one of the 14 fonts that every PDF reader has (ISO 32000-1, 9.6.2.2), so nothing is embedded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from workbench.core.errors import BadInput
from workbench.core.text import quote_value

# of the letters from space to ~, in thousandths of the size (Adobe's metrics of Helvetica)
WIDTHS = (
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, *[556] * 10, 278, 278, 584, 584,
    584, 556, 1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667, 611,
    722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500,
    222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584,
)  # fmt: skip
OTHER_WIDTH = 556  # of a letter beyond these
INK, SOFT, RULE = "#1b1d21", "#5d636d", "#d5d7d5"
KAPPA = 0.5523  # of the four curves that make a circle

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]


@dataclass
class Drawing:
    """Marks on a page of this size in points, from the top left."""

    width: float
    height: float
    lines: list[tuple[list[Point], str, float, bool]] = field(default_factory=list)  # points, colour, width, dashed
    dots: list[tuple[Point, float, str]] = field(default_factory=list)  # middle, radius, colour
    texts: list[tuple[Point, str, float, Anchor, str]] = field(default_factory=list)  # place, text, size, …, colour

    def line(self, *points: Point, colour: str = RULE, width: float = 0.75, dashed: bool = False) -> None:
        self.lines.append((list(points), colour, width, dashed))

    def dot(self, x: float, y: float, colour: str, radius: float = 3.0) -> None:
        self.dots.append(((x, y), radius, colour))

    def text(
        self, x: float, y: float, words: str, size: float = 9, anchor: Anchor = "start", colour: str = INK
    ) -> None:
        """Write one line; y is its base line."""
        self.texts.append(((x, y), " ".join(words.split()), size, anchor, colour))


def measure_text(words: str, size: float) -> float:
    """The width of a line in points."""
    return sum(WIDTHS[ord(c) - 32] if 32 <= ord(c) < 127 else OTHER_WIDTH for c in words) * size / 1000


def to_svg(drawing: Drawing) -> str:
    """A file that browsers, Inkscape and LaTeX's svg package read."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{drawing.width:g}pt" height="{drawing.height:g}pt" '
        f'viewBox="0 0 {drawing.width:g} {drawing.height:g}" font-family="Helvetica, Arial, sans-serif">',
    ]
    for points, colour, width, dashed in drawing.lines:
        places = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
        dash = ' stroke-dasharray="3 3"' if dashed else ""
        parts.append(f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dash}/>')
    for (x, y), radius, colour in drawing.dots:
        parts.append(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:g}" fill="{colour}"/>')
    for (x, y), words, size, anchor, colour in drawing.texts:
        how = f'x="{x:.2f}" y="{y:.2f}" font-size="{size:g}" text-anchor="{anchor}" fill="{colour}"'
        parts.append(f"<text {how}>{escape(words)}</text>")
    return "\n".join([*parts, "</svg>"]) + "\n"


def to_pdf(drawing: Drawing) -> bytes:
    """A PDF of one page in the drawing's size. Raises BadInput for letters that its font lacks."""
    content = "\n".join(_pdf_marks(drawing)).encode("cp1252")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {drawing.width:g} {drawing.height:g}] /Contents 4 0 R "
        "/Resources << /Font << /F 5 0 R >> >> >>".encode(),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for n, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (n, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1) + table + end


def _pdf_marks(drawing: Drawing) -> list[str]:
    """The operators of the page; PDF counts from the bottom left."""
    top, marks = drawing.height, []
    for points, colour, width, dashed in drawing.lines:
        steps = [f"{x:.2f} {top - y:.2f} {'l' if n else 'm'}" for n, (x, y) in enumerate(points)]
        marks.append(f"{_pdf_colour(colour)} RG {width:g} w [{'3 3' if dashed else ''}] 0 d {' '.join(steps)} S")
    for (x, y), radius, colour in drawing.dots:
        marks.append(f"{_pdf_colour(colour)} rg {_pdf_circle(x, top - y, radius)} f")
    for (x, y), words, size, anchor, colour in drawing.texts:
        text = words.replace("−", "–")  # which looks alike, and the font has
        left = x - measure_text(text, size) * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
        try:
            text.encode("cp1252")
        except UnicodeEncodeError:
            raise BadInput(f"--figures pdf: has no letters for {quote_value(words)}; take --figures svg") from None
        text = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        marks.append(f"BT {_pdf_colour(colour)} rg /F {size:g} Tf {left:.2f} {top - y:.2f} Td ({text}) Tj ET")
    return marks


def _pdf_colour(colour: str) -> str:
    return " ".join(f"{int(colour[n : n + 2], 16) / 255:.3f}" for n in (1, 3, 5))


def _pdf_circle(x: float, y: float, r: float) -> str:
    k = KAPPA * r
    curves: Sequence[tuple[float, ...]] = (
        (r, k, k, r, 0, r), (-k, r, -r, k, -r, 0), (-r, -k, -k, -r, 0, -r), (k, -r, r, -k, r, 0),
    )  # fmt: skip
    steps = [" ".join(f"{(y if n % 2 else x) + d:.2f}" for n, d in enumerate(curve)) + " c" for curve in curves]
    return f"{x + r:.2f} {y:.2f} m {' '.join(steps)}"
