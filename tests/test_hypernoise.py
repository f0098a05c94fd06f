"""HyperNoise: a network that starts as nothing, learns what ReNO would do, and leaves the generator as it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import tiny_trained
import torch
from mixture_policy import Value
from tiny_trained import trainable
from trainable_policy import TrainableMixture
from training_toys import Unsure

from pipelines import Lora, export_policy
from rewards import build
from workbench.core.errors import BadInput
from workbench.core.types import Batch
from workbench.methods.training.hypernoise import Corrected, HyperNoise

NAMES = [
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "SanaSprintPipeline",
]
PROMPTS, SEEDS = ("a red cat", "two dogs"), (11, 12)
BATCH = Batch(PROMPTS, SEEDS)


class Moved(TrainableMixture):
    """f(z) = theta_0 + theta_1 z; the generator has no weights of its own."""

    def noise_correction(self, noise, prompts):
        return (self.theta[0] + self.theta[1] * noise).float()

    def _posterior_mean(self, x, i, log_weights):
        current, self.now = self.now, self.before
        try:
            return super()._posterior_mean(x, i, log_weights)
        finally:
            self.now = current


def toy(theta=(0.0, 0.0), adam=False):
    """Data N(0, 1/4) in one step, which takes noise to 0: with two, x(z) is linear in z."""
    policy = Moved((0.0,), (0.5,), (1.0,), steps=2, adam=adam)
    policy.theta.data.copy_(torch.tensor(theta))
    return policy


def slope(policy) -> float:
    """dx / dz of the generator."""
    with torch.no_grad():
        ends = [policy.sample([""], seeds=[0], noise=torch.full((1, 1, 1, 1), v)).x[0, -1].item() for v in (0.0, 1.0)]
    return ends[1] - ends[0]


def test_one_update_is_the_chain_rule_by_hand():
    policy = toy((0.3, -0.2))
    (event,) = HyperNoise(kl=0.7, lr=0.0)(policy, Value(2.0), [BATCH])
    z, by = policy.noise(SEEDS).numpy().ravel().astype(float), 2.0 * slope(policy)
    f = 0.3 - 0.2 * z
    hand = [np.mean(0.7 * 2 * f - by), np.mean((0.7 * 2 * f - by) * z)]
    np.testing.assert_allclose(policy.grads[0], hand, rtol=1e-5)
    assert event.metrics["correction"] == pytest.approx(math.sqrt(np.mean(f**2)), rel=1e-5)
    assert policy.nfe - 2 * policy.steps == 2 * policy.steps  # the generator's calls; the toy's correction has none


def test_it_ends_at_the_shift_that_reward_and_divergence_agree_on():
    """For a reward linear in the noise the best correction is one number, reward's slope / (2 kl), and no factor
    of z."""
    policy = toy(adam=True)
    batches = [Batch(("x",) * 32, tuple(range(32 * k, 32 * k + 32))) for k in range(150)]
    list(HyperNoise(kl=0.5, lr=0.02)(policy, Value(1.0), batches))
    assert policy.theta[0].item() == pytest.approx(slope(policy), abs=0.02)
    assert abs(policy.theta[1].item()) < 0.02


def test_samples_gain_and_with_the_reward_negated_lose():
    gains = {}
    for sign in (1.0, -1.0):
        policy, method = toy(adam=True), HyperNoise(kl=0.1, lr=0.05)
        list(method(policy, Value(sign), [Batch(("x",) * 8, tuple(range(8 * k, 8 * k + 8))) for k in range(20)]))
        base = policy.sample([""] * 32, seeds=range(32)).x[:, -1].mean()
        gains[sign] = (Corrected().sample_corrected(policy, [""] * 32, range(32)).x[:, -1].mean() - base).item()
    assert gains[1.0] > 0.1 and gains[-1.0] < -0.1


def test_a_sample_that_cannot_be_judged_sends_no_gradient():
    half, single = toy((0.3, 0.0)), toy((0.3, 0.0))
    (event,) = HyperNoise(kl=0.0)(half, Unsure(Value(), 2), [BATCH])
    list(HyperNoise(kl=0.0)(single, Value(), [Batch(PROMPTS[:1], SEEDS[:1])]))
    np.testing.assert_allclose(half.grads[0], single.grads[0], rtol=1e-5)
    assert event.scores["reward"].isnan().tolist() == [False, True]


# --- on pipelines ----------------------------------------------------------------------------------------------------


def ready(name, **changes):
    return trainable(name, lora=Lora(rank=2, alpha=4.0, targets="all"), kernel=None, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_the_correction_starts_at_nothing_costs_one_call_and_reaches_the_adapters(name):
    policy = ready(name)
    z = policy.noise(SEEDS)
    with torch.no_grad():
        policy.sample(PROMPTS, seeds=SEEDS)
        per_step, policy.nfe = policy.nfe // policy.steps, 0
        assert policy.noise_correction(z, PROMPTS).abs().max() < 1e-5 and policy.nfe == per_step
    tiny_trained.nudge(policy)
    f = policy.noise_correction(z, PROMPTS)
    assert f.shape == z.shape and f.abs().mean() > 0
    f.square().sum().backward()
    change = [p for p in policy.adapters.parameters if p.grad is not None and p.grad.any()]
    assert len(change) > len(policy.adapters.parameters) / 2


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline"])
def test_what_is_read_is_the_lora_branch_of_the_last_layer_alone(name):
    """Its own arithmetic: with A and B of that layer doubled the correction is four times as large; its bias plays no
    part."""
    policy = ready(name)
    tiny_trained.nudge(policy)
    z, layer = policy.noise(SEEDS), policy._output_layer.layer
    with torch.no_grad():
        f = policy.noise_correction(z, PROMPTS)
        layer.get_base_layer().bias.add_(1.0)
        torch.testing.assert_close(policy.noise_correction(z, PROMPTS), f)
        for part in (layer.lora_A, layer.lora_B):
            part["default"].weight.mul_(2.0)
        torch.testing.assert_close(policy.noise_correction(z, PROMPTS), 4 * f, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusion3Pipeline"])
def test_the_generator_stays_what_it_was(name):
    """After training, its own samples are bit for bit those of before; those of the corrected noise are not."""
    policy, method = ready(name), HyperNoise(lr=1e-2)
    before = policy.sample(PROMPTS, seeds=SEEDS).media.data
    events = list(method(policy, build("brightness"), [Batch(PROMPTS, (2 * k, 2 * k + 1)) for k in range(3)]))
    assert all(e.metrics["grad_norm"] > 0 for e in events) and events[-1].metrics["correction"] > 0
    with policy.reference():
        assert torch.equal(policy.sample(PROMPTS, seeds=SEEDS).media.data, before)
    outputs = Corrected().sample_corrected(policy, PROMPTS, SEEDS)
    assert not torch.equal(outputs.media.data, before) and outputs.seeds == SEEDS


def test_it_learns_on_a_real_pipeline():
    """The reward of held noise after eight updates, against before, on the same noise."""
    policy, method, reward = ready("StableDiffusionPipeline", steps=1), HyperNoise(lr=2e-2, kl=0.0), build("brightness")

    def score():
        return reward(
            media=Corrected().sample_corrected(policy, PROMPTS * 4, range(8)).media, prompts=PROMPTS * 4
        ).mean()

    before = score()
    list(method(policy, reward, [Batch(PROMPTS * 2, tuple(range(100 + 4 * k, 104 + 4 * k))) for k in range(8)]))
    assert score() > before + 1e-3


def test_an_exported_lora_corrects_noise_in_a_plain_policy(tmp_path):
    """Trained, saved as diffusers saves it, loaded into a fresh pipeline: the samples that the trained policy makes."""
    trained = ready("StableDiffusionPipeline")
    tiny_trained.nudge(trained)
    fresh = tiny.policy("StableDiffusionPipeline")
    base = fresh.sample(PROMPTS, seeds=SEEDS).media.data
    with pytest.raises(BadInput, match="no LoRA"):
        Corrected().sample_corrected(fresh, PROMPTS, SEEDS)
    export_policy(trained, tmp_path / "export", comfy=False)
    fresh.pipe.load_lora_weights(tmp_path / "export")
    (event,) = Corrected()(tiny.policy("StableDiffusionPipeline", fresh.pipe), None, [BATCH])
    torch.testing.assert_close(
        event.media.data, Corrected().sample_corrected(trained, PROMPTS, SEEDS).media.data, rtol=0, atol=1e-5
    )
    assert (event.media.data - base).abs().max() > 1e-3 and event.final
    with fresh.reference():
        assert torch.equal(fresh.sample(PROMPTS, seeds=SEEDS).media.data, base)


def test_a_lora_without_the_last_layer_is_refused():
    policy = trainable("StableDiffusionPipeline")
    with pytest.raises(BadInput, match="targets: all"):
        policy.noise_correction(policy.noise(SEEDS), PROMPTS)
    assert policy.nfe == 0
