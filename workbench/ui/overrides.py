"""Which `key=value` overrides a page takes. On the command line a text may name any file, address or module of the
machine; from a page it may only name what is listed, and no number is absurd."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from workbench.core.paths import CONFIGS
from workbench.core.types import BadInput
from workbench.runs import config

LISTS = (("prompts",), ("test",))
MANY, LONG, DEEP = 32, 300, 8  # overrides, letters of one, and how deep a value may nest
HUGE = 1e7  # no number is larger, but for the seed
MOST = {"seeds": 1024, "batch": 1024, "limit": 100_000, "seed": 2**53}
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,63}")


def harmless(overrides: Sequence[str]) -> None:
    """Raises BadInput for the first override that a page does not take."""
    if len(overrides) > MANY:
        raise BadInput(f"{len(overrides)} overrides; a page takes {MANY}, so put them into a file in configs/runs")
    for text in overrides:
        if len(text) > LONG:
            raise BadInput(f"an override of {len(text):,} letters; a page takes {LONG}")
        key, _, value = text.partition("=")
        if "&" in value or not all(WORD.fullmatch(part) for part in key.split(".")):
            raise BadInput(f"override {text[:60]!r}: write key=value, for example seeds=4 or method.lr=2")
        values: dict[str, Any] = {}
        try:
            config.override(values, text)
        except RecursionError:
            raise BadInput(f"override {key!r}: the value nests too deep") from None
        _look(values, ())


def _look(value: Any, where: tuple[str, ...]) -> None:
    place = ".".join(where)
    if len(where) > DEEP:
        raise BadInput(f"override {place[:60]!r}: the value nests too deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            _word(str(key), ".".join((*where, str(key)))[:60])
            _look(inner, (*where, str(key)))
    elif isinstance(value, (list, tuple)):  # YAML's !!pairs are tuples, and whoever asks can make a mapping of them
        for inner in value:
            if where not in LISTS or not isinstance(inner, str):  # a prompt is any text
                _look(inner, (*where, "[]"))
    elif isinstance(value, str) and not _number(value):
        _text(value, where)
    elif isinstance(value, (int, float, str)):
        size = abs(float(value) if isinstance(value, str) else value)  # a whole number may be too large for a float
        if not size <= MOST.get(place, HUGE):
            most = MOST.get(place, HUGE)
            raise BadInput(f"override {place}: {value!s:.20} is out of range; at most {most:g} from here")
    elif value is not None:  # what nobody has thought of is not let through
        kind = type(value).__name__
        raise BadInput(f"override {place}: from here no {kind}, only numbers, plain words, lists and mappings")


def _number(text: str) -> bool:
    """YAML reads 1e9 as text, and the config's fields read that as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text(value: str, where: tuple[str, ...]) -> None:
    place = ".".join(where)
    if where[-1] == "pipeline":
        names = sorted(p.stem for p in (CONFIGS / "pipelines").glob("*.yaml"))
        if value not in names:
            raise BadInput(f"override {place}: from here only configured pipelines can be loaded: {', '.join(names)}")
    elif where in LISTS:
        names = [p.stem for p in sorted((CONFIGS / "prompts").iterdir())]
        if value not in names:
            raise BadInput(f"override {place}: from here a list [..], or one of {', '.join(names)}")
    else:
        _word(value, place)


def _word(value: str, place: str) -> None:
    if not WORD.fullmatch(value):
        raise BadInput(f"override {place}: from here a text is one plain word, no path, address or module; put others into a file in configs/runs")  # fmt: skip
