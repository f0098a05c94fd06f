"""What the Policy promises on top of the seam: seeds, counting, memory of prompts, gradients, kernels."""

from __future__ import annotations

import inspect

import diffusers
import pytest
import tiny
import torch
from tiny import PROMPTS, SEEDS

from pipelines import Ancestral, DistributedPolicy, FlowSDE, Policy, TrainablePolicy
from workbench.core import types
from workbench.core.types import Trajectory

SD, LCM = "StableDiffusionPipeline", "LatentConsistencyModelPipeline"


@pytest.fixture
def policy(pipe):
    return tiny.policy(SD, pipe)


def test_a_row_of_noise_depends_on_its_seed_alone(policy):
    pair = policy.noise((7, 8))
    assert pair.dtype == torch.float32
    assert torch.equal(policy.noise((8,))[0], pair[1])
    assert not torch.equal(pair[0], pair[1])


def test_noise_given_back_is_noise_drawn(policy):
    settings = policy.sample(PROMPTS, seeds=SEEDS, noise=policy.noise(SEEDS))
    draws = policy.sample(PROMPTS, seeds=SEEDS)
    assert torch.equal(settings.media.data, draws.media.data)
    assert not torch.equal(policy.sample(PROMPTS, seeds=(1, 2)).media.data, draws.media.data)


def test_the_schedulers_own_noise_is_a_function_of_the_seeds_whatever_the_initial_noise_is():
    """LCM redraws at each step: x_2 - mean(x_1) must be the same draw for the same seeds, and another for others."""
    pipe = tiny.build(LCM)
    policy = tiny.policy(LCM, pipe)

    def second_draw(seeds, noise):
        x = policy.sample(PROMPTS, seeds=seeds, noise=noise).x
        level = policy.levels[0]
        return x[:, 1] - level.a_next * _lcm_clean(policy, x[:, 0])

    noise = policy.noise(SEEDS)
    first, second = second_draw(SEEDS, noise), second_draw(SEEDS, noise + 0.3)
    assert torch.allclose(first, second, atol=1e-4)
    assert not torch.allclose(first, second_draw((1, 2), noise), atol=0.1)


def _lcm_clean(policy, x):
    """LCM blends its prediction with the state (consistency models' boundary condition)."""
    scheduler, t = policy.structure.scheduler, policy.structure.scheduler.timesteps[0]
    skip, out = scheduler.get_scalings_for_boundary_condition_discrete(t)
    return out * policy.predict(x, 0, PROMPTS).x0 + skip * x


def test_rows_through_the_denoiser_are_counted_and_those_of_steps_that_are_not_live_are_not(policy):
    trajectory = policy.sample(PROMPTS, seeds=SEEDS)
    assert policy.nfe == 2 * 2 * 3  # prompts, a guidance pair, steps
    policy.transition(trajectory.x[:, 2], 2, PROMPTS)
    assert policy.nfe == 12 + 4
    policy.decode(trajectory.x[:, -1], PROMPTS)
    assert policy.nfe == 16
    unguided = tiny.policy(SD, policy.pipe, call={"guidance_scale": 1.0})
    unguided.sample(PROMPTS, seeds=SEEDS)
    assert unguided.nfe == 2 * 3


def test_a_checkpointed_backward_pass_is_not_counted_twice(policy):
    noise = policy.noise(SEEDS).requires_grad_()
    policy.sample(PROMPTS, seeds=SEEDS, noise=noise, grad=3).media.data.sum().backward()
    assert policy.nfe == 12


def test_prompts_are_encoded_once_and_forgotten_in_turn(policy, encodings):
    policy.prompt_caches.batches, policy.prompt_caches.max_bytes = 2, 0
    for _ in range(3):
        policy.sample(PROMPTS, seeds=SEEDS)
    once = len(encodings)
    policy.sample(("one", "two"), seeds=SEEDS)
    policy.sample(PROMPTS, seeds=SEEDS)
    assert len(encodings) == once + 2  # a positive and a negative batch for the new prompts, none for the old
    policy.sample(("three", "four"), seeds=SEEDS)
    policy.sample(("one", "two"), seeds=SEEDS)  # pushed out
    assert len(encodings) == once + 6
    assert len(policy.prompt_caches.caches) == 2


def test_remembered_encodings_give_the_same_picture_as_fresh_ones(policy):
    remembered = [policy.sample(PROMPTS, seeds=SEEDS).media.data for _ in range(2)]
    policy.forget_prompts()
    fresh = policy.sample(PROMPTS, seeds=SEEDS).media.data
    assert torch.equal(remembered[0], remembered[1]) and torch.equal(remembered[1], fresh)


def test_a_text_encoder_in_training_is_never_remembered(policy, encodings):
    policy.sample(PROMPTS, seeds=SEEDS)
    policy.pipe.text_encoder.requires_grad_()
    before = len(encodings)
    for _ in range(2):
        policy.sample(PROMPTS, seeds=SEEDS)
    policy.pipe.text_encoder.requires_grad_(False)
    assert len(encodings) == before + 4


@pytest.mark.parametrize("grad", [1, 2, 3])
def test_the_last_k_steps_keep_their_graph(pipe, policy, grad):
    noise = policy.noise(SEEDS).requires_grad_()
    weight = pipe.unet.conv_out.weight.requires_grad_()
    trajectory = policy.sample(PROMPTS, seeds=SEEDS, noise=noise, grad=grad)
    onto_noise, onto_weight = torch.autograd.grad(trajectory.media.data.sum(), (noise, weight), allow_unused=True)
    weight.requires_grad_(False)
    assert (onto_noise is not None) == (grad == 3)
    assert onto_weight.any()


def test_truncated_gradients_grow_by_the_steps_they_keep(pipe, policy):
    """The gradient of one live step is that of a rollout whose state before it is a constant."""
    weight = pipe.unet.conv_out.weight.requires_grad_()
    whole = policy.sample(PROMPTS, seeds=SEEDS, grad=3)
    (full,) = torch.autograd.grad(whole.media.data.sum(), weight)
    (last,) = torch.autograd.grad(policy.sample(PROMPTS, seeds=SEEDS, grad=1).media.data.sum(), weight)
    state = whole.x[:, 2].detach()
    out = policy._model_output(state, 2, PROMPTS)
    x = Ancestral(0.0)(policy.levels[2], state, out).mean
    (by_hand,) = torch.autograd.grad(policy.decode(x, PROMPTS).data.sum(), weight)
    weight.requires_grad_(False)
    assert torch.allclose(last, by_hand, atol=1e-4 * by_hand.abs().max())
    assert not torch.allclose(last, full, atol=1e-2 * full.abs().max())


def test_no_graph_is_kept_without_being_asked_for(policy):
    noise = policy.noise(SEEDS).requires_grad_()
    assert not policy.sample(PROMPTS, seeds=SEEDS, noise=noise).media.data.requires_grad
    with torch.no_grad():
        assert not policy.sample(PROMPTS, seeds=SEEDS, noise=noise, grad=3).media.data.requires_grad


def test_a_policy_is_found_out_under_no_grad_and_inference_mode_too(pipe):
    for mode in (torch.no_grad, torch.inference_mode):
        fresh = tiny.policy(SD, pipe)
        with mode():
            assert fresh.noise(SEEDS).shape == (2, 4, 8, 8)


def test_prompts_encoded_in_inference_mode_serve_a_gradient_later(pipe):
    policy = tiny.policy(SD, pipe)
    with torch.inference_mode():
        policy.sample(PROMPTS, seeds=SEEDS)
    noise = policy.noise(SEEDS).requires_grad_()
    policy.sample(PROMPTS, seeds=SEEDS, noise=noise, grad=3).media.data.sum().backward()
    assert noise.grad.any()


@pytest.mark.parametrize("i", [0, 1, 2])
def test_a_transition_passes_the_gradient_on_to_its_state(policy, i):
    x = policy.sample(PROMPTS, seeds=SEEDS).x[:, i].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(policy.transition(x, i, PROMPTS).mean.square().sum(), x)
    assert gradient.isfinite().all() and gradient.flatten(1).any(1).all()


@pytest.mark.parametrize("name", [SD, "StableDiffusionXLPipeline", "FluxPipeline", "SanaSprintPipeline", "WanPipeline"])
def test_a_prediction_explains_its_state(name):
    """x_i = a x0 + s eps, and noising the predicted x0 with the predicted eps gives x_i back."""
    policy = tiny.policy(name)
    x = policy.sample(PROMPTS, seeds=SEEDS).x
    for i in range(policy.steps):
        results = policy.predict(x[:, i], i, PROMPTS)
        scale = x[:, i].abs().max()
        assert (policy.noised(results.x0, i, results.eps) - x[:, i]).abs().max() <= 1e-5 * scale
        assert (policy.noised(results.x0, i, -results.eps) - x[:, i]).abs().max() > 1e-3 * scale


def test_guidance_can_be_overridden_for_one_prediction(policy):
    x = policy.sample(PROMPTS, seeds=SEEDS).x[:, 1]
    original, off = policy.predict(x, 1, PROMPTS), policy.predict(x, 1, PROMPTS, guidance=1.0)
    plain = tiny.policy(SD, policy.pipe, call={"guidance_scale": 1.0}).predict(x, 1, PROMPTS)
    assert torch.equal(off.eps, plain.eps)
    assert not torch.allclose(original.eps, off.eps, atol=1e-2)
    assert torch.equal(policy.predict(x, 1, PROMPTS).eps, original.eps)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        (SD, Ancestral(0.7)),
        ("StableDiffusionXLPipeline", Ancestral()),
        ("FluxPipeline", FlowSDE()),
        ("WanPipeline", FlowSDE()),
    ],
)
def test_what_a_kernel_drew_it_can_score(name, kernel):
    policy = tiny.policy(name, kernel=kernel)
    trajectory = policy.sample(PROMPTS, seeds=SEEDS)
    assert trajectory.stochastic == tuple(i for i in range(3) if policy.levels[i].s_next > 0)
    assert len(trajectory.stochastic) >= 2
    for i in trajectory.stochastic:
        law = policy.transition(trajectory.x[:, i], i, PROMPTS)
        repeated = law.log_prob(trajectory.x[:, i + 1])
        assert torch.allclose(repeated, trajectory.log_prob[:, i], atol=1e-5)
        off = law.log_prob(trajectory.x[:, i + 1] + law.std)  # a control: one standard deviation away
        assert ((off - trajectory.log_prob[:, i]).abs() > 0.05).all()
    assert torch.equal(policy.decode(trajectory.x[:, -1], PROMPTS).data, trajectory.media.data)


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "SanaPipeline"])
def test_scores_match_exactly_while_parameters_require_grad(name):
    """Sampling without a graph and scoring with one must run the same kernels, or ratios drift from 1."""
    policy = tiny.policy(name, kernel=Ancestral())
    trajectory = policy.sample(PROMPTS, seeds=SEEDS)
    for part in policy.structure.denoisers:
        getattr(policy.pipe, part).requires_grad_()
    trained = policy.sample(PROMPTS, seeds=SEEDS)
    assert not trained.media.data.requires_grad
    new = policy.transition(trained.x[:, 1], 1, PROMPTS).log_prob(trained.x[:, 2])
    assert new.requires_grad
    assert torch.equal(new, trained.log_prob[:, 1])
    assert torch.allclose(trained.x, trajectory.x, atol=1e-2)


def test_a_kernels_noise_is_a_function_of_the_row_and_without_one_no_step_is_scored(policy):
    noisy = tiny.policy(SD, policy.pipe, kernel=Ancestral())
    pair, single = noisy.sample(PROMPTS, seeds=SEEDS), noisy.sample(PROMPTS[1:], seeds=SEEDS[1:])
    assert torch.allclose(pair.x[1], single.x[0], atol=1e-4)
    plain = policy.sample(PROMPTS, seeds=SEEDS)
    assert isinstance(plain, Trajectory)
    assert plain.stochastic == () and not plain.log_prob.any()


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "FluxPipeline"])
def test_a_half_precision_pipeline_keeps_a_float32_master_noise(name):
    policy = tiny.policy(name, tiny.build(name).to(torch.bfloat16))
    noise = policy.noise(SEEDS).requires_grad_()
    trajectory = policy.sample(PROMPTS, seeds=SEEDS, noise=noise, grad=3)
    (gradient,) = torch.autograd.grad(trajectory.media.data.sum(), noise)
    assert noise.dtype == gradient.dtype == trajectory.media.data.dtype == torch.float32
    assert trajectory.x.dtype == torch.bfloat16
    assert gradient.isfinite().all() and gradient.any()
    step = policy.transition(trajectory.x[:, 1].detach(), 1, PROMPTS)
    assert step.mean.dtype == torch.float32
    assert torch.equal(policy.start(noise.detach(), PROMPTS), trajectory.x[:, 0])


def test_mistakes_are_told(policy):
    for arguments in ({"seeds": (1,)}, {"seeds": SEEDS, "noise": torch.zeros(1, 4, 8, 8)}, {"seeds": SEEDS, "grad": 4}):
        with pytest.raises(ValueError):
            policy.sample(PROMPTS, **arguments)
    for i in (3, -1):
        with pytest.raises(ValueError, match="steps 0..2"):
            policy.transition(torch.zeros(2, 4, 8, 8), i, PROMPTS)


class Silent(diffusers.StableDiffusionPipeline):
    """A pipeline that draws its noise elsewhere."""

    def prepare_latents(self, batch_size, *args, **kwargs):
        return torch.randn(batch_size, 4, 8, 8)


class Shifted(diffusers.StableDiffusionPipeline):
    """A pipeline whose first state is no scaled rearrangement of its noise."""

    def prepare_latents(self, *args, **kwargs):
        x = super().prepare_latents(*args, **kwargs)
        return x + 0.5 * x.roll(1, -1)


@pytest.mark.parametrize(("kind", "sentence"), [(Silent, "Silent draws no noise"), (Shifted, "first state of Shifted")])
def test_a_pipeline_that_cannot_be_a_policy_is_refused_by_name(pipe, kind, sentence):
    strange = kind(**pipe.components, requires_safety_checker=False)
    strange.set_progress_bar_config(disable=True)
    with pytest.raises(TypeError, match=sentence):
        tiny.policy(SD, strange).noise(SEEDS)


@pytest.mark.parametrize("implementation", [Policy, TrainablePolicy, DistributedPolicy])
def test_the_policies_have_the_methods_that_the_protocol_promises(implementation):
    """The same names, in the same order, with the same defaults and annotations."""
    protocol = types.Policy if implementation is Policy else types.TrainablePolicy
    for name, promised in inspect.getmembers(protocol, inspect.isfunction):
        if not name.startswith("_"):
            if implementation is DistributedPolicy and name not in vars(implementation):
                continue  # it passes on what it does not share out
            settings = inspect.signature(getattr(implementation, name))
            for parameter in inspect.signature(promised).parameters.values():
                assert settings.parameters[parameter.name].annotation == parameter.annotation, name
                assert settings.parameters[parameter.name].default == parameter.default, name
