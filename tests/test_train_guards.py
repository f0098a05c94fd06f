"""What refuses, stops or mends a training: before anything loads, at the first samples, and on the way."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import train_fixtures as tiny
import yaml
from train_fixtures import NFT, folder_of, go, planned, told

import pipelines
from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.types import Event
from workbench.runs.training_sizes import compare_sizes, export_warnings
from workbench.training import monitoring, training_runs
from workbench.training.training_warnings import SAMPLES_ALIKE, SAMPLES_UNJUDGED, TeachingRecord


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("guards")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": NFT | {"group": 1}}, "one sample a prompt"),
        ({"train": {"updats": 3}}, "did you mean 'rounds'"),
        ({"train": {"lora": {"rnk": 3}}}, "did you mean 'rank'"),
        ({"train": {"policy": {"kernl": {}}}}, "did you mean 'kernel'"),
        ({"train": {"report_to": ["tensorbord"]}}, "did you mean 'tensorboard'"),
        ({"train": {"best": "oracl"}}, "did you mean 'oracle'"),
        ({"train": {"accumulate": 2}, "method": NFT | {"optimizer_steps": 2}}, "can't gather into one"),
        ({"reward": "oracle", "watch": None, "method": "draft"}, "oracle has no gradient"),
        ({"budget": {"nfe": 10}}, "a training is bounded by"),
        ({"method": "reno"}, "no contestant of this run is trained"),
        (
            {"contestants": {"base": "sample", "nft": NFT | {"lora": "missing.safetensors"}}, "method": None},
            "no such file",
        ),
    ],
)
def test_a_training_that_cannot_work_is_refused_in_a_sentence_before_weights_load(home, change, sentence):
    with pytest.raises(BadInput, match=sentence) as error:
        planned(home, **change)
    assert "\n" not in str(error.value)


def event(scores=(0.1, 0.2), **metrics):
    return Event(0, {"grad_norm": 1.0, **metrics}, scores={"reward": torch.tensor(scores)})


class Weights:
    def __init__(self, *values, overflows=0):
        self.adapters, self.overflows = self, overflows
        self.parameters = [torch.tensor(values)]


def test_a_reward_that_cannot_tell_any_samples_apart_stops_with_a_sentence(home, tmp_path, capsys):
    record = TeachingRecord(planned=9)
    for _ in range(SAMPLES_UNJUDGED // 8):
        record.check_differences()
        record.count(event(scores=(float("nan"),) * 8))
    with pytest.raises(BadInput, match=f"none of the first {SAMPLES_UNJUDGED} samples could be judged"):
        record.check_differences()
    path = tmp_path / "flat.yaml"
    flat = {"reward": {"starter_clip": {"within": [5.0, 6.0]}}, "method": NFT}
    path.write_text(yaml.safe_dump(tiny.asked(home, **flat, train={"rounds": 2, "eval_every": 0})))
    assert cli.main(["run", str(path), "--runs", str(tmp_path / "runs")]) == 2
    assert "all 8 samples of the first 2 rounds score 5, so there is nothing" in capsys.readouterr().err


def test_a_reward_that_is_rarely_given_is_refused_only_after_many_samples():
    """One hit among hundreds is enough; without one, the training ends at a bound."""
    for hit, seen in ((5, None), (None, SAMPLES_ALIKE // 4)):
        record, refused = TeachingRecord(planned=99), None
        for k in range(90):
            record.count(event(scores=(0.0, 0.0, float(k == hit), 0.0)))
            assert bool(record.first_round_note) == (k == 0)
            try:
                record.check_differences()
            except BadInput:
                refused = k + 1
                break
        assert refused == seen
    scarce = TeachingRecord(planned=2)
    scarce.count(event(scores=(0.0, 0.0)))
    scarce.check_differences()
    with pytest.raises(BadInput, match="nothing to learn from"):
        scarce.check_differences(at_end=True)


def test_a_log_ratio_that_is_not_zero_before_the_first_update_stops():
    monitoring.check_first_log_ratio(event(log_ratio=0.0), train_method(1))
    monitoring.check_first_log_ratio(event(log_ratio=1e-3), train_method(2))  # of its second update
    with pytest.raises(monitoring.TrainingHalted, match="before the first update"):
        monitoring.check_first_log_ratio(event(log_ratio=1e-9), train_method(1))


def train_method(updates):
    from workbench.methods.training.grpo import GRPO

    return GRPO(optimizer_steps=updates)


def test_what_is_not_a_number_stops_the_training():
    monitoring.check_finite(Weights(1.0, 2.0), has_loss_scaler=False)
    with pytest.raises(monitoring.TrainingHalted, match="gradient was not finite"):
        monitoring.check_finite(Weights(1.0, 2.0, overflows=1), has_loss_scaler=False)
    monitoring.check_finite(
        Weights(1.0, 2.0, overflows=monitoring.PATIENCE), has_loss_scaler=True
    )  # a loss scaler finds its scale
    with pytest.raises(monitoring.TrainingHalted):
        monitoring.check_finite(Weights(1.0, 2.0, overflows=monitoring.PATIENCE + 1), has_loss_scaler=True)
    with pytest.raises(monitoring.TrainingHalted, match="weight is not finite"):
        monitoring.check_finite(Weights(1.0, float("inf")), has_loss_scaler=False)


def test_a_gradient_that_is_not_finite_ends_in_a_failure_with_the_last_good_checkpoint_kept(home, tmp_path):
    plan = planned(home, train={"rounds": 2, "eval_every": 0})
    folder = folder_of(plan, tmp_path)

    def load(*args, **settings):
        policy = pipelines.load(*args, **settings)
        if "train" in settings:
            backward = policy.backward
            policy.backward = lambda loss: backward(loss * (float("nan") if policy.updates == 1 else 1.0))
        return policy

    said = go(plan, folder, load=load)
    assert any("gradient was not finite" in p.failed for p in said) and folder.read()["status"] == "failed"
    update, state, _ = training_runs.checkpoint_store(plan, folder, "nft").load_newest()
    assert update == 1 and all(v.isfinite().all() for v in state["policy"]["adapters"]["train"].values())
    go(plan, folder)  # the cause is gone: it goes on from there
    assert folder.read()["status"] == "done"


def test_the_alarm_stops_a_training_that_was_told_to_listen_and_what_rang_is_not_exported(home, tmp_path, monkeypatch):
    looks = []
    real = monitoring.compare_to_base

    def verdict(plan, name, base, now):
        looks.append(base is now)
        return (real(plan, name, base, now)[0], "it hacks." if len(looks) == 3 else None)

    monkeypatch.setattr(monitoring, "compare_to_base", verdict)
    plan = planned(home, train={"on_alarm": "stop", "eval_every": 1})
    folder = folder_of(plan, tmp_path)
    said = go(plan, folder)
    done = training_runs.checkpoint_store(plan, folder, "nft").finished_record
    assert looks == [True, False, False] and done["updates"] == 2 and "it hacks" in done["ended"] and done["alarm"]
    assert done["best"] == 1 and done["distance"] > 0, "of the last weights, as `best` says, before it rang"
    assert "after round 1." in (folder.path / "export" / "README.md").read_text()
    assert any(p.phase == "message" and "alarm" in p.note for p in said)
    training_runs.rewind_run(plan, folder)  # which forgets nothing that is on a checkpoint
    assert [e for e in folder.events() if "alarm" in e] == [{"contestant": "nft", "step": 2, "alarm": "it hacks."}]


def test_minutes_end_a_training_and_what_there_is_is_exported(home, tmp_path):
    plan = planned(home, train={"minutes": 1e-4, "eval_every": 0})
    folder = folder_of(plan, tmp_path)
    go(plan, folder)
    done = training_runs.checkpoint_store(plan, folder, "nft").finished_record
    assert done["updates"] == done["best"] == 1 and "minutes" in done["ended"] and folder.read()["status"] == "done"
    assert [w["step"] for w in told(folder, "watch")] == [0, 1], "looked at once more at the end"


def test_a_full_gpu_halves_the_rows_and_goes_on_from_the_newest_checkpoint(home, tmp_path):
    """Simulated: the denoiser refuses more than a row at once while gradients are asked for."""
    plan = planned(home, train={"rounds": 1, "eval_every": 0})
    whole, folder = folder_of(plan, tmp_path / "whole"), folder_of(plan, tmp_path / "narrow")
    go(plan, whole)

    def load(*args, **settings):
        policy = pipelines.load(*args, **settings)
        if "train" in settings:
            predict = policy.predict

            def narrow(x, *rest):
                if torch.is_grad_enabled() and len(x) > 1:
                    raise torch.OutOfMemoryError("full")
                return predict(x, *rest)

            policy.predict = narrow
        return policy

    said = go(plan, folder, load=load)
    assert [p.note for p in said if "out of memory" in p.note] == [
        f"out of memory: {n} rows at once from here, recomputing activations" for n in (4, 2, 1)
    ]
    ours, theirs = told(folder, "train"), told(whole, "train")
    assert all(a["reward"] == pytest.approx(b["reward"], abs=1e-3) for a, b in zip(ours, theirs, strict=True))
    assert training_runs.checkpoint_store(plan, folder, "nft").finished_record["micro"] == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": {"name": "grpo", "group": 2}}, "grpo: no step of the sampler is random.*kernel: {name: flow-sde}"),
        ({"method": {"name": "prdp", "group": 2}}, "prdp: no step of the sampler is random"),
        ({"method": {"name": "d3po", "group": 2}}, "d3po: no step of the sampler is random"),
        (
            {"method": {"name": "parrot", "group": 2, "window": "fast"}},
            "parrot chooses between rewards and was given one",
        ),
        ({"method": "hypernoise", "train": {"rounds": 1}}, "targets: all"),
        (
            {"method": "hypernoise", "train": {"rounds": 1, "lora": {"targets": "weights"}}},
            "a LoRA adds.*targets: all",
        ),
        ({"train": {"rounds": 1, "policy": {"kernel": {"name": "flow-sda"}}}}, "flow-sda"),
        ({"train": {"rounds": 1, "policy": {"call": {"prompt": "a cat"}}}}, "prompt"),
        ({"dtype": "bf16", "train": {"rounds": 1, "lora": {"targets": "weights"}}}, "trained in float32"),
    ],
)
def test_what_a_method_cannot_work_with_is_said_before_anything_loads(home, change, sentence, monkeypatch):
    monkeypatch.setattr(pipelines, "load", None)
    with pytest.raises(BadInput, match=sentence):
        planned(home, **change)


def test_what_a_full_gpu_undoes_leaves_nothing_behind(home, tmp_path):
    """Gradients of the round that did not fit, moments, the average, lines of the log: all are those of the
    checkpoint."""
    plan = planned(home, train={"rounds": 3, "eval_every": 0, "save_every": 1, "ema": 0.5})

    def load(*args, **settings):
        policy = pipelines.load(*args, **settings)
        if "train" in settings:
            step, full = policy.update, []

            def update():
                if policy.updates == 2 and not full:
                    full.append(True)
                    raise torch.OutOfMemoryError("full")  # with all gradients of the round there
                return step()

            policy.update = update
        return policy

    kept = {}
    for name, loader in (("calm", pipelines.load), ("full", load)):
        folder = folder_of(plan, tmp_path / name)
        said = go(plan, folder, load=loader)
        assert any("out of memory" in p.note for p in said) == (name == "full")
        assert [e["step"] for e in folder.events() if e.get("phase") == "train"] == [1, 2, 3]
        kept[name] = training_runs.checkpoint_store(plan, folder, "nft").load_newest()[1]["policy"]["adapters"]
    for copy_of in ("train", "ema"):
        calm, full = (torch.cat([v.flatten() for v in kept[name][copy_of].values()]) for name in ("calm", "full"))
        assert (calm - full).norm() < 0.02 * (
            calm - torch.cat([v.flatten() for v in kept["calm"]["old"].values()])
        ).norm()


def test_a_training_at_another_size_than_it_is_judged_at_is_a_warning_of_the_plan(tmp_path):
    call = {"height": 32, "width": 64}
    warned = planned(tmp_path, train={"policy": {"call": call | {"guidance_scale": 2.0}}})
    (line,) = [line for line in warned.checks if "another size" in line]
    assert line.startswith("warning: contestant nft") and line.endswith(
        "height 32 against its default, width 64 against its default"
    )
    assert not [line for line in planned(tmp_path).checks if "another size" in line]
    assert compare_sizes({"steps": 4, "call": {"num_frames": 5}}, {"steps": 8, "call": {"num_frames": 9}}) == [
        "steps 4 against 8",
        "num_frames 5 against 9",
    ]
    pipeline = next(iter(warned.pipelines.values()))
    (tmp_path / "export.json").write_text(
        json.dumps({"pipeline": dataclasses.asdict(dataclasses.replace(pipeline, steps=8)), "parts": {}})
    )
    exported = dataclasses.replace(pipeline, lora=str(tmp_path))
    (line,) = export_warnings({"nft": exported, "base": pipeline})
    assert line.endswith("steps 8 against 3")
