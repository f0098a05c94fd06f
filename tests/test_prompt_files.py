"""Prompt files of every usual kind say the same, whichever program wrote them."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pytest

from workbench.core.errors import BadInput
from workbench.runs import prompt_files
from workbench.runs.prompt_inputs import take_prompts
from workbench.runs.prompts import read_prompt_table, read_prompts

PARTS = [
    "a red circle",
    "#aesthetic",
    'a sign, "open"',
    "ein grüner Kreis",
    "丸い",
    "\U0001f534\u200d",
    "x\u2028y",
    "x\x0by",
]
PARTS += ["a;b", "'quoted'", "x\x85y", "# no comment", "a\\nb", "{curly}", "<b>", "1", "null"]


def draw_rows(seed: int, count: int, line_breaks: bool) -> list[dict[str, str]]:
    """Distinct prompts, none of which looks like a comment, each with a tag and a source file."""
    rng, rows = random.Random(seed), {}
    while len(rows) < count:
        parts = rng.choices(PARTS, k=rng.randint(1, 4))
        prompt = ("\n" if line_breaks and rng.random() < 0.3 else " ").join(parts).strip()
        if not prompt.startswith("# "):
            rows[prompt] = {"prompt": prompt, "tags": rng.choice(("x", "y, z")), "source": f"in/{len(rows)}.png"}
    return list(rows.values())


def table_text(rows: list[dict], delimiter: str, **style) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter, **style)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_every_kind(folder: Path, rows: list[dict[str, str]]) -> list[Path]:
    """The same prompts as everything that can hold line breaks and further columns."""
    texts = {
        "comma.csv": table_text(rows, ","),
        "semicolon.csv": table_text(rows, ";", quoting=csv.QUOTE_ALL),
        "quoted.tsv": table_text(rows, "\t"),
        "escaped.json": json.dumps(rows),
        "raw.json": json.dumps({"prompts": rows}, ensure_ascii=False, indent=2),
        "lines.jsonl": "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n\r\n",
        "upper.CSV": table_text(rows, ",").replace("prompt,tags", " Caption ,Tags", 1),
    }
    for n, (name, text) in enumerate(texts.items()):
        (folder / name).write_bytes(text.encode(("utf-8", "utf-8-sig", "utf-16", "utf-32")[n % 4]))
    return [folder / name for name in texts]


def test_every_kind_of_prompt_file_gives_the_same_prompts_and_columns(tmp_path):
    rows = draw_rows(1, 40, line_breaks=True)
    files = write_every_kind(tmp_path, rows)
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    table = pa.Table.from_pylist([{**row, "image": {"bytes": b"\x89PNG", "path": "a.png"}} for row in rows])
    parquet.write_table(table, tmp_path / "p.parquet")
    for path in [*files, tmp_path / "p.parquet"]:
        table = read_prompt_table(str(path))
        assert list(table.prompts) == [row["prompt"] for row in rows], path.name
        assert list(table.columns["tags"]) == [row["tags"] for row in rows]
        assert list(table.columns["source"]) == [row["source"] for row in rows]
        assert table.folder == tmp_path and len(table) == 40
        assert table.notes == (("columns left out, which hold bytes: image",) if path.suffix == ".parquet" else ())


def test_a_line_of_a_text_file_ends_where_an_editor_ends_it(tmp_path):
    prompts = [row["prompt"] for row in draw_rows(2, 30, line_breaks=False)]
    path = tmp_path / "p.txt"
    for ending in ("\n", "\r\n", "\r"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            path.write_bytes(("# a comment" + ending * 2 + ending.join(prompts) + ending).encode(encoding))
            assert list(read_prompts(str(path))) == prompts


def test_a_comment_begins_with_a_hash_and_a_space_and_a_hashtag_is_a_prompt(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text(
        "# comment\n#\n## heading\n#\tcomment\n  # indented\n#aesthetic poster of a fox\na red circle # five\n"
    )
    table = read_prompt_table(str(path))
    assert table.prompts == ("#aesthetic poster of a fox", "a red circle # five")
    assert table.notes == ("1 that begin with # are prompts; a comment begins with # and a space",)


def test_what_is_left_out_is_counted_and_other_inputs_make_another_prompt(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,source,tags\nred,a.png,x\nred,b.png,x\nred,a.png,y\n ,c.png,x\n\nRed\n")
    table = read_prompt_table(str(path))
    assert table.prompts == ("red", "red", "", "Red") and (table.repeated, table.empty) == (1, 1)
    assert table.columns["source"] == ("a.png", "b.png", "c.png", None)
    assert read_prompts(str(path)) == ("red", "Red")
    unused = take_prompts(table, {}).unused
    assert unused == "1 repeated left out; 2 empty left out; columns not used: source, tags"
    assert read_prompts(["a", " a ", "", "b"]) == ("a", "b")


def test_a_table_without_quoting_keeps_its_quotes(tmp_path):
    """As PartiPrompts.tsv is written."""
    lines = ['"Fall is here" written in leaves', 'a 5" disc', '"', "it's"]
    (tmp_path / "p.tsv").write_text("Prompt\tCategory\n" + "".join(f"{line}\tx\n" for line in lines))
    assert list(read_prompts(str(tmp_path / "p.tsv"))) == lines


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty.txt", b"# nothing\n\n", "has no prompt in it"),
        ("empty.csv", b"", "empty; its first line"),
        ("header.csv", b"prompt,tags\n", "has no prompt in it"),
        ("binary.txt", b"\x89PNG\x00\x01", "not a text file"),
        ("nul.txt", b"a cat\x00", "not a text file"),
        ("nul.csv", b"prompt\na cat\x00\n", "line 2.* holds a zero"),
        ("latin.txt", "ok\nein grüner Kreis".encode("latin-1"), "line 2: not UTF-8 .*Latin-1.*save it as UTF-8"),
        ("bad.jsonl", b'{"prompt": "a"}\n{"promt": "b"}\n', "line 2: no prompt or .* did you mean 'promt'"),
        ("list.jsonl", b'"a"\n["b"]\n', "line 2: a prompt is a text"),
        ("null.json", b'["a", {"prompt": null}]', "prompt 2: a prompt is a text, got None"),
        ("half.json", b'["\\ud83d"]', "surrogate"),
        ("other.json", b'{"a": 1}', r"expected a list of prompts, or \{\"prompts\": "),
        ("deep.json", b"[" * 3000, "nested"),
        ("nameless.csv", b"a red circle\na blue square\n", "line 1: no prompt"),
        ("wide.csv", b"prompt,tags\na, b, c\n", "line 2: 3 cells where the header has 2"),
        ("twice.csv", b"prompt,tags,tags\na,b,c\n", "two columns are called 'tags'"),
        ("open.csv", b'prompt\n"a\n', "not such a table"),
        ("damaged.parquet", b"PAR1 no PAR1", "can't be read as Parquet"),
        ("prompts.yaml", b"- a cat\n", "files of this kind are not read; give .txt, .jsonl"),
        ("prompts.docx", b"PK", "files of this kind are not read"),
        ("missing.txt", None, "no prompt file"),
    ],
)
def test_a_bad_prompt_file_is_named_with_what_is_wrong(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=sentence) as caught:
        read_prompts(str(tmp_path / name))
    assert name in str(caught.value) and len(str(caught.value)) <= 300


def test_parquet_without_pyarrow_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadInput, match=r"reading .parquet needs pyarrow; run: pip install pyarrow"):
        prompt_files.read_prompt_file(tmp_path / "p.parquet")


def test_prompts_from_python_are_texts():
    for prompts, sentence in (
        ([5], "got 5; put quotes around it"),
        (["a\0"], "holds a zero"),
        (["\ud800"], "surrogate"),
    ):
        with pytest.raises(BadInput, match=sentence):
            read_prompts(prompts)
