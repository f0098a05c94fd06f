"""Noise levels and Gaussian steps against the schedulers themselves, closed forms and Monte Carlo."""

from __future__ import annotations

import math

import diffusers as d
import pytest
import torch

from pipelines import schedule
from pipelines.transitions import CPS, KERNELS, Ancestral, FlowSDE, make_kernel
from workbench.core.errors import BadInput
from workbench.methods.common import losses

SHAPE = (2, 4, 8, 8)
VP = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
KINDS = ("epsilon", "v_prediction", "sample")
FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True)


def x0_returned(scheduler, t, out, x):
    return scheduler.step(out, t, x, return_dict=True).pred_original_sample


def x0_converted(scheduler, t, out, x):
    scheduler._init_step_index(t)
    return scheduler.convert_model_output(out, sample=x)


CASES = {
    **{f"ddim-{k}": (d.DDIMScheduler(**VP, prediction_type=k, clip_sample=False), x0_returned) for k in KINDS},
    **{f"ddpm-{k}": (d.DDPMScheduler(**VP, prediction_type=k), x0_returned) for k in KINDS},  # clips by default
    **{f"euler-{k}": (d.EulerDiscreteScheduler(**VP, prediction_type=k), x0_returned) for k in KINDS},
    **{f"ancestral-{k}": (d.EulerAncestralDiscreteScheduler(**VP, prediction_type=k), x0_returned) for k in KINDS[:2]},
    **{f"solver-{k}": (d.DPMSolverMultistepScheduler(**VP, prediction_type=k), x0_converted) for k in KINDS},
    "solver-flow": (d.DPMSolverMultistepScheduler(**FLOW), x0_converted),
    "single-step": (d.DPMSolverSinglestepScheduler(**VP), x0_converted),
    "unipc": (d.UniPCMultistepScheduler(**VP), x0_converted),
    "unipc-flow": (d.UniPCMultistepScheduler(**FLOW, flow_shift=3.0), x0_converted),
    "sa-solver": (d.SASolverScheduler(**VP), x0_converted),
    "lms": (d.LMSDiscreteScheduler(**VP), x0_returned),
    "cogvideox": (d.CogVideoXDDIMScheduler(clip_sample=True), x0_returned),  # has the flag, does not clip
    "scm": (d.SCMScheduler(), x0_returned),
    "cosine": (d.CosineDPMSolverMultistepScheduler(), x0_converted),
}


def ready(scheduler, steps=5):
    extra = {"intermediate_timesteps": None} if isinstance(scheduler, d.SCMScheduler) else {}
    scheduler.set_timesteps(steps, **extra)
    return scheduler


@pytest.mark.parametrize("name", CASES)
def test_the_clean_sample_is_the_schedulers_own(name):
    scheduler, original = CASES[name]
    levels = schedule.noise_levels(ready(scheduler))
    generator = torch.Generator().manual_seed(0)
    for i in (0, 2, 4):
        ready(scheduler)
        x = torch.randn(SHAPE, generator=generator) * math.hypot(levels[i].a, levels[i].s)
        out = torch.randn(SHAPE, generator=generator)
        theirs = original(scheduler, scheduler.timesteps[i], out, x)
        ours = schedule.predict_x0(levels[i], x, out)
        # v is undefined for a noise level that the next one contradicts: the neighbour's level is the control
        wrong = schedule.predict_x0(levels[1 if i != 1 else 0], x, out)
        assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()
        if "sample" not in name:
            assert (wrong - theirs).abs().max() > 1e-3 * theirs.abs().max()


@pytest.mark.parametrize("name", [name for name in CASES if "ddpm" not in name])
def test_errors_of_a_prediction_are_those_of_the_denoisers_own_output(name):
    """So a loss on noise that is published for an epsilon network is that loss here; of x0, and of v, likewise."""
    for level in schedule.noise_levels(ready(CASES[name][0])):
        x, ours, theirs = torch.randn(3, *SHAPE).double().unbind()
        clean = [schedule.predict_x0(level, x, out) for out in (ours, theirs)]
        original = (ours - theirs).square().flatten(1).mean(1)
        torch.testing.assert_close(
            losses.denoising_distance(*clean, schedule.output_scale(level)), original, rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("name", CASES)
def test_the_three_forms_of_a_prediction_agree(name):
    scheduler, _ = CASES[name]
    level = schedule.noise_levels(ready(scheduler))[1]
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(SHAPE, generator=generator).clamp(-1, 1), torch.randn(SHAPE, generator=generator)
    x = schedule.add_noise(level, x0, eps)
    angle = math.hypot(level.a, level.s)
    std = level.data_std
    outs = {
        "epsilon": eps,
        "sample": x0,
        "v_prediction": (level.a * eps - level.s * x0) / angle,
        "flow_prediction": eps - x0,
        "flow_to_data": x0 - eps,
        "trigflow": (level.a * x - x0) * std / level.s,
        "edm_v": (std**2 * x - (level.s**2 + std**2) * x0) / (level.s * std * math.hypot(level.s, std)),
    }
    results = schedule.make_prediction(level, x, outs[level.prediction])
    assert torch.allclose(results.x0, x0, atol=1e-3)
    assert torch.allclose(results.eps, eps, atol=1e-3)
    assert torch.allclose(level.a * results.x0 + level.s * results.eps, x, atol=1e-3 * angle)


def test_flow_matching_levels_are_the_schedulers_sigmas():
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    levels = schedule.noise_levels(scheduler)
    assert [n.s for n in levels] == pytest.approx(scheduler.sigmas[:-1].tolist())
    assert [n.s_next for n in levels] == pytest.approx(scheduler.sigmas[1:].tolist())
    assert all(n.is_flow for n in levels)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_ancestral_is_ddim_eta(kind, eta):
    """Mean and variance of diffusers' own step: its noise is given, so both can be read off."""
    scheduler = ready(d.DDIMScheduler(**VP, prediction_type=kind, clip_sample=False))
    levels, generator = schedule.noise_levels(scheduler), torch.Generator().manual_seed(0)
    for i, t in enumerate(scheduler.timesteps):
        x, out, z = (torch.randn(SHAPE, generator=generator) for _ in range(3))
        law = Ancestral(eta)(levels[i], x, out)
        theirs = scheduler.step(out, t, x, eta=eta, variance_noise=z).prev_sample
        last = i == len(levels) - 1
        assert torch.allclose(law.mean + law.std * z, theirs, atol=2e-5)
        assert bool(law.std > 0) == (eta > 0 and (not last or levels[i].s_next > 0))


def test_ancestral_with_eta_1_is_ddpm():
    scheduler = ready(d.DDPMScheduler(**VP, clip_sample=False))
    levels, generator = schedule.noise_levels(scheduler), torch.Generator().manual_seed(0)
    for i, t in enumerate(scheduler.timesteps[:-1]):
        x, out = (torch.randn(SHAPE, generator=generator) for _ in range(2))
        z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
        law = Ancestral()(levels[i], x, out)
        theirs = scheduler.step(out, t, x, generator=torch.Generator().manual_seed(5)).prev_sample
        assert torch.allclose(law.mean + law.std * z, theirs, atol=2e-5)


def test_ancestral_with_eta_1_is_euler_ancestral():
    scheduler = ready(d.EulerAncestralDiscreteScheduler(**VP))
    levels, generator = schedule.noise_levels(scheduler), torch.Generator().manual_seed(0)
    for i, t in enumerate(scheduler.timesteps):
        x, out = torch.randn(SHAPE, generator=generator) * levels[i].s, torch.randn(SHAPE, generator=generator)
        z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
        law = Ancestral()(levels[i], x, out)
        theirs = scheduler.step(out, t, x, generator=torch.Generator().manual_seed(5)).prev_sample
        assert torch.allclose(law.mean + law.std * z, theirs, atol=1e-4 * max(levels[i].s, 1))


def test_ancestral_with_eta_0_is_the_flow_ode():
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    levels, generator = schedule.noise_levels(scheduler), torch.Generator().manual_seed(0)
    for i, t in enumerate(scheduler.timesteps):
        x, out = (torch.randn(SHAPE, generator=generator) for _ in range(2))
        law = Ancestral(0.0)(levels[i], x, out)
        assert law.std == 0
        assert torch.allclose(law.mean, scheduler.step(out, t, x).prev_sample, atol=1e-5)


def flow(s, s_next):
    return schedule.NoiseLevel(1 - s, s, 1 - s_next, s_next, "flow_prediction")


def flow_grpo_step(s, s_next, x, v, eta=0.7):
    """Mean and std of Eq. 9 of arXiv:2505.05470 in the variables of the paper: drift, diffusion and a negative dt."""
    dt, g = s_next - s, eta * math.sqrt(s / (1 - (s_next if s == 1 else s)))
    return x * (1 + g**2 / (2 * s) * dt) + v * (1 + g**2 * (1 - s) / (2 * s)) * dt, g * math.sqrt(-dt)


@pytest.mark.parametrize(("shift", "steps"), [(1.0, 5), (3.0, 40), (12.0, 100)])
def test_flow_sde_is_the_formula_of_flow_grpo_at_every_step_of_a_schedule(shift, steps):
    """Only s = 1 itself is replaced by the next level: fine schedules have other levels above 0.99."""
    scheduler = d.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    x, v = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).unbind()
    levels = schedule.noise_levels(scheduler)[:-1]
    assert shift == 1 or sum(0.99 < n.s < 1 for n in levels)
    for n in levels:
        law, (mean, std) = FlowSDE()(n, x, v), flow_grpo_step(n.s, n.s_next, x, v)
        assert torch.allclose(law.mean, mean, atol=1e-4)
        assert law.std.item() == pytest.approx(std, rel=1e-4)


@pytest.mark.parametrize("solver", [d.DPMSolverMultistepScheduler, d.UniPCMultistepScheduler])
@pytest.mark.parametrize("steps", [8, 40])
def test_a_schedule_that_starts_a_hair_below_1_adds_no_more_noise_than_one_that_starts_at_1(solver, steps):
    n = schedule.noise_levels(ready(solver(**FLOW, flow_shift=3.0), steps))[0]
    x, v = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).unbind()
    assert 0.999 < n.s < 1 and flow_grpo_step(n.s, n.s_next, x, v)[1] > 3  # the formula itself leaves the schedule
    assert FlowSDE()(n, x, v).std.item() == pytest.approx(flow_grpo_step(1.0, n.s_next, x, v)[1], rel=0.03)


def test_cps_keeps_the_coefficients():
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    law = CPS(0.8)(flow(0.8, 0.5), x, v)
    std = 0.5 * math.sin(0.8 * math.pi / 2)
    assert law.std.item() == pytest.approx(std)
    x0, eps = x - 0.8 * v, x + 0.2 * v
    assert torch.allclose(law.mean, 0.5 * x0 + math.sqrt(0.25 - std**2) * eps, atol=1e-5)


def spread(step, steps, start):
    """Std of one-dimensional data N(1.5, 0.4^2) after a whole chain with the exact velocity."""
    torch.manual_seed(0)
    x, times = torch.randn(20000, 1), torch.linspace(start, 0, steps + 1).tolist()
    for s, s_next in zip(times, times[1:], strict=False):
        var = (1 - s) ** 2 * 0.16 + s**2
        x0 = 1.5 + (1 - s) * 0.16 / var * (x - (1 - s) * 1.5)
        law = step(flow(s, s_next), x, (x - x0) / s)
        x = law.sample()
    return x.std().item()


def test_whole_chains_keep_the_data_distribution_where_they_promise_to():
    """Ancestral and flow-SDE end near the data's spread of 0.4; CPS, which does not promise it, must be seen to narrow
    it."""
    assert spread(Ancestral(0.0), 100, 1.0) == pytest.approx(0.4, abs=0.015)
    assert spread(Ancestral(1.0), 100, 1.0) == pytest.approx(0.4, abs=0.015)
    assert spread(FlowSDE(0.7), 100, 1.0) == pytest.approx(0.4, abs=0.015)
    assert spread(CPS(0.8), 100, 1.0) < 0.34


@pytest.mark.parametrize("step", [Ancestral(0.7), CPS(0.5), FlowSDE(0.7)])
def test_moments_and_density_are_those_of_a_gaussian(step):
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(1, 8, generator=generator), torch.randn(1, 8, generator=generator)
    law = step(flow(0.6, 0.4), x, v)
    draws = torch.cat([law.sample([generator]) for _ in range(4000)])
    assert torch.allclose(draws.mean(0), law.mean[0], atol=5 * law.std.item() / math.sqrt(4000))
    assert draws.std(0).mean().item() == pytest.approx(law.std.item(), rel=0.03)
    normal = torch.distributions.Normal(law.mean.double(), law.std.double())
    assert law.log_prob(draws[:1]).item() == pytest.approx(normal.log_prob(draws[:1].double()).mean().item())


def test_the_last_step_is_deterministic():
    for kind in KERNELS.values():
        law = kind()(flow(0.3, 0.0), torch.ones(1, 4), torch.ones(1, 4))
        assert law.std == 0
        assert torch.equal(law.mean, law.x0)
        with pytest.raises(ValueError, match="deterministic"):
            law.log_prob(law.mean)


@pytest.mark.parametrize("cls", [d.KDPM2DiscreteScheduler, d.HeunDiscreteScheduler, d.PNDMScheduler, d.TCDScheduler])
def test_an_unknown_scheduler_is_refused_by_name(cls):
    scheduler = cls()
    scheduler.set_timesteps(4)
    with pytest.raises(TypeError, match=f"{cls.__name__} are not known; known: .*DDIMScheduler.*FlowMatchEuler"):
        schedule.noise_levels(scheduler)


def test_what_is_known_only_in_part_is_refused_too():
    for scheduler in (
        d.DDIMScheduler(thresholding=True),
        d.DPMSolverMultistepScheduler(thresholding=True),
        d.CosineDPMSolverMultistepScheduler(prediction_type="epsilon"),
    ):
        scheduler.set_timesteps(3)
        with pytest.raises(TypeError):
            schedule.noise_levels(scheduler)
    with pytest.raises(TypeError, match="flow"):
        FlowSDE()(schedule.NoiseLevel(0.6, 0.8, 0.8, 0.6, "epsilon"), torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(BadInput, match="ancestral, cps, flow-sde"):
        make_kernel("euler")
