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
from vote_fixtures import NAMES, PROMPTS, ask_pair, cast_many_votes, cast_vote, write_run

from rewards.audio.loudness import integrated_loudness
from rewards.people import votes as readers
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.feedback import blinding, learn, pairing, vote_export, votes
from workbench.runs import preference_data, store


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs")
    return tmp_path / "runs"


# Which pair is next


def test_a_pair_is_two_contestants_of_one_run_on_one_prompt_the_sides_drawn_by_lot(runs):
    write_run(runs, "other", names=("base", "draft"))
    pairs = [ask_pair(runs, "ada")[1] for _ in range(60)]
    for pair in pairs:
        assert pair.left.contestant != pair.right.contestant
        assert Path(pair.left.file).parts[0] == Path(pair.right.file).parts[0] == pair.folder
        assert Path(pair.left.file).stem == Path(pair.right.file).stem, "the same prompt and seed"
    first = [pair.left.contestant < pair.right.contestant for pair in pairs]
    assert 10 < sum(first) < 50
    assert {pair.folder for pair in pairs} == {s.folder for s in pairing.votable_runs(runs)} and len(
        pairing.votable_runs(runs)
    ) == 2


def test_nobody_is_asked_twice_before_everything_was_asked_once(runs):
    def key(pair):
        return frozenset({pair.left.artefact, pair.right.artefact})

    everything = len(PROMPTS) * math.comb(len(NAMES), 2)
    pairs = Counter(key(ask_pair(runs, "ada")[1]) for _ in range(everything))
    assert len(pairs) == everything
    assert ask_pair(runs, "ada") is not None, "then from the start"
    others = Counter(key(ask_pair(runs, "bob")[1]) for _ in range(everything))
    assert len(others) == everything, "what ada has seen is new to bob"


def test_a_pair_that_a_rater_voted_on_is_never_asked_again_taken_back_or_not(tmp_path):
    """The answer to the vote told who is who. A pair that was only skipped comes again."""
    write_run(tmp_path, names=("base", "reno"), prompts=("a red circle", "a blue square"))
    first = cast_vote(tmp_path)
    votes.undo_vote(tmp_path, first["battle"], "undo-key-1")
    skipped = {ask_pair(tmp_path)[1].prompt for _ in range(4)}
    assert len(skipped) == 1, "the other pair, again and again"
    cast_vote(tmp_path)
    assert ask_pair(tmp_path) is None and len(votes.standing_votes(tmp_path)) == 1
    assert ask_pair(tmp_path, "bob") is not None, "what ada has voted on is new to bob"


def test_a_pair_that_was_asked_twice_before_its_vote_takes_one(tmp_path):
    """As two windows do: the answer in one gives away what the other still asks."""
    write_run(tmp_path, names=("base", "reno"), prompts=("a red circle",))
    first_battle, second_battle, bobs = ask_pair(tmp_path)[0], ask_pair(tmp_path)[0], ask_pair(tmp_path, "bob")[0]
    message = votes.record_vote(tmp_path, first_battle, "left", "key-of-here")
    with pytest.raises(BadInput, match="told who these two are"):
        votes.record_vote(tmp_path, second_battle, "right", "key-of-there")
    assert votes.record_vote(tmp_path, first_battle, "left", "key-of-here") == message, (
        "a repeated call is still answered"
    )
    votes.record_vote(tmp_path, bobs, "right", "key-of-bob")
    assert [v.choice for v in votes.standing_votes(tmp_path)] == ["left", "right"]


def test_contestants_that_are_least_known_are_asked_about_most(runs):
    """Base and reno have met a hundred times, best_of_n nobody: about it is asked from then on."""
    before = Counter(frozenset(side.contestant for side in (pair.left, pair.right))
                     for pair in (ask_pair(runs, f"old {n}")[1] for n in range(30)))  # fmt: skip
    assert before[frozenset({"base", "reno"})] > 3, "while nothing is known, all are asked about"
    cast_many_votes(runs, 100, {"base": 0.0, "reno": 0.0})
    after = [ask_pair(runs, f"new {n}")[1] for n in range(30)]
    assert sum("best_of_n" in (pair.left.contestant, pair.right.contestant) for pair in after) > 27


def test_only_the_run_and_the_kind_that_were_asked_for(runs):
    write_run(runs, "sounds", modality="audio")
    by_name = {s.folder.rsplit("-")[-1]: s for s in pairing.votable_runs(runs)}
    assert by_name["sounds"].modality == "audio" and by_name["demo"].prompts == len(PROMPTS)
    assert {ask_pair(runs, modality="audio")[1].modality for _ in range(5)} == {"audio"}
    assert {ask_pair(runs, run=by_name["demo"].id)[1].modality for _ in range(5)} == {"image"}
    assert ask_pair(runs, modality="video") is None
    for wrong in ({"modality": "smell"}, {"run": 99}, {"run": "1; DROP TABLE votes"}, {"run": -1}):
        with pytest.raises(BadInput):
            ask_pair(runs, **wrong)


def test_there_is_nothing_to_vote_on_without_two_contestants(tmp_path):
    assert ask_pair(tmp_path / "none") is None and pairing.votable_runs(tmp_path / "none") == []
    write_run(tmp_path / "one", names=("base",))
    assert ask_pair(tmp_path / "one") is None and pairing.votable_runs(tmp_path / "one") == []


# Keeping votes


def test_the_same_key_is_one_vote_and_one_answer(runs):
    battle, _ = ask_pair(runs)
    answers = [votes.record_vote(runs, battle, "left", "my-first-key", "sharper", (2.0, 3.5)) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    (standing,) = votes.standing_votes(runs)
    assert (standing.choice, standing.reason, standing.dwell) == ("left", "sharper", (2.0, 3.5))
    assert standing.left.contestant == answers[0]["left"]["contestant"]
    assert set(answers[0]["left"]["scores"]) == {"level", "noise"}


def test_fifty_threads_with_one_key_make_one_vote_and_with_fifty_keys_too(runs):
    battle, _ = ask_pair(runs)
    with ThreadPoolExecutor(16) as pool:
        same = list(pool.map(lambda _: votes.record_vote(runs, battle, "tie", "one-key-for-all"), range(50)))
    assert all(answer == same[0] for answer in same) and len(votes.standing_votes(runs)) == 1
    battle, _ = ask_pair(runs)

    def attempt(n):
        try:
            return votes.record_vote(runs, battle, "left", f"another-key-{n}")
        except BadInput as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(attempt, range(50)))
    assert sum(isinstance(m, dict) for m in answers) == 1 and len(votes.standing_votes(runs)) == 2
    assert {m for m in answers if isinstance(m, str)} == {"this pair has its vote already; ask for the next one"}


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
    battle, _ = ask_pair(runs)
    arguments = {"battle": battle, "choice": "left", "key": "a-good-key", "reason": "", "dwell": (1, 1)} | change
    with pytest.raises(BadInput, match=says) as refused:
        votes.record_vote(runs, **arguments)
    assert "\n" not in str(refused.value) and votes.standing_votes(runs) == []
    assert votes.record_vote(runs, battle, "left", "a-good-key")["choice"] == "left", "the pair is still open"


def test_a_key_can_not_be_used_for_another_vote(runs):
    (one, _), (two, _) = ask_pair(runs), ask_pair(runs)
    votes.record_vote(runs, one, "left", "used-key-1")
    for battle, choice in ((one, "right"), (two, "left")):
        with pytest.raises(BadInput, match="belongs to another vote"):
            votes.record_vote(runs, battle, choice, "used-key-1")
    with pytest.raises(BadInput, match="belongs to another vote"):
        votes.undo_vote(runs, one, "used-key-1")


def test_taking_a_vote_back_is_a_row_of_its_own(runs):
    answer = cast_vote(runs)
    for _ in range(2):
        assert votes.undo_vote(runs, answer["battle"], "undo-key-1")["undone"]
    assert votes.standing_votes(runs) == []
    with store.open_index(runs) as db:
        rows = db.execute("SELECT choice, undoes FROM votes ORDER BY id").fetchall()
    assert [tuple(row) for row in rows] == [("left", None), (None, 1)]
    with pytest.raises(BadInput, match="taken back already"):
        votes.undo_vote(runs, answer["battle"], "undo-key-2")
    with pytest.raises(BadInput, match="has its vote already"):
        votes.record_vote(runs, answer["battle"], "right", "second-thoughts")
    with pytest.raises(BadInput, match="no vote to take back"):
        votes.undo_vote(runs, ask_pair(runs)[0], "undo-key-3")


def test_the_index_itself_refuses_a_second_vote_and_a_choice_that_is_none(runs):
    answer = cast_vote(runs)
    row = (
        "INSERT INTO votes (battle, choice, key, reason, dwell_left, dwell_right, rater, created) VALUES "
        "(?,?,?,'',0,0,'','')"
    )
    other, _ = ask_pair(runs)
    for values in ((answer["battle"], "left", "k1"), (other, "maybe", "k2"), ("no battle", "left", "k3"),
                   (other, None, "k4"), (other, "left", f"key-{answer['battle']}")):  # fmt: skip
        with pytest.raises(sqlite3.IntegrityError), store.open_index(runs) as db:
            db.execute(row, values)
    assert len(votes.standing_votes(runs)) == 1


def test_votes_on_media_that_were_made_anew_since_do_not_count(runs):
    answer = cast_vote(runs)
    with store.open_index(runs) as db:
        change = "UPDATE artefacts SET sha256 = 'new' WHERE id = (SELECT left_artefact FROM battles WHERE id = ?)"
        db.execute(change, (answer["battle"],))
    assert votes.standing_votes(runs) == []


def test_an_index_from_before_votes_takes_them(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SCHEMA", store.SCHEMA[:1])
    with store.open_index(tmp_path):
        pass
    monkeypatch.undo()
    write_run(tmp_path)
    assert cast_vote(tmp_path)["choice"] == "left" and len(votes.standing_votes(tmp_path)) == 1


def test_a_vote_is_on_the_disk_before_it_is_acknowledged(runs):
    with store.open_index(runs) as db:
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_who_voted_is_kept_as_a_digest_and_can_be_asked_for(runs):
    cast_vote(runs, rater="ada@example.org"), cast_vote(runs, rater="bob")
    (digest,) = votes.standing_votes(runs, rater="ada@example.org")
    assert "ada" not in digest.rater and votes.standing_votes(runs, rater=digest.rater) == [digest]
    assert b"ada@example" not in (runs / "workbench.db").read_bytes() + (runs / "workbench.db-wal").read_bytes()
    for wrong in ("", "x" * 201, None, "\ud800"):
        with pytest.raises(BadInput, match="rater"):
            ask_pair(runs, wrong)


# What is shown


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_nothing_of_who_made_it_is_in_the_files_that_are_shown(tmp_path, modality):
    runs, temp = tmp_path / "runs", tmp_path / "temp"
    write_run(runs, modality=modality)
    _, pair = ask_pair(runs)
    files = blinding.prepare_blind_pair(pair, runs, temp)
    for path, side in ((files.left, pair.left), (files.right, pair.right)):
        original = (runs / side.file).read_bytes()
        assert side.contestant.encode() in original, "it is in the run's own file"
        for word in (*NAMES, "tiny-pipeline", "demo", pair.prompt, "contestant", "level"):
            assert word.encode() not in path.read_bytes() and word not in path.name
        assert media.inspect_media(path).story == {} and path.suffix == Path(side.file).suffix
        if modality != "audio":
            assert torch.equal(media.read_media(path).data, media.read_media(runs / side.file).data), (
                "every pixel is kept"
            )
    assert (files.seconds == 1.0) if modality == "video" else (files.seconds > 0) == (modality == "audio")


def test_two_sounds_are_made_equally_long_and_equally_loud(tmp_path):
    write_run(tmp_path, modality="audio", names=("base", "reno"))
    _, pair = ask_pair(tmp_path)
    files = blinding.prepare_blind_pair(pair, tmp_path, tmp_path / "temp")
    first_file, second_file = (media.read_media(p) for p in (files.left, files.right))
    assert first_file.data.shape == second_file.data.shape == (1, 1, 8000) and first_file.rate == second_file.rate
    loud = [float(integrated_loudness(x.data, x.rate)) for x in (first_file, second_file)]
    before = [
        float(integrated_loudness(x.data, x.rate))
        for x in (media.read_media(tmp_path / s.file) for s in (pair.left, pair.right))
    ]
    assert abs(loud[0] - loud[1]) < 0.5 < 4 < abs(before[0] - before[1])
    assert max(x.data.abs().max() for x in (first_file, second_file)) < 1, "nothing is clipped"


def test_what_hangs_behind_a_picture_or_sits_in_odd_chunks_is_not_shown(tmp_path):
    file = tmp_path / "x.png"
    info = media.PngInfo()
    info.add_text("Comment", "reno"), info.add(b"prVt", b"reno"), info.add(b"eXIf", b"reno")
    Image.new("RGB", (4, 4), "red").save(file, pnginfo=info)
    clean = blinding.strip_png(file.read_bytes() + b"reno")
    assert b"reno" not in clean and b"reno" in file.read_bytes()
    (tmp_path / "y.png").write_bytes(clean)
    assert torch.equal(media.read_media(tmp_path / "y.png").data, media.read_media(file).data)
    for broken in (b"", b"RIFF", file.read_bytes()[:40], clean[:8] + b"\xff\xff\xff\xffIDAT"):
        with pytest.raises(BadInput, match="not a whole PNG"):
            blinding.strip_png(broken)


def test_files_that_are_gone_changed_equal_or_outside_are_never_shown(runs, tmp_path):
    _, pair = ask_pair(runs)
    first_file, second_file = runs / pair.left.file, runs / pair.right.file
    secret = tmp_path / "secret.png"
    secret.write_bytes(first_file.read_bytes())
    outside = votes.Side(1, "base", "p", "../secret.png", media.file_digest(secret))
    assert (
        blinding.prepare_blind_pair(votes.Pair(outside, pair.right, "p", pair.folder), runs, tmp_path / "temp") is None
    )
    same = votes.Side(2, "reno", "p", pair.left.file, pair.left.sha256)
    assert blinding.prepare_blind_pair(votes.Pair(same, pair.left, "p", pair.folder), runs, tmp_path / "temp") is None
    first_file.write_bytes(second_file.read_bytes())
    assert blinding.prepare_blind_pair(pair, runs, tmp_path / "temp") is None
    first_file.unlink()
    assert blinding.prepare_blind_pair(pair, runs, tmp_path / "temp") is None


def test_a_run_whose_folder_was_removed_is_not_asked_about(runs):
    other = write_run(runs, "other")
    (runs / other.path.name).rename(runs / "elsewhere")
    assert {ask_pair(runs)[1].folder for _ in range(20)} == {pairing.votable_runs(runs)[0].folder}


# What becomes of them


def test_planted_tastes_are_found_through_the_index(runs):
    write_run(runs, "again", names=("base", "reno"))
    cast_many_votes(runs, 500, {"base": -1.0, "best_of_n": 0.0, "reno": 1.0})
    board = votes.rate_contestants(votes.standing_votes(runs))
    assert [r.name for r in board.rows] == [f"{n} · tiny-pipeline" for n in ("reno", "best_of_n", "base")]
    assert sum(r.votes for r in board.rows) == 1000, "the two runs' contestants are the same ones"
    assert all(r.last == r.first for r in board.rows) and not board.bias.is_shown


def test_a_contestant_of_another_pipeline_is_another_one(tmp_path):
    blocks = {"base": "sample", "reno": {"pipeline": "larger-pipeline", "iterations": 3}}
    write_run(tmp_path, names=("base", "reno"), blocks=blocks)
    cast_vote(tmp_path)
    names = {r.name for r in votes.rate_contestants(votes.standing_votes(tmp_path)).rows}
    assert names == {"base · tiny-pipeline", "reno · iterations=3 · larger-pipeline"}


def test_a_reward_that_people_follow_agrees_with_them_and_one_that_knows_nothing_does_not(runs):
    cast_many_votes(runs, 300, {"base": -1.5, "best_of_n": 0.0, "reno": 1.5})
    agreements = {a.reward: a for a in vote_export.measure_agreement(runs, votes.standing_votes(runs))}
    assert agreements["level"].verdict == "better than chance" and agreements["level"].report.by == "prompts"
    assert agreements["noise"].report.low < 0.5 < agreements["noise"].report.high
    assert agreements["noise"].verdict == "not told from chance by these votes"
    cast_many_votes(runs, 300, {"base": 4.0, "best_of_n": 0.0, "reno": -4.0}, seed=1)  # others, who like the opposite
    second = votes.standing_votes(runs)[300:]
    assert {a.reward: a for a in vote_export.measure_agreement(runs, second)}["level"].verdict.startswith(
        "worse than chance"
    )
    assert vote_export.measure_agreement(runs, []) == []


def test_the_exported_jsonl_is_what_a_reward_is_learned_from(runs, tmp_path):
    cast_many_votes(runs, 120, {"base": -3.0, "best_of_n": 0.0, "reno": 3.0})
    cast_vote(runs, "tie", "zoe"), cast_vote(runs, "bad", "zoe")
    standing = votes.standing_votes(runs)
    for file in (runs / "votes.jsonl", tmp_path / "elsewhere" / "votes.jsonl"):
        file.parent.mkdir(exist_ok=True)
        assert vote_export.write_jsonl(standing, runs, file) == 121, "both bad prefers nothing"
        read = readers.read_votes(file)
        assert len(read) == 121 and int((~read.decided).sum()) == 1 and len(readers.distinct_voters(read.voters)) == 6
    row = json.loads(file.read_text().splitlines()[0])
    assert set(row) <= set(readers.KEYS) and not Path(row["a_path"]).is_absolute()
    learned = learn.learn_from_votes(runs / "votes.jsonl", tmp_path / "taste")
    assert learned["better"] and learned["reward"] == {"learned": {"path": str(tmp_path / "taste")}}


def test_votes_on_one_pair_become_one_pair_by_majority(runs):
    battles = [ask_pair(runs, who)[0] for who in "abcdefgh"]
    pair = (
        "SELECT left_artefact AS l, right_artefact AS r, left_sha256 AS ls, right_sha256 AS rs FROM battles "
        "WHERE id = ?"
    )
    with store.open_index(runs) as db:  # all on the same two media, every other time with the sides swapped
        first = db.execute(pair, (battles[0],)).fetchone()
        for n, battle in enumerate(battles):
            sides = (first["l"], first["r"], first["ls"], first["rs"])
            sides = sides if n % 2 == 0 else (sides[1], sides[0], sides[3], sides[2])
            db.execute(
                "UPDATE battles SET left_artefact=?, right_artefact=?, left_sha256=?, right_sha256=? WHERE id=?",
                (*sides, battle),
            )
    for n, battle in enumerate(battles[:6]):  # five for the first medium, one against it
        votes.record_vote(runs, battle, ("left" if n % 2 == 0 else "right") if n else "right", f"key-{battle}")
    votes.record_vote(runs, battles[6], "tie", "a-tie-key"), votes.record_vote(runs, battles[7], "bad", "a-bad-key")
    standing = votes.standing_votes(runs)
    (only,) = vote_export.majority_votes(standing)
    assert only.choice == "left" and only.left.artefact == first["l"] and only.rater == ""
    assert vote_export.majority_votes(standing[:2]) == [], "one against, one for"


def test_parquet_and_pairs_are_what_dpo_reads(runs):
    pq = pytest.importorskip("pyarrow.parquet")
    cast_many_votes(runs, 20, {"base": -9.0, "best_of_n": 0.0, "reno": 9.0})
    cast_vote(runs, "tie"), cast_vote(runs, "bad")
    standing = votes.standing_votes(runs)
    assert vote_export.write_parquet(standing, runs, runs / "votes.parquet") == 21, "both bad prefers nothing"
    rows = pq.read_table(runs / "votes.parquet").to_pylist()
    assert all((runs / r["image_0"]).is_file() and r["label_0"] + r["label_1"] == 1 for r in rows)
    assert b"tiny-pipeline" not in rows[0]["jpg_0"], "the story stays at home"
    count = vote_export.write_jsonl(vote_export.majority_votes(standing), runs, runs / "pairs.jsonl")
    level = {v.prompt: {} for v in standing}
    for v in standing:
        level[v.prompt] |= {side.contestant: media.read_media(runs / side.file).data for side in (v.left, v.right)}
    for file, size in (("votes.parquet", 20), ("pairs.jsonl", count)):
        read = preference_data.PreferencePairs(str(runs / file))
        assert read.check() == size
        prompt, winner, loser = read[0]
        assert any(torch.equal(winner.data, x) for x in level[prompt].values())
        assert winner.data.mean() > loser.data.mean(), "in these runs the better contestants are the brighter ones"


def test_nothing_to_write_is_said_in_one_sentence(runs):
    cast_vote(runs, "bad")
    for write in (vote_export.write_jsonl, vote_export.write_parquet):
        with pytest.raises(BadInput, match="vote first"):
            write(votes.standing_votes(runs), runs, runs / "out")
    assert not (runs / "out").exists()
