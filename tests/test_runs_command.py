"""`workbench runs`: what was run is listed, searched, named, compared, and moved to the bin and back."""

from __future__ import annotations

import json

import pytest
import vote_fixtures

from workbench import cli
from workbench.core.errors import BadInput
from workbench.feedback import pairing, votes
from workbench.report import across_runs
from workbench.runs import run_bin, run_notes, run_search
from workbench.runs.store import RunFolder, list_run_folders

ONE, TWO, OTHER = "20260101-120000-one", "20260102-120000-two", "20260103-120000-other"


@pytest.fixture
def runs(tmp_path):
    """Two runs of the same prompts and noises, and one of another noise."""
    for name, seed in ((ONE, 1), (TWO, 1), (OTHER, 2)):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        config = {"pipeline": {"name": "starter-image", "steps": 2}, "reward": "starter_clip"}
        record = {"name": name[16:], "created": "2026-01-01T12:00:00+0000", "status": "done", "config": config}
        folder.write("run.json", record | {"methods": {"base": {}, "reno": {}}})
        sample = {"index": 0, "k": 0, "seed": seed, "prompt": "a", "file": None, "scores": {}}
        for contestant in ("base", "reno"):
            folder.append_event({"contestant": contestant, "batch": 0, "final": True, "samples": [sample]})
        estimates = {"starter_clip": {"mean": 0.5, "ci95": [0.4, 0.6], "n": 9, "optimised": True}}
        rows = [
            {"name": n, "method": n, "samples": 9, "rewards": estimates, "nfe": 18, "reward_calls": 1}
            for n in ("base", "reno")
        ]
        rows.append({"name": "broken", "failed": "it broke"})
        folder.write("summary.json", {"contestants": rows, "prompts": 1, "seeds": 1, "modality": "image"})
    return tmp_path


def call(capsys, runs, *words, code=0) -> str:
    assert cli.main(["runs", *map(str, words), "--runs", str(runs)]) == code
    said = capsys.readouterr()
    return said.out if code == 0 else said.err


def test_titles_notes_and_tags_lie_in_the_run_and_find_it(runs, capsys):
    call(capsys, runs, "note", ONE, "--title", "twice  the\nsteps", "--note", "greens are better")
    assert call(capsys, runs, "tag", ONE, "paper", "good", "paper") == f"{ONE} “twice the steps” #paper #good\n"
    assert json.loads((runs / ONE / "notes.json").read_text()) == {
        "title": "twice the steps", "note": "greens are better", "tags": ["paper", "good"],
    }  # fmt: skip
    for words in (["#paper"], ["tag:good"], ["twice", "greens"], ["state:done", "#good"]):
        assert [row["run"] for row in json.loads(call(capsys, runs, "list", *words, "--json"))] == [ONE]
    assert len(json.loads(call(capsys, runs, "list", "starter-image", "--json"))) == 3
    assert call(capsys, runs, "list", "nothing of this") == "no run of nothing of this\n"
    assert call(capsys, runs, "tag", ONE, "good", "--remove").endswith("#paper\n")
    call(capsys, runs, "note", ONE, "--title", "")
    assert run_notes.read_notes(RunFolder(runs / ONE)).title == ""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tag", ONE], "give a run and its tags"),
        (["tag", ONE, "two words"], "tag 'two words': one word of"),
        (["tag", ONE, *map(str, range(30))], "at most 20"),
        (["note", ONE], "give --title or --note"),
        (["note", ONE, "--title", "x" * 200], "title: a text of at most 120 letters"),
        (["note", "20260101-120000-on", "--title", "x"], f"did you mean '{ONE}'"),
        (["bin"], "name a run"),
        (["restore", "../x"], "the bin has no run '../x'"),
        (["remove", ONE], f"the bin has no run '{ONE}'"),
    ],
)
def test_what_can_not_be_done_is_one_sentence(runs, capsys, words, sentence):
    said = call(capsys, runs, *words, code=2)
    assert sentence in said and said.count("\n") == 1 and len(list_run_folders(runs)) == 3


def test_damaged_notes_cost_the_run_nothing(runs, capsys):
    (runs / ONE / "notes.json").write_text("{")
    (runs / TWO / "run.json").write_text("{")
    rows = {row["run"]: row for row in json.loads(call(capsys, runs, "list", "--json"))}
    assert "notes.json can't be read" in rows[ONE]["note"] and rows[ONE]["state"] == "done"
    assert rows[TWO]["state"] == "damaged" and len(rows) == 3


def test_contestants_of_several_runs_stand_in_one_table_with_the_same_prompts_marked(runs, capsys):
    run_notes.write_notes(RunFolder(runs / ONE), title="first")
    said = call(capsys, runs, "compare", ONE, TWO, OTHER)
    rows = [line.split() for line in said.splitlines() if "0.50*" in line]
    assert [row[0] for row in rows] == ["first", "first", TWO, TWO, OTHER, OTHER]
    assert [row[2] for row in rows] == ["A", "A", "A", "A", "B", "B"] and "[0.40," in said
    content = json.loads(call(capsys, runs, "compare", ONE, "--json"))
    assert content["metrics"] == ["starter_clip"] and content["rows"][1]["calls"] == 2
    (runs / TWO / "summary.json").unlink()
    assert f"{TWO}: has no results yet" in call(capsys, runs, "compare", ONE, TWO, code=2)


def test_a_run_goes_to_the_bin_and_back_and_never_while_it_works(runs, capsys):
    with RunFolder(runs / ONE).exclusive_lock():
        assert "another process works on this run" in call(capsys, runs, "bin", ONE, code=2)
    assert call(capsys, runs, "bin", ONE, TWO) == f"{ONE} is in the bin\n{TWO} is in the bin\n"
    assert [f.path.name for f in list_run_folders(runs)] == [OTHER]
    assert {row["run"] for row in json.loads(call(capsys, runs, "list", "--binned", "--json"))} == {ONE, TWO}
    (runs / ONE).mkdir()
    assert "another run is in its place" in call(capsys, runs, "restore", ONE, code=2)
    (runs / ONE).rmdir()
    assert call(capsys, runs, "restore", ONE).endswith("is back\n") and (runs / ONE / "summary.json").is_file()
    call(capsys, runs, "remove", TWO)
    assert run_bin.list_binned(runs) == [] and not (runs / TWO).exists()


def test_votes_on_a_run_in_the_bin_keep_counting_and_nobody_is_asked_about_it(tmp_path, capsys):
    folder = vote_fixtures.write_run(tmp_path, names=("base", "reno"), prompts=("a", "b"))
    vote_fixtures.cast_vote(tmp_path, "left")
    said = call(capsys, tmp_path, "bin", folder.path.name)
    assert "the vote on its media keeps counting, and a training on them needs it restored" in said
    assert len(votes.standing_votes(tmp_path)) == 1
    assert vote_fixtures.ask_pair(tmp_path) is None and pairing.votable_runs(tmp_path) == []
    call(capsys, tmp_path, "restore", folder.path.name)
    assert vote_fixtures.ask_pair(tmp_path) is not None


def test_words_find_runs_by_what_they_are_about():
    row = {"run": "r", "title": "Twice", "state": "done", "tags": ["Paper"], "note": "", "contestants": "base, reno"}
    for words, is_match in (("twice reno", 1), ("#paper", 1), ("#pap", 0), ("-reno", 0), ("-das", 1), ("state:don", 1),
                            ("state:failed", 0), ("tag:paper -#good", 1), ("-", 0), ("", 1)):  # fmt: skip
        assert run_search.matches_words(row, words.split()) == bool(is_match), words


def test_a_run_without_results_is_named(tmp_path):
    folder = RunFolder(tmp_path / "empty")
    folder.path.mkdir()
    with pytest.raises(BadInput, match="empty: has no results yet"):
        across_runs.compare_runs([folder])
