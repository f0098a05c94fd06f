"""`workbench score` on whole folders: their own prompts, files of any number in bounded memory, tables of every kind,
and two folders against each other."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import workbench as w
from workbench.cli import main
from workbench.core.errors import BadInput
from workbench.core.types import RewardSpec
from workbench.evaluation import score_batches, scoring


class Letters:
    """How many letters the prompt has, and how bright the picture is; it counts its calls, and can't judge what is 7
    wide."""

    spec = RewardSpec("letters", "1", frozenset({"image"}), differentiable=False, needs=frozenset({"prompt"}))
    calls: list[int] = []

    def __call__(self, *, media, prompts, references=None):
        self.calls.append(len(prompts))
        if media.data.shape[-1] == 7:
            raise ValueError("too odd")
        if media.data.amax() > 0.999:
            raise ValueError("too white")
        return torch.tensor([float(len(p)) for p in prompts]) + media.data.flatten(1).mean(1)


LETTERS = "test_score_folders:Letters"


@pytest.fixture(autouse=True)
def no_calls():
    Letters.calls = []


def paint(path, level=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level,) * 3).save(path)
    return path


def describe(folder, rows, name="metadata.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_table(path):
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".json": pd.read_json}
    return readers[path.suffix](path) if path.suffix in readers else pd.read_json(path, lines=True)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.json", "metadata.parquet"])
def test_a_folders_own_list_says_the_prompts_and_what_samples_were_made_from_is_no_sample(tmp_path, name):
    paint(tmp_path / "a.png"), paint(tmp_path / "deep" / "b.png"), paint(tmp_path / "in" / "s.png")
    table = pd.DataFrame(
        {"file_name": ["a.png", "deep/b.png"], "text": ["abc", "abcde"], "source": ["in/s.png", "in/s.png"]}
    )
    write = {
        "metadata.csv": lambda p: table.to_csv(p, index=False),
        "metadata.json": lambda p: p.write_text(table.to_json(orient="records")),
        "metadata.parquet": table.to_parquet,
        "metadata.jsonl": lambda p: p.write_text(table.to_json(orient="records", lines=True)),
    }
    write[name](tmp_path / name)
    rows = scoring.score_files([tmp_path], [LETTERS])
    assert [(row["prompt"], row["letters"], row["note"]) for row in rows] == [
        ("abc", 3.0, f"prompt from {name}"),
        ("abcde", 5.0, f"prompt from {name}"),
    ]
    assert [row["letters"] for row in w.score(tmp_path, Letters())] == [3.0, 5.0]
    (edit,) = scoring.score_files([tmp_path / "a.png"], ["unchanged"], source=tmp_path / "in" / "s.png")
    assert [row["unchanged"] for row in scoring.score_files([tmp_path], ["unchanged"])] == [edit["unchanged"]] * 2


def test_a_prompt_beside_a_file_or_in_its_name_counts_where_no_list_has_it(tmp_path):
    (
        paint(tmp_path / "a.png"),
        paint(tmp_path / "b.png"),
        paint(tmp_path / "a red cat-12.png"),
        paint(tmp_path / "c.png"),
    )
    describe(tmp_path, [{"file_name": "a.png", "text": "abc"}])
    (tmp_path / "b.txt").write_text("ab")
    by_name, a, b, nothing = scoring.score_files([tmp_path], [LETTERS])
    assert (by_name["prompt"], by_name["note"]) == ("a red cat", "prompt from its name")
    assert (a["prompt"], b["prompt"], b["note"]) == ("abc", "ab", "prompt from b.txt")
    assert nothing["letters"] is None and "needs the prompt" in nothing["error"]
    assert [r["prompt"] for r in scoring.score_files([tmp_path], [LETTERS], "x")] == ["x"] * 4


def test_files_of_mixed_sizes_are_scored_in_batches_and_one_bad_file_costs_its_own_row(tmp_path):
    for n in range(40):
        paint(tmp_path / f"{n:02d}.png", level=n, size=(8, 8) if n % 2 else (6, 8))
    paint(tmp_path / "30.png", level=255, size=(6, 8)), paint(tmp_path / "31.png", size=(7, 8))
    (tmp_path / "11.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    rows = scoring.score_files([tmp_path], [LETTERS], "abc")
    assert max(Letters.calls) == score_batches.ROWS and len(Letters.calls) < 40
    faults = {n: row["error"] for n, row in enumerate(rows) if row["error"]}
    assert faults.keys() == {11, 30, 31} and "too white" in faults[30] and "too odd" in faults[31]
    expected = [pytest.approx(3 + n / 255, abs=1e-6) if n not in faults else None for n in range(40)]
    assert [row["letters"] for row in rows] == expected


def test_no_more_is_held_than_waits_for_its_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(score_batches, "WINDOW", 5), monkeypatch.setattr(scoring, "WINDOW", 5)
    for n in range(12):
        paint(tmp_path / f"{n:02d}.png", size=(8, 8) if n % 2 else (6, 8))
    most = 0
    stream = scoring.plan_scoring([tmp_path], [LETTERS], "abc").score()
    for k, (n, row) in enumerate(stream):
        assert k == n and row["letters"]
        most = max(most, sum(Letters.calls) - k)
    assert most <= 5 and sum(Letters.calls) == 12


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_the_suffix_decides_what_kind_of_table_is_written(tmp_path, suffix, capsys):
    folder, out = tmp_path / "media", tmp_path / f"scores{suffix}"
    paint(folder / "a.png", 51), paint(folder / "b.png", 102)
    describe(folder, [{"file_name": "a.png", "text": "abc"}, {"file_name": "b.png", "text": "=1+1, \u20ac"}])
    assert main(["score", str(folder), "--reward", LETTERS, "--reward", "brightness", "--out", str(out)]) == 0
    table = read_table(out)
    assert list(table.columns) == ["file", "prompt", "letters", "brightness", "note", "error"]
    assert table["letters"].tolist() == pytest.approx([3.2, 7.4]) and table["file"][1] == str(folder / "b.png")
    assert table["prompt"].tolist() == ["abc", "'=1+1, \u20ac" if suffix == ".csv" else "=1+1, \u20ac"]
    assert "2 rows in" in capsys.readouterr().out and sorted(p.name for p in tmp_path.iterdir()) == ["media", out.name]


def test_a_stopped_command_loses_nothing_and_goes_on_from_there(tmp_path, monkeypatch):
    folder, out = tmp_path / "media", tmp_path / "scores.jsonl"
    for n in range(10):
        paint(folder / f"{n}.png", n)
    monkeypatch.setattr(score_batches, "WINDOW", 2)
    words = ["score", str(folder), "--reward", LETTERS, "--prompt", "abc", "--out", str(out)]
    whole = Letters.__call__

    def stop_after_three(self, **question):
        if len(self.calls) == 3:
            raise KeyboardInterrupt
        return whole(self, **question)

    monkeypatch.setattr(Letters, "__call__", stop_after_three)
    assert main(words) == 130 and not out.exists()
    with (tmp_path / ".scores.jsonl.partial").open("ab") as journal:
        journal.write(b'{"key": "cut of')
    paint(folder / "1.png", 200)  # changed since
    monkeypatch.setattr(Letters, "__call__", whole)
    Letters.calls = []
    assert main(words) == 0 and sum(Letters.calls) == 10 - 5
    scores = read_table(out)["letters"].tolist()
    assert scores == pytest.approx([3 + (200 if n == 1 else n) / 255 for n in range(10)])
    Letters.calls = []
    assert main([*words[:-3], "other", *words[-2:]]) == 0 and sum(Letters.calls) == 10
    assert not (tmp_path / ".scores.jsonl.partial").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "scores.xlsx"], "name a file that ends in .csv, .jsonl, .json, .parquet"),
        (["--out", "nowhere/scores.csv"], "there is no folder nowhere"),
        (["--out", "scores.csv", "--csv"], "--csv: prints the scores of files; leave it out with --out"),
        (["--pair", "name"], "give the other with --against"),
        (["--against", "media"], "is the folder itself"),
        (["--against", "empty"], "no media files"),
        (["--against", "media2", "--pair", "prompt", "--prompt", "x"], "which pairs none"),
    ],
)
def test_what_can_not_be_is_one_sentence_before_anything_is_scored(tmp_path, words, sentence, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "media" / "a.png"), paint(tmp_path / "media2" / "a.png"), (tmp_path / "empty").mkdir()
    assert main(["score", "media", "--reward", LETTERS, *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not Letters.calls


def test_parquet_without_its_library_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    paint(tmp_path / "a.png")
    assert main(["score", str(tmp_path), "--reward", "brightness", "--out", str(tmp_path / "s.parquet")]) == 2
    assert "pip install pyarrow" in capsys.readouterr().err


def make_folders(tmp_path, count=24):
    """Two folders of the same prompts under other names; the first is brighter in three quarters of the pairs, equal in
    one pair, and each has a file that the other lacks."""
    first, second = tmp_path / "first", tmp_path / "second"
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 100, (count, 2))
    levels[:, 0] = levels[:, 1] + np.where(np.arange(count) % 4, 40, -20)
    levels[0] = 50
    levels = levels.clip(0, 250)
    for side, folder in enumerate((first, second)):
        for n in range(count):
            paint(folder / f"{'xy'[side]}{n:02d}.png", int(levels[n, side]))
        paint(folder / "lonely.png")
        rows = [{"file_name": f"{'xy'[side]}{n:02d}.png", "text": f"prompt {n // 2}"} for n in range(count)]
        describe(folder, [*rows, {"file_name": "lonely.png", "text": f"only {side}"}])
    return first, second, levels / 255


def test_two_folders_are_compared_pair_by_pair_with_intervals_and_ties_count_half(tmp_path, capsys):
    first, second, levels = make_folders(tmp_path)
    out = tmp_path / "scores.csv"
    words = ["score", str(first), "--against", str(second), "--reward", "brightness", "--pair", "prompt"]
    assert main([*words, "--json", "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    (row,) = told["rewards"]
    gap = levels[:, 0] - levels[:, 1]
    assert (told["pair"], told["pairs"], row["pairs"]) == ("prompt", 24, 24)
    assert told["unpaired"] == {str(folder): [str(folder / "lonely.png")] for folder in (first, second)}
    assert row["difference"]["mean"] == pytest.approx(gap.mean(), abs=1e-5)
    assert row["difference"]["ci95"][0] < gap.mean() < row["difference"]["ci95"][1]
    assert row["wins"]["mean"] == pytest.approx(np.heaviside(gap, 0.5).mean()) and row["wins"]["ci95"][0] > 0.5
    assert row["first"]["mean"] - row["second"]["mean"] == pytest.approx(gap.mean(), abs=1e-5)
    assert len(read_table(out)) == 48
    assert main(words) == 0
    told = capsys.readouterr()
    assert "brightness" in told.out and "1 files without a counterpart" in told.err
    (again,) = w.score(first, "brightness", against=second, pair="prompt")
    assert again == row


def test_where_two_ways_pair_other_files_neither_is_guessed(tmp_path, capsys):
    for folder, names in (("one", ("a", "b")), ("two", ("b", "a"))):
        for name, prompt in zip(names, ("first prompt", "the second prompt"), strict=True):
            paint(tmp_path / folder / f"{name}.png", 10)
            (tmp_path / folder / f"{name}.txt").write_text(prompt)
    words = ["score", str(tmp_path / "one"), "--against", str(tmp_path / "two"), "--reward", LETTERS]
    assert main(words) == 2
    assert "--pair prompt or --pair name" in capsys.readouterr().err and not Letters.calls
    assert main([*words, "--pair", "name", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rewards"][0]["pairs"] == 2 and sum(Letters.calls) == 4


def test_whole_sets_have_a_score_for_each_folder(tmp_path):
    first, second, _ = make_folders(tmp_path, 8)
    (row,) = w.score(first, {"vendi": {"model": "starter:image/clip"}}, against=second, pair="prompt")
    assert row["first"]["set"] and row["first"]["mean"] > 0 and "difference" not in row
    with pytest.raises(BadInput, match="against"):
        w.score([first, second], "brightness", against=second)
