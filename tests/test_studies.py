"""Studies: pairs that are fixed, one vote a rater, gold pairs, agreement; pages that name nobody; roles that hold."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient
from vote_fixtures import NAMES, make_media, write_run

from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.io import media, video
from workbench.core.paths import ROOT
from workbench.core.types import Media
from workbench.feedback import (
    agreement,
    blind_clips,
    blinding,
    contestants,
    damage,
    studies,
    study_battles,
    study_results,
    transitivity,
    votes,
)
from workbench.runs import sample_modality, store
from workbench.ui import study_pages, users
from workbench.ui.context import AppContext

sys.path.append(str(ROOT / "benchmarks"))
import study_raters  # noqa: E402

ADA, BOB, EVE = (votes.pseudonym_of(name) for name in ("ada", "bob", "eve"))


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs")
    return tmp_path / "runs"


def make_study(folder: Path, gold=0, **settings) -> studies.Study:
    folders = tuple(path.parent.name for path in sorted(folder.glob("*/run.json")))
    return studies.create_study(folder, {"name": "mine", "runs": folders} | settings, gold)[0]


def vote_as(runs: Path, rater: str, choose=lambda pair: "left", most: int = 10_000, **more) -> int:
    """All votes that a rater is asked for, or `most`; `choose` is told the pair as it is shown."""
    for count in range(most):
        battle, _ = study_battles.ask_battle(runs, "mine", rater, rng=np.random.default_rng(count))
        if isinstance(battle, str):
            return count
        pair, is_damaged = study_battles.read_pair(runs, battle.pair)
        sides = [pair.left.contestant, "damaged" if is_damaged else pair.right.contestant]
        choices = dict.fromkeys(
            studies.find_study(runs, "mine").criteria, choose(sides[:: -1 if battle.is_swapped else 1])
        )
        study_battles.record_ballot(runs, "mine", rater, battle.id, choices, f"key-{battle.id}", **more)
    return most


# Making a study


def test_a_study_is_made_shown_exported_and_closed_from_the_command_line(runs, tmp_path, capsys):
    run = next(runs.glob("*/run.json")).parent
    (tmp_path / "words.txt").write_text("Look at the circles. A reno is no circle.")
    new = [
        "study",
        "new",
        "mine",
        "--runs",
        str(run),
        "--criteria",
        "overall,prompt following",
        "--votes-per-pair",
        "2",
    ]
    assert cli.main([*new, "--gold", "4", "--target", "10", "--instructions", str(tmp_path / "words.txt")]) == 0
    said = capsys.readouterr().out
    assert "36 pairs of 3 contestants, 4 gold pairs" in said and "/vote/mine" in said
    assert "warning: the instructions name the contestant 'reno'" in said, "raters read them"
    for rater in (ADA, BOB):
        assert vote_as(runs, rater, lambda sides: "right", reason="sharper", dwell=(1.0, 2.0)) == 10
    assert cli.main(["study", "show", "mine", "--runs", str(runs), "--json", "--reasons", "SHARP"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert {s["criterion"] for s in view["standings"]} == {"overall", "prompt following"}
    assert len(view["raters"]) == 2 and {"reason", "left", "right"} <= set(view["reasons"][0])
    for suffix in ("csv", "jsonl", "parquet"):
        assert cli.main(["study", "export", "mine", "--runs", str(runs), "--out", str(tmp_path / f"v.{suffix}")]) == 0
    rows = list(csv.DictReader((tmp_path / "v.csv").open()))
    assert Path(rows[0]["left_file"]).is_absolute() and Path(rows[0]["left_file"]).is_file()
    assert rows[0]["reason"] == "sharper" and float(rows[0]["right_seconds"]) == 2.0 and rows[0]["time"]
    assert len(rows) == len((tmp_path / "v.jsonl").read_text().splitlines()) and len(rows) % 2 == 0, "a row a criterion"
    assert cli.main(["study", "close", "mine", "--runs", str(runs)]) == 0
    assert study_battles.ask_battle(runs, "mine", EVE)[0] == "closed"
    assert cli.main(["study", "list", "--runs", str(runs)]) == 0 and "closed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "../up"}, "can't be its name"),
        ({"name": "media"}, "can't be its name"),
        ({"runs": ("nowhere",)}, "there is no run 'nowhere'"),
        ({"runs": ()}, "name at least one run"),
        ({"criteria": ("overall", "overall")}, "each once"),
        ({"criteria": ("<b>",)}, "is no criterion"),
        ({"contestants": ("ren",)}, "did you mean 'reno'"),
        ({"contestants": ("reno",)}, "no two contestants"),
        ({"votes_per_pair": 0}, "votes_per_pair"),
        ({"reveal": "always"}, "reveal"),
        ({"gold": 1000}, "gold: give 0 to"),
    ],
)
def test_what_can_be_no_study_is_refused_in_one_sentence(runs, settings, says):
    gold = settings.pop("gold", 0)
    with pytest.raises(BadInput, match=re.escape(says) if "(" in says else says):
        make_study(runs, gold, **settings)
    assert studies.list_studies(runs) == []


def test_gold_pairs_may_be_listed_and_a_file_from_elsewhere_is_refused(runs, tmp_path):
    home = next(runs.glob("*/media"))
    rows = [
        {"better": str(home / "reno" / f"000{n}-0.png"), "worse": str(home / "base" / f"000{n}-0.png")} for n in (1, 2)
    ]
    (tmp_path / "gold.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make_study(runs, tmp_path / "gold.jsonl")
    with store.open_index(runs) as db:
        assert db.execute("SELECT COUNT(*) FROM study_pairs WHERE is_gold AND one <> other").fetchone()[0] == 2
    (tmp_path / "gold.jsonl").write_text(json.dumps({"better": "/etc/passwd", "worse": rows[0]["worse"]}))
    with pytest.raises(BadInput, match="line 1: '/etc/passwd' is no sample"):
        studies.create_study(runs, {"name": "two", "runs": tuple(p.parent.name for p in runs.glob("*/run.json"))},
                             tmp_path / "gold.jsonl")  # fmt: skip


# Which pair is next


def test_each_pair_gets_its_votes_and_nobody_is_asked_twice(runs):
    make_study(runs, votes_per_pair=2)
    assert [vote_as(runs, rater) for rater in (ADA, BOB, EVE)] == [36, 36, 0], "two votes a pair, then it is complete"
    cast = Counter((v.rater, frozenset((v.left.artefact, v.right.artefact))) for v in votes.standing_votes(runs))
    assert set(cast.values()) == {1} and len(cast) == 72


@pytest.mark.parametrize("pairs", ["adaptive", "round-robin"])
def test_contestants_meet_evenly_or_where_most_is_to_be_learnt(runs, pairs):
    make_study(runs, pairs=pairs, votes_per_pair=1)
    vote_as(runs, ADA, lambda sides: ("left", "right")[sides[1] == "reno"] if "reno" in sides else "tie", most=24)
    met = Counter(frozenset((v.left.contestant, v.right.contestant)) for v in votes.standing_votes(runs))
    assert sum(met.values()) == 24
    assert pairs != "round-robin" or set(met.values()) == {8}


def test_a_page_that_is_loaded_anew_is_asked_the_same_and_one_that_looks_ahead_another(runs):
    make_study(runs)
    first, _ = study_battles.ask_battle(runs, "mine", ADA)
    again, _ = study_battles.ask_battle(runs, "mine", ADA)
    ahead, _ = study_battles.ask_battle(runs, "mine", ADA, [first.id])
    assert again == first and ahead.pair != first.pair
    other, _ = study_battles.ask_battle(runs, "mine", BOB)
    assert other.id not in (first.id, ahead.id)
    with pytest.raises(votes.Refusal, match="no such pair"):
        study_battles.record_ballot(runs, "mine", BOB, first.id, {"overall": "left"}, "a-key-of-bob")


def test_a_ballot_is_one_vote_a_criterion_under_one_key_and_can_be_taken_back(runs):
    make_study(runs, criteria=("overall", "quality"), target=3)
    battle, _ = study_battles.ask_battle(runs, "mine", ADA)
    ballot = (runs, "mine", ADA, battle.id, {"overall": "left", "quality": "bad"}, "my-first-key")
    assert [study_battles.record_ballot(*ballot) for _ in range(3)] == [{"battle": battle.id, "done": 1}] * 3
    assert [v.choice for v in votes.standing_votes(runs, axis="")] == ["left", "bad"]
    for choices, key, says in (({"overall": "left"}, "another-key", "answer each of overall, quality"),
                               ({"overall": "tie", "quality": "bad"}, "my-first-key", "belongs to another vote"),
                               ({"overall": "tie", "quality": "bad"}, "another-key", "has its vote")):  # fmt: skip
        with pytest.raises(votes.Refusal, match=says):
            study_battles.record_ballot(runs, "mine", ADA, battle.id, choices, key)
    anew = [study_battles.take_back(runs, "mine", ADA, battle.id, "undo-key-1") for _ in range(2)]
    assert anew[0] == anew[1] and anew[0].pair == battle.pair and votes.standing_votes(runs, axis="") == []
    assert vote_as(runs, ADA) == 3 and study_battles.ask_battle(runs, "mine", ADA)[0] == "target"


# Who votes with care, and what came of it


def test_careless_raters_miss_gold_pairs_which_count_for_nobody_and_can_be_left_out(runs):
    make_study(runs, gold=8, target=24, votes_per_pair=9)
    worth = ("damaged", *NAMES).index
    for name in ("carl", "cora", "cleo"):
        vote_as(runs, votes.pseudonym_of(name), lambda s: ("right", "left")[worth(s[0]) > worth(s[1])], dwell=(4, 4))
    vote_as(runs, EVE, lambda s: ("right", "left")[worth(s[0]) < worth(s[1])], dwell=(0.5, 0.5))
    results = study_results.read_results(runs, "mine")
    by_votes = {r.id: r for r in results.raters}
    eve = by_votes.pop(EVE)
    assert (eve.gold, eve.gold_right) == (8, 0) and eve.note == "misses what is known, much quicker than the others"
    assert all((r.gold, r.gold_right, r.note) == (8, 8, "") for r in by_votes.values())
    assert all(v.left.artefact != v.right.artefact for v in results.votes), "gold pairs rank nobody"
    kept = study_results.read_results(runs, "mine", min_gold=0.5)
    assert kept.left_out == (eve.name,) and len(kept.votes) == 48 and len(results.votes) == 64


def test_alpha_is_that_of_the_published_example(tmp_path):
    """Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section C."""
    rows = ("1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 .")
    values = np.array([[np.nan if x == "." else float(x) - 1 for x in row.split()] for row in rows])
    nominal, ordinal = (agreement.measure_alpha(values, level) for level in ("nominal", "ordinal"))
    assert nominal.alpha == pytest.approx(0.743, abs=5e-4) and ordinal.alpha == pytest.approx(0.815, abs=5e-4)
    assert nominal.low < nominal.alpha < nominal.high and (nominal.units, nominal.raters) == (11, 4)
    lots = np.random.default_rng(0).integers(0, 3, (5, 400)).astype(float)
    assert abs(agreement.measure_alpha(lots, "nominal").alpha) < 0.05, "by lot"
    assert agreement.measure_alpha(np.repeat(lots[:1], 3, 0), "ordinal").alpha == 1.0
    assert (
        "nothing" not in str(agreement.measure_alpha(lots[:1], "nominal"))
        and agreement.measure_alpha(lots[:1], "nominal").units == 0
    )


def test_a_cycle_alarms_and_transitive_votes_do_not():
    rng = np.random.default_rng(0)

    def alarms(chance, votes_a_pair, times):
        count = 0
        for _ in range(times):
            won = np.triu(rng.binomial(votes_a_pair, chance), 1)
            won += np.tril((votes_a_pair - won.T), -1)
            count += transitivity.find_strongest_cycle(won, "abcdef"[: len(won)]).is_violated
        return count / times

    strengths = np.array([0, 0, 0, 0.3, 1.0])
    equal = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    edge = np.array([[0.5, 0.95, 0.5], [0.05, 0.5, 0.95], [0.5, 0.05, 0.5]])  # no Bradley-Terry, and still an order
    scissors = np.array([[0.5, 0.8, 0.2], [0.2, 0.5, 0.8], [0.8, 0.2, 0.5]])
    assert alarms(equal, 40, 300) <= 0.05 and alarms(edge, 40, 300) <= 0.05
    assert alarms(scissors, 60, 50) >= 0.95
    columns = (["a", "b", "c"] * 40, ["b", "c", "a"] * 40, ["left"] * 120, [f"p{n // 3}" for n in range(120)])
    told = transitivity.check_transitivity(*columns)
    assert told.is_violated and "a beats b beats c beats a" in str(told)
    one_prompt = transitivity.check_transitivity(*columns[:3], [f"p{n % 12}" for n in range(120)])
    assert not one_prompt.is_violated, "ten votes on one prompt are one"


def test_settings_make_two_contestants_and_kinds_of_media_are_ranked_apart(tmp_path):
    blocks = {"base": "sample", "reno": {"iterations": 7}}
    write_run(tmp_path, "one", names=("base", "reno"), blocks=blocks)
    write_run(tmp_path, "two", names=("base", "reno"), blocks=blocks | {"reno": {"iterations": 49}})
    write_run(tmp_path, "sound", names=("base", "reno"), modality="audio", blocks=blocks)
    make_study(tmp_path, votes_per_pair=1)
    vote_as(tmp_path, ADA)
    standings = study_results.rank_votes(votes.standing_votes(tmp_path))
    assert [(s.modality, len(s.board.rows)) for s in standings] == [("image", 3), ("audio", 2)]
    names = {r.name for r in standings[0].board.rows}
    assert names == {
        "base · tiny-pipeline",
        "reno · iterations=7 · tiny-pipeline",
        "reno · tiny-pipeline",  # 49 is the default
    }
    config = {
        "pipeline": "p",
        "reward": {"clip": 1.0, "taste": 0.5},
        "method": {"name": "reno", "iterations": 50, "lr": 2},
    }
    assert contestants.describe_settings(config, "reno").endswith("lr=2 for clip + 0.5 taste")
    trained = {**config, "train": {"rounds": 3}}
    longer = {**config, "train": {"rounds": 9}}
    assert len({contestants.describe_settings(c, "reno") for c in (config, trained, longer)}) == 3
    assert contestants.describe_settings(config, "base") == ""


# What is shown


@pytest.mark.parametrize(("modality", "change"), [("image", 0.05), ("video", 0.05), ("audio", 0.02)])
def test_a_damaged_copy_differs_and_is_named_nowhere(tmp_path, modality, change):
    write_run(tmp_path, modality=modality, names=("zebra", "zebras"))
    make_study(tmp_path, 3)
    with store.open_index(tmp_path) as db:
        (number,) = db.execute("SELECT id FROM study_pairs WHERE is_gold LIMIT 1").fetchone()
    pair, is_damaged = study_battles.read_pair(tmp_path, number)
    assert is_damaged
    files = blinding.prepare_blind_pair(pair, tmp_path, tmp_path / "temp", "right")
    one, other = (media.read_media(path).data for path in (files.left, files.right))
    assert one.shape == other.shape and (one - other).abs().mean() > change
    assert b"zebra" not in files.left.read_bytes() + files.right.read_bytes()
    same = damage.damage_media(make_media(modality, 0, 0, torch.Generator().manual_seed(0)))
    assert torch.equal(
        same.data, damage.damage_media(make_media(modality, 0, 0, torch.Generator().manual_seed(0))).data
    )


def test_pictures_and_clips_of_any_suffix_are_shown_alike_and_without_a_word_of_their_makers(tmp_path):
    """Imported media keep their format; what is shown has one, so that a suffix doesn't tell who made which."""

    def pair_of(*files, kind):
        sides = [votes.Side(n, f"c{n}", "p", f.name, media.file_digest(f), "", kind) for n, f in enumerate(files)]
        return votes.Pair(*sides, "prompt", "folder")

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "zebra"
    (
        picture.save(tmp_path / "a.jpg", exif=exif, comment=b"zebra"),
        picture.save(tmp_path / "b.webp", lossless=True, exif=exif),
    )
    files = blinding.prepare_blind_pair(
        pair_of(tmp_path / "a.jpg", tmp_path / "b.webp", kind="image"), tmp_path, tmp_path / "t"
    )
    assert {f.suffix for f in (files.left, files.right)} == {".png"}
    assert torch.equal(media.read_media(files.right).data, media.read_media(tmp_path / "b.webp").data)
    clips = [Media(torch.rand(1, 5, 3, 32, 32), "video", 8.0) for _ in range(2)]
    video.write_mp4(clips[0], tmp_path / "c.mp4", meta={"who": "zebra"})
    media.write_media(clips[1], tmp_path / "d.apng", meta={"who": "zebra"})
    for pair in (pair_of(tmp_path / "c.mp4", tmp_path / "d.apng", kind="video"),):
        files2 = blinding.prepare_blind_pair(pair, tmp_path, tmp_path / "t")
        assert files2.left.suffix == files2.right.suffix == ".mp4" and files2.seconds == pytest.approx(5 / 8)
    (copy, _) = blind_clips.strip_films([tmp_path / "c.mp4"] * 2, tmp_path)
    (tmp_path / "copy.mp4").write_bytes(copy)
    assert torch.equal(media.read_media(tmp_path / "copy.mp4").data, media.read_media(tmp_path / "c.mp4").data)
    everything = copy + b"".join(f.read_bytes() for b in (files, files2) for f in (b.left, b.right))
    assert (
        b"zebra" not in everything
        and b"x264 - core" not in copy
        and b"x264 - core" in (tmp_path / "c.mp4").read_bytes()
    )
    sheet = blind_clips.draw_sheet(tmp_path / "d.apng")
    tiles = np.asarray(Image.open(io.BytesIO(sheet.data)))
    w, h = sheet.size
    drawn = [tiles[n // sheet.columns * h :, n % sheet.columns * w :][:h, :w] for n in sheet.order]
    stored = (media.read_media(tmp_path / "d.apng").data[0] * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.stack(drawn), stored) and sheet.rate == 8.0


def test_what_a_file_is_is_read_from_its_content_where_its_suffix_may_mean_two(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=100)
    frames[0].save(tmp_path / "still.gif")
    assert sample_modality.read_modality(tmp_path / "moving.gif") == "video"
    assert sample_modality.read_modality(tmp_path / "still.gif") == "image"
    assert [sample_modality.guess_modality(f"x{s}") for s in (".flac", ".mp4", ".JPG", ".txt")] == [
        "audio",
        "video",
        "image",
        "",
    ]


# The pages


class Site:
    """The pages of studies alone, with two logins, and a client for each person."""

    def __init__(self, runs: Path, temp: Path, logins: bool = True):
        self.main = Starlette()
        self.main.cookie_id, self.main.tokens = "app", {"of-rita": "rita"}
        known = users.Users({"ada": "x"}, {"rita": "reads", "rob": "robs"}) if logins else users.Users()
        self.main.mount("/vote", study_pages.StudyPages(AppContext(runs, temp, None), known, self.main).build())

    def client(self, **entering) -> TestClient:
        client = TestClient(self.main, base_url="http://testserver")
        if entering:
            door = "login" if "password" in entering else "enter"
            assert client.post(f"/vote/mine/{door}", json=entering).status_code == 200
        return client


@pytest.fixture
def zebras(tmp_path):
    """A run whose contestants, pipeline and name can be searched for."""
    write_run(tmp_path / "runs", "okapi", names=("zebra_a", "zebra_b", "zebra_c"), pipeline="gnu-pipeline")
    return tmp_path / "runs"


WORDS = ("zebra", "okapi", "gnu", "tiny", "level", "noise", "scores", "contestant", "sha256", "media/zebra")


@pytest.mark.parametrize("reveal", ["never", "end", "each"])
def test_no_answer_header_address_or_file_names_anybody_before_its_time(zebras, tmp_path, reveal):
    make_study(zebras, 4, reveal=reveal, target=6, is_open=True)
    client = Site(zebras, tmp_path / "temp").client(name="Olga")
    texts = [client.get(f"/vote/{page}").text for page in ("mine", "static/study.css")]
    before, after = [*texts], []
    for n in range(6):
        pair = client.post("/vote/mine/next", json={"have": []})
        before += [pair.text, str(pair.headers)]
        for side in ("left", "right"):
            file = client.get(f"/vote/media/{pair.json()[side]['url']}")
            assert file.status_code == 200 and file.headers["content-type"] == "image/png"
            before += [file.content.decode("latin-1"), str(file.headers)]
        ballot = {"battle": pair.json()["battle"], "choices": {"overall": "left"}, "key": f"key-number-{n}"}
        answer = client.post("/vote/mine/vote", json=ballot)
        (after if reveal == "each" else before).append(answer.text)
        assert client.post("/vote/mine/vote", json=ballot).text == answer.text, "the same key is the same vote"
    ended = client.post("/vote/mine/next", json={"have": []})
    (after if reveal == "end" else before).append(ended.text)
    before.append(client.post("/vote/mine/state", json={}).text)
    assert [(word, text[:80]) for word in WORDS for text in before if word in text] == []
    assert reveal == "never" or any("zebra" in text for text in after)
    assert ended.json()["end"] == "target" and ended.json()["done"] == 6


def test_a_page_tells_strangers_nothing_and_people_only_of_their_own(zebras, tmp_path):
    make_study(zebras)
    site = Site(zebras, tmp_path / "temp")
    stranger, rita = site.client(), site.client(name="rita", password="reads")
    for name in ("state", "next", "vote", "undo", "skip"):
        assert stranger.post(f"/vote/mine/{name}", json={}).status_code == 401
        assert stranger.post(f"/vote/other/{name}", json={}).json() == {"error": study_pages.NO_STUDY}, (
            "nor others' names"
        )
    assert stranger.post("/vote/mine/enter", json={"name": "Olga"}).status_code == 401, "it is for logins"
    assert stranger.post("/vote/studies", json={}).status_code == 401
    pair = rita.post("/vote/mine/next", json={}).json()
    rob = site.client(name="rob", password="robs")
    assert rob.get(f"/vote/media/{pair['left']['url']}").status_code == 404
    mine = {"battle": pair["battle"], "choices": {"overall": "left"}, "key": "a-key-of-rob"}
    assert "no such pair" in rob.post("/vote/mine/vote", json=mine).json()["error"]
    for path in ("../../workbench.db", "..%2f..%2fworkbench.db", "x.png"):
        assert (
            rita.get(f"/vote/media/{path}").status_code == 404 and rita.get(f"/vote/static/{path}").status_code == 404
        )
    form = rita.post("/vote/mine/vote", content=json.dumps(mine), headers={"content-type": "text/plain"})
    assert form.status_code == 415, "what a form of another site can send"
    assert rita.post("/vote/mine/vote", json={"reason": "x" * 70_000}).status_code == 413
    for absurd in (
        {},
        {"battle": 7},
        {"battle": pair["battle"], "choices": [], "key": None},
        mine | {"choices": {"overall": "<b>"}},
        mine | {"dwell": "long"},
        mine | {"reason": "\ud800"},
    ):
        refused = rita.post("/vote/mine/vote", content=json.dumps(absurd), headers={"content-type": "application/json"})
        assert refused.status_code == 400 and len(refused.json()["error"]) < 200, absurd
    assert votes.standing_votes(zebras) == []


def test_a_login_of_the_app_counts_and_an_account_that_is_gone_does_not(zebras, tmp_path):
    make_study(zebras)
    site = Site(zebras, tmp_path / "temp")
    known = site.client()
    known.cookies.set("access-token-app", "of-rita")
    assert known.post("/vote/mine/state", json={}).json()["rater"] == "rita"
    assert known.post("/vote/studies", json={}).json() == {"studies": ["mine"]}
    rob = site.client(name="rob", password="robs")
    rob_elsewhere = site.client(name="rob", password="robs")
    pair = rob.post("/vote/mine/next", json={}).json()
    assert rob_elsewhere.post("/vote/mine/next", json={}).json()["battle"] == pair["battle"], "one login is one rater"
    fewer = users.Users({"ada": "x"}, {"rita": "reads"})
    site.main.routes[0].app = study_pages.StudyPages(
        AppContext(zebras, tmp_path / "temp", None), fewer, site.main
    ).build()
    assert rob.post("/vote/mine/state", json={}).status_code == 401


def test_a_pair_whose_files_are_gone_is_passed_over(zebras, tmp_path):
    make_study(zebras, is_open=True)
    client = Site(zebras, tmp_path / "temp").client(name="Olga")
    for file in zebras.glob("*/media/zebra_a/*"):
        file.unlink()
    seen = 0
    while "battle" in (pair := client.post("/vote/mine/next", json={}).json()):
        client.post("/vote/mine/skip", json={"battle": pair["battle"]})
        seen += 1
    assert seen == 12 and pair["end"] == "complete", "zebra_b against zebra_c is left"


def test_thirty_raters_lose_no_vote_and_double_none_when_the_server_is_killed(tmp_path):
    """In small: six raters, sixty votes; benchmarks/study_raters.py runs it in full."""
    write_run(tmp_path / "runs", "okapi", names=study_raters.CONTESTANTS)
    make_study(tmp_path / "runs", 4, name=study_raters.STUDY, criteria=("overall", "quality"), target=10)
    server = study_raters.Server(tmp_path / "runs", tmp_path, 6, light=True)
    try:
        server.start()
        url = f"http://127.0.0.1:{server.port}"
        outcome = asyncio.run(study_raters.storm(tmp_path / "runs", url, 60, 6, ("overall", "quality"), server, 3))
    finally:
        server.close()
    assert outcome.is_right, study_raters.describe(outcome)
    assert outcome.stored == 60 and outcome.storm.retries > 0, "it was killed while they voted"
    assert len(votes.standing_votes(tmp_path / "runs", axis="quality")) >= 30


@contextmanager
def served(site: Site):
    """The address of the pages, over HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(site.main, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def test_a_person_votes_on_a_phone_by_keyboard_one_action_a_vote_and_sees_no_name(tmp_path, browser):
    """Pictures, clips on one clock, sounds behind their gate; what a reload, a way back and a dead line do."""
    for name, kind in (("okapi", "image"), ("moving", "video"), ("heard", "audio")):
        write_run(
            tmp_path / "runs", name, names=("zebra_a", "zebra_b"), modality=kind, prompts=("<b>two</b> circles",) * 2
        )
    make_study(tmp_path / "runs", is_open=True, pairs="round-robin", instructions="Look at <i>both</i>.")
    runs = tmp_path / "runs"
    with served(Site(runs, tmp_path / "temp")) as url:
        page, seen, errors = browser.new_page(viewport={"width": 390, "height": 844}), [], []
        page.on("response", lambda r: seen.append(r.url))
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(f"{url}/vote/mine")
        page.locator("[name=name]").fill("Olga")
        page.get_by_role("button", name="Begin").click()
        page.get_by_role("button", name="Vote", exact=True).click()
        kinds: Counter = Counter()
        for count in range(3):
            page.wait_for_function("() => pair && loaded.left && loaded.right", timeout=20_000)
            kind, battle = page.evaluate("pair.kind"), page.evaluate("pair.battle")
            kinds[kind] += 1
            if kind == "frames":
                page.wait_for_function("() => awake()", timeout=20_000)
                page.keyboard.press("Space")
                shot = "() => [...document.querySelectorAll('canvas')].map((c) => c.toDataURL())"
                page.evaluate("player.seek(0)")
                page.keyboard.press(".")
                one = page.evaluate(shot)
                assert abs(page.evaluate("player.at()") - 0.25) < 0.01, "one frame of four a second"
                page.keyboard.press(".")
                assert all(a != b for a, b in zip(one, page.evaluate(shot), strict=True)), "both went on"
            if kind == "sound":
                page.keyboard.press("ArrowLeft")
                assert page.locator("[data-choice=left]").is_disabled(), "not heard yet"
                page.get_by_role("button", name="Listen to A").click()
                page.wait_for_function("() => spent.left > 0.3", timeout=20_000)
                before = page.evaluate("player.at()")
                page.keyboard.press("s")
                assert 0 <= page.evaluate("player.at()") - before < 0.25, "the other one, at the same place"
                page.wait_for_function("() => spent.right > 0.2", timeout=20_000)
                for side in ("A", "B"):
                    page.get_by_role("button", name=f"Listen to {side}").click()
                    page.wait_for_function("() => !document.querySelector('figure.sounding')", timeout=20_000)
                page.get_by_role("button", name="Listen to A").click()
            page.wait_for_function("() => awake()", timeout=20_000)
            if kind == "image":
                page.locator(".reason input").fill("sharper hands")
                page.locator(".reason input").press("a")
                page.locator(".reason input").press("Enter")
                page.reload()
                page.wait_for_function("() => pair && awake()", timeout=20_000)
                assert page.evaluate("pair.battle") == battle, "the same pair again"
                page.locator(".reason input").fill("sharper hands")
                page.locator(".reason input").press("Enter")
            assert page.locator("b, i").count() == 0 and "zebra" not in page.content(), (
                "words are text, and name nobody"
            )
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no sideways scrolling"
            for _ in range(3):  # a key that sticks is one vote
                page.keyboard.press("ArrowRight")
            page.wait_for_function("(n) => about.done > n", arg=count, timeout=20_000)
        assert set(kinds) == {"image", "frames", "sound"}, "contestants of each kind meet equally often"
        page.wait_for_function("() => pair && !document.querySelector('[data-do=undo]').disabled", timeout=20_000)
        page.keyboard.press("u")
        page.wait_for_function("() => about.done === 2 && pair && !queue.length", timeout=20_000)
        assert errors == [] and not [u for u in seen if "zebra" in u]
        assert len(votes.standing_votes(runs)) == 2
        while page.evaluate("pair?.kind") == "sound":
            page.locator("[data-do=skip]").click()
            page.wait_for_timeout(200)
        page.wait_for_function("() => awake()", timeout=20_000)
        page.route("**/vote/mine/vote", lambda route: route.abort())
        page.keyboard.press("ArrowDown")
        page.wait_for_function(
            "() => document.querySelector('.status').textContent.includes('does not answer')", timeout=9000
        )
        assert len(votes.standing_votes(runs)) == 2
        page.unroute("**/vote/mine/vote")
        page.wait_for_function("() => about.done === 3", timeout=20_000)
        assert [v.choice for v in votes.standing_votes(runs)][-1] == "tie", "kept in the browser until it was kept here"
        page.locator("[data-do=leave]").click()
        page.wait_for_selector(".enter:not([hidden])")
        page.close()
