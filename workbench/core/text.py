"""Text of others in our sentences. Standard library only."""

from __future__ import annotations

import re
from typing import Any

LONGEST = 300  # letters of a sentence
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\xad\u200b\u200c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def one_line(text: Any, limit: int = LONGEST) -> str:
    """`text` as one line of at most `limit` letters that a terminal shows as it is.

    Line breaks and tabs become spaces; other control characters, terminal escapes, invisible letters, marks that turn
    the direction of writing, and half surrogate pairs become `\\x1b`. What is too long loses its middle: its end often
    says what to do.
    """
    words = str(text)
    length = len(words)
    if length > 4 * limit:  # more is never shown
        words = words[: 2 * limit] + words[-2 * limit :]
    words = escape_control(re.sub(r"\s*[\t\n\r]\s*", " ", words).strip())
    if len(words) <= limit and length <= 4 * limit:
        return words
    gap = f" … ({length:,} letters) … " if limit >= 100 else "…"
    head = (limit - len(gap)) * 2 // 3
    tail = limit - len(gap) - head
    return words[:head] + gap + words[len(words) - tail :]


def first_line(error: Exception) -> str:
    """The first line of what an error says; the name of its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shorten_path(path: Any, limit: int = 100) -> str:
    """A path as one line that keeps its end, which names the file."""
    words = escape_control(str(path))
    return words if len(words) <= limit else f"…{words[1 - limit :]}"


def quote_value(value: Any, limit: int = 60) -> str:
    """A value of the user's as Python writes it, in one line, clipped: for a sentence that says what is wrong with
    it."""
    if isinstance(value, str) and len(value) > limit:
        return repr(one_line(value, limit - 2))
    return one_line(repr(value), limit)


def escape_control(text: str, keep: str = "", as_json: bool = False) -> str:
    """`text` with everything that a terminal would obey written out, but for the letters in `keep`. as_json: as JSON
    writes it inside a string."""

    def write_out(match: re.Match) -> str:
        code = ord(match[0])
        if match[0] in keep:
            return match[0]
        return f"\\x{code:02x}" if code < 256 and not as_json else f"\\u{code:04x}"

    return CONTROL.sub(write_out, text)
