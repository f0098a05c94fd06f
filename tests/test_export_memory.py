"""An export finds room where the policy was trained: what was trained makes way for the pipelines that it is compared
with."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import tiny
import torch
import train_fixtures as small_run
import yaml
from elsewhere import GPU, elsewhere
from safetensors.torch import load_file
from test_sharding import FREE, build
from tiny_trained import SD, SMALL, nudge, trainable

from pipelines import ExportMismatch, Lora, export_policy
from pipelines.trainable_policy import TrainablePolicy
from workbench.training import trainer

WHOLE = Lora(targets="weights")
FLUX = "FluxPipeline"  # whose modules refer to each other: what is let go of is not gone at once


def trained(pipe, lora, device="cpu", name=SD):
    policy = trainable(name, copy.deepcopy(pipe).to(device), kernel=None, lora=lora, source=None)
    policy.source = lambda parts: copy.deepcopy(pipe).to(device)
    policy.take_copy("old")
    nudge(policy, 0.01)
    policy.take_copy("ema")
    return policy


def places(policy):
    """Where the weights of a policy's denoisers and the copies of them are."""
    values = [t for module in policy.adapters.denoisers.values() for t in (*module.parameters(), *module.buffers())]
    values += [
        *policy.adapters.parameters,
        *(v for previous in policy.adapters.copies.values() for v in previous.values()),
    ]
    return {value.device.type for value in values}


def files(folder):
    return {p.relative_to(folder): load_file(p) for p in folder.rglob("*.safetensors")}


@pytest.mark.parametrize(("name", "lora"), [(SD, SMALL), (SD, WHOLE), (FLUX, SMALL)])
def test_what_was_trained_is_on_the_cpu_while_the_fresh_pipeline_is_loaded(tmp_path, monkeypatch, name, lora):
    pipe = build(SD) if name == SD else tiny.build(name)
    export_policy(trained(pipe, lora, name=name), tmp_path / "here", name="ema", merged=True)
    observed, loaded, fresh = [], [], TrainablePolicy.load_base

    def looked(policy):
        observed.append((places(policy), [name for name, part in loaded if part() is not None]))
        outputs = fresh(policy)
        loaded.extend((name, weakref.ref(getattr(outputs, name))) for name in policy.adapters.denoisers)
        return outputs

    monkeypatch.setattr(TrainablePolicy, "load_base", looked)
    with elsewhere():
        policy = trained(pipe, lora, GPU, name)
        before = policy.adapters.content_hash()
        export_policy(policy, tmp_path / "there", name="ema", merged=True)
        assert places(policy) == {GPU.type} and policy.adapters.content_hash() == before, "it is back where it was"
        assert policy.sample(("a cat",), seeds=(0,)).media.data.device == GPU
    assert observed == [({"cpu"}, [])] * (2 if lora is SMALL else 1), "and of fresh ones there is one at a time"
    on_cpu, on_device = files(tmp_path / "here"), files(tmp_path / "there")
    assert on_cpu.keys() == on_device.keys() and len(on_cpu) >= 1
    for path, tensors in on_cpu.items():
        assert all(torch.equal(value, on_device[path][key]) for key, value in tensors.items()), path


def test_a_policy_that_can_only_be_copied_is_compared_on_its_device(pipe, tmp_path):
    with elsewhere():
        policy = trained(pipe, SMALL, GPU)
        policy.source = None
        assert export_policy(policy, tmp_path / "lora").effect > 0
        assert places(policy) == {GPU.type}


def test_an_export_that_fails_leaves_the_policy_where_it_was_and_says_why(pipe, tmp_path):
    with elsewhere():
        policy = trained(pipe, SMALL, GPU)
        policy.source = lambda parts: tiny.build(SD, seed=3).to(GPU)  # another base
        with pytest.raises(ExportMismatch, match="predict otherwise than the policy"):
            export_policy(policy, tmp_path / "lora")
        assert places(policy) == {GPU.type} and list(tmp_path.iterdir()) == []


def test_a_training_on_a_device_lets_go_of_its_optimiser_and_copies_before_it_exports(tmp_path, monkeypatch):
    """And comes to its end there, in a GPU's precision."""
    outputs, real = [], trainer.pipelines.export_policy

    def exporting(policy, *args, **settings):
        gc.collect()
        assert policy._optimizer is None and all(optimizer() is None for optimizer in outputs)
        assert all(p.grad is None for p in policy.adapters.parameters) and set(policy.adapters.copies) == {"ema"}
        return real(policy, *args, **settings)

    def optimizer(policy, *args, **settings):
        results = pipelines_built(policy, *args, **settings)
        outputs.append(weakref.ref(results))
        return results

    pipelines_built = TrainablePolicy.optimizer
    monkeypatch.setattr(TrainablePolicy, "optimizer", optimizer)
    monkeypatch.setattr(trainer.pipelines, "export_policy", exporting)
    train = {"rounds": 1, "eval_every": 0, "eval_prompts": 1, "ema": 0.5}
    build(SD).save_pretrained(tmp_path / "one", safe_serialization=True)
    pipeline = {"class": SD, "repo": str(tmp_path / "one"), "steps": 2, "call": tiny.TINY[SD].call | FREE}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(pipeline))
    asked = {"pipeline": str(tmp_path / "one.yaml"), "reward": "contrast", "watch": [], "limit": 1, "train": train}
    with elsewhere():
        plan = small_run.planned(tmp_path, device=GPU.type, dtype="bf16", **asked)
        folder = small_run.folder_of(plan, tmp_path / "runs")
        assert not [p.failed for p in small_run.go(plan, folder) if p.failed]
    assert outputs and small_run.weights(folder)
