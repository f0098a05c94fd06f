"""Music and video pipelines, every class that is here: what a kernel draws it scores, what decodes is encoded back, and
each of their known traps is stepped round."""

from __future__ import annotations

import diffusers as d
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import AUDIO, PROMPTS, SEEDS, VIDEO
from tiny_conditioned_timed import CONDITIONED_TIMED
from tiny_trained import nudge, trainable

import pipelines
from pipelines import Ancestral, FlowSDE, encoding, seams
from pipelines.known_classes import MODALITIES, REFUSED
from workbench.core.errors import BadInput
from workbench.core.types import Media
from workbench.runs.preference_data import fit_to_size

TIMED = [*VIDEO, *AUDIO]
VOCODED = ("AudioLDM2Pipeline", "MusicLDMPipeline")
ALIKE = ("red cats", "two dogs")  # of one length: AudioLDM2 fills a batch up to its longest prompt
ACE, LONGCAT, WAN, TWO = "AceStepPipeline", "LongCatAudioDiTPipeline", "WanPipeline", "WanPipeline:2.2"
MODELSCOPE = "TextToVideoSDPipeline"


def stochastic(name: str) -> pipelines.Policy:
    """With the kernel of its kind; ACE-Step without its guidance, which carries momentum from step to step."""
    more = {"call": {**tiny.TINY[name].call, "guidance_scale": 1.0}} if name == ACE else {}
    policy = tiny.policy(name, **more)
    policy.kernel = FlowSDE() if policy.levels[0].is_flow else Ancestral()
    return policy


def test_every_class_that_a_config_or_a_folder_may_name_is_tried():
    timed = {name for name, (modality, _) in MODALITIES.items() if modality != "image"}
    assert timed == {tiny.class_of(name) for name in (*TIMED, *CONDITIONED_TIMED)}
    configured = {pipelines.read_config(name).pipeline for name in pipelines.config.list_names()}
    assert timed - configured == set(), "and each has a config to start from"


@pytest.mark.parametrize("name", TIMED)
def test_what_a_kernel_drew_it_can_score_and_each_row_is_its_seeds_own(name):
    policy = stochastic(name)
    path = policy.sample(ALIKE, seeds=SEEDS)
    assert path.stochastic == tuple(i for i in range(3) if policy.levels[i].s_next > 0) and len(path.stochastic) >= 2
    for i in path.stochastic:
        law = policy.transition(path.x[:, i], i, ALIKE)
        torch.testing.assert_close(law.log_prob(path.x[:, i + 1]), path.log_prob[:, i], atol=1e-5, rtol=0)
        off = law.log_prob(path.x[:, i + 1] + law.std)  # a control: one standard deviation away
        assert ((off - path.log_prob[:, i]).abs() > 0.05).all()
    assert torch.equal(policy.decode(path.x[:, -1], ALIKE).data, path.media.data)
    single = policy.sample(ALIKE[1:], seeds=SEEDS[1:])
    size = path.x[1].abs().max()
    assert (single.x[0] - path.x[1]).abs().max() < 1e-4 * size
    assert (policy.sample(ALIKE[1:], seeds=SEEDS[:1]).x[0] - path.x[1]).abs().max() > 0.1


@pytest.mark.parametrize("name", [n for n in TIMED if n not in VOCODED])
def test_latents_of_media_are_those_that_the_pipeline_decodes_to_their_autoencoding(name):
    """Rearrangement, scale and shift are undone, frames that are decoded one by one and cut waves included."""
    policy = tiny.policy(name)
    media = policy.sample(PROMPTS, seeds=SEEDS).media
    latents = policy.encode(media)
    assert latents.shape[1:] == policy.structure.state.shape[1:] and torch.equal(latents, policy.encode(media))
    vae, x = policy.pipe.vae, media.data
    with torch.no_grad():
        settings, off = (encoding.capture_decoder_input(policy, c * latents[:1]) for c in (1.0, 1.05))
        if policy.modality == "audio":
            x = F.pad(x, (0, policy._decode_path.length - x.shape[-1]))
        else:
            x = (2 * x - 1).flatten(0, 1) if settings.dim() == 4 else (2 * x - 1).transpose(1, 2)
        results = vae.encode(x, sample_posterior=False) if name == LONGCAT else vae.encode(x)
        z = results.latent_dist.mode() if hasattr(results, "latent_dist") else results[0]
    original = z[: len(settings)]
    torch.testing.assert_close(settings, original, rtol=1e-4, atol=1e-4 * original.abs().max().item())
    assert (off - original).abs().max() > 1e-3 * original.abs().max()
    assert policy.decode(latents, PROMPTS).data.shape == media.data.shape


@pytest.mark.parametrize("name", VOCODED)
def test_what_a_vocoder_makes_is_not_encoded(name):
    policy = tiny.policy(name)
    with pytest.raises(BadInput, match=f"{name} makes its sounds by a vocoder"):
        policy.encode(policy.sample(PROMPTS, seeds=SEEDS).media)


def test_sounds_of_pairs_are_brought_to_the_pipelines_size_and_refused_at_another_rate():
    policy = tiny.policy("StableAudioPipeline")
    channels, length = policy.size
    mono = Media(torch.rand(1, 1, 3), "audio", policy.rate)
    brought = fit_to_size(mono, policy.size)
    assert brought.data.shape == (1, channels, length) and not brought.data[..., 3:].any()
    assert torch.equal(brought.data[0, 0, :3], mono.data[0, 0]) and torch.equal(brought.data[:, 0], brought.data[:, 1])
    stereo = Media(torch.rand(1, 2, length + 5), "audio", policy.rate)
    assert torch.equal(fit_to_size(stereo, policy.size).data, stereo.data[..., :length])
    assert torch.equal(fit_to_size(stereo, (1, length)).data, stereo.data.mean(1, keepdim=True)[..., :length])
    assert policy.encode(brought).shape[1:] == policy.structure.state.shape[1:]
    with pytest.raises(BadInput, match="at 8000 Hz .* makes 44100 Hz"):
        policy.encode(Media(brought.data, "audio", 8000.0))
    with pytest.raises(BadInput, match="of size 2x3 .* of size 2x7"):
        policy.encode(Media(stereo.data[..., :3], "audio", policy.rate))
    with pytest.raises(BadInput, match="clips were found where this pipeline makes sounds"):
        fit_to_size(Media(torch.rand(1, 2, 3, 8, 8), "video", 8.0), policy.size)


# The traps


@pytest.mark.parametrize(
    ("block", "argument"),
    [("call", "output_type"), ("call", "num_waveforms_per_prompt"), ("call", "latents"), ("text", "prompt")],
)
def test_a_config_can_not_set_what_the_workbench_gives_itself(block, argument, tmp_path):
    """output_type latent would pass latents off as media, several waves a prompt would come in another order."""
    with pytest.raises(BadInput, match=f"{block}: '{argument}' is given by the workbench itself"):
        pipelines.plan_loading(tiny.config(ACE, tmp_path, **{block: {argument: "latent"}}), device="cpu")


def test_steps_are_said_once(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(
        "class: WanPipeline\nrepo: a/b\nmodality: video\nrate: 16\nsteps: 2\ncall: {num_inference_steps: 9}\n"
    )
    with pytest.raises(BadInput, match="say steps: instead"):
        pipelines.read_config(path)


def test_a_peak_that_is_always_the_same_passes_a_finite_gradient_and_none_along_the_gain():
    """ACE-Step brings every wave to -1 dBFS, also one over full scale: no reward can be had by being louder."""
    policy = tiny.policy(ACE)
    x = policy.sample(PROMPTS, seeds=SEEDS).x[:, -1]
    peaks = policy.decode(x, PROMPTS).data.abs().amax((1, 2))
    torch.testing.assert_close(peaks, torch.full((2,), 10 ** (-1 / 20)))
    inside = []

    def louder(z, original=policy.pipe.vae.decode):
        inside.append(torch.tensor(20.0, requires_grad=True))
        return type(out)(out.sample * inside[-1]) if (out := original(z)) else None

    policy.pipe.vae.decode = louder
    x = x.clone().requires_grad_()
    data = policy.decode(x, PROMPTS).data
    weight = torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
    by_gain, by_latents = torch.autograd.grad((data * weight).sum(), (inside[-1], x))
    del policy.pipe.vae.decode
    assert data.abs().max() <= 1 and by_latents.isfinite().all() and by_latents.flatten(1).norm(dim=1).min() > 1e-3
    assert by_gain.abs() < 1e-5 * weight.norm()


def sde(pipe):
    """Wan with a stochastic solver, to which its pipeline hands no generator."""
    settings = dict(algorithm_type="sde-dpmsolver++", prediction_type="flow_prediction", use_flow_sigmas=True)
    pipe.scheduler = d.DPMSolverMultistepScheduler(**settings, flow_shift=3.0)
    return pipe


def test_a_solver_that_draws_without_a_generator_is_a_function_of_the_seeds_all_the_same():
    policy = tiny.policy(WAN, sde(tiny.build(WAN)))
    first, repeated = (policy.sample(PROMPTS, seeds=SEEDS).x for _ in range(2))
    assert torch.equal(first, repeated)
    single = policy.sample(PROMPTS[1:], seeds=SEEDS[1:]).x[0]
    assert (single - first[1]).abs().max() < 1e-4
    noise = policy.noise(SEEDS)
    other = policy.sample(PROMPTS, seeds=(1, 2), noise=noise).x
    assert torch.equal(other[:, 0], first[:, 0]) and (other[:, 1] - first[:, 1]).abs().max() > 0.1
    remaining = [policy.pipe(**policy.call_arguments(PROMPTS, SEEDS))[0] for _ in range(2)]
    assert not torch.equal(*remaining), "the control: the pipeline by itself leaves its steps to chance"


@pytest.mark.parametrize("name", ["StableAudioPipeline", "CogVideoXPipeline"])
def test_a_pipelines_own_stochastic_steps_are_a_function_of_the_seeds(name):
    """StableAudio's Brownian tree is made once a call, of the seeds; CogVideoX's SDE solver returns two states."""
    pipe = tiny.build(name)
    if name == "CogVideoXPipeline":
        pipe.scheduler = d.CogVideoXDPMScheduler()
    policy = tiny.policy(name, pipe)
    first = policy.sample(PROMPTS, seeds=SEEDS)
    policy.sample(PROMPTS, seeds=(1, 2))
    repeated = policy.sample(PROMPTS, seeds=SEEDS)
    plain = torch.as_tensor(pipe(**policy.call_arguments(PROMPTS, SEEDS))[0])
    assert torch.equal(first.x, repeated.x) and torch.equal(plain, first.media.data)
    other = policy.sample(PROMPTS, seeds=(1, 2), noise=policy.noise(SEEDS))
    assert torch.equal(other.x[:, 0], first.x[:, 0]) and (other.x[:, 1] - first.x[:, 1]).abs().max() > 0.1


def test_both_experts_work_learn_and_have_their_own_guidance():
    """Wan 2.2: the first for the noisier steps, the second for the rest; each is a denoiser, and each gets adapters."""
    policy = trainable(TWO)
    nudge(policy)
    assert policy.structure.denoisers == {"transformer", "transformer_2"} == set(policy.adapters.denoisers)
    ran = {}
    for name in sorted(policy.structure.denoisers):
        getattr(policy.pipe, name).register_forward_hook(lambda *_, name=name: ran.update({name: ran.get(name, 0) + 1}))
    path = policy.sample(PROMPTS, seeds=SEEDS, grad=3)
    assert min(ran.values()) >= 2 and sum(ran.values()) == 6 and len(ran) == 2
    policy.backward(path.media.data.square().mean())
    for name, module in policy.adapters.denoisers.items():
        assert any(p.grad is not None and p.grad.any() for p in module.parameters() if p.requires_grad), name
    call = tiny.TINY[TWO].call
    same = trainable(TWO, call={**call, "guidance_scale_2": call["guidance_scale"]})
    nudge(same)
    x = same.sample(PROMPTS, seeds=SEEDS).x
    changed = (x - path.x).abs().flatten(2).amax((0, 2)) > 1e-6
    assert changed.any() and not changed[:2].any(), "the second expert's guidance changes only what it is asked for"


@pytest.mark.parametrize("name", [ACE, WAN, "HunyuanVideoPipeline"])
def test_decoding_in_tiles_is_the_pipelines_own_and_passes_the_gradient(name):
    pipe = tiny.build(name)
    full = tiny.policy(name, pipe)
    x = full.sample(PROMPTS, seeds=SEEDS).x[:, -1]
    at_once = full.decode(x, PROMPTS).data
    if name == ACE:
        pipe.vae.use_tiling, pipe.vae.tile_latent_min_length, pipe.vae.tile_latent_overlap = True, 4, 1
    else:
        pipe.vae.enable_tiling(8, 8, **({} if name == WAN else {"tile_sample_min_num_frames": 4}))
        pipe.vae.tile_sample_stride_height = pipe.vae.tile_sample_stride_width = 8
    media = full.sample(PROMPTS, seeds=SEEDS).media.data
    original = torch.as_tensor(pipe(**full.call_arguments(PROMPTS, SEEDS))[0])
    assert torch.equal(media, original) and not torch.equal(media, at_once), "tiles do something, and the same"
    leaf = x.clone().requires_grad_()
    data = full.decode(leaf, PROMPTS).data
    assert torch.equal(data, media)
    (gradient,) = torch.autograd.grad(data.square().sum(), leaf)
    assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.9


def test_frames_that_the_scheduler_sees_as_rows_are_one_sample_here():
    """ModelScope's states are [B F,C,H,W] to its scheduler; those of a trajectory are [B,F,C,H,W]."""
    policy = stochastic(MODELSCOPE)
    observed = []
    seams.run_pipeline(
        policy.pipe, policy.call_arguments(PROMPTS, SEEDS), on_step=lambda s: observed.append(s.sample) or s.advance()
    )
    path = policy.sample(PROMPTS, seeds=SEEDS)
    frames = tiny.TINY[MODELSCOPE].call["num_frames"]
    assert policy.structure.rows_per_sample == frames and len(observed[0]) == 2 * frames
    assert torch.equal(path.x[:, 0].flatten(0, 1), observed[0])
    assert path.log_prob.shape == (2, 3) and path.x.shape[:3] == (2, 4, frames)


def test_a_pipeline_that_mixes_its_samples_rows_is_refused_by_name():
    pipe = tiny.build(MODELSCOPE)

    class Mixed(type(pipe)):
        def prepare_latents(self, *args, **kwargs):
            x = super().prepare_latents(*args, **kwargs)
            return x.transpose(0, 2).reshape(x.shape[0], x.shape[2], *x.shape[1:2], *x.shape[3:]).transpose(1, 2)

    mixed = Mixed(**pipe.components)
    mixed.set_progress_bar_config(disable=True)
    with pytest.raises(TypeError, match="Mixed folds other dimensions .* not sample by sample"):
        tiny.policy(MODELSCOPE, mixed).noise(SEEDS)


def test_clips_are_decoded_one_by_one_where_two_can_not_be_and_where_it_is_asked_for(tmp_path):
    """HunyuanVideo 1.5: its autoencoder's mask fits one clip. Control: without slicing the pipeline's own call
    breaks."""
    name = "HunyuanVideo15Pipeline"
    policy = tiny.policy(name)
    policy.pipe.vae.disable_slicing()
    with pytest.raises(RuntimeError):
        policy.pipe(**policy.call_arguments(PROMPTS, SEEDS))
    assert pipelines.load(tiny.config(name, tiny.save(name, tmp_path)), device="cpu").pipe.vae.use_slicing
    folder = tiny.save(WAN, tmp_path)
    plain, sliced = (pipelines.load(tiny.config(WAN, folder, slicing=on), device="cpu") for on in (False, True))
    assert (plain.pipe.vae.use_slicing, sliced.pipe.vae.use_slicing) == (False, True)
    a, b = (p.sample(PROMPTS, seeds=SEEDS).media.data for p in (plain, sliced))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_motion_adapter_is_put_on_a_stable_diffusion(tmp_path):
    """AnimateDiff from a folder of Stable Diffusion, as its config has it; without the adapter the folder is
    refused."""
    name, parts = "AnimateDiffPipeline", tiny.TINY["AnimateDiffPipeline"].parts()
    folder = tiny.save("StableDiffusionPipeline", tmp_path)
    tiny.randomise(parts["motion_adapter"])
    parts["motion_adapter"].save_pretrained(tmp_path / "adapter")
    with pytest.raises(BadInput, match="holds a StableDiffusionPipeline"):
        pipelines.load(tiny.config(name, folder), device="cpu")
    adapter = {"motion_adapter": str(tmp_path / "adapter")}
    policy = pipelines.load(tiny.config(name, folder, components=adapter), device="cpu")
    media = policy.sample(PROMPTS, seeds=SEEDS).media
    assert media.modality == "video" and media.data.shape[:2] == (2, 3) and media.data.std() > 0.01
    results = policy.pipe.unet.down_blocks[0].motion_modules[0].proj_in.weight
    assert torch.equal(results, parts["motion_adapter"].down_blocks[0].motion_modules[0].proj_in.weight)


def test_guidance_that_is_a_part_of_the_pipeline_can_not_be_overridden():
    policy = tiny.policy("HunyuanVideo15Pipeline", guidance="")
    x = policy.start(policy.noise(SEEDS), PROMPTS)
    assert policy.predict(x, 0, PROMPTS).x0.isfinite().all()
    with pytest.raises(BadInput, match="guidance of HunyuanVideo15Pipeline is set in the pipeline"):
        policy.predict(x, 0, PROMPTS, guidance=1.0)


def test_musicldm_reads_its_prompts_with_the_transformers_of_today(tmp_path):
    """By itself its call breaks where CLAP's features come wrapped; through load it works, and prompts matter."""
    name = "MusicLDMPipeline"
    pipe = tiny.build(name)
    del pipe.text_encoder.get_text_features
    with pytest.raises(AttributeError):
        pipe("a red cat", num_inference_steps=2)
    policy = pipelines.load(tiny.config(name, tiny.save(name, tmp_path)), device="cpu")
    one, other = (policy.sample((p,), seeds=(1,)).media.data for p in PROMPTS)
    assert one.isfinite().all() and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("LTX2Pipeline", "video and sound with two schedulers"),
        ("LTX2ImageToVideoPipeline", "video and sound with two schedulers"),
        ("TextToVideoZeroPipeline", "between two loops of its own"),
    ],
)
def test_what_can_not_be_aligned_is_refused_before_weights_load_and_says_why(name, why, tmp_path):
    assert name in REFUSED and hasattr(d, name)
    (tmp_path / "model_index.json").write_text(f'{{"_class_name": "{name}"}}')
    with pytest.raises(BadInput, match=f"{name} can't be aligned here: .*{why}"):
        pipelines.read_config(tmp_path)
