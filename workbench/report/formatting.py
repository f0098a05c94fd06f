"""Numbers, intervals and lists as reports and the app write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

MEDIA_NOUNS = {"image": "picture", "video": "clip", "audio": "sound"}


def format_number(x: float | None, digits: int | None = None) -> str:
    """0.83, 12.3, 2,000, or so many digits; a true minus sign; a dash for what wasn't measured."""
    if x is None or not math.isfinite(x):
        return "–"
    digits = digits if digits is not None else 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2
    return f"{round(x, digits) + 0.0:,.{digits}f}".replace("-", "−")


def format_count(x: float | None) -> str:
    """A count per sample: 64, 1,600, 2.5."""
    return format_number(x, 1 if is_finite(x) and abs(x) < 100 and abs(x - round(x)) >= 0.05 else 0)


def format_share(x: float) -> str:
    return f"{format_number(100 * x, 0)} %"


def format_signed(x: float, digits: int | None = None) -> str:
    text = format_number(x, digits)
    return text if text[0] == "−" else "+" + text


def decimals_for(estimates: Iterable[Mapping]) -> int:
    """Decimals that show a tenth of the narrowest interval: none to four."""
    widths = [e["ci95"][1] - e["ci95"][0] for e in estimates if e.get("ci95")]
    narrow = min((w for w in widths if w > 0), default=0.1)
    return max(0, min(4, 1 - math.floor(math.log10(narrow))))


def is_finite(x: float | None) -> bool:
    return x is not None and math.isfinite(x)


def join_words(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + (" and " if words[1:] else "") + "".join(words[-1:])


def count_things(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def name_in_sentence(metric: str) -> str:
    return "the oracle" if metric == "oracle" else metric


def format_interval(
    estimate: Mapping, sign: Callable[[float, int | None], str] = format_number, places: int | None = None
) -> str:
    """A space and [low, high], each written by `sign`; empty where there is no interval."""
    if not estimate.get("ci95"):
        return ""
    places = places or decimals_for([estimate])
    return f" [{sign(estimate['ci95'][0], places)}, {sign(estimate['ci95'][1], places)}]"
