"""Every method that trains, on music and on video as on pictures: one update of a tiny pipeline of each, with no code
of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from tiny import SEEDS
from tiny_trained import nudge, trainable

from pipelines import FlowSDE, Lora
from rewards.compose import WeightedReward
from workbench.core.types import Batch, Media, PairBatch, RewardSpec
from workbench.methods import METHODS, trains_weights

PIPELINES = {"music": "LongCatAudioDiTPipeline", "video": "WanPipeline"}
PROMPTS = ("red cats", "two dogs")
CHAINS = ("grpo", "ddpo", "d3po", "prdp", "parrot")  # these score the steps that they drew: they need a kernel
TWO = {name: dict(group=2) for name in ("grpo", "d3po", "nft", "awm", "crd", "dgpo", "dpo", "kto", "rwr", "dragon")}
SETTINGS: dict[str, dict] = {
    **TWO,
    "d3po": dict(group=2, clip_range=100.0),  # a nudged policy is far from the one before it
    "kto": dict(group=2, beta=1.0),
    "kto:pairs": dict(beta=1.0),
    "dragon": dict(group=2, beta=1.0),
    "grpo:mix": dict(group=2, window="mix", window_size=1, window_interval=1),
    "prdp": dict(group=2, optimizer_steps=1),
    "parrot": dict(group=4),
    "raft": dict(group=2, keep_best=1),
    "align_prop": dict(grad_steps=2, grad_steps_std=0.0),
    "refl": dict(reward_threshold=math.inf),
    "srpo": dict(reward_threshold=math.inf),
    "rpo": dict(samples_per_prompt=1, validate_every=0),
}
CASES = sorted(
    {*(name for name, cls in METHODS.items() if "trainable" in cls.needs), *SETTINGS, "dpo:pairs", "kto:pairs"}
)


class Slope:
    """How far media lean one way of many, more for prompts that begin with `word`."""

    spec = RewardSpec("slope", "1", frozenset({"audio", "video"}), differentiable=True)

    def __init__(self, seed: int, word: str = "Natural"):
        self.seed, self.word = seed, word

    def __call__(self, *, media, prompts, references=None):
        x = media.data.flatten(1)
        way = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(self.seed))
        return (x @ way / x.shape[1] ** 0.5) * torch.tensor([2.0 if p.startswith(self.word) else 1.0 for p in prompts])


class Examples:
    """Two media for each prompt, a good and a bad one."""

    axes = ("one", "other")

    def __init__(self, media: Sequence[Media]):
        self.media = media

    def list_prompts(self):
        return [*PROMPTS]

    def count(self, prompt):
        return len(self.media)

    def name(self, prompt, n):
        return f"{prompt} {n}"

    def scores(self, prompt, n):
        return {"one": 5.0 * n, "other": 2.5}

    def read(self, prompt, n, size):
        return self.media[n][PROMPTS.index(prompt)]


def lesson(name: str, policy):
    """The method and its batch."""
    settings, method = dict(SETTINGS.get(name, {})), METHODS[name.partition(":")[0]]
    batch = Batch(PROMPTS, SEEDS)
    some = [Media(torch.rand(2, *policy.size) * 0.8, policy.modality, policy.rate) for _ in range(2)]
    if name == "rpo":
        settings["references"] = some[0]
    if name == "reward_condition":
        settings["examples"] = Examples(some)
    return method(**settings), PairBatch(PROMPTS, SEEDS, *some) if name.endswith(":pairs") else batch


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", PIPELINES)
def test_a_method_moves_a_pipeline_of_sounds_or_clips_by_one_update(kind, name):
    kernel = FlowSDE() if name.partition(":")[0] in CHAINS else None
    lora = Lora(rank=2, alpha=4.0, targets="all" if name == "hypernoise" else "attention")
    axes = Examples.axes if name == "reward_condition" else ()
    policy = trainable(PIPELINES[kind], kernel=kernel, lora=lora, steps=4 if name == "srpo" else 2, axes=axes)
    nudge(policy, 0.1)
    method, batch = lesson(name, policy)
    assert trains_weights(method) and method.needs - {"reward", "differentiable"} <= policy.provides
    before = policy.adapters.content_hash()
    reward = WeightedReward({Slope(0): 1.0, Slope(1): 1.0}, ["one", "other"])
    (event,) = method(policy, reward, [batch])
    assert event.metrics["grad_norm"] > 0 and all(map(math.isfinite, event.metrics.values()))
    assert policy.updates >= 1 and policy.adapters.content_hash() != before
    assert all(p.isfinite().all() for p in policy.adapters.parameters)
    if event.media is not None:
        assert event.media.modality == policy.modality and event.media.rate == policy.rate
    if name in ("grpo", "parrot"):
        assert event.metrics["log_ratio"] == 0, "scored as drawn"
