"""The music pack: a world that is read back exactly from the wave, the models trained on it, and what judges them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

import pipelines
from pipelines.starter.music import measure, oracle, world
from pipelines.starter.music.autoencoder import (
    decode_latents,
    encode_waves,
    new_autoencoder,
    principal_components,
    signal_to_noise,
)
from pipelines.starter.music.build import build
from pipelines.starter.music.clap import corrupt_wave, draw_batch
from pipelines.starter.resumable_training import Draw
from rewards.audio.starter_clap import StarterCLAP
from workbench.core import paths
from workbench.core.errors import BadInput
from workbench.core.types import Media, Reward
from workbench.runs import prompts


def sound(waves: torch.Tensor) -> Media:
    return Media(waves[:, None], "audio", float(world.RATE))


def exact(waves: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return oracle.MusicOracle()(media=sound(waves), prompts=prompts)


@pytest.fixture(scope="module")
def sample() -> tuple[list[world.Piece], list[str], torch.Tensor]:
    """180 fresh pieces, half of them from all of the world, half of them held out."""
    draw = Draw.at_step(1, "music sample")
    everything = list(world.all_pieces().values())
    pieces = [draw.python.choice(everything) for _ in range(90)]
    pieces += [draw.python.choice([p for p in everything if world.is_held_out(p)]) for _ in range(90)]
    return pieces, [p.prompt for p in pieces], world.render_pieces(pieces, draw.python, draw.torch)


def test_every_prompt_parses_back_and_nothing_else_does():
    assert len(world.all_pieces()) == 2 * 2 * 24 * 24 * 4
    for prompt, piece in world.all_pieces().items():
        assert world.parse_prompt(prompt) == piece and world.prompt_category(prompt) in world.CATEGORIES
    for other in ("", "major", "a red circle", "major legato rising low flute then rising low flute"):
        assert world.parse_prompt(other) is None and world.prompt_category(other) == "?"


def test_the_oracle_reads_every_piece_and_detuned_ones_too(sample):
    pieces, prompts, waves = sample
    draw = Draw.at_step(2, "detuned")
    assert waves.abs().max() <= 1
    assert exact(waves, prompts).mean() >= 0.99
    assert exact(world.render_pieces(pieces[:100], draw.python, draw.torch, tuning=1.0), prompts[:100]).mean() >= 0.98


def test_the_oracle_says_no_to_other_prompts_near_misses_broken_clips_noise_and_silence(sample):
    pieces, prompts, waves = sample
    draw = Draw.at_step(3, "false alarms")
    near = world.render_pieces([world.near_miss(p, draw.python) for p in pieces], draw.python, draw.torch)
    broken = torch.stack([corrupt_wave(w, waves[i - 1], draw.python, draw.torch) for i, w in enumerate(waves)])
    assert exact(waves[1:], prompts[:-1]).mean() <= 0.01
    assert exact(near, prompts).mean() == 0
    assert exact(broken, prompts).mean() <= 0.08
    assert exact(0.1 * torch.randn(40, world.LENGTH, generator=draw.torch), prompts[:40]).sum() == 0
    assert exact(torch.zeros(2, world.LENGTH), prompts[:2]).sum() == 0


def test_harm_that_leaves_a_piece_what_it_is_does_not_fool_the_oracle(sample):
    _, prompts, waves = sample
    for name, harmed in measure.harmed_copies(waves[:100], Draw.at_step(4, "stress")).items():
        assert exact(harmed, prompts[:100]).mean() >= 0.98, name


def test_the_soft_oracle_is_one_only_where_the_exact_one_is_and_counts_what_is_right(sample):
    pieces, prompts, waves = sample
    soft = oracle.MusicOracleSoft()(media=sound(waves[1:]), prompts=prompts[:-1])
    assert ((soft == 1) == (exact(waves[1:], prompts[:-1]) == 1)).all() and 0.2 < soft.mean() < 0.7
    other = dataclasses.replace(pieces[0], mode={"major": "minor", "minor": "major"}[pieces[0].mode])
    assert oracle.MusicOracleSoft()(media=sound(waves[:1]), prompts=[other.prompt]).item() == pytest.approx(0.9)


def test_what_can_not_be_judged_is_not_a_number_and_the_wrong_format_is_refused(sample):
    _, prompts, waves = sample
    waves = waves[:3].clone()
    waves[2, 5] = float("nan")
    told = exact(waves, ["rain on a roof", *prompts[1:3]])
    assert told.isnan().tolist() == [True, False, True]
    for bad in (Media(waves[:1, None], "audio", 8000.0), Media(waves[:1, None, :-1], "audio", 16000.0)):
        with pytest.raises(BadInput, match="32768 samples at 16000 Hz"):
            oracle.MusicOracle()(media=bad, prompts=prompts[:1])
    stereo = Media(waves[:1, None].expand(-1, 2, -1), "audio", 16000.0)
    assert oracle.MusicOracle()(media=stereo, prompts=prompts[:1]).item() == 1
    assert isinstance(oracle.MusicOracle(), Reward)


def test_the_hold_out_leaks_neither_through_pieces_nor_prompts_nor_near_misses():
    held = {p for p, piece in world.all_pieces().items() if world.is_held_out(piece)}
    assert 0.1 < len(held) / len(world.all_pieces()) < 0.2
    for k in range(4):
        _, heard, texts = draw_batch(16, Draw.at_step(5, k))
        assert not held & set(texts) and not held & {p.prompt for p in heard if p}
    assert held.issuperset(prompts.read_prompts("starter-music-test"))
    assert held.isdisjoint(prompts.read_prompts("starter-music-train"))


def test_a_computed_autoencoder_keeps_the_content_and_a_small_one_does_not(sample):
    _, prompts, waves = sample
    basis, deviation = principal_components(seed=0, clips=60)
    back = decode_latents(vae := new_autoencoder(basis, deviation), latents := encode_waves(vae, waves[:60]))
    assert latents.shape == (60, 32, 64) and latents.square().mean().item() == pytest.approx(1, rel=0.3)
    assert signal_to_noise(waves[:60], back) > 20 and exact(back, prompts[:60]).mean() >= 0.98
    basis[16:] = 0
    poor = decode_latents(small := new_autoencoder(basis + 1e-6, deviation), encode_waves(small, waves[:60]))
    assert exact(poor, prompts[:60]).mean() < 0.5


def test_the_recipe_runs_and_goes_on_after_an_interruption(tmp_path):
    report = build(tmp_path / "work", tmp_path / "out", fast=True)
    assert (tmp_path / "out" / "report.json").is_file() and report["micro"]
    again = build(tmp_path / "work", tmp_path / "out2", fast=True, stages=("save",))
    assert again["training"]["clap"]["steps"] == report["training"]["clap"]["steps"]
    for name in ("base/transformer/diffusion_pytorch_model", "good/text_encoder/model", "clap/model"):
        first, second = ((tmp_path / out / f"{name}.safetensors").read_bytes() for out in ("out", "out2"))
        assert first == second, name
    with pytest.raises(BadInput, match="the stages are autoencoder, generator"):
        build(tmp_path / "work", tmp_path / "out", stages=("gan",))


# --- what ships ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def waves_of() -> dict[str, torch.Tensor]:
    """40 held-out prompts as each generator plays them."""
    return {
        name: measure.generate_waves(
            DiffusionPipeline.from_pretrained(paths.resolve_repo(f"starter:music/{name}")),
            measure.choose_prompts(True, 40), seed=1, steps=8, guidance=2.0,
        )
        for name in ("base", "good")
    }  # fmt: skip


def test_the_good_generator_plays_what_it_was_never_told_and_the_base_leaves_room(waves_of):
    prompts = measure.choose_prompts(True, 40)
    good, base = exact(waves_of["good"], prompts), exact(waves_of["base"], prompts)
    assert good.mean() >= 0.7 and 0.05 <= base.mean() <= good.mean() - 0.15
    assert exact(waves_of["good"].roll(1, 0), prompts).mean() <= 0.05


def test_the_policy_of_the_config_is_the_pipeline_itself():
    policy = pipelines.load("starter-music", device="cpu")
    prompts, seeds = measure.choose_prompts(True, 2), (3, 4)
    made = policy.sample(prompts, seeds=seeds).media
    plain = policy.pipe(
        prompts, generator=[torch.Generator().manual_seed(s) for s in seeds],
        num_inference_steps=8, guidance_scale=2.0, audio_duration_s=2.05, output_type="pt",
    ).audios  # fmt: skip
    assert made.data.shape == (2, 1, world.LENGTH) and made.rate == world.RATE
    assert torch.allclose(made.data, plain.clamp(-1, 1), atol=1e-5)


def test_a_stochastic_step_is_the_schedulers_own_where_it_has_no_noise_and_is_replayed_where_it_has():
    plain, still, lively = (
        pipelines.load("starter-music", device="cpu", kernel=kernel)
        for kernel in ({}, {"name": "ancestral", "eta": 0.0}, {"name": "flow-sde", "eta": 0.7})
    )
    prompts, seeds = measure.choose_prompts(True, 2), (3, 4)
    drawn = plain.sample(prompts, seeds=seeds)
    assert torch.allclose(still.sample(prompts, seeds=seeds).x, drawn.x, atol=1e-4)
    said = plain.predict(drawn.x[:, 3], 3, prompts)
    assert torch.allclose(plain.noised(said.x0, 3, said.eps), drawn.x[:, 3], atol=1e-5)
    noisy = lively.sample(prompts, seeds=seeds)
    step = lively.transition(noisy.x[:, 2], 2, prompts)
    assert torch.allclose(step.log_prob(noisy.x[:, 3]), noisy.log_prob[:, 2], atol=1e-5)
    assert exact(noisy.media.data[:, 0], prompts).isnan().logical_not().all()


def test_the_encoder_prefers_the_truth_to_near_misses_and_broken_clips(sample):
    pieces, prompts, waves = sample
    draw, reward = Draw.at_step(6, "reward"), StarterCLAP()
    rows = slice(90, 160)  # held out
    own = reward(media=sound(waves[rows]), prompts=prompts[rows])
    other = [world.near_miss(p, draw.python).prompt for p in pieces[rows]]
    broken = torch.stack([corrupt_wave(w, waves[i - 1], draw.python, draw.torch) for i, w in enumerate(waves[rows])])
    assert (own > reward(media=sound(waves[rows]), prompts=other)).float().mean() >= 0.9
    assert (own > reward(media=sound(broken), prompts=prompts[rows])).float().mean() >= 0.85


def test_the_reward_hears_as_the_encoder_was_trained(sample):
    _, prompts, waves = sample
    folder = paths.resolve_repo("starter:music/clap")
    clap, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    trained = measure.cosine_scores(clap, tokenizer, waves[:6], prompts[:6])
    assert torch.allclose(StarterCLAP()(media=sound(waves[:6]), prompts=prompts[:6]), trained, atol=1e-4)


def test_the_reward_has_a_gradient_to_the_wave_that_is_right(sample):
    _, prompts, waves = sample
    x = waves[1:3].clone().requires_grad_()
    reward = StarterCLAP()
    reward(media=sound(x), prompts=prompts[:2]).sum().backward()
    assert torch.isfinite(x.grad).all() and (x.grad.flatten(1).norm(dim=1) > 0).all()
    step = x.grad / x.grad.norm()
    with torch.no_grad():
        ends = [reward(media=sound(waves[1:3] + h * step), prompts=prompts[:2]).double().sum() for h in (0.02, -0.02)]
    assert ((ends[0] - ends[1]) / 0.04).item() == pytest.approx(x.grad.norm().item(), rel=0.05)


def test_the_reward_takes_other_rates_and_refuses_other_folders(sample, tmp_path):
    _, prompts, waves = sample
    half = Media(waves[:4, None, ::2], "audio", 8000.0)  # nothing of these is above 4 kHz but the hats
    told, own = (StarterCLAP()(media=m, prompts=prompts[:4]) for m in (half, sound(waves[:4])))
    assert told.shape == (4,) and torch.isfinite(told).all() and (told - own).abs().max() < 1
    silent = Media(torch.zeros(1, 1, world.LENGTH), "audio", 16000.0)
    assert torch.isfinite(StarterCLAP()(media=silent, prompts=prompts[:1])).all()
    with pytest.raises(BadInput, match="music pack"):
        StarterCLAP(model=str(tmp_path))(media=sound(waves[:1]), prompts=prompts[:1])
