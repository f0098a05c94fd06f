"""Clips and sounds that are made from a source, every class that is here: each row from its own inputs, and every step
of it what the class itself would do."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import tiny
import torch
from double_precision import Double, gradient_error
from tiny import SEEDS
from tiny_conditioned_timed import CONDITIONED_TIMED

import pipelines
from pipelines import Ancestral, FlowSDE, attention, encoding
from pipelines.config import BLENDING
from pipelines.seam_check.evidence import RecordedStep, record_steps
from pipelines.user_pipeline import UserPipeline
from workbench.core.errors import BadInput
from workbench.core.inputs import MediaInput, prompt_inputs
from workbench.core.types import Media, Prompt, Trajectory

TEXTS, STEPS = ("a red cat", "two dogs"), 2
ALONE = ("HunyuanVideoImageToVideoPipeline",)  # its guidance has one black picture for all prompts
# one picture or sound for all rows of a call; the others take one for each
ONE = ("WanImage", "LTXCondition", "HunyuanVideo15", "AceStepPipeline:cover+reference")
ROUGH = dict.fromkeys(("LTXImageToVideoPipeline", "HunyuanVideoImageToVideoPipeline"), 1e-4)  # float32 islands
WAYS_IN = (  # a first frame that takes no noise, channels, a source in the first state, a clip, tokens
    "LTXImageToVideoPipeline",
    "CogVideoXImageToVideoPipeline",
    "HunyuanVideoImageToVideoPipeline",
    "CogVideoXVideoToVideoPipeline",
    "StableAudioPipeline:source",
    "StableAudio3AudioToAudioPipeline",
    "AceStepPipeline:cover+reference",
)


@dataclass
class Subject:
    name: str
    policy: pipelines.Policy
    prompts: tuple[str, ...]
    path: Trajectory
    rows: int  # through the denoiser, for these samples
    recorded: list[RecordedStep]


def make_policy(name: str, pipe=None) -> pipelines.Policy:
    """With two steps, also where the way begins at a source."""
    steps = 3 if "strength" in CONDITIONED_TIMED[name].call else STEPS
    return tiny.policy(name, pipe, steps=steps, checkpoint=False)


@pytest.fixture(scope="module", params=list(CONDITIONED_TIMED))
def subject(request) -> Subject:
    policy = make_policy(request.param)
    prompts = policy.conditions.example_prompts(TEXTS, seed=1000)
    policy.grouping, before = policy.grouping, policy.nfe
    path = policy.sample(prompts, seeds=SEEDS)
    return Subject(request.param, policy, prompts, path, policy.nfe - before, record_steps(policy, prompts, SEEDS))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def test_a_sample_is_what_the_class_makes_of_its_own_inputs(subject):
    """With the noise of its seeds and sources encoded by the mode of their posterior; rows counted as they are run."""
    policy, path = subject.policy, subject.path
    expected = "alone" if subject.name in ALONE else "one" if subject.name.startswith(ONE) else "each"
    assert policy.steps == STEPS == len(subject.recorded) and policy.grouping == expected
    assert torch.equal(policy.start(policy.noise(SEEDS), subject.prompts), path.x[:, 0])
    for i, step in enumerate(subject.recorded):
        assert torch.equal(step.x, path.x[:, i]) and torch.equal(step.x_next, path.x[:, i + 1])
    assert torch.equal(policy.decode(path.x[:, -1], subject.prompts).data, path.media.data)
    assert path.media.data.std() > 1e-3 and subject.rows == sum(step.rows for step in subject.recorded) > 0


def test_every_step_is_replayed_exactly_from_its_state(subject):
    policy, prompts, last = subject.policy, subject.prompts, STEPS - 1
    with torch.no_grad():
        for i, step in enumerate(subject.recorded):
            assert difference(policy._model_output(step.x, i, prompts), step.output) == 0
        elsewhere = policy._model_output(subject.recorded[last].x.flip(0), last, prompts)
    assert difference(elsewhere, subject.recorded[last].output) > 0.05, "the control: of another state"


def test_each_input_counts_is_not_confused_with_an_earlier_one_and_belongs_to_its_row_alone(subject):
    """Same texts, one input of the second row another one: that row is what the class makes of it, the first stays."""
    policy, (first, second) = subject.policy, subject.prompts
    (other,) = policy.conditions.example_prompts(TEXTS[1:], seed=2000)
    for name in policy.conditions.inputs:
        changed = (first, Prompt(TEXTS[1], {**prompt_inputs(second), name: prompt_inputs(other)[name]}))
        x = policy.sample(changed, seeds=SEEDS).x
        own = record_steps(policy, changed[1:], SEEDS[1:])
        size = subject.path.x[:, -1].abs().max()
        assert difference(own[-1].x_next[0], x[1, -1]) < 1e-5 * size and torch.equal(x[0], subject.path.x[0])
        assert difference(x[1, -1], subject.path.x[1, -1]) > 1e-4 * size


def test_what_a_kernel_drew_it_can_score_unless_parts_of_a_state_are_not_sampled(subject):
    twin = copy.copy(subject.policy)
    twin.kernel = FlowSDE() if twin.levels[0].is_flow else Ancestral()
    if tiny.class_of(subject.name) in BLENDING:
        assert "stochastic" not in twin.provides
        with pytest.raises(TypeError, match="lays its source under the mask again after every step"):
            twin.sample(subject.prompts, seeds=SEEDS)
        return
    path = twin.sample(subject.prompts, seeds=SEEDS)
    assert path.stochastic and "stochastic" in twin.provides
    for i in path.stochastic:
        law = twin.transition(path.x[:, i], i, subject.prompts)
        assert difference(law.log_prob(path.x[:, i + 1]), path.log_prob[:, i]) == 0
        off = law.log_prob(path.x[:, i + 1] + law.std)  # the control: one standard deviation away
        assert ((off - path.log_prob[:, i]).abs() > 0.05).all()


def test_media_are_encoded_to_the_latents_that_are_decoded_to_their_autoencoding(subject):
    """Around a first frame that is given, too. Refused by name where a state is changed before it is decoded."""
    policy, media = subject.policy, subject.path.media
    if tiny.class_of(subject.name) in BLENDING:
        with pytest.raises(TypeError, match="does more to its last state"):
            policy.encode(media)
        return
    latents = policy.encode(media)
    assert latents.shape[1:] == policy.structure.state.shape[1:]
    path = policy._decode_path
    z = encoding.run_autoencoder(policy, path, media[0])
    with torch.no_grad():
        decoded, off = (encoding.capture_decoder_input(policy, c * latents[:1]) for c in (1.0, 1.05))
    size = z[path.reaches].abs().max()
    assert difference(decoded[path.reaches], z[path.reaches]) < 1e-4 * size
    assert difference(off[path.reaches], z[path.reaches]) > 1e-3 * size


@pytest.mark.parametrize("name", WAYS_IN)
def test_the_gradient_from_media_to_noise_is_that_of_finite_differences(name):
    with torch.random.fork_rng([]), Double():
        policy = make_policy(name, tiny.build(name).to(torch.float64))
        policy.grouping = "each"  # one row
        prompts = policy.conditions.example_prompts(TEXTS[:1], seed=1000)
        assert gradient_error(policy, prompts) <= ROUGH.get(name, 1e-6)


# What a class is given


def sound_of(seconds: float, channels: int, rate: float) -> MediaInput:
    x = 0.5 * torch.randn(1, channels, round(seconds * rate), generator=torch.Generator().manual_seed(5))
    return MediaInput.of(Media(x, "audio", rate))


@pytest.mark.parametrize(
    ("name", "argument", "seconds"),
    [
        ("StableAudioPipeline:source", "initial_audio_waveforms", 2.0),  # as long as its denoiser can
        ("StableAudio3InpaintPipeline", "audio", 1.0),
        ("AceStepPipeline:cover", "src_audio", 4.0),
    ],
)
def test_a_sound_of_any_rate_length_and_channels_is_brought_to_what_the_call_makes(name, argument, seconds):
    """And to the dtype of the autoencoder, as not all classes do so."""
    policy = tiny.policy(name, tiny.build(name).to(torch.bfloat16), checkpoint=False)
    sources = sound_of(0.5 * seconds, 1, 2 * policy.rate), sound_of(3 * seconds, 2, policy.rate)
    prompts = tuple(Prompt("a", {"source": source}) for source in sources)
    call = policy.call_arguments(prompts, SEEDS, "each")
    short, long = call[argument]
    half = round(0.5 * seconds * policy.rate)
    assert call[argument].shape == (2, 2, 2 * half) and call[argument].dtype == torch.bfloat16
    assert torch.equal(short[0], short[1]) and short[:, : half - 1].any() and not short[:, half + 1 :].any()
    assert difference(long, sources[1].read().data[0, :, : 2 * half].bfloat16()) == 0
    assert call.get("initial_audio_sampling_rate") == (4 if argument == "initial_audio_waveforms" else None)
    assert policy.sample(prompts, seeds=SEEDS).media.data.isfinite().all()


def test_a_reference_keeps_its_length_and_is_one_sound():
    policy = make_policy("AceStepPipeline:cover+reference")
    (prompt,) = policy.conditions.example_prompts(("a",))
    mono = Prompt("a", {**prompt_inputs(prompt), "reference": sound_of(7.0, 1, policy.rate)})
    assert policy.call_arguments((mono,), (1,))["reference_audio"].shape == (2, 28)
    assert policy.sample((mono,), seeds=(1,)).media.data.isfinite().all()


def test_a_loaded_pipeline_takes_its_inputs_in_the_size_that_is_said():
    pipe = tiny.build("StableDiffusionInstructPix2PixPipeline")
    sizes = [
        UserPipeline(pipe, steps=2, **size).as_policy().conditions.shape for size in ({}, {"input_size": [24, 32]})
    ]
    assert sizes == [(16, 16), (24, 32)]


def test_an_input_of_another_kind_and_a_clip_that_is_too_short_are_one_sentence():
    policy = make_policy("CogVideoXVideoToVideoPipeline")
    picture, short = (
        MediaInput.of(media)
        for media in (Media(torch.rand(1, 3, 8, 8), "image"), Media(torch.rand(1, 2, 3, 8, 8), "video", 8.0))
    )
    for value, reason in (
        (picture, "a picture was given where this pipeline takes a clip"),
        (short, "a clip of 2 frames is too short for this pipeline, which takes 9"),
    ):
        with pytest.raises(BadInput, match=f"'a': source: {reason}"):
            policy.sample((Prompt("a", {"source": value}),), seeds=(1,))
    silent = tiny.policy("CogVideoXVideoToVideoPipeline", input_size=[])
    with pytest.raises(BadInput, match=r"say input_size: \[frames, height, width\]"):
        silent.noise((1,))


def test_the_first_frames_of_a_longer_clip_count_in_the_size_of_the_call():
    policy = make_policy("CogVideoXVideoToVideoPipeline")
    clip = torch.rand(1, 12, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    given = [Media(x, "video", 8.0) for x in (clip, clip[:, :9, ..., 2:18])]
    states = [policy.sample((Prompt("a", {"source": MediaInput.of(m)}),), seeds=(1,)).x for m in given]
    assert torch.equal(*states)


def test_a_folder_of_text_to_video_weights_starts_from_a_first_frame_too(tmp_path):
    """Where all components are those of the class; else the folder is refused, as a folder of another class is."""
    folder, name = tiny.save("LTXPipeline", tmp_path), "LTXImageToVideoPipeline"
    policy = pipelines.load(tiny.config(name, folder, steps=1), device="cpu")
    prompts = policy.conditions.example_prompts(TEXTS[:1])
    assert policy.sample(prompts, seeds=SEEDS[:1]).media.data.std() > 1e-3
    with pytest.raises(BadInput, match="holds a LTXPipeline, but the config says class: WanImageToVideoPipeline"):
        pipelines.load(tiny.config("WanImageToVideoPipeline:5b", folder), device="cpu")


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("ltx-097", {"call": {"image_cond_noise_scale": 0.15}}, "image_cond_noise_scale: must be 0.0"),
        ("wan21-v2v-1.3b", {"input_size": [480]}, r"input_size: is \[height, width\] of pictures"),
        ("wan21-i2v-14b", {"call": {"image": "a.png"}}, "inputs: first: 'image' is given already"),
    ],
)
def test_what_a_config_can_not_say_is_refused_before_weights_load(name, changes, reason):
    with pytest.raises(BadInput, match=reason):
        pipelines.read_config({"name": name, **changes})


def test_noise_that_rises_from_step_to_step_is_no_flow_sde():
    """Stable Audio 3 with a source: its first level is set, and lower than its schedule's second."""
    name = "StableAudio3AudioToAudioPipeline"
    call = {key: value for key, value in CONDITIONED_TIMED[name].call.items() if key != "logsnr_min"}
    policy = tiny.policy(name, steps=3, call=call, kernel=FlowSDE())
    assert policy.levels[0].s_next > policy.levels[0].s
    prompts = policy.conditions.example_prompts(TEXTS[:1])
    with pytest.raises(TypeError, match="noise levels that fall"):
        policy.sample(prompts, seeds=SEEDS[:1])
    policy.kernel = Ancestral()
    assert policy.sample(prompts, seeds=SEEDS[:1]).stochastic == (1,)


@pytest.mark.parametrize("name", ["CogVideoXImageToVideoPipeline", "StableDiffusionXLInpaintPipeline"])
def test_attention_kernels_are_refused_as_for_the_text_to_media_class(name):
    with pytest.raises(BadInput, match=f"flash would change nothing in {name}"):
        attention._check_flash_fits(name, {torch.bfloat16})
