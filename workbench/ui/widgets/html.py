"""The small pieces of HTML that every tab shows. Texts of users and files are shown as text, whatever is in them."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

TEMPLATES = Path(__file__).parents[1] / "templates"
INERT = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})  # HTML blocks are templates too


def escape_text(value: object, limit: int = 4000) -> str:
    """Safe inside HTML and inside a quoted attribute; what is longer than `limit` letters is cut, and says so."""
    text = "" if value is None else str(value)
    text = text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} letters)"
    return html.escape(text).translate(INERT)


def template_environment(**filters: Callable) -> jinja2.Environment:
    """Jinja over the page's templates with these filters: every text that a template shows goes through
    `escape_text`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: v if isinstance(v, Markup) or not isinstance(v, str) else Markup(escape_text(v, 20_000_000)),
    )
    environment.filters |= filters
    return environment


def error_html(sentence: object) -> str:
    return f'<div class="wb-bad" role="alert">{escape_text(sentence)}</div>'


def placeholder_html(sentence: object) -> str:
    return f'<div class="wb-empty">{escape_text(sentence)}</div>'


def hint_html(sentence: object) -> str:
    return f'<p class="wb-note">{escape_text(sentence)}</p>'


def table_html(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """Cells are HTML already; those of `text_columns` hold words, which wrap. It scrolls inside itself, never the
    page."""
    text_style = ' style="text-align:left;white-space:normal;min-width:9em;overflow-wrap:anywhere"'

    def cell(n: int, inner: str) -> str:
        return f"<th>{inner}</th>" if n == 0 else f"<td{text_style if n in text_columns else ''}>{inner}</td>"

    titles = "".join(
        f"<th{text_style if n in text_columns and n else ''}>{escape_text(t)}</th>" for n, t in enumerate(header)
    )
    body = "".join(f"<tr>{''.join(cell(n, inner) for n, inner in enumerate(row))}</tr>" for row in rows)
    return (
        '<div class="wb-scroll" tabindex="0" role="region" aria-label="Table"><table class="wb-table" style="border:0">'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """A file's bytes as the address of themselves, for `src`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
