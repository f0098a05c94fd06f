"""The one reader of texts from outside: within bounds, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
import random
import time

import pytest

from workbench.core.errors import BadInput
from workbench.core.io import parsing
from workbench.core.io.parsing import one_line, parse_json, parse_yaml, read_json_lines, read_text


def nest_text(opening: str, closing: str, depth: int) -> str:
    return opening * depth + "1" + closing * depth


def billion_laughs() -> str:
    lines = ["a: &a [" + ", ".join(["lol"] * 9) + "]"]
    lines += [f"{b}: &{b} [" + ", ".join([f"*{a}"] * 9) + "]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (nest_text("[", "]", 3000), "nested"),
        (nest_text('{"a":', "}", 101), "nested"),
        ("1" * 5000, "digits"),
        ("-" + "9" * 101, "digits"),
        ("[1e999]", "too large"),
        ("NaN", "finite"),
        ('{"a": -Infinity}', "finite"),
        ('{"a": 1, "b": {"c": 2, "c": 3}}', "'c' is given twice"),
        ('["\\ud83d"]', "surrogate"),
        ("\ud83d", "surrogate"),
        ('{"a": 1', "not valid JSON .column 8"),
        ("", "Expecting value"),
        (b'{"a": "\xfc"}', "line 1: not UTF-8"),
        (b"\xff\xfe[", "line 1: not UTF-16"),
        ("[" + "x" * 300_000 + "]", "not valid JSON"),
    ],
)
def test_a_json_text_that_no_reader_should_take_is_one_short_sentence(text, reason):
    with pytest.raises(BadInput, match=reason) as error:
        parse_json(text, "where\x1b[31m/it/is")
    assert str(error.value).startswith(r"where\x1b[31m/it/is") and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (billion_laughs(), "line 6: more than 500,000 values"),
        (nest_text("[", "]", 300), "nested more than 100 deep"),
        ("- " * 3000 + "1", "nested more than 100 deep"),
        ("width: " + "1" * 5000, "line 1: a number of 5,000 digits"),
        ("a: 1\nwidth: 0x" + "f" * 5000, "line 2: a number of 5,002 digits"),
        ("a: .inf", "line 1: expected a number, got .inf"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is given twice"),
        ("&a [*a]", "inside itself"),
        ("a: \x07", "control characters"),
        ("!!python/object/apply:os.system [ls]", "constructor"),
        ("!!float ''", "not valid YAML"),
        ("!!bool maybe", "not valid YAML"),
        ("!!timestamp 2001-99-99", "constructor"),
        ("a: [b", "line 1"),
        ("\ta: 1", "line 1"),
    ],
)
def test_a_yaml_text_that_no_reader_should_take_is_one_short_sentence(text, reason):
    began = time.process_time()
    with pytest.raises(BadInput, match=reason) as error:
        parse_yaml(text, "a.yaml")
    assert str(error.value).startswith("a.yaml") and len(str(error.value)) < 300
    assert time.process_time() - began < 1


def test_what_is_within_the_bounds_is_read_as_the_standard_readers_do():
    value = {"a": [1, -2.5, 1e-300, None, True, "ü\U0001f600\u2028"], "b": {"c": [[[]]]}, "n": 10**30}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value).encode("utf-8-sig")):
        assert parse_json(text, "x") == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-16"), "x") == value
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 1e-4}\nc: 2001-01-01\nd: [no, .5, 1.0e+2]", "x") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": "1e-4"},
        "c": "2001-01-01",
        "d": [False, 0.5, 100.0],
    }
    assert parse_json(nest_text("[", "]", 100), "x") and parse_yaml(nest_text("[", "]", 100), "x")


def test_nothing_that_a_damaged_text_does_escapes_as_another_error():
    rng = random.Random(0)
    good = '{a: &x [1, 2.5, "t\\u00e4xt", null], "b": {c: *x, d: !!int "3"}, ? e : [{f: 2001-01-01}]}'
    marks = ['"', "'", "{", "}", "[", "]", "&x", "*x", "!!", "<<: ", "\\u", "\0", "\n", "\t", ":", "? ", "- ", "%", "|"]
    read = 0
    for _ in range(600):
        text = list(good)
        for _ in range(rng.randint(1, 6)):
            text.insert(rng.randrange(len(text)), rng.choice(marks))
            del text[rng.randrange(len(text))]
        for parse in (parse_yaml, parse_json):
            try:
                parse("".join(text), "x")
                read += 1
            except BadInput as error:
                assert "\n" not in str(error) and len(str(error)) < 300
    assert read > 10


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_file_is_refused_at_once_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "large").write_bytes(b" " * 101)
    for path, reason in [
        (tmp_path / "pipe", "pipe or a device"),
        ("/dev/zero", "pipe or a device"),
        (tmp_path, "folder"),
        (tmp_path / "loop", "can't be read"),
        (tmp_path / "large", "larger than 100 bytes"),
        (tmp_path / "missing", "no such file"),
        ("x" * 5000, "can't be read"),
        ("a\0b", "can't be read"),
    ]:
        with pytest.raises(BadInput, match=reason) as error:
            read_text(path, max_bytes=100)
        assert len(str(error.value)) < 300


def test_lines_of_json_end_at_line_breaks_alone_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes('\ufeff{"a": "x\u2028y"}\r\n\n[2]\n{"cut'.encode())
    assert read_json_lines(path, drop_last=True) == [(1, {"a": "x\u2028y"}), (3, [2])]
    with pytest.raises(BadInput, match=r"log.jsonl, line 4: not valid JSON"):
        read_json_lines(path)


def test_one_line_shows_what_a_terminal_would_obey():
    assert one_line("red\x1b[31m\r\n\t green\u202e \ud800 \u0085\U0001f469\u200d\U0001f680") == (
        r"red\x1b[31m green\u202e \ud800 \x85" + "\U0001f469\u200d\U0001f680"
    )
    clipped = one_line("key " + "x" * 300_000 + "; give another")
    assert len(clipped) == 300 and clipped.startswith("key x") and clipped.endswith("x; give another")
    assert "300,018 letters" in clipped
    assert len(one_line("\x1b" * 290)) <= 300 and one_line("x" * 50, 20) == "x" * 12 + "…" + "x" * 7
    assert parsing.one_line(None) == "None"
