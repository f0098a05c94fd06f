"""Models that hear: their front ends agree with the publications, their gradients are true, sets of sounds are judged
as sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sound_fixtures as fixtures
import torch
from sound_fixtures import heard, tone

from rewards.audio.audiobox import AXES, Audiobox, rename_weight
from rewards.audio.clap import CLAPScore
from rewards.audio.loudness import Gated
from rewards.encoders.audio_frontend import LogMel, fit_length, mono_samples, window_starts
from rewards.encoders.load_audio import load_audio_encoder
from rewards.sets.audio_sets import FAD, AudioExemplar, AudioKAD, AudioVendi, SongSet, SoundEmbedder
from workbench.core.errors import BadInput
from workbench.core.types import Media

PROMPTS = ("slow rising flute", "fast organ", "high low")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ears")


@pytest.fixture(scope="module")
def clap(folder):
    return fixtures.clap_folder(folder / "clap")


@pytest.fixture(scope="module")
def vggish(folder):
    return fixtures.vggish_file(folder / "vggish")


@pytest.fixture(scope="module")
def audiobox(folder):
    return fixtures.audiobox_files(folder / "audiobox")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


# CLAP, against transformers


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
def test_the_log_mel_front_end_is_the_feature_extractors(truncation, seconds):
    """Of short sounds, repeated and padded, and of whole windows: within 3e-4 dB, 5e-4 of what is under -80 dB."""
    from transformers import ClapFeatureExtractor

    theirs = ClapFeatureExtractor(max_length_s=1, truncation=truncation, frequency_min=50)
    x = heard(2, seconds, 48000).data[:, 0]
    want = theirs([row.numpy() for row in x], sampling_rate=48000)["input_features"]
    kind = ("htk", False) if truncation == "fusion" else ("slaney", True)
    ours = LogMel(48000, 1024, 480, 64, 50, 14000, *kind)(fit_length(x, 48000, "repeatpad"))
    want = np.stack(want)[:, 0]
    off = np.abs(want - ours.numpy())
    assert off.max() < 5e-4 and off[want > -80].max() < 3e-4


@pytest.mark.parametrize("fusion", [False, True])
def test_clap_scores_are_those_of_transformers_own_model_and_extractor(fusion, folder):
    import transformers as t

    name = fixtures.clap_folder(folder / f"parity-{fusion}", seed=2, fusion=fusion)
    media = heard(3, 0.7, 48000)
    net = t.ClapModel.from_pretrained(name).eval()
    features = t.AutoFeatureExtractor.from_pretrained(name)([r.numpy() for r in media.data[:, 0]], sampling_rate=48000)
    picture = torch.from_numpy(np.stack(features["input_features"])).float()
    longer = torch.zeros(3, 1, dtype=torch.bool)  # theirs calls one of them longer by lot
    words = t.AutoTokenizer.from_pretrained(name)(list(PROMPTS), padding=True, return_tensors="pt")
    with torch.no_grad():
        sound = net.get_audio_features(picture, is_longer=longer).pooler_output
        text = net.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output
    want = torch.cosine_similarity(sound, text)
    got = CLAPScore(model=name)(media=media, prompts=PROMPTS)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert got.std() > 0.005


def test_a_checkpoint_of_laion_clap_hears_and_reads_as_the_same_weights_in_transformers(folder):
    """With its names, its fused projections, its leftovers and the numpy scalars in its file."""
    name = fixtures.laion_file(folder / "laion")
    media = heard(1, 0.4, 48000)
    same = CLAPScore(model=str(folder / "laion" / "transformers"))
    got = CLAPScore(model=name)(media=media, prompts=PROMPTS[:1])
    torch.testing.assert_close(got, same(media=media, prompts=PROMPTS[:1]), atol=1e-5, rtol=1e-4)


def test_a_file_that_is_no_clap_is_refused_by_what_it_lacks(folder, clap, vggish, tmp_path):
    with pytest.raises(BadInput, match="these are not the weights of a CLAP"):
        load_audio_encoder(vggish.replace("vggish:", "laion:"), "cpu")
    with pytest.raises(BadInput, match="these are not the weights of VGGish"):
        torch.save({"features.0.weight": torch.zeros(2, 1, 3, 3)}, tmp_path / "x.pth")
        load_audio_encoder(f"vggish:{tmp_path / 'x.pth'}", "cpu")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(BadInput, match="is a clip model; sounds are heard through clap models"):
        load_audio_encoder(str(tmp_path), "cpu")
    for missing in ("laion:/nowhere/clap.pt", "vggish:/nowhere/v.pth", "/nowhere/folder"):
        with pytest.raises(BadInput):
            CLAPScore(model=missing).check()


def test_a_long_sound_is_heard_in_windows_to_its_end(clap):
    """Fixed ones, so a score is the same every time; the last ends where the sound does."""
    assert (
        window_starts(10, 4, 2) == [0, 2, 4, 6]
        and window_starts(9, 4, 2) == [0, 2, 4, 5]
        and window_starts(3, 4, 2) == [0]
    )
    media, ear = heard(1, 2.25, 48000), load_audio_encoder(clap, "cpu")
    rows = ear.embed_windows(media.data[:, 0], 48000.0)
    assert rows.shape == (1, 4, 24)
    cut = [media.data[:, 0, s : s + 48000] for s in (0, 24000, 48000, 60000)]
    torch.testing.assert_close(rows[0], torch.cat([ear(c, 48000.0) for c in cut]), atol=1e-5, rtol=1e-4)
    judge = CLAPScore(model=clap)
    assert torch.equal(judge(media=media, prompts=PROMPTS[:1]), judge(media=media, prompts=PROMPTS[:1]))


@pytest.mark.parametrize("rate", [8000, 44100, 16000])
def test_stereo_and_any_rate_are_brought_to_what_the_model_hears(rate, clap):
    """The same piece below 4 kHz, however it is stored, scores nearly the same."""
    pieces = {r: sum(tone(p, 0.8, r, 0.2) for p in (220, 450, 1800)) for r in (rate, 48000)}
    media = [Media(pieces[r][None, None].repeat(1, c, 1), "audio", float(r)) for r, c in ((48000, 1), (rate, 2))]
    rows = [load_audio_encoder(clap, "cpu")(mono_samples(CLAPScore.spec, m, ("x",)), m.rate) for m in media]
    other = load_audio_encoder(clap, "cpu")(heard(1, 0.8, 48000, seed=5).data[:, 0], 48000.0)
    assert torch.cosine_similarity(*rows) > torch.cosine_similarity(rows[0], other)


# The others, against their publications


def test_vggish_sees_frames_of_25_ms_that_start_with_the_sound(vggish):
    """One frame, computed with numpy as the published front end says: periodic Hann, 512-point FFT, magnitudes, HTK
    mel."""
    ear, x = load_audio_encoder(vggish, "cpu"), heard(1, 1.2, 16000).data[:, 0]
    frame = x[0, 1600:2000].double().numpy() * (0.5 - 0.5 * np.cos(2 * np.pi / 400 * np.arange(400)))
    size = np.abs(np.fft.rfft(frame, 512))
    mel = 1127 * np.log(1 + np.linspace(0, 8000, 257) / 700)
    edges = np.linspace(*(1127 * np.log(1 + np.array([125, 7500]) / 700)), 66)
    up = (mel[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - mel[:, None]) / (edges[2:] - edges[1:-1])
    want = np.log(size @ np.maximum(0, np.minimum(up, down)) + 0.01)
    assert np.abs(ear.net.log_mel(x)[0, 10].numpy() - want).max() < 1e-3
    assert ear.embed_windows(x, 16000.0).shape == (1, 2, 12)


def test_the_published_names_of_audiobox_are_all_known():
    """260 tensors of the full size, as the authors' class has them, each with a place in this one."""
    from transformers import WavLMConfig, WavLMModel

    from rewards.encoders.checkpoints import BlankInit

    shapes = fixtures.audiobox_shapes()
    with torch.device("meta"), BlankInit():
        wavlm = {f"wavlm.{k}": tuple(v.shape) for k, v in WavLMModel(WavLMConfig()).state_dict().items()}
    ours = {rename_weight(name): shape for name, shape in shapes.items()}
    assert len(shapes) == len(ours) == 260
    assert {k: v for k, v in ours.items() if k.startswith("wavlm.")} == wavlm


def test_audiobox_gives_what_the_authors_code_gives_on_these_weights(audiobox):
    """13 s in two windows. The numbers are of github.com/facebookresearch/audiobox-aesthetics 2618e9d on this file."""
    found = Audiobox(**audiobox).score_axes(heard(2, 13.0, 16000))
    want = {"CE": AES[0], "CU": AES[1], "PC": AES[2], "PQ": AES[3]}
    assert set(found) == set(AXES)
    for axis in AXES:
        assert found[axis].tolist() == pytest.approx(want[axis], abs=2e-4)
    both = Audiobox(axes=("CE", "PQ"), **audiobox)(media=heard(2, 13.0, 16000), prompts=["", ""])
    torch.testing.assert_close(both, (found["CE"] + found["PQ"]) / 2)


AES = ([5.262100, 5.362341], [6.062888, 6.047849], [6.760566, 6.796049], [7.884624, 7.929582])


def test_audiobox_refuses_what_is_not_it(audiobox, tmp_path, vggish):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "vggish.pth"
    weights.write_bytes(Path(vggish.removeprefix("vggish:")).read_bytes())
    with pytest.raises(BadInput, match="not Audiobox Aesthetics as published"):
        Audiobox(weights=str(weights)).load()
    with pytest.raises(BadInput, match="choose at least one"):
        Audiobox(axes=())


# Gradients


def judges(clap, vggish, audiobox) -> dict:
    named = {"reference": ""}
    return {
        "clap": CLAPScore(model=clap),
        "audiobox": Audiobox(**audiobox),
        "gated": Gated(CLAPScore(model=clap), floor=0.0),
        "fad, clap": FAD(model=clap, window=0.25, **named),
        "fad, vggish": FAD(model=vggish, window=0.3, **named),
        "fad, logmel, songs": FAD(model="logmel", rows="songs"),
        "kad": AudioKAD(model=clap, window=0.25),
        "vendi": AudioVendi(model="logmel"),
        "exemplar": AudioExemplar(model=clap),
        "song fad": SongSet(FAD(model="logmel", window=0.1)),
        "song kad": SongSet(AudioKAD(model=clap, window=0.2)),
    }


def noisy(n: int, rate: int, seed: int) -> Media:
    media = heard(n, 0.6, rate, seed)
    noise = torch.randn(media.data.shape, generator=torch.Generator().manual_seed(seed))
    return Media(media.data + 0.1 * noise, "audio", float(rate))


@pytest.mark.parametrize("name", list(judges("", "", {"weights": ""})))
def test_the_gradient_to_the_wave_is_the_slope_of_the_score(name, clap, vggish, audiobox):
    """By differences along the gradient, of noisy sounds: a band next to silence bends its logarithm too much for
    that."""
    judge = judges(clap, vggish, audiobox)[name]
    rate = 48000 if "clap" in name or name in ("gated", "kad", "exemplar", "song kad") else 16000
    media, references = (noisy(n, rate, seed) for n, seed in ((3, 0), (5, 7)))

    def score(x):
        return judge(media=Media(x, "audio", float(rate)), prompts=PROMPTS, references=references).double().sum()

    x = media.data.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(x), x)
    assert gradient.isfinite().all() and gradient.flatten(1).norm(dim=1).gt(0).all()
    norm = gradient.double().norm().item()
    step = 3e-3 * gradient / norm
    with torch.no_grad():
        slope = (score(media.data + step) - score(media.data - step)).item() / (2 * step.norm().item())
    assert slope == pytest.approx(norm, rel=0.01)


@pytest.mark.parametrize("model", ["clap", "vggish", "logmel"])
def test_recomputing_activations_changes_no_gradient(model, clap, vggish):
    name, media, found = {"clap": clap, "vggish": vggish, "logmel": "logmel"}[model], heard(2, 0.5, 16000), []
    for again in (False, True):
        x = media.data.clone().requires_grad_()
        rows = SoundEmbedder(name, checkpoint=again)(Media(x, "audio", 16000.0))
        found.append(torch.autograd.grad((rows * torch.arange(rows.shape[1])).sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)


# What can't be judged


def test_bad_sounds_are_told_in_a_sentence_or_are_nan(clap, audiobox):
    for judge in (
        CLAPScore(model=clap),
        Audiobox(**audiobox),
        FAD(model="logmel"),
        SongSet(AudioVendi(model="logmel")),
    ):
        for media, says in [
            (Media(torch.zeros(1, 1, 0), "audio", 8000.0), "has no samples"),
            (Media(torch.zeros(1, 1, 100), "audio"), "does not say its sample rate"),
            (Media(torch.zeros(1, 1, 100), "audio", 8000.5), "whole number"),
            (Media(torch.zeros(1, 3, 8, 8), "image"), "judges audio, not image"),
        ]:
            with pytest.raises(BadInput, match=says) as caught:
                judge(media=media, prompts=["x"])
            assert "\n" not in str(caught.value)
    media = heard(3, 0.5, 16000)
    media.data[1, 0, 9] = torch.nan
    for judge in (CLAPScore(model=clap), Audiobox(**audiobox), AudioExemplar(model="logmel")):
        scores = judge(media=media, prompts=PROMPTS, references=heard(2, 0.5, 16000))
        assert scores.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("length", [1, 3, 200])
def test_the_shortest_the_silent_and_the_clipped_have_finite_scores_and_gradients(length, clap, audiobox):
    for row in (torch.zeros(length), torch.ones(length), tone(440, 0.5, 16000, 30.0).clamp(-1, 1)):
        x = row[None, None].clone().requires_grad_()
        for judge in (CLAPScore(model=clap), Audiobox(**audiobox)):
            score = judge(media=Media(x, "audio", 16000.0), prompts=["slow"])
            (gradient,) = torch.autograd.grad(score.sum(), x)
            assert score.isfinite().all() and gradient.isfinite().all()
