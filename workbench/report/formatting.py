"""Formatting of numbers, intervals and lists for reports and the app."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

MEDIA_NOUNS = {"image": "picture", "video": "clip", "audio": "sound"}


def format_number(x: float | None, digits: int | None = None) -> str:
    """0.83, 12.3, 2,000, or with `digits` decimals; a true minus sign; a dash for None and what isn't finite."""
    if x is None or not math.isfinite(x):
        return "–"
    digits = digits if digits is not None else 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2
    return f"{round(x, digits) + 0.0:,.{digits}f}".replace("-", "−")


def format_count(x: float | None) -> str:
    """A count per sample: 64, 1,600, 2.5."""
    return format_number(x, 1 if is_finite(x) and abs(x) < 100 and abs(x - round(x)) >= 0.05 else 0)


def format_share(x: float) -> str:
    """83 %"""
    return f"{format_number(100 * x, 0)} %"


def format_signed(x: float, digits: int | None = None) -> str:
    """+0.83 or −0.83"""
    text = format_number(x, digits)
    return text if text[0] == "−" else "+" + text


def decimals_for(estimates: Iterable[Mapping]) -> int:
    """The decimals, 0 to 4, that resolve a tenth of the narrowest interval."""
    widths = [e["ci95"][1] - e["ci95"][0] for e in estimates if e.get("ci95")]
    narrow = min((w for w in widths if w > 0), default=0.1)
    return max(0, min(4, 1 - math.floor(math.log10(narrow))))


def is_finite(x: float | None) -> bool:
    """Whether it is a finite number, not None."""
    return x is not None and math.isfinite(x)


def join_words(words: Sequence[str]) -> str:
    """a, b and c"""
    return ", ".join(words[:-1]) + (" and " if words[1:] else "") + "".join(words[-1:])


def count_things(n: int, thing: str) -> str:
    """1 prompt, 2,000 prompts"""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def name_in_sentence(metric: str) -> str:
    """A metric's name in running text."""
    return "the oracle" if metric == "oracle" else metric


def format_interval(
    estimate: Mapping, sign: Callable[[float, int | None], str] = format_number, places: int | None = None
) -> str:
    """A space and [low, high], both formatted by `sign`; "" without an interval."""
    if not estimate.get("ci95"):
        return ""
    places = places or decimals_for([estimate])
    return f" [{sign(estimate['ci95'][0], places)}, {sign(estimate['ci95'][1], places)}]"
