"""Tables of trainings: samples of base and trained are paired by prompt and noise, and the record gives back what was
found."""

from __future__ import annotations

import sys

import pytest

from workbench.core.paths import ROOT
from workbench.runs import store

sys.path.append(str(ROOT / "benchmarks"))  # last: a file there is called as the package `rewards` is
from outcome import Outcome, paired, pooled, record, recorded  # noqa: E402


def sample(index, k, score):
    row = {"index": index, "k": k, "prompt": "ab"[index], "seed": k, "file": None}
    return row | {"category": "ab"[index], "scores": {"oracle": score}}


@pytest.fixture
def folder(tmp_path):
    """Two prompts, two noises; the trained contestant's come first and in another order, and one could not be
    judged."""
    folder = store.RunFolder.open(tmp_path, "mine", {})
    after = [sample(1, 1, 1.0), sample(0, 1, None), sample(1, 0, 1.0), sample(0, 0, 0.5)]
    before = [sample(0, 0, 0.25), sample(0, 1, 0.0), sample(1, 0, 0.0), sample(1, 1, 1.0)]
    folder.append_event({"contestant": "nft", "phase": "watch", "step": 0, "metrics": {"held reward": 0.1}})
    folder.append_event({"contestant": "nft", "phase": "watch", "step": 8, "metrics": {"held reward": 0.4}})
    folder.append_event({"contestant": "nft", "final": True, "samples": after})
    folder.append_event({"contestant": "base", "final": True, "samples": before})
    spent = {"samples": 80, "updates": 8, "peak_mb": 1.0, "distance": 0.5}
    summary = [{"name": "base", "diversity": 0.2}, {"name": "nft", "diversity": 0.1, "training": spent}]
    folder.write("summary.json", {"contestants": summary})
    folder.write("took.json", {"cpu": 60.0, "wall": 61.0})
    return folder


def test_each_trained_sample_is_set_against_the_bases_of_the_same_prompt_and_noise(folder):
    assert [(b["index"], b["k"], a["index"], a["k"]) for b, a in paired(folder)] == [
        (0, 0, 0, 0),
        (0, 1, 0, 1),
        (1, 0, 1, 0),
        (1, 1, 1, 1),
    ]
    outcome = Outcome.of(folder)
    assert (outcome.kinds, outcome.diversity) == (["a", "b"], [0.2, 0.1])
    assert outcome.watched == [[0, 0.1], [80, 0.4]]
    told = pooled([outcome], "oracle")
    assert told["base"]["mean"] == pytest.approx((0.25 + 0 + 0 + 1) / 4)
    assert (told["gain"]["n"], told["gain"]["mean"]) == (3, pytest.approx((0.25 + 1 + 0) / 3))


def test_a_record_gives_back_what_was_found_and_keeps_one_line_for_the_same_words(tmp_path, folder):
    outcome, path = Outcome.of(folder), tmp_path / "record.jsonl"
    record(path, {("seed=1",): outcome})
    record(path, {("seed=2",): outcome})
    record(path, {("seed=1",): outcome})
    assert recorded(path) == {("seed=1",): outcome, ("seed=2",): outcome}
    assert len(path.read_text().splitlines()) == 2
