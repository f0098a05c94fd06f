"""Texts of users and files as a page shows them: as text, whatever is in them."""

from __future__ import annotations

import html
from collections.abc import Sequence

INERT = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})  # HTML blocks are templates too


def plain(value: object, most: int = 4000) -> str:
    """Safe inside HTML and inside a quoted attribute; what is longer than `most` letters is cut, and says so."""
    text = "" if value is None else str(value)
    text = text if len(text) <= most else f"{text[:most]}… ({len(text):,} letters)"
    return html.escape(text).translate(INERT)


def bad(sentence: object) -> str:
    return f'<div class="wb-bad" role="alert">{plain(sentence)}</div>'


def empty(sentence: object) -> str:
    return f'<div class="wb-empty">{plain(sentence)}</div>'


def note(sentence: object) -> str:
    return f'<p class="wb-note">{plain(sentence)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Cells are HTML already; the columns in `left` hold words, which wrap. It scrolls inside itself, never the page."""
    words = ' style="text-align:left;white-space:normal;min-width:9em;overflow-wrap:anywhere"'

    def cell(n: int, inner: str) -> str:
        return f"<th>{inner}</th>" if n == 0 else f"<td{words if n in left else ''}>{inner}</td>"

    titles = "".join(f"<th{words if n in left and n else ''}>{plain(t)}</th>" for n, t in enumerate(head))
    body = "".join(f"<tr>{''.join(cell(n, inner) for n, inner in enumerate(row))}</tr>" for row in rows)
    return f'<div class="wb-scroll"><table class="wb-table" style="border:0"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
