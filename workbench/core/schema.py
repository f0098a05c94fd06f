"""Strict conversion of mappings (from YAML or JSON) into dataclasses: the one place where types are checked.

An unknown key is an error that names the nearest valid one. Values are converted by their field's annotation (YAML
reads `1e-4` as text).
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from workbench.core.errors import BadInput
from workbench.core.text import quote_value
from workbench.core.types import AtLeast

LISTED = 12  # names that a message lists at most
LARGEST = 2**63 - 1  # whole number that torch, SQLite and others take


def suggest_nearest(word: str, names: Iterable[str], former_names: Mapping[str, str] | None = None) -> str:
    """The end of an error message: the nearest of `names`, or the first of them when none is near. A word near a key of
    `former_names` (old -> new) suggests the new name."""
    names = sorted(names)
    meanings = {**(former_names or {}), **{name: name for name in names}}
    close = difflib.get_close_matches(word[:100], sorted(meanings), n=1, cutoff=0.5)
    if close:
        return f"did you mean {meanings[close[0]]!r}?"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"known: {', '.join(names[:LISTED]) or 'none'}{more}"


def build_dataclass(cls: type, values: Any, where: str):
    """An instance of dataclass `cls` from a mapping. `where` names the place in errors, e.g. `method`.

    A class attribute `former_names: ClassVar[Mapping[str, str]]`, old key -> new key, keeps the old names readable.
    Raises BadInput for a non-mapping, an unknown or missing key, or a value that its field can't take.
    """
    if not isinstance(values, Mapping):
        raise BadInput(f"{where}: expected a mapping of settings, got {quote_value(values)}")
    values = with_current_names(cls, values, where)
    hints = get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in fields:
            nearest = suggest_nearest(str(key), fields, getattr(cls, "former_names", None))
            raise BadInput(f"{where}: unknown key {quote_value(key)}; {nearest}")
    for name, f in fields.items():
        if name not in values and f.default is f.default_factory is dataclasses.MISSING:
            raise BadInput(f"{where}: the key {name!r} is missing")
    return cls(**{key: convert_value(value, hints[key], f"{where}.{key}") for key, value in values.items()})


def with_current_names(cls: type | None, values: Mapping, where: str, announce: bool = True) -> dict:
    """`values` with the former names of `cls`'s settings replaced by the current ones, in the same order.

    Each replaced name is reported once on stderr, unless `announce` is off: a stored config is not to be edited. Raises
    BadInput where a setting is given under both names.
    """
    former_names = getattr(cls, "former_names", {})
    current = {}
    for key, value in values.items():
        name = former_names.get(key, key) if isinstance(key, str) else key
        if name != key and name in values:
            raise BadInput(f"{where or 'config'}: {key!r} and {name!r} are one setting; keep {name!r}")
        if name != key and announce:
            announce_rename(cls, key, name, where)
        current[name] = value
    return current


_ANNOUNCED: set[tuple[type | None, str]] = set()


def announce_rename(cls: type | None, key: str, name: str, where: str) -> None:
    """Report on stderr, once per process, that the setting `key` of `cls` is now called `name`."""
    if (cls, key) not in _ANNOUNCED:
        _ANNOUNCED.add((cls, key))
        print(f"{where + '.' if where else ''}{key} is called {name} now; the old name still works", file=sys.stderr)


def convert_value(value: Any, kind: Any, where: str) -> Any:
    """`value` converted to `kind`: a scalar type, Literal, Optional, tuple, list, dict or Annotated with AtLeast.

    Raises BadInput, naming `where`, for a value that can't be converted.
    """
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        base, *limits = get_args(kind)
        value = convert_value(value, base, where)
        for limit in limits:
            if isinstance(limit, AtLeast) and not value >= limit.low:
                raise BadInput(f"{where}: must be at least {limit.low:g}, got {quote_value(value)}")
        return value
    if origin is Literal:
        if value not in get_args(kind):
            nearest = suggest_nearest(str(value), map(str, get_args(kind)))
            raise BadInput(f"{where}: {quote_value(value)} is not a choice; {nearest}")
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(kind), where)
    if origin in (tuple, list) or kind in (tuple, list):
        if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
            raise BadInput(f"{where}: expected a list, got {quote_value(value)}")
        inner = get_args(kind)[0] if get_args(kind) else Any
        return (origin or kind)(convert_value(v, inner, f"{where}[{n}]") for n, v in enumerate(value))
    if origin is dict or kind in (dict, Mapping) or origin is Mapping:
        if not isinstance(value, Mapping):
            raise BadInput(f"{where}: expected a mapping, got {quote_value(value)}")
        return _with_text_keys(value, where)
    return _convert_scalar(value, kind, where)


def _convert_union(value: Any, kinds: tuple, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(k for k in kinds if k is not type(None))
    exact = [k for k in kinds if isinstance(k, type) and type(value) is k]
    for kind in (*exact, *kinds):
        try:
            return convert_value(value, kind, where)
        except BadInput as error:
            reason = error
    raise reason


def _with_text_keys(value: Mapping, where: str) -> dict:
    """A whole number as a key becomes text, as it does in JSON. Raises BadInput for any other key."""
    keys = [str(key) if isinstance(key, int) and not isinstance(key, bool) else key for key in value]
    for key in keys:
        if not isinstance(key, str) or keys.count(key) > 1:
            reason = "is given twice" if isinstance(key, str) else "is no name; put quotes around it"
            raise BadInput(f"{where}: the key {quote_value(key)} {reason}")
    return dict(zip(keys, value.values(), strict=True))


def _convert_scalar(value: Any, kind: type, where: str) -> Any:
    """A bool is no number here and a number is no text: silent conversions would hide typing errors."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    try:
        if kind is bool and isinstance(value, bool):
            return value
        if kind is str and isinstance(value, str):
            return value
        if kind is float and not isinstance(value, bool):
            number = float(value)
            if number == number and abs(number) != float("inf"):
                return number
        if kind is int and not isinstance(value, bool) and float(value) == int(float(value)):
            whole = int(float(value)) if isinstance(value, str) else int(value)
            if abs(whole) <= LARGEST:
                return whole
        if kind not in words and isinstance(value, kind):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadInput(f"{where}: expected {words.get(kind, getattr(kind, '__name__', kind))}, got {quote_value(value)}")
