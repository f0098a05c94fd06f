"""A run changes settings of its pipeline: `pipeline: {name: flux-dev, steps: 8}` and `pipeline.steps=8`."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

import pipelines
from pipelines import variants
from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.paths import CONFIGS
from workbench.engine.plan import plan_run
from workbench.methods import METHODS
from workbench.runs import config, store

GOOD = {
    "pipeline": "starter-image-teacher",
    "method": {"name": "best_of_n", "n": 2},
    "reward": "brightness",
    "prompts": ["a red circle", "a blue square"],
}
FOUR_STEPS = {"name": "starter-image-teacher", "steps": 4, "call": {"guidance_scale": 2.0}}


def read(tmp_path, *overrides, **change):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD | change))
    return config.read_run_config(path, overrides)


def test_a_variant_is_its_base_but_for_what_it_says():
    base, changed = pipelines.read_config("starter-video"), pipelines.read_config({"name": "starter-video", "steps": 4})
    assert changed == dataclasses.replace(base, steps=4, name="starter-video {steps: 4}")
    unguided = pipelines.read_config({"name": "starter-video", "call": {"guidance_scale": 1.0}})
    assert unguided.call == base.call | {"guidance_scale": 1.0} == pipelines.read_config("starter-video-unguided").call


def test_a_scheduler_is_replaced_as_a_whole():
    changed = pipelines.read_config(
        {"name": "wan21-14b", "scheduler": {"class": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}}
    )
    assert changed.scheduler == {"class": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def test_a_folder_may_be_changed_too(tmp_path):
    home = str(pipelines.read_config("starter-image-teacher").folder)
    assert pipelines.read_config({"name": home, "steps": 3}).steps == 3


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"name": "flux-dev", "step": 8}, "pipeline flux-dev: unknown key 'step'; did you mean 'steps'"),
        ({"name": "flux-dev", "steps": "many"}, "pipeline flux-dev.steps: expected a whole number"),
        ({"name": "flux-dev", "call": 3}, "pipeline flux-dev.call: expected a mapping"),
        ({"name": "flux-dev", "call": {"num_inference_steps": 3}},
         "call: 'num_inference_steps' is given .* say steps: instead"),
        ({"name": "flux-dve", "steps": 8}, "did you mean 'flux-dev'"),
        ({"steps": 8}, "pipeline: the key 'name' is missing"),
        ({"name": "flux-dev", "class": "AmusedPipeline"}, "can't be aligned here"),
        ("flux-dev {step: 8}", "unknown key 'step'"),
    ],
)  # fmt: skip
def test_a_variant_that_can_not_be_is_one_sentence(source, sentence):
    with pytest.raises(BadInput, match=sentence) as caught:
        pipelines.read_config(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "flux-dev",
        "a/b",
        {"name": "flux-dev", "steps": 8},
        FOUR_STEPS,
        {"name": "x", "text": {"negative_prompt": "{a: b} ü"}},
    ],
)
def test_a_label_reads_back_as_what_it_names(source):
    label = pipelines.pipeline_label(source)
    assert "\n" not in label and variants.current_source(label) == source
    assert pipelines.pipeline_label(label) == label


@pytest.mark.parametrize("name", variants.FORMER)
def test_a_former_name_is_still_read_and_its_new_form_said_once(name, monkeypatch, capsys):
    monkeypatch.setattr(variants, "_ANNOUNCED", set())
    first, second = pipelines.read_config(name), pipelines.read_config(name)
    assert first == second and first.steps == variants.FORMER[name]["steps"]
    assert capsys.readouterr().err.count("\n") == 1
    assert first == pipelines.read_config(variants.FORMER[name])


def test_the_new_form_of_a_former_name_is_said_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(variants, "_ANNOUNCED", set())
    pipelines.read_config("flux-dev-8")
    said = (
        "the pipeline flux-dev-8 is written {name: flux-dev, steps: 8, call: {height: 384, width: 384}} now; "
        "the old name still works\n"
    )
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("pipeline", "overrides"),
    [
        ("starter-image-teacher", ["pipeline.steps=4", "pipeline.call.guidance_scale=2.0"]),
        ({"name": "starter-image-teacher", "steps": 6}, ["pipeline.steps=4", "pipeline.call={guidance_scale: 2.0}"]),
        ("starter-image", ["pipeline={name: starter-image-teacher, steps: 4, call: {guidance_scale: 2.0}}"]),
        (FOUR_STEPS, []),
    ],
)
def test_a_run_changes_its_pipeline_in_the_file_or_by_overrides(tmp_path, pipeline, overrides):
    asked = read(tmp_path, *overrides, pipeline=pipeline)
    assert asked.pipeline == FOUR_STEPS
    plan = plan_run(asked)
    assert {p.steps for p in plan.pipelines.values()} == {4} and plan.denoiser_calls("best_of_n") == 4 * 2 * 2
    assert plan.checks[0].startswith(
        "pipeline starter-image-teacher {steps: 4, call: {guidance_scale: 2.0}}: image, 4 step(s)"
    )


def test_a_contestant_changes_the_pipeline_of_the_run_or_names_another(tmp_path):
    block = {
        "a": "sample",
        "b": {"name": "sample", "pipeline": {"steps": 2}},
        "c": {"name": "sample", "pipeline": FOUR_STEPS},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in GOOD.items() if k != "method"} | {"contestants": block}))
    asked = config.read_run_config(path, ["pipeline.call.guidance_scale=2.5", "contestants.a.pipeline.steps=3"])
    plan = plan_run(asked)
    found = {n: (p.steps, p.call["guidance_scale"]) for n, p in plan.pipelines.items()}
    assert found == {"a": (3, 2.5), "b": (2, 2.5), "c": (4, 2.0)}
    assert list(config.build_methods(asked, METHODS)) == ["a", "b", "c"]


@pytest.mark.parametrize("pipeline", [5, [1], {"steps": 3}, {"name": 3, "steps": 3}])
def test_a_pipeline_that_can_not_be_is_refused_by_the_plan(tmp_path, pipeline):
    with pytest.raises(BadInput, match="pipeline") as caught:
        plan_run(read(tmp_path, pipeline=pipeline))
    assert "\n" not in str(caught.value)


def test_it_is_recorded_goes_on_as_the_same_run_and_makes_the_media_of_the_file_that_says_so(tmp_path, capsys):
    mine = tmp_path / "four.yaml"
    base = yaml.safe_load((CONFIGS / "pipelines" / "starter-image-teacher.yaml").read_text())
    mine.write_text(yaml.safe_dump(base | {"steps": 4, "call": {"guidance_scale": 2.0}}))
    made = []
    for pipeline in (FOUR_STEPS, str(mine)):
        read(tmp_path, pipeline=pipeline, limit=1)
        assert cli.main(["run", str(tmp_path / "mine.yaml"), "--runs", str(tmp_path / "runs"), "--json"]) == 0
        folder = next(
            f for f in store.list_run_folders(tmp_path / "runs") if f.read()["config"]["pipeline"] == pipeline
        )
        pictures = sorted((folder.path / "media").rglob("*.png"))
        made.append([media.read_media(p).data.numpy().tobytes() for p in pictures])
    assert made[0] == made[1] and made[0]
    capsys.readouterr()
    folder = next(f for f in store.list_run_folders(tmp_path / "runs") if f.read()["config"]["pipeline"] == FOUR_STEPS)
    folder.write("run.json", folder.read() | {"status": "stopped"})
    assert folder.matches("mine", dataclasses.asdict(read(tmp_path, "pipeline.steps=4", pipeline=FOUR_STEPS, limit=1)))
    assert not folder.matches(
        "mine", dataclasses.asdict(read(tmp_path, "pipeline.steps=5", pipeline=FOUR_STEPS, limit=1))
    )
    label = "starter-image-teacher {steps: 4, call: {guidance_scale: 2.0}}"
    assert {c["pipeline"] for c in folder.read("summary.json")["contestants"]} == {label}
    assert json.loads((folder.path / "run.json").read_text())["config"]["pipeline"] == FOUR_STEPS
    with store.open_index(tmp_path / "runs") as db:
        assert label in {row["pipeline"] for row in db.execute("SELECT pipeline FROM runs")}
    assert "best_of_n" in store.seconds_per_call(tmp_path / "runs", label)


def test_what_is_trained_on_a_variant_is_exported_with_it(tmp_path):
    from train_fixtures import folder_of, go, planned

    (tmp_path / "runs").mkdir()
    plan = planned(tmp_path, train={"rounds": 1, "eval_every": 0}, test=None)
    changed = config.current_config(dataclasses.asdict(plan.config), announce=False)
    changed["pipeline"] = {"name": plan.config.pipeline, "steps": 2, "call": {"guidance_scale": 1.5}}
    plan = plan_run(config.build_dataclass(config.RunConfig, changed, "test"))
    folder = folder_of(plan, tmp_path / "runs")
    go(plan, folder)
    exported = pipelines.read_config(folder.path)
    assert (exported.steps, exported.call) == (2, {"guidance_scale": 1.5}) and exported.lora
    assert "aligned by nft" in (folder.path / "export" / "README.md").read_text()
    further = pipelines.read_config({"name": str(folder.path), "steps": 3})
    assert (further.steps, further.lora) == (3, exported.lora)
