"""Which reward agrees with people: asked afterwards, beside chance and beside other raters."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from vote_fixtures import cast_many_votes, write_run

from workbench.cli import main
from workbench.core.types import RewardSpec
from workbench.feedback import reward_agreement, studies, votes
from workbench.runs import store

KINDS = frozenset({"image", "video", "audio"})
STRENGTHS = {"base": 0.0, "best_of_n": 1.5, "reno": 3.0}


class Level:
    """Brightness, or loudness: what `write_run` gives to contestants that are listed later."""

    spec = RewardSpec("level", "1", KINDS, differentiable=False)

    def __call__(self, *, media, prompts, references=None):
        return media.data.abs().flatten(1).mean(1)


class Noise:
    """Numbers that know nothing: the control that must fail."""

    spec = RewardSpec("noise", "1", KINDS, differentiable=False)

    def __call__(self, *, media, prompts, references=None):
        digests = [hashlib.sha256(row.numpy().tobytes()).digest() for row in media.data]
        return torch.tensor([int.from_bytes(d[:4], "big") / 2**32 for d in digests])


class Alike:
    spec = RewardSpec("alike", "1", KINDS, differentiable=False)

    def __call__(self, *, media, prompts, references=None):
        return torch.zeros(len(media))


LEVEL, NOISE, ALIKE = (f"test_agree:{name}" for name in ("Level", "Noise", "Alike"))


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    runs = tmp_path_factory.mktemp("voted")
    prompts = tuple(f"prompt {n}" for n in range(40))
    write_run(runs, "pictures", prompts=prompts), write_run(runs, "sounds", prompts=prompts[:12], modality="audio")
    cast_many_votes(runs, 600, STRENGTHS)
    with store.open_index(runs) as db:  # some who prefer neither
        db.execute("UPDATE votes SET choice = 'tie' WHERE id <= 7")
    return runs


def ask(runs, *words, capsys):
    assert main(["agree", *words, "--runs", str(runs), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    return {(row["reward"], row["modality"]): row for row in told["rewards"]}, told


def test_a_reward_of_random_numbers_agrees_half_the_time_and_one_that_shares_the_taste_as_often_as_raters(
    voted, capsys
):
    rows, told = ask(voted, "--reward", LEVEL, "--reward", NOISE, "--reward", ALIKE, capsys=capsys)
    for kind in ("image", "audio"):
        low, high = rows["noise", kind]["ci95"]
        assert low < 0.5 < high and rows["noise", kind]["verdict"].startswith("not told from chance")
        assert rows["alike", kind]["share"] == 0.5 and rows["level", kind]["ci95"][0] > 0.6
        assert rows["level", kind]["verdict"] == "better than chance"
    by_people = {r["modality"]: r for r in told["raters"]}
    assert sum(r["votes"] for r in told["raters"]) == 593 and sum(r["ties"] for r in told["raters"]) == 7
    assert sum(row["votes"] for key, row in rows.items() if key[0] == "level") == 593
    raters = by_people["image"]["with_each_other"]
    assert 0.5 < raters["share"] < rows["level", "image"]["share"] and raters["votes"] > 100
    margins = rows["level", "image"]["by_margin"]
    assert len(margins) == 4 and margins[0]["share"] < margins[-1]["share"] and margins[0]["high"] <= margins[1]["low"]
    assert sum(group["votes"] for group in margins) == rows["level", "image"]["votes"]


def test_the_numbers_are_those_that_counting_by_hand_gives(voted):
    (folder,) = (path.name for path in voted.glob("*-sounds"))
    some = reward_agreement.read_votes_on(voted, [folder])
    assert {(v.folder, v.modality) for v in some} == {(folder, "audio")}
    result = reward_agreement.measure_rewards(voted, some, {"level": Level()})
    decided = [v for v in some if v.choice in ("left", "right")]
    order = list(STRENGTHS)
    right = [
        (order.index(v.left.contestant) > order.index(v.right.contestant)) == (v.choice == "left") for v in decided
    ]
    (agreement,) = result.agreements
    assert agreement.against_people.report.accuracy == pytest.approx(sum(right) / len(right))
    assert not result.problems and agreement.unscored == 0


def test_only_votes_on_the_named_runs_count_and_a_changed_file_costs_its_votes(tmp_path, capsys):
    first = write_run(tmp_path, "first", prompts=("a", "b", "c", "d", "e", "f"))
    write_run(tmp_path, "second", prompts=("g", "h"))
    cast_many_votes(tmp_path, 80, STRENGTHS)
    mine = [v for v in votes.standing_votes(tmp_path) if v.folder == first.path.name]
    rows, _ = ask(tmp_path, str(first.path), "--reward", LEVEL, capsys=capsys)
    assert rows["level", "image"]["votes"] == len(mine) < 80
    file = next(iter((first.path / "media" / "base").glob("*.png")))
    file.unlink()
    lost = sum(file.name in (v.left.file + v.right.file) and "base" in (v.left.contestant, v.right.contestant)
               for v in mine)  # fmt: skip
    assert main(["agree", str(first.path), "--reward", LEVEL]) == 1
    told = capsys.readouterr()
    assert "is gone or has changed" in told.err and f"{lost} votes are on media without a score" in told.out
    assert "another rater" in told.out and "chance" in told.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--reward", '{vendi: {model: "starter:image/clip"}}'], "judges whole sets"),
        (["nowhere", "--reward", "brightness"], "there is no study 'nowhere'"),
        (["nowhere", "neither", "--reward", "brightness"], "name one study, or run folders"),
        (["--reward", "unchanged"], "needs the source"),
        (["--reward", "no-such"], "no-such"),
    ],
)
def test_what_can_not_be_asked_is_one_sentence(voted, words, sentence, capsys):
    assert main(["agree", *words, "--runs", str(voted)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_runs_without_votes_say_so(tmp_path, capsys):
    run = write_run(tmp_path, "demo", prompts=("a", "b"))
    studies.create_study(tmp_path, {"name": "asked", "runs": (run.path.name,)})
    for named in ([], ["asked"], [str(run.path)]):
        assert main(["agree", *named, "--reward", LEVEL, "--runs", str(tmp_path)]) == 2
        assert "nobody has preferred something" in capsys.readouterr().err
    cast_many_votes(tmp_path, 5, STRENGTHS)  # outside of the study
    assert main(["agree", "asked", "--reward", LEVEL, "--runs", str(tmp_path)]) == 2
