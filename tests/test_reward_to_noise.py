"""From a reward of sounds or clips through a whole pipeline to its first noise: the gradient is the slope of the
score."""

from __future__ import annotations

import functools

import pytest
import tiny
import torch
from reward_fixtures import modalities_of, small

from pipelines import Policy
from rewards import REWARDS
from workbench.core.inputs import input_needs

RATE = 4000.0  # at which 2400 samples are long enough to have a loudness
LONG = {  # arguments that make a tiny pipeline's sounds 2400 samples long
    "AudioLDM2Pipeline": dict(audio_length_in_s=0.15),
    "MusicLDMPipeline": dict(audio_length_in_s=0.15),
    "StableAudioPipeline": dict(audio_end_in_s=600.0),
    "AceStepPipeline": dict(audio_duration=600.0),
    "LongCatAudioDiTPipeline": dict(audio_duration_s=0.05),
    "StableAudio3Pipeline": dict(duration=150.0),
}
PROMPTS = ("slow rising flute", "fast organ", "high low", "falling organ")


def judging(modality: str) -> list[str]:
    """But for credits within a group: the gradient of one leads, as they say, to its own sample alone. And for rewards
    of what was made from a source, of which these classes make nothing; test_rewards.py has their slopes."""
    specs = {n: cls.spec for n, cls in REWARDS.items() if cls.spec.scope != "group" and not input_needs(cls.spec)}
    return [name for name, spec in specs.items() if modality in modalities_of(name) and spec.differentiable]


def pairs(rewards: list[str], classes: list[str], each: int = 2) -> list[tuple[str, str]]:
    """Every reward on some classes, every class with some rewards."""
    apart = len(classes) // each
    found = [(r, classes[(k + j * apart) % len(classes)]) for k, r in enumerate(rewards) for j in range(each)]
    return list(dict.fromkeys(found))


CASES = pairs(judging("audio"), tiny.AUDIO) + pairs(judging("video"), tiny.VIDEO)


@functools.cache
def policy_for(name: str) -> Policy:
    pipe = tiny.build(name)
    if name == "StableAudioPipeline":  # the length of its latents is its network's
        pipe.transformer.register_to_config(sample_size=1200)
        pipe.projection_model.register_to_config(max_value=600)
    more = {"rate": RATE} if name in LONG else {}
    return tiny.policy(
        name, pipe, steps=2, call={**tiny.TINY[name].call, **LONG.get(name, {})}, checkpoint=False, **more
    )


def test_no_reward_with_a_gradient_and_no_class_is_left_out():
    assert {r for r, _ in CASES} == {*judging("audio"), *judging("video")}
    assert {c for _, c in CASES} == {*tiny.AUDIO, *tiny.VIDEO}


@pytest.mark.parametrize(("reward", "name"), CASES)
def test_the_gradient_of_a_reward_to_the_noise_is_its_slope_through_the_pipeline(reward, name):
    """Along a random direction that leans to the gradient, in float32. Control: of another direction it is not the
    slope."""
    judge, policy = small(reward), policy_for(name)
    n = 2 if judge.spec.scope == "sample" else 4
    prompts, seeds = PROMPTS[:n], tuple(range(11, 11 + n))
    references = None
    if "reference" in judge.spec.needs:
        references = policy.sample(PROMPTS, seeds=(1, 2, 3, 4)).media

    def score(z):
        media = policy.sample(prompts, seeds=seeds, noise=z, grad=2).media
        scores = judge(media=media, prompts=prompts, references=references).double().reshape(-1)
        return (scores * torch.linspace(1, 2, len(scores)).double()).sum()

    z = policy.noise(seeds).requires_grad_()
    (gradient,) = torch.autograd.grad(score(z), z)
    assert gradient.isfinite().all() and gradient.flatten(1).norm(dim=1).gt(0).all()
    aside = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    direction = gradient / gradient.norm() + aside / aside.norm()
    slope, errors = (gradient * direction).sum().item(), []
    for size in (0.03, 0.01, 0.1, 0.003):
        with torch.no_grad():
            found = (score(z + size * direction) - score(z - size * direction)).item() / (2 * size)
        errors.append(abs(found - slope) / abs(slope))
        if errors[-1] < 0.03:
            break
    assert min(errors) < 0.03, errors
    assert abs(found - (gradient.flip(-1) * direction).sum().item()) > 0.03 * abs(slope)
