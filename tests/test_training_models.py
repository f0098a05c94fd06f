"""The methods' own first update, and merged adapters, on eight pipeline classes that are being trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from test_training_policy import NAMES
from tiny import PROMPTS, SEEDS
from tiny_trained import SD, nudge, trainable

from pipelines import DistributedPolicy, FlowSDE, Lora
from pipelines.adapters import lora_layers
from workbench.core.types import Batch, RewardSpec
from workbench.methods import GRPO, HyperNoise
from workbench.training import monitoring


class Level:
    """Mean of the media, whatever they are."""

    spec = RewardSpec("level", "1", frozenset({"image", "video", "audio"}), differentiable=True)

    def __call__(self, *, media, prompts, references=None):
        return media.data.flatten(1).mean(1)


@pytest.fixture(scope="module", params=NAMES)
def policy(request):
    policy = trainable(request.param)
    nudge(policy)
    return policy


def test_grpos_first_update_has_log_ratios_of_exactly_zero_and_the_second_has_not(policy):
    """By the raw ratio and by Guard's, of the recorded chain. Control: after an update the same chain is less or more
    likely."""
    for ratio in ("raw", "guard"):
        (event,) = GRPO(group=2, ratio=ratio, lr=1e-4)(policy, Level(), [Batch(PROMPTS[:1], SEEDS[:1])])
        assert event.metrics["log_ratio"] == 0.0 and event.metrics["clipped"] == 0.0 and event.metrics["grad_norm"] > 0
    (event,) = GRPO(group=2, optimizer_steps=2, lr=1e-3)(policy, Level(), [Batch(PROMPTS[:1], SEEDS[:1])])
    assert event.metrics["log_ratio"] > 0


def test_steps_that_are_not_scored_as_they_were_drawn_stop_a_training_before_its_first_round():
    policy = trainable(SD)
    nudge(policy)
    assert monitoring.check_replay(policy, PROMPTS) == 0.0
    sample = policy.sample

    def forged(*args, **settings):
        path = sample(*args, **settings)
        return replace(path, log_prob=path.log_prob + 0.01)

    policy.sample = forged
    with pytest.raises(monitoring.TrainingHalted, match="not scored as they were drawn"):
        monitoring.check_replay(policy, PROMPTS)


def test_merged_adapters_sample_the_same_but_for_rounding_and_leave_no_trace(policy):
    """Its own samples, those of a copy, and the weights to the last bit. Control: without adapters the samples are
    others."""
    policy.kernel, kernel = None, policy.kernel
    weights = {
        name: layer.get_base_layer().weight
        for m in policy.adapters.denoisers.values()
        for name, layer in lora_layers(m).items()
    }
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    policy.take_copy("old")
    nudge(policy, 0.1, seed=3)
    sample = lambda: policy.sample(PROMPTS, seeds=SEEDS).x  # noqa: E731
    live, merged, copied = sample(), {}, {}
    with policy.reference():
        base = sample()
    for name, found in (("train", merged), ("old", copied)):
        with policy.use(name):
            found["beside"] = sample()
            with policy.merged():
                found["merged"] = sample()
    for found in (merged, copied):
        away = (found["beside"] - base).abs().max()
        assert (found["merged"] - found["beside"]).abs().max() < 1e-3 * away and away > 0
    assert torch.equal(sample(), live) and all(torch.equal(before[name], weight) for name, weight in weights.items())
    assert all(p.requires_grad for p in policy.adapters.parameters)
    policy.kernel = kernel


def test_merged_weights_are_neither_swapped_nor_switched_off_and_half_precision_ones_stay_apart():
    policy = trainable(SD)
    with pytest.raises(RuntimeError, match="can't be switched off"), policy.merged(), policy.reference():
        pass
    policy.take_copy("old")
    with pytest.raises(RuntimeError, match="can't be swapped"), policy.merged(), policy.use("old"):
        pass
    half = trainable(SD, tiny.build(SD).to(torch.bfloat16))
    nudge(half)
    before = half.sample(PROMPTS, seeds=SEEDS).x
    with half.merged():
        assert torch.equal(half.sample(PROMPTS, seeds=SEEDS).x, before)


def test_a_chain_that_was_drawn_with_merged_adapters_would_not_be_scored_as_it_was_drawn():
    """Why methods that compare densities don't: it is close to 0, and not 0."""
    policy = trainable("FluxPipeline", kernel=FlowSDE())
    nudge(policy)
    with policy.merged():
        path = policy.sample(PROMPTS, seeds=SEEDS)
    i = path.stochastic[0]
    ratio = policy.transition(path.x[:, i], i, PROMPTS).log_prob(path.x[:, i + 1]) - path.log_prob[:, i]
    assert 0 < ratio.detach().abs().max() < 1e-3


def test_hypernoise_a_row_at_a_time_learns_what_it_learns_at_once():
    found = []
    for micro in (0, 1):
        policy = trainable(SD, kernel=None, lora=Lora(rank=2, alpha=4.0, targets="all"))
        nudge(policy, 0.1)
        list(HyperNoise(lr=1e-2)(DistributedPolicy(policy, micro), Level(), [Batch(PROMPTS, SEEDS)]))
        found.append(torch.cat([p.detach().flatten() for p in policy.adapters.parameters]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)
