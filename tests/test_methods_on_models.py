"""Every method on tiny pipelines of fifteen real classes, loaded from folders: images, films and sounds.

A method delivers media like the base's and makes the calls that it announced, or refuses in one sentence that names
what it can't work with. A new method needs a line of cheap settings in SETTINGS.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import tiny
import torch

import pipelines
from pipelines.known_classes import MODALITIES
from rewards import build
from workbench.core.errors import BadInput
from workbench.core.types import Batch, Event, Media, Policy, Reward, RewardSpec
from workbench.methods import METHODS

CLASSES = [
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "PixArtAlphaPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "SanaSprintPipeline",
    "LatentConsistencyModelPipeline",
    "WanPipeline",
    "LTXPipeline",
    "CogVideoXPipeline",
    "AudioLDM2Pipeline",
    "StableAudioPipeline",
    "AceStepPipeline",
    "LongCatAudioDiTPipeline",
    "TextToVideoSDPipeline",
]
MOMENTUM = {"AceStepPipeline"}  # its guidance carries momentum from step to step: a step from any state is not defined
BATCH = Batch(("a red cat", "two dogs"), (11, 12))


class Politely:
    """Says prompts in other words."""

    def expand(self, prompts, n, modality):
        return [[f"{prompt}, please, number {k}" for k in range(n)] for prompt in prompts]


class Small:
    """Likes small latents, at any noise level."""

    objectives = ("small",)

    def check(self, latent):
        assert len(latent) > 0

    def __call__(self, x, a, s, prompts):
        return -x.square().flatten(1).mean(1, keepdim=True)


# method, or method:variant -> settings that keep it short
SETTINGS: dict[str, dict] = {
    "sample": {},
    "best_of_n": dict(n=2),
    "reno": dict(iterations=1),
    "zero_order": dict(iterations=1, neighbours=1),
    "search_over_paths": dict(paths=1, branches=1, rounds=1, renoise_fraction=0.5),
    "dno": dict(iterations=1, permutations=1),
    "dno:all": dict(iterations=1, permutations=1, noises="all"),
    "dno_black_box": dict(iterations=1, permutations=1, directions=1),
    "ditto": dict(iterations=1),
    "reuse": {},
    "fk": dict(particles=2),
    "svdd": dict(candidates=2),
    "beam": dict(width=2, branches=1),
    "das": dict(particles=2),
    "guidance": {},
    "nrg": dict(model=Small()),
    "rewrite": dict(n=1, expander=Politely()),
    "centred": dict(n=1, expander=Politely()),
}


@dataclass(frozen=True)
class Loudness:
    """Root mean square of the samples."""

    spec = RewardSpec("loudness", "1", frozenset({"audio"}), differentiable=True)

    def __call__(self, *, media, prompts, references=None):
        return (media.data.square().flatten(1).mean(1) + 1e-12).sqrt()


@dataclass
class Subject:
    name: str
    policy: Policy
    reward: Reward
    base: Media
    cost: float  # rows through the denoiser for one announced call


@pytest.fixture(scope="module", params=CLASSES)
def subject(request, tmp_path_factory) -> Subject:
    name = request.param
    folder = tiny.save(name, tmp_path_factory.mktemp("tiny"))
    policy = pipelines.load(tiny.config(name, folder, steps=2), device="cpu")
    reward = Loudness() if policy.modality == "audio" else build("brightness")
    base = METHODS["sample"]()
    (event,) = base(policy, reward, [BATCH])
    return Subject(name, policy, reward, event.media, policy.nfe / base.calls(2))


def method_of(case: str):
    return METHODS[case.partition(":")[0]](**SETTINGS[case])


def test_every_method_is_tried_here():
    """But for those that train, which tests/test_training_methods.py and tests/test_train_run.py try, and the sampler
    of what one of them trains, which tests/test_hypernoise.py tries."""
    still = {name for name, cls in METHODS.items() if "trainable" not in cls.needs} - {"corrected"}
    assert {case.partition(":")[0] for case in SETTINGS} >= still
    assert len(CLASSES) >= 10 and {MODALITIES[c][0] for c in CLASSES} == {"image", "video", "audio"}


@pytest.mark.parametrize("case", [case for case in SETTINGS if case.partition(":")[0] in METHODS])
def test_a_method_delivers_on_any_model_or_refuses_by_name(subject, case):
    method, before = method_of(case), subject.policy.nfe
    try:
        events = list(method(subject.policy, subject.reward, [BATCH]))
    except (BadInput, TypeError) as refusal:
        said = str(refusal)
        scheduler = type(subject.policy.structure.scheduler).__name__
        assert subject.name in said or scheduler in said, said
        assert ". " not in said.rstrip(".") and "\n" not in said, "one sentence"
        assert subject.name in MOMENTUM, f"refused where it should work: {said}"
        return
    if subject.name in MOMENTUM:
        assert "stochastic" not in method.needs, "a step from any state is not defined here, and yet it was taken"
    assert subject.policy.nfe - before == pytest.approx(subject.cost * method.calls(2))
    assert [e.final for e in events] == [False] * (len(events) - 1) + [True]
    for event in events:
        delivered(event, subject)


def delivered(event: Event, subject: Subject) -> None:
    """Any event may be the last: its media are finished ones."""
    media, low = event.media, -1.0 if subject.policy.modality == "audio" else 0.0
    assert media.data.shape == subject.base.data.shape and media.data.dtype == subject.base.data.dtype
    assert (media.modality, media.rate) == (subject.base.modality, subject.base.rate)
    assert media.data.isfinite().all() and low <= media.data.min() and media.data.max() <= 1
    assert not media.data.requires_grad and (event.prompts, event.seeds) == (BATCH.prompts, BATCH.seeds)
    if "reward" in event.scores:
        again = subject.reward(media=media, prompts=event.prompts)
        assert torch.allclose(event.scores["reward"], again, atol=1e-5)
    if event.latents is not None:
        assert event.latents.shape == subject.policy.noise(BATCH.seeds).shape and not event.latents.requires_grad
