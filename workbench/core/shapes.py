"""Checks that a value read from JSON has the shape that a TypedDict declares.

In contrast to workbench.core.schema nothing is converted, and unknown keys stay: files on disk may be newer than this
code, or hold what somebody noted there.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict

from workbench.core.errors import BadInput
from workbench.core.schema import LARGEST
from workbench.core.text import quote_value

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def check_shape(value: Any, kind: Any, where: str) -> None:
    """Raises BadInput, naming the place as in `where.contestants[0].nfe`, unless `value` has the shape `kind`: a
    TypedDict, `dict[str, ...]`, `list[...]`, a union of such, a plain type, or Any."""
    origin = get_origin(kind)
    if kind is Any:
        return
    if is_typeddict(kind):
        _check_keys(value, kind, where)
    elif origin is dict:
        for key, item in _expect(value, Mapping, "a mapping", where).items():
            check_shape(item, get_args(kind)[1], f"{where}.{key}")
    elif origin is list:
        for n, item in enumerate(_expect(value, list, "a list", where)):
            check_shape(item, get_args(kind)[0], f"{where}[{n}]")
    elif origin in (Union, types.UnionType):
        _check_union(value, get_args(kind), where)
    elif not _is_plain(value, kind):
        raise BadInput(f"{where}: expected {WORDS.get(kind, kind)}, got {quote_value(value)}")


def _expect(value: Any, kind: type, words: str, where: str) -> Any:
    if not isinstance(value, kind):
        raise BadInput(f"{where}: expected {words}, got {quote_value(value)}")
    return value


def _check_keys(value: Any, kind: Any, where: str) -> None:
    hints, required = _read_hints(kind)
    _expect(value, Mapping, "a mapping", where)
    for key, hint in hints.items():
        if key in value:
            check_shape(value[key], hint, f"{where}.{key}")
        elif key in required:
            raise BadInput(f"{where}: the key {key!r} is missing")


@lru_cache
def _read_hints(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    hints = get_type_hints(kind, include_extras=True)
    plain = {k: get_args(h)[0] if get_origin(h) in (NotRequired, Required) else h for k, h in hints.items()}
    # not kind.__required_keys__, which takes annotations that are texts for required ones
    return plain, frozenset(key for key, hint in hints.items() if get_origin(hint) is not NotRequired)


def _check_union(value: Any, kinds: tuple, where: str) -> None:
    if value is None and type(None) in kinds:
        return
    reason = None
    for kind in (k for k in kinds if k is not type(None)):
        try:
            return check_shape(value, kind, where)
        except BadInput as error:
            reason = error
    assert reason is not None, "a union has a member that is not None"
    raise reason


def _is_plain(value: Any, kind: Any) -> bool:
    """A bool is no number here, and a whole number fits into 64 bits, as the index needs."""
    if kind in (int, float):
        is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
        return is_whole or (kind is float and isinstance(value, float))
    return isinstance(value, kind)
