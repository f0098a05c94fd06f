"""One preference in any of its files: what each exporter writes, learn, social and DPO's pairs read alike."""

from __future__ import annotations

import csv
import json

import pytest
from vote_fixtures import cast_many_votes, write_run

from rewards.people import votes as vote_files
from workbench.core.io import media
from workbench.feedback import social, study_export, vote_export, votes
from workbench.runs import preference_files
from workbench.runs.preference_votes import translate_to_votes

KINDS = ("votes.jsonl", "picks.parquet", "table.csv", "table.jsonl", "table.parquet", "pairs.jsonl", "pairs.csv")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder of files, who won of each: (digest of the winner's picture, of the loser's))."""
    runs = tmp_path_factory.mktemp("prefer")
    write_run(runs, prompts=tuple(f"prompt {n}" for n in range(8)))
    cast_many_votes(runs, 30, {"base": 0.0, "reno": 1.0})
    some = [v for v in votes.standing_votes(runs) if v.choice in ("left", "right")]
    vote_export.write_jsonl(some, runs, runs / "votes.jsonl")
    vote_export.write_parquet(some, runs, runs / "picks.parquet")
    for kind in ("csv", "jsonl", "parquet"):
        study_export.write_rows(study_export.vote_rows(some, runs), runs / f"table.{kind}")
    rows = []
    for v in some:
        sides = (v.left, v.right) if v.choice == "left" else (v.right, v.left)
        rows.append({"prompt": v.prompt, "pos_path": sides[0].file, "neg_path": sides[1].file})
    (runs / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (runs / "pairs.csv").open("w", newline="") as f:
        table = csv.DictWriter(f, rows[0])
        table.writeheader(), table.writerows(rows)
    return runs, [(r["prompt"], pixels(runs / r["pos_path"]), pixels(runs / r["neg_path"])) for r in rows]


def pixels(path):
    return media.read_media(path).data.numpy().tobytes()


@pytest.mark.parametrize("name", KINDS)
def test_every_reader_finds_the_same_winners_in_every_exporters_file(written, name, tmp_path):
    runs, expected = written
    by_social = [(p.prompt, pixels(p.pos_path), pixels(p.neg_path)) for p in social.read_pairs(runs / name, tmp_path)]
    assert by_social == expected
    rows = translate_to_votes(runs / name, tmp_path, ("a_path", "a_features"))
    by_learn = []
    for _, row in vote_files.read_rows(rows):
        sides = [rows.parent / row[f"{side}_path"] for side in ("ab" if row["winner"] == "a" else "ba")]
        by_learn.append((row["prompt"], *map(pixels, sides)))
    assert by_learn == expected
    by_dpo = []
    for block in preference_files.read_blocks(runs / name):
        assert not block.left_out
        read = block.load()
        for choice in block.choices:
            prompt, *sides = read(choice)
            winner, loser = sides if choice.winner == 0 else sides[::-1]
            by_dpo.append((prompt, winner.data.numpy().tobytes(), loser.data.numpy().tobytes()))
    assert by_dpo == expected


def test_clips_and_sounds_in_a_parquet_export_are_read_from_their_files(tmp_path):
    write_run(tmp_path, modality="audio", prompts=tuple(f"prompt {n}" for n in range(4)))
    cast_many_votes(tmp_path, 6, {"base": 0.0, "reno": 1.0})
    vote_export.write_parquet(votes.standing_votes(tmp_path), tmp_path, tmp_path / "votes.parquet")
    (block,) = preference_files.read_blocks(tmp_path / "votes.parquet")
    assert {part.modality for choice in block.choices for part in block.load()(choice)[1:]} == {"audio"}
    named = preference_files.named_media(tmp_path / "votes.parquet")
    assert named and all(path.is_file() for path in named)
    rows = translate_to_votes(tmp_path / "votes.parquet", tmp_path, ("a_path",))
    assert len(list(vote_files.read_rows(rows))) == 6


def test_a_tie_and_both_bad_prefer_nothing_and_who_voted_is_kept(tmp_path):
    write_run(tmp_path, prompts=("a", "b"))
    cast_many_votes(tmp_path, 6, {"base": 0.0, "reno": 1.0})
    rows = study_export.vote_rows(votes.standing_votes(tmp_path), tmp_path)
    rows[0]["choice"], rows[1]["choice"] = "tie", "bad"
    study_export.write_rows(rows, tmp_path / "table.csv")
    found = [row for _, row in vote_files.read_rows(translate_to_votes(tmp_path / "table.csv", tmp_path, ("a_path",)))]
    assert [row["winner"] for row in found][0] == "tie" and len(found) == 5 and all(row["voter"] for row in found)
    assert len(social.read_pairs(tmp_path / "table.csv", tmp_path)) == 4
