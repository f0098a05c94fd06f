"""Which `key=value` overrides a page takes. On the command line a text may name any file, address or module of the
machine; from a page it may only name what is listed, and no number is absurd."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.paths import CONFIGS
from workbench.runs import config

PROMPT_KEYS = (("prompts",), ("test",))
MAX_OVERRIDES, MAX_LETTERS, MAX_DEPTH = 32, 300, 8  # overrides, letters of one, and how deep a value may nest
MAX_NUMBER = 1e7  # no number is larger, but for the seed
MAX_VALUES = {
    "samples_per_prompt": 1024,
    "seeds": 1024,
    "batch": 1024,
    "limit": 100_000,
    "seed": 2**53,
}  # seeds: its former name
MAX_PIPELINE_NUMBER = 4096  # steps, sides of a picture, frames
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,63}")


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises BadInput for the first override that a page does not take."""
    if len(overrides) > MAX_OVERRIDES:
        raise BadInput(
            f"{len(overrides)} overrides; a page takes {MAX_OVERRIDES}, so put them into a file in configs/runs"
        )
    for text in overrides:
        if len(text) > MAX_LETTERS:
            raise BadInput(f"an override of {len(text):,} letters; a page takes {MAX_LETTERS}")
        key, _, value = text.partition("=")
        if "&" in value or not all(WORD.fullmatch(part) for part in key.split(".")):
            raise BadInput(f"override {text[:60]!r}: write key=value, for example samples_per_prompt=4 or method.lr=2")
        values: dict[str, Any] = {}
        try:
            config.apply_override(values, text)
        except RecursionError:
            raise BadInput(f"override {key!r}: the value nests too deep") from None
        _check_value(values, ())


def _check_value(value: Any, where: tuple[str, ...]) -> None:
    key_path = ".".join(where)
    if len(where) > MAX_DEPTH:
        raise BadInput(f"override {key_path[:60]!r}: the value nests too deep")
    if "pipeline" in where:
        _check_pipeline(value, where, where[where.index("pipeline") + 1 :])
    if isinstance(value, dict):
        if {"prompts", "test"} & set(where):
            raise BadInput(f"override {key_path[:60]}: from here prompts are texts, and come with no files or folders")
        for key, inner in value.items():
            _check_word(str(key), ".".join((*where, str(key)))[:60])
            _check_value(inner, (*where, str(key)))
    elif isinstance(value, (list, tuple)):  # YAML's !!pairs are tuples, and whoever asks can make a mapping of them
        for inner in value:
            if where not in PROMPT_KEYS or not isinstance(inner, str):  # a prompt is any text
                _check_value(inner, (*where, "[]"))
    elif isinstance(value, str) and not _is_number(value):
        _check_text(value, where)
    elif isinstance(value, (int, float, str)):
        size = abs(float(value) if isinstance(value, str) else value)  # a whole number may be too large for a float
        if not size <= MAX_VALUES.get(key_path, MAX_NUMBER):
            limit = MAX_VALUES.get(key_path, MAX_NUMBER)
            raise BadInput(f"override {key_path}: {value!s:.20} is out of range; at most {limit:g} from here")
    elif value is not None:  # what nobody has thought of is not let through
        kind = type(value).__name__
        raise BadInput(f"override {key_path}: from here no {kind}, only numbers, plain words, lists and mappings")


def _check_pipeline(value: Any, where: tuple[str, ...], inside: tuple[str, ...]) -> None:
    """Which pipeline, how many steps, and numbers of its call: anything else might load what is not listed."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match inside:
        case () | ("name",):
            is_allowed = isinstance(value, str) or (isinstance(value, dict) and not inside)
        case ("call",):
            is_allowed = isinstance(value, dict)
        case ("steps",) | ("call", _):
            is_allowed = is_number or (isinstance(value, str) and _is_number(value))
        case _:
            is_allowed = False
    if not is_allowed:
        raise BadInput(
            f"override {'.'.join(where)[:60]}: of a pipeline, only its name, steps and numbers of its call can be set "
            "from here"
        )
    if inside and inside[0] != "name" and not isinstance(value, dict) and not abs(float(value)) <= MAX_PIPELINE_NUMBER:
        raise BadInput(
            f"override {'.'.join(where)}: {value!s:.20} is out of range; at most {MAX_PIPELINE_NUMBER:g} from here"
        )


def _is_number(text: str) -> bool:
    """YAML reads 1e9 as text, and the config's fields read that as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_text(value: str, where: tuple[str, ...]) -> None:
    key_path = ".".join(where)
    if where[-1] == "pipeline" or where[-2:] == ("pipeline", "name"):
        names = sorted(p.stem for p in (CONFIGS / "pipelines").glob("*.yaml"))
        if value not in names:
            raise BadInput(
                f"override {key_path}: from here only configured pipelines can be loaded: {', '.join(names)}"
            )
    elif where in PROMPT_KEYS:
        names = sorted({p.stem for p in (CONFIGS / "prompts").iterdir()})
        if value not in names:
            raise BadInput(f"override {key_path}: from here a list [..], or one of {', '.join(names)}")
    else:
        _check_word(value, key_path)


def _check_word(value: str, key_path: str) -> None:
    if not WORD.fullmatch(value):
        raise BadInput(
            f"override {key_path}: from here a text is one plain word, no path, address or module; "
            "put others into a file in configs/runs"
        )
