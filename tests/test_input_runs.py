"""Runs, trainings, votes and pairs of a pipeline that makes its samples from a source."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from input_fixtures import execute, load_once, plan_edits, save_pipeline, write_edits, write_picture
from PIL import Image
from train_fixtures import folder_of, go, same, stopped

import workbench as w
from workbench.core.errors import BadInput
from workbench.core.inputs import prompt_inputs
from workbench.core.io.media import file_digest, read_meta
from workbench.engine import run
from workbench.engine.run_record import describe_run
from workbench.feedback import pairing, vote_export, votes
from workbench.runs import preference_data, run_noise, store
from workbench.runs.prompt_inputs import prompt_source
from workbench.training.training_batches import pack_memory, unpack_memory

TRAIN = {
    "rounds": 2,
    "prompts_per_round": 2,
    "eval_prompts": 2,
    "eval_every": 2,
    "save_every": 1,
    "micro": 1,
    "best": "last",
    "lora": {"rank": 1},
    "report_to": [],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def pipeline(home) -> Path:
    return save_pipeline(home)


@pytest.fixture(scope="module")
def finished(home, pipeline) -> store.RunFolder:
    """A run of two instructions on each of two pictures, whose folder of pictures is gone since."""
    folder = execute(plan_edits(pipeline, write_edits(home / "data")), home / "runs")
    shutil.rmtree(home / "data")
    return folder


def test_the_run_folder_holds_what_its_samples_were_made_from(finished, tmp_path):
    pictures = [write_picture(tmp_path / f"{n}.png", n) for n in range(2)]
    files = {file_digest(picture): picture for picture in pictures}
    assert {p.stem: p.read_bytes() for p in (finished.path / "inputs").iterdir()} == {
        digest: picture.read_bytes() for digest, picture in files.items()
    }
    samples = [s for e in finished.events() if e.get("final") for s in e["samples"]]
    assert [s["inputs"]["source"] for s in samples] == [digest for digest in files for _ in range(2)] * 2
    assert finished.read("summary.json")["inputs"] == [
        {"source": f"inputs/{digest}.png"} for digest in files for _ in range(2)
    ]
    assert read_meta(finished.path / samples[0]["file"])["inputs"] == samples[0]["inputs"]
    assert len({(s["prompt"], s["seed"]) for s in samples}) == 4 == len({s["seed"] for s in samples})


def test_a_read_run_gives_its_prompts_back_with_their_inputs(finished):
    prompts = [row["prompt"] for row in w.read_run(finished.path).samples("base")]
    assert [str(p) for p in prompts] == ["make it colour 0", "make it colour 1"] * 2 and len({*prompts}) == 4
    assert all(prompt_inputs(p)["source"].read().data.shape == (1, 3, 20, 24) for p in prompts)
    seeds = [row["seed"] for row in w.read_run(finished.path).samples("base")]
    noise = run_noise.RunNoise(str(finished.path / "best_of_n"))
    assert noise(prompts, seeds).shape[0] == 4
    with pytest.raises(BadInput, match="has none for 'make it colour 0' and seed"):
        noise([str(prompts[0])], seeds[:1])


def test_votes_on_one_instruction_for_two_pictures_do_not_mix_and_train_an_editing_model(finished):
    runs = finished.path.parent
    for n in range(8):
        if (battle := pairing.ask_next_pair(runs, f"rater {n}", lambda pair: pair)) is None:
            break
        assert "source" in prompt_inputs(battle[1].prompt)
        votes.record_vote(runs, battle[0], "left", f"key-{n:08d}")
    standing = votes.standing_votes(runs)
    assert len({str(v.prompt) for v in standing}) == 2 < len({v.prompt for v in standing})
    assert pairing.votable_runs(runs)[0].prompts == 4
    vote_export.write_jsonl(standing, runs, runs / "votes.jsonl")
    vote_export.write_parquet(standing, runs, runs / "votes.parquet")
    for name in ("votes.jsonl", "votes.parquet"):
        pairs = preference_data.PreferencePairs(str(runs / name), ties="keep").with_inputs(["source"])
        assert {pairs[n][0] for n in range(len(pairs))} == {v.prompt for v in standing}
        assert pairs.list_sources() == {prompt_source(v.prompt) for v in standing}
        assert all(not prompt_inputs(preference_data.PreferencePairs(str(runs / name))[n][0]) for n in range(2))
    learned = [json.loads(line) for line in (runs / "votes.jsonl").read_text().splitlines()]
    assert all((runs / row["source"]).is_file() for row in learned)


def test_a_run_goes_on_after_a_stop_and_refuses_a_changed_picture_by_its_name(pipeline, tmp_path):
    prompts = write_edits(tmp_path / "data")
    plan, stop = plan_edits(pipeline, prompts, method="sample", batch=2), threading.Event()
    folder = store.RunFolder.open(tmp_path / "runs", "edit", describe_run(plan)["config"])
    for progress in run.execute_run(plan, folder, stop, load_once):
        if progress.event is not None and progress.event.final:
            stop.set()
    kept = folder.events()
    shutil.move(tmp_path / "data", tmp_path / "moved"), (tmp_path / "data").symlink_to(tmp_path / "moved")
    picture = tmp_path / "data" / "pictures" / "1.png"
    original = picture.read_bytes()
    write_picture(picture, 99)
    with pytest.raises(BadInput, match=r"pictures/1.png \(what a prompt comes with\) has changed since this run began"):
        execute(plan_edits(pipeline, prompts, method="sample", batch=2), tmp_path / "runs")
    picture.write_bytes(original)
    (folder.path / "inputs" / f"{file_digest(picture)}.png").write_bytes(b"damaged")
    again = execute(plan_edits(pipeline, prompts, method="sample", batch=2), tmp_path / "runs")
    assert again.path == folder.path and again.events()[: len(kept)] == kept and len(again.events()) == 2
    assert file_digest(folder.path / "inputs" / f"{file_digest(picture)}.png") == file_digest(picture)


def test_what_does_not_come_with_the_prompts_or_is_not_taken_is_said_before_weights_load(pipeline, home, tmp_path):
    prompts = write_edits(tmp_path)
    rows = prompts.read_text().splitlines()
    (tmp_path / "lacking.jsonl").write_text("\n".join([rows[0], '{"prompt": "make it blue"}']))
    taker = f"pipeline {pipeline} makes its samples from a source"
    for source, sentence in (
        (["a red circle"], f"prompts: {taker}, and no prompt comes with one; give a .jsonl or .csv with a column"),
        (tmp_path / "lacking.jsonl", "lacking.jsonl, line 2: 'make it blue' comes without a source; pipeline"),
    ):
        with pytest.raises(BadInput) as caught:
            plan_edits(pipeline, source)
        assert sentence in str(caught.value)
    checks = plan_edits(pipeline, prompts).checks
    assert any(c.startswith("prompts: each comes with a source (2 different)") for c in checks)
    assert "prompts: columns not used: source" in plan_edits("starter-image", prompts, watch=None).checks
    with pytest.raises(
        BadInput, match="unchanged compares with the source of an edit, and these samples are made from"
    ):
        plan_edits("starter-image", ["a red circle"])
    contestants = {"base": "sample", "other": {"name": "sample", "pipeline": "starter-image"}}
    mixed = plan_edits(pipeline, prompts, method=None, contestants=contestants).checks
    assert "warning: pipeline starter-image does not take a source, and makes its samples without" in mixed


def test_a_pipeline_that_starts_from_its_source_costs_the_steps_that_it_takes(pipeline, tmp_path):
    plan = plan_edits(pipeline, write_edits(tmp_path), method="sample")
    turned = dataclasses.replace(
        plan.pipelines["base"], pipeline="StableDiffusionImg2ImgPipeline", steps=10, call={"strength": 0.7}
    )
    assert dataclasses.replace(plan, pipelines={"base": turned}).denoiser_calls("base") == 4 * 7


def test_a_training_on_edits_holds_sources_out_goes_on_after_a_stop_and_says_how_to_use_it(pipeline, tmp_path):
    prompts = write_edits(tmp_path, instructions=2, sources=5)
    values = {"method": {"name": "nft", "group": 2, "levels_per_sample": 1}, "train": TRAIN, "limit": 2}
    plan = plan_edits(pipeline, prompts, **values)
    assert len(plan.train_prompts) == 8 and len(plan.held_out_prompts) == 2
    assert plan.trained_sources.isdisjoint(map(prompt_source, plan.held_out_prompts))
    others = tmp_path / "others.jsonl"
    others.write_text(json.dumps({"prompt": "none of the above", "source": "pictures/0.png"}))
    tested = plan_edits(pipeline, prompts, **values, test=str(others))
    assert "warning: 1 of the 1 test prompts are trained on too" in tested.checks
    folder, stop = store.RunFolder.open(tmp_path / "runs", "edit", describe_run(plan)["config"]), threading.Event()
    for progress in run.execute_run(plan, folder, stop):
        if progress.phase == "train":
            stop.set()
    assert execute(plan, tmp_path / "runs").path == folder.path
    assert [e["step"] for e in folder.events() if e.get("phase") == "train"] == [1, 2]
    card = (folder.path / "export" / "README.md").read_text()
    assert "makes its samples from more than a prompt: a source (`image`)" in card
    assert "pipe(prompt='a prompt', image=diffusers.utils.load_image('source.png'), num_inference_steps=2" in card


def test_stages_on_two_lists_of_sources_judge_both_after_each_and_go_on_where_they_were(pipeline, tmp_path):
    lists = {name: write_edits(tmp_path / name, 1, n) for name, n in (("edit", 2), ("draw", 3))}
    draw = {"prompts": str(lists["draw"]), "reward": "unchanged", "watch": ["brightness"]}
    stages = [{"name": "edit", "rounds": 1}, {"name": "draw", "rounds": 1, **draw}]
    train = {"prompts_per_round": 2, "save_every": 1, "lora": {"rank": 1}, "report_to": []}
    method = {"name": "nft", "group": 2, "levels_per_sample": 1, "lr": 1e-3}
    plan = plan_edits(pipeline, lists["edit"], method=method, stages=stages, train=train, limit=2, name="staged")
    whole, parts = folder_of(plan, tmp_path / "whole"), folder_of(plan, tmp_path / "parts")
    go(plan, whole)
    told = whole.read("summary.json")["stages"]
    assert told["tasks"] == ["edit", "draw"] and told["held out"]["judges"] == ["unchanged", "brightness"]
    assert torch.tensor(told["reward"]["scores"]).shape == (3, 2) and torch.tensor(told["reward"]["gained"]).all()
    digests = {name: {file_digest(p) for p in (tmp_path / name).glob("pictures/*")} for name in lists}
    assert {p.stem for p in (whole.path / "inputs").iterdir()} == digests["edit"]
    assert {prompt_source(p).strip("\0") for p in plan.tasks[1].train_prompts} <= digests["draw"]
    stopped(plan, parts, 2)
    assert parts.read()["status"] == "stopped"
    go(plan, parts)
    same(parts, whole)


def test_pairs_with_sources_are_batches_for_an_editing_model_whose_evaluations_hold_these_out(pipeline, tmp_path):
    prompts = write_edits(tmp_path, instructions=1, sources=4)
    rows = []
    for n in range(3):
        sides = [write_picture(tmp_path / "pairs" / f"{n}{x}.png", 50 + 2 * n + k) for k, x in enumerate("ab")]
        chosen, rejected = (str(side.relative_to(tmp_path)) for side in sides)
        source = f"pictures/{n}.png"
        rows.append({"prompt": "make it red", "source": source, "chosen": chosen, "rejected": rejected})
    rows.append(rows[0] | {"source": "pictures/nowhere.png"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"method": "dpo", "train": TRAIN | {"eval_prompts": 1}, "limit": 1}
    plan = plan_edits(pipeline, prompts, pairs={"files": str(tmp_path / "pairs.jsonl")}, **values)
    (source,) = prompt_inputs(plan.held_out_prompts[0]).values()
    assert source.path == str(tmp_path / "pictures" / "3.png")
    assert any("1 pair is left out: " in c and "nowhere.png: no such file" in c for c in plan.checks)
    batch = plan.pairs.batch(0, 4, (3, 16, 16))
    assert [str(p) for p in batch.prompts] == ["make it red"] * 4 and len({*batch.prompts}) == 3
    assert {*map(prompt_source, batch.prompts)} == plan.trained_sources


def test_a_checkpoint_holds_prompts_as_plain_values(tmp_path):
    prompts = list(plan_prompts(tmp_path))
    packed = pack_memory({"best": 0.5, "seen": prompts})
    assert [type(text) for text in packed["seen"]] == [str] * len(prompts)
    assert unpack_memory(packed, prompts) == {"best": 0.5, "seen": prompts}


def plan_prompts(folder: Path) -> tuple[str, ...]:
    from workbench.runs.prompt_inputs import take_prompts
    from workbench.runs.prompts import read_prompt_table

    return take_prompts(read_prompt_table(str(write_edits(folder))), {"source": "image"}).prompts


def test_pictures_from_python_are_edited_and_saved_beside_their_sources(pipeline, tmp_path):
    picture = Image.open(write_picture(tmp_path / "x.png", 3))
    prompts = ["make it red", {"prompt": "make it red", "source": picture}]
    with pytest.raises(BadInput, match="prompts: the list: 'make it red' comes without a source"):
        w.align(str(pipeline), "sample", reward="brightness", prompts=prompts, progress=False)
    made = w.align(str(pipeline), "sample", reward="brightness", watch="unchanged", prompts=prompts[1:], progress=False)
    digest = prompt_inputs(made.prompts[0])["source"].digest
    saved = made.save(tmp_path / "saved")
    assert json.loads((saved / "samples.json").read_text())["samples"][0]["inputs"] == {"source": digest}
    assert torch.equal(
        torch.tensor(list(Image.open(saved / "inputs" / f"{digest}.png").getdata())),
        torch.tensor(list(picture.getdata())),
    )


def test_validation_prompts_of_an_editor_come_with_their_sources_or_the_plan_says_so(pipeline, tmp_path):
    prompts = write_edits(tmp_path, instructions=1, sources=4)
    source = str(tmp_path / "pictures" / "0.png")
    method = {"name": "rpo", "references": str(tmp_path / "pictures"), "samples_per_prompt": 1, "validation_samples": 1}
    method |= {"validate_every": 1}

    def plan(validation):
        train = TRAIN | {"prompts_per_round": 1, "eval_prompts": 1}
        own = method | {"validation_prompts": validation}
        return plan_edits(pipeline, prompts, method=own, train=train, watch=None, limit=1)

    where = "contestants.rpo.validation_prompts"
    for wrong, sentence in [
        (["make it red"], f"{where}: .* makes its samples from a source, and no prompt comes with one"),
        ([{"prompt": "x", "source": "gone.png"}], f"{where}: the list, prompt 1: gone.png: no such file"),
        ([5], f"{where}: the list: a prompt is a text, got 5"),
        (7, f"{where}: a list of prompts, or a file, got 7"),
        ("nowhere.jsonl", f"{where}: no prompt file 'nowhere.jsonl'"),
    ]:
        with pytest.raises(BadInput, match=sentence):
            plan(wrong)
    expected = plan_edits(pipeline, [{"prompt": "make it colour 0", "source": source}]).rows[0][1]
    one = plan([{"prompt": "make it colour 0", "source": source}])
    assert one.methods["rpo"].validation_prompts == (expected,)
    assert str(tmp_path / "pictures" / "0.png") in describe_run(one)["inputs"]["inputs of prompts"]
    filed = plan(str(prompts))
    assert len(filed.methods["rpo"].validation_prompts) == 4 and filed.methods["rpo"].validation_prompts[0] == expected
    method = one.methods["rpo"]
    scores, made, texts, _ = method.validate(load_once(one.pipelines["rpo"]), one.reward, method.validation_prompts)
    assert len(scores) == len(made.data) == 1 and texts == (expected,)
