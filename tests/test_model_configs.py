"""The papers' settings for real models: each read as it stands, and one update of it on a tiny pipeline of the same
class."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import tiny_trained
import torch
import yaml

import pipelines
from pipelines import Lora, transitions
from rewards import REWARDS, build_reward, compose
from workbench.core.paths import CONFIGS
from workbench.core.schema import build_dataclass
from workbench.core.types import Batch, Media, PairBatch, RewardSpec
from workbench.methods import METHODS
from workbench.methods.training.rpo import RPO
from workbench.runs import config, preference_data, train_config

PLACE = CONFIGS / "runs" / "train"
NAMES = sorted(p.stem for p in PLACE.glob("*.yaml"))
PROMPTS = ("a red cat", "two dogs")
SHORT = 4  # steps; SRPO and AlignProp choose among them


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    """Judges are asked nothing here, so their servers need not be there."""
    monkeypatch.setattr("rewards.vlm.judge.Judge.check", lambda self: None)


def read(name: str):
    """The run, its method, its recipe and its pairs, each checked as a run's are."""
    values = yaml.safe_load((PLACE / f"{name}.yaml").read_text())
    run = build_dataclass(config.RunConfig, values | {"name": name}, name)
    settings = dict(run.method)
    method = build_dataclass(METHODS[settings.pop("name")], settings, "method")
    given = dict(run.reward) if isinstance(run.reward, dict) else run.reward
    if (
        isinstance(given, dict) and "image" in given
    ):  # a folder that is not here; the same reward asked for its references
        given["image"] = {k: v for k, v in given["image"].items() if k != "reference"}
    judged = build_reward(given, REWARDS)
    watch = build_reward(run.watch, REWARDS, "watch")
    told = train_config.read_train_config(run.train, {name: method}, list(watch.rewards), list(judged.rewards))
    return run, method, told, judged, run.pairs and build_dataclass(preference_data.PreferencePairs, run.pairs, "pairs")


class Light:
    """Brightness under another name, with a gradient, of pictures and clips."""

    spec = RewardSpec("light", "1", frozenset({"image", "video"}), differentiable=True)

    def __init__(self, slope: float):
        self.slope = slope

    def __call__(self, *, media, prompts, references=None):
        return self.slope * media.data.flatten(1).mean(1) + media.data.flatten(1)[:, 0]


def tiny_policy(run, told):
    """The run's pipeline with its kernel, guidance and frames, at a tiny one's size and in a few steps."""
    c = pipelines.read_config(run.pipeline)
    changes, spec = train_config.policy_overrides(told), tiny.TINY[c.pipeline]
    asked = {**c.call, **changes.get("call", {})}
    kept = {k: v for k, v in asked.items() if "guidance" in k or k == "cfg" or k in ("eta", "num_frames")}
    call = {**spec.call, **kept} | ({"num_frames": min(kept["num_frames"], 5)} if "num_frames" in kept else {})
    if "guidance_scale_2" in call:  # the tiny one has a single expert
        call.pop("guidance_scale_2")
    kernel = transitions.make_kernel(**changes["kernel"]) if changes.get("kernel") else None
    lora = Lora(rank=2, alpha=4.0, targets=train_config.lora_config(told).targets)
    steps = 1 if c.steps == 1 else SHORT
    text = spec.text if c.text else {}
    return tiny_trained.trainable(
        c.pipeline, lora=lora, kernel=kernel, call=call, steps=steps, text=text, clip=told.max_grad_norm
    )


def shortened(method):
    """Fewer samples of a prompt, and a window that fits in a short chain."""
    fewer = {"group": 2} if method.group > 2 else {}
    fewer |= {"window_size": min(method.window_size, 2)} if "window_size" in vars(method) else {}
    fewer |= {"samples_per_prompt": 1, "validate_every": 0} if isinstance(method, RPO) else {}
    return replace(method, **fewer)


def test_the_models_that_the_field_trains_are_all_here():
    repos = {pipelines.read_config(read(name)[0].pipeline).repo for name in NAMES}
    words = ("v1-5", "xl-base", "3.5-medium", "FLUX.1-dev", "Qwen-Image", "Z-Image", "Wan2.1", "Wan2.2")
    assert all(any(word in repo for repo in repos) for word in words)


@pytest.mark.parametrize("name", NAMES)
def test_one_update_on_a_tiny_pipeline_with_the_settings_of(name):
    run, method, told, judged, pairs = read(name)
    assert method.needs - {"reward", "trainable", "differentiable"} <= pipelines.read_config(run.pipeline).provides
    assert judged.spec.differentiable or "differentiable" not in method.needs
    policy, method = tiny_policy(run, told), shortened(method)
    if isinstance(method, RPO):
        method = replace(method, references=Media(torch.rand(2, *policy.size), "image"))
    parts = {n: 1.0 for n in judged.rewards}
    reward = compose.WeightedReward({Light(k + 1.0): w for k, w in enumerate(parts.values())}, list(parts))
    batch = Batch(PROMPTS, (11, 12))
    if pairs is not None:
        assert method.learns_from_pairs
        light, dark = (
            Media(torch.rand(2, *policy.size) * 0.5 + low, policy.modality, policy.rate) for low in (0.5, 0.0)
        )
        batch = PairBatch(*vars(batch).values(), light, dark)
    before = policy.adapters.content_hash()
    (event,) = method(policy, reward, [batch])
    assert event.metrics["grad_norm"] > 0 and all(v == v for v in event.metrics.values())
    assert policy.adapters.content_hash() != before and policy.updates >= 1
