"""Trainings that teach nothing or collapse say so; others do not."""

from __future__ import annotations

import json

import pytest
import torch
import train_fixtures as tiny
import yaml

from workbench import cli
from workbench.core.types import Event, RewardSpec
from workbench.report.findings import headline_sentences
from workbench.training import monitoring, training_warnings
from workbench.training.training_warnings import TeachingRecord
from workbench.ui.widgets import run_view


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("warnings")


class PromptAlone:
    """A text scorer that forgot the picture: the same for all samples of a prompt."""

    spec = RewardSpec("prompt_alone", "1", frozenset({"image"}), differentiable=False, typical=(0.0, 1.0))

    def __call__(self, *, media, prompts, references=None):
        return torch.tensor([len(p) / 100 for p in prompts])


def record_of(rounds, planned=None, accumulate=1):
    """The record of a training whose batches taught as told: (taught, scores)."""
    record = TeachingRecord(planned or len(rounds), accumulate)
    for taught, scores in rounds:
        record.count(Event(0, {"taught": taught, "grad_norm": taught}, scores={"reward": torch.tensor(scores)}))
    return record


GOOD, FLAT, UNSURE = (1.0, (0.1, 0.4)), (0.0, (0.2, 0.2)), (0.5, (float("nan"),) * 3 + (0.4,))


@pytest.mark.parametrize(
    ("rounds", "sentence"),
    [
        ([FLAT] * 4, "no sample taught anything in 4 rounds"),
        ([GOOD] * 3 + [FLAT] * 9, "no sample taught anything after round 3 of 12"),
        ([UNSURE] * 6, "75% of the 24 samples could not be judged"),
        ([GOOD] * 6, ""),
        ([FLAT, GOOD] * 6, ""),
        ([FLAT] * 9 + [GOOD], ""),  # a reward that is rarely given
        ([GOOD] * 5 + [FLAT], ""),
    ],
)
def test_rounds_that_teach_nothing_are_told_from_those_that_teach_now_and_then(rounds, sentence):
    said = " ".join(training_warnings.teaching_sentences(record_of(rounds)))
    assert sentence in said and bool(sentence) == bool(said)


def test_a_method_that_does_not_say_what_taught_is_judged_by_its_gradient():
    for norm, silent in ((0.3, False), (0.0, True)):
        record = TeachingRecord(planned=4)
        for _ in range(4):
            record.count(Event(0, {"grad_norm": norm}, scores={"reward": torch.tensor((0.1, 0.4))}))
        assert bool(training_warnings.silence_sentences(record)) == silent


def rows_of(*scores, diversity=0.2):
    """Rows of an evaluation: two samples of each prompt, with scores {name: [per sample]}."""
    (scores,) = scores
    count = len(next(iter(scores.values())))
    return [
        {"index": n // 2, "k": n % 2, "category": None, "diversity": diversity, "reward": scores["optimised"][n]}
        | {"scores": {name: values[n] for name, values in scores.items()}}
        for n in range(count)
    ]


def around(mean, spread=0.1, n=16):
    return [mean + spread * (-1) ** (k + k // 2) for k in range(n)]


class Sixteen:
    """What compare_to_base reads of a plan."""

    class config:  # noqa: N801
        control = "none"

    class reward:  # noqa: N801
        weights, rewards, spec = {"optimised": 1.0}, {"optimised": PromptAlone()}, PromptAlone.spec

    class watch:  # noqa: N801
        rewards = {"held": PromptAlone()}

    held_out_prompts = ("p",) * 8


@pytest.mark.parametrize(
    ("optimised", "held", "diversity", "sentence"),
    [
        (around(0.3), around(0.6), 0.2, "lowered the reward that it optimises, by 0.3"),
        (around(0.6), around(0.1), 0.2, "held, held out, fell from 0.6 to 0.1"),
        (around(0.6), around(0.6), 0.05, "lost more than half of the base's diversity"),
        (around(0.8), around(0.4), 0.2, "raised optimised, which it optimised, while held fell"),
        (around(0.8), around(0.65), 0.18, None),
        (around(0.6), around(0.6), 0.2, None),
        ([v + 0.3 * (-1) ** (k // 2) for k, v in enumerate(around(0.6))], around(0.6), 0.2, None),  # up and down
        (around(0.599), around(0.58), 0.15, None),
    ],
)
def test_the_alarm_rings_for_a_collapse_as_well_as_for_hacking(optimised, held, diversity, sentence):
    base = rows_of({"optimised": around(0.6), "held": around(0.6)})
    now = rows_of({"optimised": optimised, "held": held}, diversity=diversity)
    metrics, alarm = monitoring.compare_to_base(Sixteen, "nft", base, now)
    assert (alarm is None) if sentence is None else (sentence in alarm), alarm
    assert metrics["held diversity"] == pytest.approx(diversity)
    assert monitoring.compare_to_base(Sixteen, "nft", base, base)[1] is None


def test_weights_that_went_too_far_or_stand_still_are_told_from_those_that_move():
    base = rows_of({"optimised": around(0.6)})
    moved, same = rows_of({"optimised": around(0.601)}), rows_of({"optimised": around(0.600001)})
    say = lambda distance, rows, rounds=20: training_warnings.movement_sentences(distance, base, rows, rounds, 10)  # noqa: E731
    assert "moved by 26 of their norm" in say(26.0, moved)[0] and "moved by 26" in say(26.0, moved, 1)[0]
    assert "still those of the base after 20 rounds" in say(0.0, base)[0]
    assert "the learning rate may be too small" in say(2e-7, same)[0]
    assert not say(0.1, moved) and not say(2e-5, moved) and not say(2e-7, same, rounds=5)


def test_a_tie_never_prefers_the_untrained_weights_and_keeps_the_earlier_of_two_others():
    best: dict = {}
    for update, score, kept in ((0, 0.5, 0), (2, 0.5, 2), (4, 0.5, 2), (6, 0.7, 6), (8, 0.6, 6)):
        if monitoring.is_better(score, best):
            best = {"update": update, "score": score}
        assert best["update"] == kept


def test_a_training_that_taught_nothing_says_so_wherever_it_is_shown(home, tmp_path, capsys):
    """Console, log, summary, report, model card and app, in one sentence."""
    path = tmp_path / "silent.yaml"
    told = {"reward": "test_training_warnings:PromptAlone", "train": {"rounds": 2, "eval_every": 0, "best": ""}}
    path.write_text(yaml.safe_dump(tiny.asked(home, **told)))
    assert cli.main(["run", str(path), "--runs", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr()
    (folder,) = tiny.store.list_run_folders(tmp_path / "runs")
    training = folder.read("summary.json")["contestants"][1]["training"]
    assert training["alarm"].startswith("no sample taught anything in 2 rounds") and training["warnings"] == []
    sentence = "no sample taught anything in 2 rounds"
    card, report = (folder.path / name for name in ("export/README.md", "report.html"))
    for text in (
        said.out,
        card.read_text(),
        report.read_text(),
        " ".join(headline_sentences(folder.read("summary.json"))),
    ):
        assert text.replace("\n", " ").count(sentence) == 1
    assert "aligned by" not in card.read_text() and json.dumps(folder.events()).count(sentence) == 1
    assert [sentence in text for text in run_view.training_warnings(folder)] == [True]
