"""Benchmarks' prompt files are read as the benchmarks write them, and what is of another form is refused by its
line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench.core.errors import BadInput
from workbench.tools.suite_layouts import SUITES, Entry, prompt_file_name

TASK = '{"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a red cat"}\n'
UNIGEN = """index,prompt_en,sub_dims_en
0,"a red circle, drawn","{""Testpoints"": [""Style""], ""Testpoint Description"": [""drawn""]}"
7,a blue square,"{""Testpoints"": [""Attribute - Color""], ""Testpoint Description"": [""blue""]}"
"""
NAMES = {"geneval": "evaluation_metadata.jsonl", "t2i-compbench": "color_val.txt", "partiprompts": "PartiPrompts.tsv",
         "drawbench": "drawbench.csv", "hpdv2": "photo.json", "unigenbench": "test_prompts_en.csv"}  # fmt: skip


def read(folder: Path, name: str, content: str | bytes, file: str = "") -> list[Entry]:
    path = folder / (file or NAMES[name])
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return SUITES[name].read_entries(path)


GOOD = [
    ("geneval", "\ufeff" + TASK + "\n", [Entry(0, "a red cat", line=TASK.strip())]),
    (
        "t2i-compbench",
        "a red dog\tnoted\r\n\r\nA cat.\r\n",
        [Entry(0, "a red dog", "color"), Entry(1, "A cat.", "color")],
    ),
    ("drawbench", 'Prompts,Category\n"one, two",Counting\n\n', [Entry(0, "one, two", "Counting")]),
    ("hpdv2", '["a", " b "]', [Entry(0, "a", "photo"), Entry(1, "b", "photo")]),
    ("unigenbench", UNIGEN, [Entry(0, "a red circle, drawn", "en"), Entry(7, "a blue square", "en")]),
]


@pytest.mark.parametrize(("name", "content", "entries"), GOOD)
def test_each_benchmarks_file_is_read_as_its_authors_write_it(tmp_path, name, content, entries):
    assert read(tmp_path, name, content) == entries


def test_partiprompts_has_quotation_marks_that_quote_nothing(tmp_path):
    (entry,) = read(tmp_path, "partiprompts", 'Prompt\tCategory\tChallenge\tNote\n"Fly" a kite\tArt\tBasic\ta "note"\n')
    assert entry.prompt == '"Fly" a kite' and json.loads(entry.line)["note"] == 'a "note"'


def test_drawbench_is_read_as_hpdv2_ships_it_too(tmp_path):
    assert read(tmp_path, "drawbench", '["a", "b"]', "drawbench.json") == [Entry(0, "a"), Entry(1, "b")]


def test_a_folder_of_hpdv2_styles_is_read_style_by_style(tmp_path):
    for style in ("photo", "anime"):
        (tmp_path / f"{style}.json").write_text(json.dumps([f"{style} one", f"{style} two"]))
    (tmp_path / "drawbench.json").write_text("[]")
    found = SUITES["hpdv2"].read_entries(tmp_path)
    assert [(e.part, e.number) for e in found] == [("anime", 0), ("anime", 1), ("photo", 0), ("photo", 1)]


@pytest.mark.parametrize("name", ["geneval", "t2i-compbench"])
def test_blank_lines_are_no_prompts(tmp_path, name):
    assert read(tmp_path, name, "\n \n") == []


def test_chinese_prompts_are_read_from_their_own_column(tmp_path):
    content = UNIGEN.replace("prompt_en", "prompt_zh").replace("sub_dims_en", "sub_dims_zh")
    assert read(tmp_path, "unigenbench", content, "test_prompts_zh_long.csv")[1].part == "zh_long"


BAD = [
    ("geneval", TASK + "not json\n", "line 2: not valid JSON"),
    ("geneval", '{"prompt": "x"}\n', "line 1: not of the form"),
    ("geneval", TASK.replace('"count": 1, ', ""), "line 1: not of the form"),
    ("geneval", TASK.replace("a red cat", " "), "line 1: no prompt"),
    ("geneval", TASK.replace("a red cat", "\\ud800"), "line 1: .*not text"),
    ("t2i-compbench", "fine\n___\n", "line 2: nothing of '___'"),
    ("partiprompts", "Prompt,Category\nx,y\n", "line 1: no column 'prompt'"),
    ("partiprompts", "Prompt\tCategory\tChallenge\tNote\na\tb\n", "line 2: 2 cells where the header has 4"),
    ("drawbench", "Text,Category\nx,y\n", "line 1: no column 'prompts'"),
    ("drawbench", 'Prompts,Category\nx,y\n"open,z\n', "line 3: not such a table"),
    ("drawbench", "Prompts,Category\nx,y\n,z\n", "line 3: no prompt"),
    ("hpdv2", '["a",\n"b"', "not valid JSON \\(line 2"),
    ("hpdv2", '{"photo": []}', "not a list of prompts"),
    ("hpdv2", '["a", 3]', "prompt 2: no prompt"),
    ("unigenbench", UNIGEN + "7,again,{}\n", "line 4: the index '7'"),
    ("unigenbench", UNIGEN.replace("\n7,", "\n../7,"), "line 3: the index '../7'"),
    (
        "unigenbench",
        UNIGEN.replace("prompt_en", "prompt_zh"),
        "line 1: no column 'prompt_en'; did you mean 'prompt_zh'",
    ),
    *((name, b"\x89PNG\xff\x00", "not a text file in UTF-8") for name in NAMES),
]


@pytest.mark.parametrize(("name", "content", "sentence"), BAD)
def test_a_prompt_file_of_another_form_is_refused_with_its_line(tmp_path, name, content, sentence):
    with pytest.raises(BadInput, match=sentence) as caught:
        read(tmp_path, name, content)
    assert str(tmp_path / NAMES[name]) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "file", "sentence"),
    [
        ("hpdv2", "photos.json", "did you mean 'photo'"),
        ("t2i-compbench", "color_val.csv", "text files, a prompt a line"),
        ("unigenbench", "test_prompts_eng.csv", "did you mean 'test_prompts_en'"),
    ],
)
def test_a_file_whose_name_says_nothing_known_is_refused(tmp_path, name, file, sentence):
    with pytest.raises(BadInput, match=sentence):
        read(tmp_path, name, "[]", file)


def test_a_folder_without_styles_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"holds none of anime\.json"):
        SUITES["hpdv2"].read_entries(tmp_path)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"hpdv2"}))
def test_a_folder_where_a_file_is_expected_is_refused(tmp_path, name):
    (tmp_path / NAMES[name]).mkdir()
    with pytest.raises(BadInput, match="can't be read"):
        SUITES[name].read_entries(tmp_path / NAMES[name])


@pytest.mark.parametrize("prompt", ["a cat, a dog.", "what? <b>\"x\"</b>: 'y' | *", "日本語", "x" * 240])
def test_a_prompt_that_a_name_can_hold_stays_as_it_is(prompt):
    assert prompt_file_name(prompt.replace("/", "")) == prompt.replace("/", "")


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "a\\..\\b", "snake_case", "a\x01b\x7f", "x" * 241, "é" * 200])
def test_a_prompt_that_no_name_can_hold_becomes_one_name_that_the_scorer_does_not_cut(prompt):
    name = prompt_file_name(prompt)
    assert name and name != prompt and not set(name) & set("/\\_\x01\x7f") and len(name.encode()) <= 240


@pytest.mark.parametrize(
    ("file", "scripts"),
    [("color_val", ["BLIP_vqa"]), ("texture_val_seen", ["BLIP_vqa"]), ("spatial_val", ["2D_spatial_eval"]),
     ("3d_spatial_val", ["3D_spatial_eval"]), ("numeracy", ["numeracy_eval"]), ("non_spatial_val", ["CLIP_similarity"]),
     ("complex_val", ["BLIP_vqa", "2D_spatial_eval", "CLIP_similarity", "3_in_1"]), ("mine", [])],
)  # fmt: skip
def test_compbench_is_scored_by_the_scripts_of_the_category_in_the_files_name(tmp_path, file, scripts):
    (entry,) = read(tmp_path, "t2i-compbench", "a dog near a lamp\n", f"{file}.txt")
    config = SimpleNamespace(name="m", samples_per_prompt=10)
    lines = SUITES["t2i-compbench"].scorer_commands(entry.part, tmp_path / "it's out", tmp_path, config)
    assert [next(Path(w).stem for w in shlex.split(line) if w.endswith(".py")) for line in lines] == scripts
    assert all(str(tmp_path / "it's out") in shlex.split(line) for line in lines)
