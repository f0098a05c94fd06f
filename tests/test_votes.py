"""Votes are kept once, are never changed, count while they stand, and leave as files that learning reads."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image
from vote_fixtures import NAMES, PROMPTS, ask, poll, run, vote

from rewards.audio.loudness import lufs
from rewards.people import votes as readers
from workbench.core.io import media
from workbench.core.types import BadInput
from workbench.feedback import blinding, learn, pairing, vote_export, votes
from workbench.runs import preference_data, store


@pytest.fixture
def runs(tmp_path):
    run(tmp_path / "runs")
    return tmp_path / "runs"


# Which pair is next


def test_a_pair_is_two_contestants_of_one_run_on_one_prompt_the_sides_drawn_by_lot(runs):
    run(runs, "other", names=("base", "draft"))
    seen = [ask(runs, "ada")[1] for _ in range(60)]
    for pair in seen:
        assert pair.left.contestant != pair.right.contestant
        assert Path(pair.left.file).parts[0] == Path(pair.right.file).parts[0] == pair.folder
        assert Path(pair.left.file).stem == Path(pair.right.file).stem, "the same prompt and seed"
    first = [pair.left.contestant < pair.right.contestant for pair in seen]
    assert 10 < sum(first) < 50
    assert {pair.folder for pair in seen} == {s.folder for s in pairing.stock(runs)} and len(pairing.stock(runs)) == 2


def test_nobody_is_asked_twice_before_everything_was_asked_once(runs):
    def key(pair):
        return frozenset({pair.left.artefact, pair.right.artefact})

    everything = len(PROMPTS) * math.comb(len(NAMES), 2)
    seen = Counter(key(ask(runs, "ada")[1]) for _ in range(everything))
    assert len(seen) == everything
    assert ask(runs, "ada") is not None, "then from the start"
    others = Counter(key(ask(runs, "bob")[1]) for _ in range(everything))
    assert len(others) == everything, "what ada has seen is new to bob"


def test_a_pair_that_a_rater_voted_on_is_never_asked_again_taken_back_or_not(tmp_path):
    """The answer to the vote told who is who. A pair that was only skipped comes again."""
    run(tmp_path, names=("base", "reno"), prompts=("a red circle", "a blue square"))
    first = vote(tmp_path)
    votes.undo(tmp_path, first["battle"], "undo-key-1")
    skipped = {ask(tmp_path)[1].prompt for _ in range(4)}
    assert len(skipped) == 1, "the other pair, again and again"
    vote(tmp_path)
    assert ask(tmp_path) is None and len(votes.effective(tmp_path)) == 1
    assert ask(tmp_path, "bob") is not None, "what ada has voted on is new to bob"


def test_a_pair_that_was_asked_twice_before_its_vote_takes_one(tmp_path):
    """As two windows do: the answer in one gives away what the other still asks."""
    run(tmp_path, names=("base", "reno"), prompts=("a red circle",))
    here, there, bobs = ask(tmp_path)[0], ask(tmp_path)[0], ask(tmp_path, "bob")[0]
    told = votes.record(tmp_path, here, "left", "key-of-here")
    with pytest.raises(BadInput, match="told who these two are"):
        votes.record(tmp_path, there, "right", "key-of-there")
    assert votes.record(tmp_path, here, "left", "key-of-here") == told, "a repeated call is still answered"
    votes.record(tmp_path, bobs, "right", "key-of-bob")
    assert [v.choice for v in votes.effective(tmp_path)] == ["left", "right"]


def test_contestants_that_are_least_known_are_asked_about_most(runs):
    """Base and reno have met a hundred times, best_of_n nobody: about it is asked from then on."""
    before = Counter(frozenset(side.contestant for side in (pair.left, pair.right))
                     for pair in (ask(runs, f"old {n}")[1] for n in range(30)))  # fmt: skip
    assert before[frozenset({"base", "reno"})] > 3, "while nothing is known, all are asked about"
    poll(runs, 100, {"base": 0.0, "reno": 0.0})
    after = [ask(runs, f"new {n}")[1] for n in range(30)]
    assert sum("best_of_n" in (pair.left.contestant, pair.right.contestant) for pair in after) > 27


def test_only_the_run_and_the_kind_that_were_asked_for(runs):
    run(runs, "sounds", modality="audio")
    by_name = {s.folder.rsplit("-")[-1]: s for s in pairing.stock(runs)}
    assert by_name["sounds"].modality == "audio" and by_name["demo"].prompts == len(PROMPTS)
    assert {ask(runs, modality="audio")[1].modality for _ in range(5)} == {"audio"}
    assert {ask(runs, run=by_name["demo"].id)[1].modality for _ in range(5)} == {"image"}
    assert ask(runs, modality="video") is None
    for wrong in ({"modality": "smell"}, {"run": 99}, {"run": "1; DROP TABLE votes"}, {"run": -1}):
        with pytest.raises(BadInput):
            ask(runs, **wrong)


def test_there_is_nothing_to_vote_on_without_two_contestants(tmp_path):
    assert ask(tmp_path / "none") is None and pairing.stock(tmp_path / "none") == []
    run(tmp_path / "one", names=("base",))
    assert ask(tmp_path / "one") is None and pairing.stock(tmp_path / "one") == []


# Keeping votes


def test_the_same_key_is_one_vote_and_one_answer(runs):
    battle, _ = ask(runs)
    answers = [votes.record(runs, battle, "left", "my-first-key", "sharper", (2.0, 3.5)) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    (kept,) = votes.effective(runs)
    assert (kept.choice, kept.reason, kept.dwell) == ("left", "sharper", (2.0, 3.5))
    assert kept.left.contestant == answers[0]["left"]["contestant"]
    assert set(answers[0]["left"]["scores"]) == {"level", "noise"}


def test_fifty_threads_with_one_key_make_one_vote_and_with_fifty_keys_too(runs):
    battle, _ = ask(runs)
    with ThreadPoolExecutor(16) as pool:
        same = list(pool.map(lambda _: votes.record(runs, battle, "tie", "one-key-for-all"), range(50)))
    assert all(answer == same[0] for answer in same) and len(votes.effective(runs)) == 1
    battle, _ = ask(runs)

    def attempt(n):
        try:
            return votes.record(runs, battle, "left", f"another-key-{n}")
        except BadInput as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(attempt, range(50)))
    assert sum(isinstance(m, dict) for m in made) == 1 and len(votes.effective(runs)) == 2
    assert {m for m in made if isinstance(m, str)} == {"this pair has its vote already; ask for the next one"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"battle": "there-is-no-such-battle"}, "no such pair"),
        ({"battle": None}, "no such pair"),
        ({"battle": "x' OR '1'='1"}, "no such pair"),
        ({"choice": "both"}, "'both' is none of left, right, tie, bad"),
        ({"choice": ["left"]}, "is none of"),
        ({"key": ""}, "8 to 100"),
        ({"key": "k" * 101}, "8 to 100"),
        ({"key": "../../../etc/passwd"}, "8 to 100"),
        ({"key": 7}, "8 to 100"),
        ({"reason": "x" * 10_000}, "at most 2,000 characters"),
        ({"reason": None}, "at most 2,000"),
        ({"reason": "\ud800"}, "no text"),
        ({"dwell": (math.nan, 1)}, "seconds"),
        ({"dwell": (-1, 1)}, "seconds"),
        ({"dwell": (1e300, 1)}, "seconds"),
        ({"dwell": None}, "seconds"),
        ({"dwell": "12"}, "seconds"),
    ],
)
def test_what_is_no_vote_is_refused_in_one_sentence_and_leaves_nothing(runs, change, says):
    battle, _ = ask(runs)
    asked = {"battle": battle, "choice": "left", "key": "a-good-key", "reason": "", "dwell": (1, 1)} | change
    with pytest.raises(BadInput, match=says) as refused:
        votes.record(runs, **asked)
    assert "\n" not in str(refused.value) and votes.effective(runs) == []
    assert votes.record(runs, battle, "left", "a-good-key")["choice"] == "left", "the pair is still open"


def test_a_key_can_not_be_used_for_another_vote(runs):
    (one, _), (two, _) = ask(runs), ask(runs)
    votes.record(runs, one, "left", "used-key-1")
    for battle, choice in ((one, "right"), (two, "left")):
        with pytest.raises(BadInput, match="belongs to another vote"):
            votes.record(runs, battle, choice, "used-key-1")
    with pytest.raises(BadInput, match="belongs to another vote"):
        votes.undo(runs, one, "used-key-1")


def test_taking_a_vote_back_is_a_row_of_its_own(runs):
    answer = vote(runs)
    for _ in range(2):
        assert votes.undo(runs, answer["battle"], "undo-key-1")["undone"]
    assert votes.effective(runs) == []
    with store.index(runs) as db:
        rows = db.execute("SELECT choice, undoes FROM votes ORDER BY id").fetchall()
    assert [tuple(row) for row in rows] == [("left", None), (None, 1)]
    with pytest.raises(BadInput, match="taken back already"):
        votes.undo(runs, answer["battle"], "undo-key-2")
    with pytest.raises(BadInput, match="has its vote already"):
        votes.record(runs, answer["battle"], "right", "second-thoughts")
    with pytest.raises(BadInput, match="no vote to take back"):
        votes.undo(runs, ask(runs)[0], "undo-key-3")


def test_the_index_itself_refuses_a_second_vote_and_a_choice_that_is_none(runs):
    answer = vote(runs)
    row = "INSERT INTO votes (battle, choice, key, reason, dwell_left, dwell_right, rater, created) VALUES (?,?,?,'',0,0,'','')"
    other, _ = ask(runs)
    for values in ((answer["battle"], "left", "k1"), (other, "maybe", "k2"), ("no battle", "left", "k3"),
                   (other, None, "k4"), (other, "left", f"key-{answer['battle']}")):  # fmt: skip
        with pytest.raises(sqlite3.IntegrityError), store.index(runs) as db:
            db.execute(row, values)
    assert len(votes.effective(runs)) == 1


def test_votes_on_media_that_were_made_anew_since_do_not_count(runs):
    answer = vote(runs)
    with store.index(runs) as db:
        db.execute("UPDATE artefacts SET sha256 = 'new' WHERE id = (SELECT left_artefact FROM battles WHERE id = ?)", (answer["battle"],))  # fmt: skip
    assert votes.effective(runs) == []


def test_an_index_from_before_votes_takes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SCHEMA", store.SCHEMA[:1])
    run(tmp_path)
    monkeypatch.undo()
    assert vote(tmp_path)["choice"] == "left" and len(votes.effective(tmp_path)) == 1


def test_a_vote_is_on_the_disk_before_it_is_acknowledged(runs):
    with store.index(runs) as db:
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_who_voted_is_kept_as_a_digest_and_can_be_asked_for(runs):
    vote(runs, rater="ada@example.org"), vote(runs, rater="bob")
    (mine,) = votes.effective(runs, rater="ada@example.org")
    assert "ada" not in mine.rater and votes.effective(runs, rater=mine.rater) == [mine]
    assert b"ada@example" not in (runs / "workbench.db").read_bytes() + (runs / "workbench.db-wal").read_bytes()
    for wrong in ("", "x" * 201, None, "\ud800"):
        with pytest.raises(BadInput, match="rater"):
            ask(runs, wrong)


# What is shown


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_nothing_of_who_made_it_is_in_the_files_that_are_shown(tmp_path, modality):
    runs, temp = tmp_path / "runs", tmp_path / "temp"
    run(runs, modality=modality)
    _, pair = ask(runs)
    shown = blinding.show(pair, runs, temp)
    for path, side in ((shown.left, pair.left), (shown.right, pair.right)):
        original = (runs / side.file).read_bytes()
        assert side.contestant.encode() in original, "it is in the run's own file"
        for word in (*NAMES, "tiny-pipeline", "demo", pair.prompt, "contestant", "level"):
            assert word.encode() not in path.read_bytes() and word not in path.name
        assert media.look(path).story == {} and path.suffix == Path(side.file).suffix
        if modality != "audio":
            assert torch.equal(media.read(path).data, media.read(runs / side.file).data), "every pixel is kept"
    assert (shown.seconds == 1.0) if modality == "video" else (shown.seconds > 0) == (modality == "audio")


def test_two_sounds_are_made_equally_long_and_equally_loud(tmp_path):
    run(tmp_path, modality="audio", names=("base", "reno"))
    _, pair = ask(tmp_path)
    shown = blinding.show(pair, tmp_path, tmp_path / "temp")
    left, right = (media.read(p) for p in (shown.left, shown.right))
    assert left.data.shape == right.data.shape == (1, 1, 8000) and left.rate == right.rate
    loud = [float(lufs(x.data, x.rate)) for x in (left, right)]
    before = [float(lufs(x.data, x.rate)) for x in (media.read(tmp_path / s.file) for s in (pair.left, pair.right))]
    assert abs(loud[0] - loud[1]) < 0.5 < 4 < abs(before[0] - before[1])
    assert max(x.data.abs().max() for x in (left, right)) < 1, "nothing is clipped"


def test_what_hangs_behind_a_picture_or_sits_in_odd_chunks_is_not_shown(tmp_path):
    file = tmp_path / "x.png"
    info = media.PngInfo()
    info.add_text("Comment", "reno"), info.add(b"prVt", b"reno"), info.add(b"eXIf", b"reno")
    Image.new("RGB", (4, 4), "red").save(file, pnginfo=info)
    clean = blinding.bare(file.read_bytes() + b"reno")
    assert b"reno" not in clean and b"reno" in file.read_bytes()
    (tmp_path / "y.png").write_bytes(clean)
    assert torch.equal(media.read(tmp_path / "y.png").data, media.read(file).data)
    for broken in (b"", b"RIFF", file.read_bytes()[:40], clean[:8] + b"\xff\xff\xff\xffIDAT"):
        with pytest.raises(BadInput, match="not a whole PNG"):
            blinding.bare(broken)


def test_files_that_are_gone_changed_equal_or_outside_are_never_shown(runs, tmp_path):
    _, pair = ask(runs)
    left, right = runs / pair.left.file, runs / pair.right.file
    secret = tmp_path / "secret.png"
    secret.write_bytes(left.read_bytes())
    outside = votes.Side(1, "base", "p", "../secret.png", media.fingerprint(secret))
    assert blinding.show(votes.Pair(outside, pair.right, "p", pair.folder), runs, tmp_path / "temp") is None
    same = votes.Side(2, "reno", "p", pair.left.file, pair.left.sha256)
    assert blinding.show(votes.Pair(same, pair.left, "p", pair.folder), runs, tmp_path / "temp") is None
    left.write_bytes(right.read_bytes())
    assert blinding.show(pair, runs, tmp_path / "temp") is None
    left.unlink()
    assert blinding.show(pair, runs, tmp_path / "temp") is None


def test_a_run_whose_folder_was_removed_is_not_asked_about(runs):
    other = run(runs, "other")
    (runs / other.path.name).rename(runs / "elsewhere")
    assert {ask(runs)[1].folder for _ in range(20)} == {pairing.stock(runs)[0].folder}


# What becomes of them


def test_planted_tastes_are_found_through_the_index(runs):
    run(runs, "again", names=("base", "reno"))
    poll(runs, 500, {"base": -1.0, "best_of_n": 0.0, "reno": 1.0})
    board = votes.board(votes.effective(runs))
    assert [r.name for r in board.rows] == [f"{n} · tiny-pipeline" for n in ("reno", "best_of_n", "base")]
    assert sum(r.votes for r in board.rows) == 1000, "the two runs' contestants are the same ones"
    assert all(r.last == r.first for r in board.rows) and not board.bias.found


def test_a_contestant_of_another_pipeline_is_another_one(tmp_path):
    blocks = {"base": "sample", "reno": {"pipeline": "larger-pipeline", "iterations": 3}}
    run(tmp_path, names=("base", "reno"), blocks=blocks)
    vote(tmp_path)
    names = {r.name for r in votes.board(votes.effective(tmp_path)).rows}
    assert names == {"base · tiny-pipeline", "reno · larger-pipeline"}


def test_a_reward_that_people_follow_agrees_with_them_and_one_that_knows_nothing_does_not(runs):
    poll(runs, 300, {"base": -1.5, "best_of_n": 0.0, "reno": 1.5})
    found = {a.reward: a for a in vote_export.agreement(runs, votes.effective(runs))}
    assert found["level"].verdict == "better than chance" and found["level"].report.by == "prompts"
    assert found["noise"].report.low < 0.5 < found["noise"].report.high
    assert found["noise"].verdict == "not told from chance by these votes"
    poll(runs, 300, {"base": 4.0, "best_of_n": 0.0, "reno": -4.0}, seed=1)  # others, who like the opposite
    second = votes.effective(runs)[300:]
    assert {a.reward: a for a in vote_export.agreement(runs, second)}["level"].verdict.startswith("worse than chance")
    assert vote_export.agreement(runs, []) == []


def test_the_exported_jsonl_is_what_a_reward_is_learned_from(runs, tmp_path):
    poll(runs, 120, {"base": -3.0, "best_of_n": 0.0, "reno": 3.0})
    vote(runs, "tie", "zoe"), vote(runs, "bad", "zoe")
    found = votes.effective(runs)
    for file in (runs / "votes.jsonl", tmp_path / "elsewhere" / "votes.jsonl"):
        file.parent.mkdir(exist_ok=True)
        assert vote_export.write_jsonl(found, runs, file) == 121, "both bad prefers nothing"
        read = readers.read(file)
        assert len(read) == 121 and int((~read.decided).sum()) == 1 and len(readers.voters(read.voters)) == 6
    row = json.loads(file.read_text().splitlines()[0])
    assert set(row) <= set(readers.KEYS) and not Path(row["a_path"]).is_absolute()
    learned = learn.learn(runs / "votes.jsonl", tmp_path / "taste")
    assert learned["better"] and learned["reward"] == {"learned": {"path": str(tmp_path / "taste")}}


def test_votes_on_one_pair_become_one_pair_by_majority(runs):
    battles = [ask(runs, who)[0] for who in "abcdefgh"]
    pair = "SELECT left_artefact AS l, right_artefact AS r, left_sha256 AS ls, right_sha256 AS rs FROM battles WHERE id = ?"
    with store.index(runs) as db:  # all on the same two media, every other time with the sides swapped
        first = db.execute(pair, (battles[0],)).fetchone()
        for n, battle in enumerate(battles):
            sides = (first["l"], first["r"], first["ls"], first["rs"])
            sides = sides if n % 2 == 0 else (sides[1], sides[0], sides[3], sides[2])
            db.execute("UPDATE battles SET left_artefact=?, right_artefact=?, left_sha256=?, right_sha256=? WHERE id=?", (*sides, battle))  # fmt: skip
    for n, battle in enumerate(battles[:6]):  # five for the first medium, one against it
        votes.record(runs, battle, ("left" if n % 2 == 0 else "right") if n else "right", f"key-{battle}")
    votes.record(runs, battles[6], "tie", "a-tie-key"), votes.record(runs, battles[7], "bad", "a-bad-key")
    found = votes.effective(runs)
    (only,) = vote_export.majority(found)
    assert only.choice == "left" and only.left.artefact == first["l"] and only.rater == ""
    assert vote_export.majority(found[:2]) == [], "one against, one for"


def test_parquet_and_pairs_are_what_dpo_reads(runs):
    pq = pytest.importorskip("pyarrow.parquet")
    poll(runs, 20, {"base": -9.0, "best_of_n": 0.0, "reno": 9.0})
    vote(runs, "tie"), vote(runs, "bad")
    found = votes.effective(runs)
    assert vote_export.write_parquet(found, runs, runs / "votes.parquet") == 21, "both bad prefers nothing"
    rows = pq.read_table(runs / "votes.parquet").to_pylist()
    assert all((runs / r["image_0"]).is_file() and r["label_0"] + r["label_1"] == 1 for r in rows)
    assert b"tiny-pipeline" not in rows[0]["jpg_0"], "the story stays at home"
    count = vote_export.write_jsonl(vote_export.majority(found), runs, runs / "pairs.jsonl")
    level = {v.prompt: {} for v in found}
    for v in found:
        level[v.prompt] |= {side.contestant: media.read(runs / side.file).data for side in (v.left, v.right)}
    for file, size in (("votes.parquet", 20), ("pairs.jsonl", count)):
        read = preference_data.Pairs(str(runs / file))
        assert read.check() == size
        prompt, winner, loser = read[0]
        assert any(torch.equal(winner.data, x) for x in level[prompt].values())
        assert winner.data.mean() > loser.data.mean(), "in these runs the better contestants are the brighter ones"


def test_nothing_to_write_is_said_in_one_sentence(runs):
    vote(runs, "bad")
    for write in (vote_export.write_jsonl, vote_export.write_parquet):
        with pytest.raises(BadInput, match="vote first"):
            write(votes.effective(runs), runs, runs / "out")
    assert not (runs / "out").exists()
