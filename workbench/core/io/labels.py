"""Labels of pictures in any script, as far as this machine has fonts for it; what it hasn't is never drawn as boxes."""

from __future__ import annotations

import contextlib
import unicodedata
from functools import lru_cache

from PIL import ImageFont

# Looked for by name where the system keeps its fonts; the first that has every letter of a text draws it.
FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf"),
    *("SourceHanSansSC-Regular.otf", "wqy-zenhei.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf"),
    *("NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf", "NotoSansThai-Regular.ttf"),
    *("NotoSansHebrew-Regular.ttf", "NotoEmoji-Regular.ttf", "Symbola.ttf"),
    *("Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc"),  # macOS
    *("arial.ttf", "msyh.ttc", "YuGothM.ttc", "malgun.ttf", "seguisym.ttf", "seguiemj.ttf"),  # Windows
)
NO_LETTER = "\U0010fffe"  # no font has it: it is drawn as what is drawn for a letter that is missing
UNSEEN = ("Cf", "Mn", "Zs", "Cc")  # kinds of characters that draw nothing, or on another
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def choose_font(size: float, words: str) -> Font:
    """A font for these words: PIL's own for ASCII, the same on every machine; for other scripts the one of the system's
    that has the most of their letters."""
    letters = _drawn_letters(words)
    if not letters:
        return ImageFont.load_default(size)
    name = max(_installed_fonts(), key=lambda n: sum(_has_letter(n, x) for x in letters), default=None)
    return ImageFont.truetype(name, round(size * 0.95)) if name else ImageFont.load_default(size)


def drawable_text(words: str) -> str | None:
    """`words` as they can be drawn here: as they are, or with names in place of symbols that no font has, such as
    [large red circle]. None where a letter is missing: then they can't be read at all."""
    letters = _drawn_letters(words)
    best = max(([x for x in letters if _has_letter(n, x)] for n in _installed_fonts()), key=len, default=[])
    missing = [x for x in letters if x not in best]
    if not missing:
        return words
    if any(unicodedata.category(x)[0] in "LN" for x in missing):
        return None
    for x in missing:
        words = words.replace(x, f"[{unicodedata.name(x, f'U+{ord(x):04X}').lower()}]")
    return "".join(x for x in words if unicodedata.category(x) not in ("Cf", "Cc") and x != "\ufe0f")


def _drawn_letters(words: str) -> list[str]:
    """The letters, each once, that are not in PIL's own font."""
    return [x for x in dict.fromkeys(words) if not x.isascii() and x != "…" and unicodedata.category(x) not in UNSEEN]


@lru_cache(maxsize=1)
def _installed_fonts() -> tuple[str, ...]:
    names = []
    for name in FONTS:
        with contextlib.suppress(OSError):  # not installed here: the next
            ImageFont.truetype(name, 20)
            names.append(name)
    return tuple(names)


@lru_cache(maxsize=10_000)
def _has_letter(name: str, letter: str) -> bool:
    font = ImageFont.truetype(name, 20)
    drawn, absent = font.getmask(letter), font.getmask(NO_LETTER)
    return (drawn.size, bytes(drawn)) != (absent.size, bytes(absent))
