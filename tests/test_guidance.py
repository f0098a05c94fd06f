"""Guidance where everything is known: Gaussian data, whose tilted law has a closed form, and latents small enough to
learn."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
import tiny
import torch
from mixture_policy import MixturePolicy, Value

from pipelines.transitions import CPS
from rewards.latent import KEY, LatentReward
from rewards.latent_training import LatentSamples, collect_samples, score_correlation, train_latent_reward
from workbench.core.errors import BadInput
from workbench.core.types import Batch, RewardSpec, derive_seed
from workbench.methods.common.guided_step import capped_noise_ratio, unit_rms, zero_nonfinite
from workbench.methods.common.schedule import alpha_sigma
from workbench.methods.inference.guidance import Guidance
from workbench.methods.inference.nrg import NRG

PROMPTS, SEEDS = ("a", "b", "0"), (3, 4, 5)
UP = {"up": 1.0}  # one of the exact judge's two objectives
MEAN, STD = 0.5, 0.8  # of the Gaussian policies


def gaussian(steps: int = 10, **more) -> MixturePolicy:
    return MixturePolicy((MEAN,), (STD,), (1.0,), steps=steps, **more)


def events(method, policy=None, reward=None, prompts=PROMPTS, seeds=SEEDS):
    made = list(method(policy or MixturePolicy(), reward or Value(), [Batch(tuple(prompts), tuple(seeds))]))
    assert [e.final for e in made] == [False] * (len(made) - 1) + [True]
    return made


def values(method, policy=None, reward=None, n=3):
    """[n]: what the method makes of n seeds of one prompt."""
    return events(method, policy, reward, [""] * n, range(n))[-1].media.data[:, 0].flatten(1).mean(1)


class Exact:
    """The noisy judge that a Gaussian and a linear reward have: slope * E[x0 | x_i], in two objectives that oppose."""

    objectives = ("up", "down")

    def __repr__(self) -> str:
        return "Exact()"

    def __init__(self, slope: float = 1.0, latent: tuple[int, ...] = (1, 1, 1)):
        self.slope, self.latent = slope, latent

    def check(self, latent):
        if tuple(latent) != self.latent:
            raise BadInput("other latents")

    def __call__(self, x, a, s, prompts):
        gain = a * STD**2 / ((a * STD) ** 2 + s**2)
        r = self.slope * (MEAN + gain * (x - a * MEAN)).flatten(1).mean(1)
        return torch.stack([r, -r], 1)


# --- the gradient, and what is done with it --------------------------------------------------------------------------


def test_the_gradient_through_the_denoiser_is_the_finite_difference_of_the_reward_of_the_predicted_sample():
    policy, reward, i = MixturePolicy(shape=(3, 2, 2)), Value(0.7, 0.4), 4
    x = policy.noise(SEEDS).double()
    *_, delta = Guidance(scale=1.0, normalise="none", cap=math.inf).guide_step(policy, reward, x, i, PROMPTS)
    a, s = alpha_sigma(policy, i)
    for place in ((0, 1), (0, 0), (0, 1, 1)), ((0, 0, 1),):
        for c, h, w in (p if len(p) == 3 else (*p, 0) for p in place):
            move = torch.zeros_like(x)
            move[:, c, h, w] = 1e-4
            r = [reward(media=policy.decode(policy.predict(y, i, PROMPTS).x0, PROMPTS), prompts=PROMPTS)
                 for y in (x + move, x - move)]  # fmt: skip
            assert torch.allclose(delta[:, c, h, w], s**2 / a * (r[0] - r[1]) / 2e-4, rtol=1e-3, atol=1e-7)


def test_a_flows_velocity_moves_by_scale_times_s_over_one_minus_s_times_the_gradient():
    """Flow-NRG's own form, which the move of x0 must amount to: x_{i+1} = x_i + (s' - s) v."""
    policy, i, scale = gaussian(), 6, 0.3
    x = policy.noise(SEEDS)
    (a, s), (_, after) = alpha_sigma(policy, i), alpha_sigma(policy, i + 1)
    method = NRG(Exact(0.9), {"up": 1.0}, scale=scale, normalise="none")
    delta = method.guidance_delta(x, a, s, PROMPTS, method.objective_weights())
    gradient = 0.9 * a * STD**2 / ((a * STD) ** 2 + s**2)
    v = policy.predict(x, i, PROMPTS).v - scale * s / (1 - s) * gradient
    moved = policy.noised(
        policy.predict(x, i, PROMPTS).x0 + delta, i + 1, policy.predict(x, i, PROMPTS).eps - a / s * delta
    )
    assert torch.allclose(moved, x + (after - s) * v, atol=1e-6)


@pytest.mark.parametrize("base", ["ode", "sde"])
@pytest.mark.parametrize("method", [Guidance(), NRG(Exact(), UP)])
def test_with_scale_zero_the_sample_is_the_bases_bit_for_bit(method, base):
    """The ode chain is the policy's own `sample`; the sde chain that of its transitions with the same draws."""
    policy, word = gaussian(), "guidance" if isinstance(method, Guidance) else "nrg"
    end = events(replace(method, scale=0.0, base=base), policy)[-1]
    if base == "ode":
        expected = policy.sample(PROMPTS, seeds=SEEDS).media.data
    else:
        generators = [torch.Generator().manual_seed(derive_seed(s, word)) for s in SEEDS]
        x = policy.noise(SEEDS)
        for i in range(policy.steps):
            x = policy.transition(x, i, PROMPTS).sample(generators)
        expected = policy.decode(x, PROMPTS).data
    assert torch.equal(end.media.data, expected)
    assert not torch.equal(events(replace(method, base=base), policy)[-1].media.data, expected)


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [Guidance(scale=1.5, normalise="none", cap=1e9), NRG(Exact(), {"up": 1.0}, scale=1.5, normalise="none", cap=1e9)],
    ids=["guidance", "nrg"],
)
def test_a_gaussian_tilted_by_a_linear_reward_moves_by_scale_times_its_variance(method):
    """N(m, v) exp(w x) / Z = N(m + w v, v). The deterministic flow moves every sample by w v in the limit of many
    steps, and comes closer the more there are."""
    gaps = []
    for steps in (25, 200):
        moved = values(method, gaussian(steps)) - values(replace(method, scale=0.0), gaussian(steps))
        gaps.append((moved - 1.5 * STD**2).abs().max().item())
    assert gaps[1] < 0.03 and gaps[1] < gaps[0] / 4


@pytest.mark.parametrize("kernel", [None, CPS(0.5)])
def test_the_stochastic_base_reaches_the_tilted_law_too(kernel):
    """600 draws: the mean of N(m + w v, v) is known to within 4 standard errors; that of the untilted one is out of
    reach."""
    n, policy = 600, gaussian(60, kernel=kernel)
    x = values(Guidance(scale=1.5, normalise="none", cap=1e9, base="sde"), policy, n=n)
    error = 4 * STD / math.sqrt(n)
    assert abs(x.mean().item() - MEAN - 1.5 * STD**2) < error + 0.03 < 0.5 * STD**2
    if kernel is None:  # CPS is known to narrow the law over a whole trajectory
        assert x.std().item() == pytest.approx(STD, rel=0.15)


def test_stopping_at_the_clean_sample_is_exact_on_data_of_unit_variance():
    """But for the first step, in pure noise: there the denoiser's gradient is 0 and its factor s / a is without
    bound."""
    policy = MixturePolicy((MEAN,), (1.0,), (1.0,), steps=30)
    method = Guidance(scale=0.8, normalise="none", cap=1e9, start=0.02)
    deep, clean = (events(replace(method, through=t), policy)[-1].media.data for t in ("denoiser", "clean"))
    assert torch.allclose(deep, clean, atol=1e-4)
    wide = [events(replace(method, through=t), gaussian(30))[-1].media.data for t in ("denoiser", "clean")]
    assert (wide[0] - wide[1]).abs().max() > 0.01


@pytest.mark.parametrize("normalise", ["none", "unit", "residual"])
@pytest.mark.parametrize("through", ["denoiser", "clean"])
def test_guidance_raises_the_reward_and_a_negated_one_lowers_it(normalise, through):
    method = Guidance(scale=0.3, normalise=normalise, through=through, max_reward=10.0)
    base, up, down = (values(replace(method, scale=w)) for w in (0.0, 0.3, -0.3))
    assert (up > base).all() and (down < base).all()
    assert (
        torch.equal(values(method, reward=Value(-1.0)), values(replace(method, scale=-0.3))) or normalise == "residual"
    )


def test_what_each_normalisation_divides_by():
    g, r = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, -3.0])
    a, s = 0.6, 0.4
    plain, of_unit, dps = (
        Guidance(normalise=n, max_reward=1.0).scale_gradient(g, r, a, s) for n in ("none", "unit", "residual")
    )
    assert torch.allclose(plain, s**2 / a * g)
    assert torch.allclose(of_unit.square().mean((1, 2, 3)).sqrt(), torch.full((2,), s / math.hypot(a, s)))
    assert torch.allclose(dps, plain / torch.tensor([0.8, 4.0]).sqrt().view(2, 1, 1, 1))
    assert (
        capped_noise_ratio(0.001, 0.999, 10.0) == 10.0
        and capped_noise_ratio(0.5, 0.5, 10.0) == 1.0
        and capped_noise_ratio(0.0, 1.0, 10.0) == 10.0
    )
    assert torch.equal(unit_rms(torch.zeros(2, 3)), torch.zeros(2, 3))


# --- conduct ---------------------------------------------------------------------------------------------------------

ALL = [Guidance(), Guidance(recurrence_steps=2, start=0.3, stop=0.8), Guidance(base="sde", through="clean"),
       NRG(Exact(), UP), NRG(Exact(), UP, base="sde", every=3)]  # fmt: skip


@pytest.mark.parametrize("method", ALL, ids=str)
def test_the_denoiser_is_called_as_often_as_announced(method):
    policy = gaussian()
    events(method, policy)
    assert policy.nfe == len(SEEDS) * method.calls(policy.steps)
    assert Guidance(recurrence_steps=2, start=0.3, stop=0.8).calls(10) == 10 + 2 * 5


@pytest.mark.parametrize("method", ALL, ids=str)
def test_a_rows_sample_does_not_depend_on_the_others(method):
    together = events(method, gaussian())[-1]
    for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        alone = events(method, gaussian(), prompts=[prompt], seeds=[seed])[-1]
        assert torch.allclose(together.media.data[row], alone.media.data[0], atol=1e-5)


@pytest.mark.parametrize("method", ALL, ids=str)
def test_a_sample_that_cannot_be_judged_takes_the_bases_step_and_leaves_the_others_alone(method):
    class Blind(Value):
        def __call__(self, *, media, prompts, references=None):
            hole = torch.tensor([math.nan if p == "b" else 1.0 for p in prompts])
            return super().__call__(media=media, prompts=prompts) * hole

    class BlindExact(Exact):
        def __call__(self, x, a, s, prompts):
            return super().__call__(x, a, s, prompts) * torch.tensor([[math.nan if p == "b" else 1.0] for p in prompts])

    blind = replace(method, model=BlindExact()) if isinstance(method, NRG) else method
    seen, base = events(method, gaussian())[-1], events(replace(method, scale=0.0), gaussian())[-1]
    end = events(blind, gaussian(), Blind())[-1]
    assert end.media.data.isfinite().all() and end.scores["reward"].isnan().tolist() == [False, True, False]
    assert torch.equal(end.media.data[1], base.media.data[1])
    assert torch.allclose(end.media.data[[0, 2]], seen.media.data[[0, 2]], atol=1e-6)
    assert torch.equal(
        zero_nonfinite(torch.tensor([[1.0, math.inf], [1.0, 2.0]])), torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    )


@pytest.mark.parametrize("method", [Guidance(), NRG(Exact(), UP, every=2)], ids=["guidance", "nrg"])
def test_every_event_can_be_delivered_with_its_scores(method):
    for event in events(method, gaussian(6)):
        r = Value()(media=event.media, prompts=event.prompts)
        assert (
            torch.allclose(event.scores["reward"], r) and not event.media.data.requires_grad and event.latents is None
        )


def test_outside_its_window_guidance_is_the_base():
    none = Guidance(scale=5.0, start=1.0)
    assert torch.equal(events(none, gaussian())[-1].media.data, gaussian().sample(PROMPTS, seeds=SEEDS).media.data)
    assert len(events(none, gaussian())) == 1 and len(events(Guidance(stop=0.5), gaussian())) == 6


def test_objectives_are_weighted_when_sampling():
    up, down, both, out = (values(NRG(Exact(), w), gaussian()) for w in (
        {"up": 1.0}, {"down": 1.0}, None, {"up": 2.0, "down": 1.0}))  # fmt: skip
    base = values(NRG(Exact(), scale=0.0), gaussian())
    assert (up > base).all() and (down < base).all() and torch.allclose(both, base) and torch.allclose(out, up)
    with pytest.raises(BadInput, match="no objective 'left'"):
        events(NRG(Exact(), {"left": 1.0}), gaussian())
    with pytest.raises(BadInput, match="give `model`"):
        events(NRG(), gaussian())
    with pytest.raises(BadInput, match="other latents"):
        events(NRG(Exact()), gaussian(shape=(3, 2, 2)))


class Level:
    """Mean value of a picture, clip or sound."""

    spec = RewardSpec("level", "1", frozenset({"image", "video", "audio"}), differentiable=True)

    def __call__(self, *, media, prompts, references=None):
        return media.data.flatten(1).mean(1)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "LTXPipeline", "StableAudioPipeline"])
def test_guidance_climbs_on_a_tiny_pipeline_of_any_modality(name):
    policy, batch = tiny.policy(name), Batch(tiny.PROMPTS[:1], tiny.SEEDS[:1])
    r = [list(Guidance(scale=w)(policy, Level(), [batch]))[-1].scores["reward"] for w in (-0.5, 0.0, 0.5)]
    assert (r[0] < r[1]).all() and (r[1] < r[2]).all()


# --- the latent reward -----------------------------------------------------------------------------------------------


class Words(Value):
    """The picture's first channel for prompts that say `light`, its opposite for those that say `dark`."""

    def __call__(self, *, media, prompts, references=None):
        sign = torch.tensor([-1.0 if "dark" in p else 1.0 for p in prompts])
        return sign * super().__call__(media=media, prompts=prompts)


SAID = [f"{mood} {thing}" for mood in ("light", "dark") for thing in ("hill", "lake", "road", "wood", "moor", "town")]
SMALL = {"width": 16, "blocks": 2, "lr": 5e-3, "batch": 48}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of samples, and the file of a judge that learnt from them."""
    folder = tmp_path_factory.mktemp("latent")
    policy = MixturePolicy((0.0,), (1.0,), (1.0,), shape=(3, 4, 4), steps=2)
    collect_samples(policy, {"words": Words()}, SAID, folder / "data", seeds=24, batch=48)
    train_latent_reward(folder / "data", folder / "judge.safetensors", steps=160, **SMALL)
    return folder


def test_it_learns_the_clean_reward_less_the_noisier_the_latent(trained):
    """On prompts that were not trained on; in nearly pure noise there is nothing to see."""
    r = LatentReward(str(trained / "judge.safetensors")).header["correlation"]["words"]
    assert r[0] > 0.7 and r[0] > r[2] > r[4]


def test_without_the_scores_it_learns_nothing(trained, tmp_path):
    """The control: the same training on scores that were dealt out at random."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    (tmp_path / "data").mkdir()
    for path in sorted((trained / "data").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            scores, kept = file.get_tensor("scores"), {"latents": file.get_tensor("latents")}
            order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(1))
            save_file(kept | {"scores": scores[order].contiguous()}, tmp_path / "data" / path.name, file.metadata())
    train_latent_reward(tmp_path / "data", tmp_path / "judge.safetensors", steps=160, **SMALL)
    judge, data = LatentReward(str(tmp_path / "judge.safetensors")).scorer, LatentSamples.read(trained / "data")
    assert abs(score_correlation(judge, data, data.split_by_prompt()[1], bands=1)["words"][0]) < 0.35


def test_pairs_teach_the_order_alone(trained):
    header = train_latent_reward(trained / "data", trained / "pairs.safetensors", steps=400, loss="pairs", **SMALL)
    assert header["correlation"]["words"][0] > 0.6
    judge = LatentReward(str(trained / "pairs.safetensors")).scorer
    assert judge.centre.item() == 0.0 and judge.spread.item() == 1.0


def test_a_training_that_was_interrupted_ends_as_one_that_was_not(trained, tmp_path):
    whole = train_latent_reward(trained / "data", tmp_path / "whole.safetensors", steps=6, **SMALL)
    part = tmp_path / "part.safetensors"
    for done in (1, 2):  # each call has time for one step
        assert train_latent_reward(trained / "data", part, steps=6, seconds=1e-9, **SMALL)["steps"] == done
    with pytest.raises(BadInput, match="other settings"):
        train_latent_reward(trained / "data", part, steps=7, **SMALL)
    assert train_latent_reward(trained / "data", part, steps=6, **SMALL) == whole
    a, b = (LatentReward(str(p)).scorer.state_dict() for p in (part, tmp_path / "whole.safetensors"))
    assert all(torch.equal(a[name], b[name]) for name in a) and not (tmp_path / "part.resume.pt").exists()


def test_samples_are_collected_once(trained):
    policy = MixturePolicy((0.0,), (1.0,), (1.0,), shape=(3, 4, 4), steps=2)
    collect_samples(policy, {"words": Words()}, SAID, trained / "data", seeds=24, batch=48)
    assert policy.nfe == 0
    data = LatentSamples.read(trained / "data")
    fit, test = data.split_by_prompt()
    asked = {data.prompts[n] for n in test.tolist()}
    assert data.is_own_prompt[test].all() and asked and not asked & {data.prompts[n] for n in fit.tolist()}
    with pytest.raises(BadInput, match="has no samples"):
        LatentSamples.read(trained / "nowhere")


def test_what_it_learnt_guides_and_its_negation_misguides(trained):
    judge = LatentReward(str(trained / "judge.safetensors"))
    policy, prompts = MixturePolicy((0.0,), (1.0,), (1.0,), shape=(3, 4, 4)), ("light hill", "dark hill", "dark moor")
    down, base, up = (
        events(NRG(judge, {"words": w}), policy, Words(), prompts)[-1].scores["reward"] for w in (-1.0, 0.0, 1.0)
    )
    assert (down < base).all() and (base < up).all()
    assert asdict(NRG(judge))["model"] == {"path": judge.path}
    with pytest.raises(BadInput, match="reads latents of 3x4x4, this pipeline's are 1x1x1"):
        events(NRG(judge), MixturePolicy())


def test_rows_scores_do_not_depend_on_their_neighbours(trained):
    judge = LatentReward(str(trained / "judge.safetensors"))
    x, said = (
        torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2)),
        ["light hill", "a very dark old wood"],
    )
    both = judge(x, 0.5, 0.5, said)
    assert torch.allclose(
        both, torch.cat([judge(x[b : b + 1], 0.5, 0.5, said[b : b + 1]) for b in range(2)]), atol=1e-5
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no file"), (b"", "can't be read"), (b"\x00" * 64, "can't be read"), ("other", "not a latent reward"),
     ("shape", "does not hold what its header says")],
)  # fmt: skip
def test_a_file_that_is_no_latent_reward_is_refused_in_a_sentence(trained, tmp_path, content, told):
    import json

    from safetensors.torch import load_file, save_file

    path = tmp_path / "judge.safetensors"
    good = LatentReward(str(trained / "judge.safetensors"))
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "other":
        save_file({"w": torch.zeros(2)}, path)
    elif content == "shape":
        save_file(load_file(good.path), path, {KEY: json.dumps(good.header | {"width": 24})})
    with pytest.raises(BadInput, match=told):
        LatentReward(str(path))(torch.zeros(1, 3, 4, 4), 0.5, 0.5, ["light hill"])


@pytest.mark.parametrize("latent", [(4, 16), (4, 3, 8, 8)])
def test_sounds_and_clips_have_latents_of_other_ranks(latent):
    from rewards.latent import LatentScorer

    judge = LatentScorer(latent, 2, axis=0, width=16, blocks=3)
    a = torch.full((2,), 0.5)
    assert judge(torch.randn(2, *latent), a, a, ["one", ""]).shape == (2, 2)
