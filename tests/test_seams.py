"""The seam on tiny pipelines of all kinds: nothing of a pipeline changes, and everything of it can be asked."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from diffusers import DDIMScheduler
from double_precision import Double, gradient_error
from tiny import PROMPTS, SEEDS, TINY

import pipelines
from pipelines import seams
from pipelines.seam_check import RecordedStep, perturbed_weights, record_steps

OTHER = (31, 32)  # other seeds, for controls
MOMENTUM = ("AceStepPipeline",)  # adaptive projected guidance: a step depends on the steps before it
ROUNDING = {
    "StableDiffusionXLPipeline": 2e-5,
    "StableAudioPipeline": 2e-5,
}  # the first state is scaled, so not undone exactly
# kinks (ReLU attention, clamps) or float32 islands: there a finite difference is only so good
ROUGH = dict.fromkeys(("SanaPipeline", "SanaSprintPipeline", "WanPipeline", "LTXPipeline", "ZImagePipeline"), 5e-2)
ROUGH |= dict.fromkeys(("WanPipeline:2.2", "HunyuanVideoPipeline"), 1e-4)


@dataclass
class Subject:
    name: str
    pipe: Any
    policy: pipelines.Policy
    trajectory: Any
    recorded: list[RecordedStep]


@pytest.fixture(scope="module", params=list(TINY))
def subject(request) -> Subject:
    pipe = tiny.build(request.param)
    policy = tiny.policy(request.param, pipe)
    trajectory = policy.sample(PROMPTS, seeds=SEEDS)
    return Subject(request.param, pipe, policy, trajectory, record_steps(policy, PROMPTS, SEEDS))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def test_the_public_call_is_reproduced_bit_for_bit(subject):
    original = torch.as_tensor(subject.pipe(**subject.policy.call_arguments(PROMPTS, SEEDS))[0]).float()
    if subject.policy.modality == "audio":
        original = (original if original.dim() == 3 else original[:, None]).clamp(-1, 1)
    assert original.std() > 1e-4, "a constant output would make this test vacuous"
    assert torch.equal(original, subject.trajectory.media.data)


def test_noise_and_first_state_turn_into_each_other(subject):
    policy, x = subject.policy, subject.trajectory.x
    noise = policy.noise(SEEDS)
    assert torch.equal(policy.start(noise, PROMPTS), x[:, 0])
    assert difference(policy.structure.invert_start(x[:, 0]), noise) <= 3e-7 * noise.abs().max()
    assert x.shape[:2] == (2, policy.steps + 1)


def test_a_step_can_be_taken_from_any_state(subject):
    """The states of one rollout are forced on another: the prediction is the first one's, to the last bit. Unforced,
    or with other weights, it is not."""
    policy, steps = subject.policy, subject.recorded
    if subject.name in MOMENTUM:
        with pytest.raises(TypeError, match="momentum"):
            policy.transition(steps[1].x, 1, PROMPTS)
        policy = tiny.policy(subject.name, subject.pipe, call={**policy.call, "guidance_scale": 1.0})
        steps = record_steps(policy, PROMPTS, SEEDS)
    other = policy.sample(PROMPTS, seeds=OTHER)
    for i, step in enumerate(steps):
        tolerance = ROUNDING.get(subject.name, 0.0) if i == 0 else 0.0
        assert difference(policy._model_output(step.x, i, PROMPTS), step.output) <= tolerance
        assert difference(policy._model_output(other.x[:, i], i, PROMPTS), step.output) > 0.1
        with perturbed_weights(policy):
            assert difference(policy._model_output(step.x, i, PROMPTS), step.output) > 0.01


def test_the_pipelines_own_tail_decodes(subject):
    before = subject.policy.nfe
    media = subject.policy.decode(subject.trajectory.x[:, -1], PROMPTS)
    assert torch.equal(media.data, subject.trajectory.media.data)
    assert subject.policy.nfe == before
    latents = subject.trajectory.x[:, -1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(subject.policy.decode(latents, PROMPTS).data.square().sum(), latents)
    assert gradient.isfinite().all() and gradient.any()


def test_checkpointing_changes_no_gradient(subject):
    policy, results = subject.policy, []
    for checkpoint in (True, False):
        policy.checkpoint = checkpoint
        z = policy.noise(SEEDS).requires_grad_()
        data = policy.sample(PROMPTS, seeds=SEEDS, noise=z, grad=3).media.data
        results.append(torch.autograd.grad(data.square().sum(), z)[0])
    policy.checkpoint = True
    assert results[0].abs().max() > 0
    assert difference(*results) <= 1e-5 * results[1].abs().max()


@pytest.mark.parametrize("name", TINY)
def test_the_gradient_from_media_to_noise_is_that_of_finite_differences(name):
    with torch.random.fork_rng([]), Double() if name != "ZImagePipeline" else seams.KeepGraph():
        policy = tiny.policy(name, tiny.build(name).to(torch.float64), steps=2, checkpoint=False)
        assert gradient_error(policy, PROMPTS) <= ROUGH.get(name, 1e-6)


# What follows does not depend on the kind of pipeline.


@pytest.fixture
def pipe():
    return tiny.build("StableDiffusionPipeline")


def marks(pipe) -> list:
    owners = [
        pipe,
        type(pipe.scheduler),
        pipe.scheduler,
        *seams.named_networks(pipe).values(),
        inspect.getmodule(type(pipe)),
    ]
    watched = ("step", "forward", "_compiled_call_impl", "encode_prompt", "randn_tensor", seams.TOKEN)
    return [(id(owner), key, vars(owner)[key]) for owner in owners for key in watched if key in vars(owner)]


HOOKS = dict(
    on_draw=lambda noise: noise,
    on_encode=lambda encode: encode(),
    on_call=lambda call, forward: forward(*call.args, **call.kwargs),
)
CALL = dict(prompt="a cat", num_inference_steps=2, output_type="pt")


@pytest.mark.parametrize("ending", ["done", "stop", "crash"])
def test_everything_is_put_back_however_the_call_ends(pipe, ending):
    pipe.unet.forward = pipe.unet.forward  # an instance attribute, as accelerate's hooks leave one
    before, freed = marks(pipe), []
    pipe.maybe_free_model_hooks = lambda: freed.append(True)

    def on_step(step):
        if ending == "stop":
            raise seams.LeavePipeline("early")
        if ending == "crash":
            raise ZeroDivisionError
        return step.advance()

    if ending == "crash":
        with pytest.raises(ZeroDivisionError):
            seams.run_pipeline(pipe, CALL, on_step=on_step, **HOOKS)
    else:
        out = seams.run_pipeline(pipe, CALL, on_step=on_step, **HOOKS)
        assert freed and (out == "early") == (ending == "stop")
    assert marks(pipe) == before
    assert torch.is_grad_enabled()


def test_only_one_seam_is_open_at_a_time(pipe):
    with pytest.raises(RuntimeError, match="one at a time"):
        seams.run_pipeline(pipe, CALL, on_step=lambda step: seams.run_pipeline(pipe, CALL))
    assert seams.run_pipeline(pipe, CALL, on_step=lambda step: step.advance()).images.shape == (1, 3, 16, 16)


def test_a_copied_scheduler_is_still_seen_and_a_strangers_is_not(pipe):
    observed = []

    def on_step(step):
        observed.append(step.index)
        stranger = DDIMScheduler()
        stranger.set_timesteps(2)
        stranger.step(step.model_output, stranger.timesteps[0], step.sample)  # the same class, without our mark
        copied = copy.deepcopy(step.scheduler)
        assert vars(copied)[seams.TOKEN] is vars(step.scheduler)[seams.TOKEN]
        assert list(inspect.signature(copied.step).parameters)[:3] == ["model_output", "timestep", "sample"]
        return step.advance()

    seams.run_pipeline(pipe, CALL, on_step=on_step)
    assert observed == [0, 1]


def test_a_compiled_module_is_patched_outside_its_compilation(pipe):
    def compiled(*args, **kwargs):  # what module.compile() leaves on the instance
        return type(pipe.unet)._call_impl(pipe.unet, *args, **kwargs)

    pipe.unet._compiled_call_impl, names = compiled, []

    def on_call(call, forward):
        names.append(call.module)
        return forward(*call.args, **call.kwargs)

    seams.run_pipeline(pipe, CALL, on_call=on_call)
    assert names.count("unet") == 2
    assert pipe.unet._compiled_call_impl is compiled


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "WanPipeline"])
def test_several_steps_differentiated_together_give_the_gradients_of_one_at_a_time(name):
    """What a pipeline or a solver carries from step to step would tie their graphs together."""
    policy = tiny.policy(name)
    (denoiser,) = (seams.named_networks(policy.pipe)[n] for n in policy.structure.denoisers)
    denoiser.requires_grad_()
    parameters = list(denoiser.parameters())
    x = policy.sample(PROMPTS, seeds=SEEDS).x

    def gradients(*parts):
        denoiser.zero_grad()
        for steps in parts:
            sum(policy.transition(x[:, i], i, PROMPTS).mean.square().sum() for i in steps).backward()
        return [p.grad.clone() for p in parameters if p.grad is not None]

    all_at_once, one_at_a_time = gradients([0, 1, 2]), gradients([0], [1], [2])
    assert len(all_at_once) == len(one_at_a_time) > 0
    assert max(g.abs().max() for g in all_at_once) > 0
    for a, b in zip(all_at_once, one_at_a_time, strict=True):
        assert difference(a, b) <= 1e-5 * max(b.abs().max().item(), 1e-3)


def test_a_replay_that_asks_something_else_is_noticed(pipe):
    policy = tiny.policy("StableDiffusionPipeline", pipe)
    x = policy.sample(PROMPTS, seeds=SEEDS).x
    (memory,) = policy.prompt_caches.caches.values()
    memory.answers.insert(0, ("vae", None))
    with pytest.raises(RuntimeError, match="asked for encode_prompt where it had asked for vae"):
        policy.transition(x[:, 1], 1, PROMPTS)
