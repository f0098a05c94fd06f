"""One sample that is not finite costs one row: it is told, the others stand, and nothing picks or judges it."""

from __future__ import annotations

import json
import math

import pytest
import tiny
import torch

import workbench as w
from workbench.core.finite import score_finite
from workbench.core.io import media
from workbench.core.types import Batch, Media, RewardSpec
from workbench.evaluation import sample_checks
from workbench.methods.common import particles
from workbench.methods.common.best_sample import BestSample
from workbench.report import findings
from workbench.runs import store
from workbench.runs.controls import CountedReward
from workbench.ui.widgets import result_view

CONTESTANTS = [{"best_of_n": {"n": 2}}, {"reno": {"iterations": 2}}, {"fk": {"particles": 2}}]


class Strict:
    """Fails on a medium that is not finite, as a reward may that encodes or looks it up."""

    spec = RewardSpec("strict", "1", frozenset({"image"}), differentiable=True)

    def __call__(self, *, media, prompts, references=None):
        assert media.data.isfinite().all() and len(prompts) == len(media)
        return media.data.flatten(1).mean(1)


@pytest.fixture(scope="module")
def spoilt():
    """A Stable Diffusion that gives NaN for the prompt "b" alone."""
    pipe = tiny.build("StableDiffusionPipeline")
    token = pipe.tokenizer("b")["input_ids"][1]
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight[token] = math.nan
    return w.load(pipe, steps=2, device="cpu")


def compare(policy, runs, contestants, prompts):
    watch = ["contrast", "compressibility"]
    settings = {"reward": "brightness", "watch": watch, "samples_per_prompt": 2, "runs": runs, "progress": False}
    return w.compare(contestants, pipeline=policy, prompts=prompts, **settings)


@pytest.fixture(scope="module")
def folder(spoilt, tmp_path_factory):
    return store.RunFolder(compare(spoilt, tmp_path_factory.mktemp("blank"), CONTESTANTS, ["a", "b", "c"]).run.path)


def test_a_sample_that_is_not_finite_is_a_row_without_file_and_scores_and_the_others_stand(folder):
    for event in (e for e in folder.events() if e.get("final")):
        for s in event["samples"]:
            if s["prompt"] == "b":
                assert s["file"] is None and set(s["scores"].values()) == {None}
                assert s["reason"] == "its values are not finite in float32"
            else:
                assert (folder.path / s["file"]).is_file() and None not in s["scores"].values()
    for c in folder.read("summary.json")["contestants"]:
        assert "failed" not in c and c["blank"]["count"] == 2 and c["rewards"]["compressibility"]["n"] == 4


def test_it_is_told_with_prompt_seed_and_dtype_and_the_gap_is_drawn(folder):
    summary = folder.read("summary.json")
    seed = summary["contestants"][0]["blank"]["named"][0]["seed"]
    (sentence,) = [s for s in findings.headline_sentences(summary) if "left out" in s]
    assert sentence.startswith("2 of 6 samples of each of base, best_of_n, reno and fk are left out: 'b' with seed")
    assert f"seed {seed}" in sentence and "not finite in float32" in sentence
    assert not [s for s in findings.headline_sentences(summary) if "could not judge" in s], "said once"
    page = (folder.path / "report.html").read_text()
    assert "left out" in page and "its values are not finite in float32</div>" in page


def test_what_reads_the_run_leaves_it_out(folder, tmp_path):
    run = w.read_run(folder.path)
    rows, samples = run.samples("base"), run.media("base")
    assert (
        [r["file"] is None for r in rows]
        == [r["prompt"] == "b" for r in rows]
        == [not m.isfinite().all() for m in samples.data]
    )
    result = result_view.read_result(folder, tmp_path)
    assert "its values are not finite" in result.html and result_view.result_for_programs(result, folder)["files"]
    with store.open_index(folder.path.parent) as db:
        assert db.execute("SELECT COUNT(*) FROM artefacts WHERE prompt = 'b'").fetchone()[0] == 0
        assert db.execute("SELECT COUNT(*) FROM artefacts").fetchone()[0] == 16


def test_in_memory_it_is_shown_and_saved_as_a_gap(spoilt, tmp_path):
    result = w.align(spoilt, "best_of_n", reward="brightness", prompts=["a", "b"], n=2)
    assert result.scores["brightness"].isfinite().tolist() == [True, False] and "1 of them not finite" in repr(result)
    assert "not finite" in result._repr_html_() and result._repr_png_()
    rows = json.loads((result.save(tmp_path / "out") / "samples.json").read_text())["samples"]
    assert rows[0]["file"] and rows[1]["file"] is None and "not finite" in rows[1]["reason"]


def test_a_contestant_without_a_single_finite_sample_says_so(spoilt, tmp_path):
    for row in compare(spoilt, tmp_path, ["best_of_n"], ["b"]):
        assert row["failed"] == "none of its 2 samples can be used: its values are not finite in float32"


def test_infinite_values_are_not_clamped_into_white():
    x = media.quantise_media(Media(torch.tensor([[1.0, 2.0], [0.5, math.inf]]).view(2, 1, 1, 2), "image"))
    assert x.data[0].flatten().tolist() == [1, 1] and x.data[1].isnan().any()


def test_a_reward_never_sees_what_is_not_finite_and_gradients_stay_in_their_rows():
    data = torch.rand(3, 3, 4, 4)
    data[1, 0, 0, 0] = math.nan
    data.requires_grad_()
    scores = CountedReward(Strict())(media=Media(data, "image"), prompts=["a", "b", "c"])
    assert scores.isnan().tolist() == [False, True, False]
    scores.nan_to_num().sum().backward()
    assert data.grad[1].eq(0).all() and data.grad[0].eq(1 / 48).all()
    alone = Media(torch.full((1, 3, 4, 4), math.nan, requires_grad=True), "image")
    score_finite(Strict(), media=alone, prompts=["b"]).sum().backward()


def test_a_finite_candidate_is_chosen_before_any_other():
    batch, picture = Batch(("a",), (1,)), Media(torch.zeros(1, 3, 2, 2), "image")
    best = BestSample(batch)
    for value in (math.nan, -5.0, math.inf, -math.inf, -7.0):
        best.take(picture, torch.tensor([value]))
    assert best.reward.item() == -5.0
    scores = torch.tensor([[math.nan, -5.0, math.inf]], dtype=torch.float64)
    assert particles.choose_particle(scores, scores, "best", (1,)).item() == 1
    shown = Media(torch.arange(3.0).view(3, 1, 1, 1), "image")
    assert particles.best_so_far(None, shown, scores)[1].item() == -5.0


def test_a_reward_that_gives_every_sample_the_same_value_is_said_to_rank_nothing():
    def rows(*scores):
        return [
            {"index": n // 2, "scores": {"flat": 0.0, "by_prompt": float(n // 2), "lively": s}}
            for n, s in enumerate(scores)
        ]

    flat = sample_checks.find_flat_rewards({"base": rows(1, 2, 3, 4), "other": rows(5, 6, 7, None)})
    assert flat == {"flat": {"samples": 8, "value": 0.0}, "by_prompt": {"samples": 8, "prompts": 2}}
    assert sample_checks.find_flat_rewards({"base": rows(1)}) == {}
    sentences = findings.sample_sentences({"contestants": [], "flat_rewards": flat})
    assert sentences == [
        "flat gave the same value, 0.000, to all 8 samples: it ranks nothing.",
        "by_prompt gave all samples of a prompt the same value, on each of 2 prompts: it ranks nothing.",
    ]
