"""Films and sounds as people play them: MP4 with its sound, FLAC, pictures on one scale, clips in step, broken files
named."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from sound_fixtures import heard, tone, wav16

from workbench.core.errors import BadInput
from workbench.core.io import audio, media, video
from workbench.core.types import Media
from workbench.report import audio_view

av = pytest.importorskip("av")
META = {"prompt": "langsam, eine “Flöte” 笛", "seed": 7, "scores": {"clap": 0.31}}


def clip(frames: int = 9, high: int = 48, wide: int = 64, rate: float = 8.0) -> Media:
    """A bright square that moves right over blue, then red."""
    data = torch.zeros(1, frames, 3, high, wide)
    data[:, :, 2] = 0.7
    data[:, frames // 2 :, 0], data[:, frames // 2 :, 2] = 0.8, 0.1
    for t in range(frames):
        data[0, t, :, 8:24, 2 * t : 2 * t + 16] = 0.9
    return Media(data, "video", rate)


# MP4


def test_a_film_comes_back_with_its_colours_its_rate_and_its_story(tmp_path):
    made = clip()
    path = video.write_mp4(made, tmp_path / "a.mp4", meta=META)
    found = media.inspect_media(path)
    assert found.media.data.shape == made.data.shape and found.media.rate == 8.0 and found.story == META
    off = (found.media.data - made.data).abs()
    assert off.mean() < 0.02
    assert off[0, :, :, 40:44, 2:60].max() < 0.03, "flat colours far from an edge are nearly exact"


def test_a_film_is_what_players_take(tmp_path):
    """h264, yuv420p, BT.709 said so, the index before the pictures."""
    path = video.write_mp4(clip(), tmp_path / "a.mp4")
    with av.open(str(path)) as file:
        context = file.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (int(context.colorspace), int(context.color_range)) == (1, 1)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    "frames, high, wide, rate", [(1, 48, 64, 8.0), (7, 33, 31, 8.0), (3, 16, 16, 23.976), (2, 2, 2, 1.0)]
)
def test_odd_sides_odd_counts_and_one_frame(frames, high, wide, rate, tmp_path):
    g = torch.Generator().manual_seed(0)
    made = Media(torch.rand(1, frames, 3, 1, 1, generator=g).expand(-1, -1, -1, high, wide), "video", rate)
    found = media.read_media(video.write_mp4(made, tmp_path / "a.mp4"))
    assert found.data.shape == (1, frames, 3, high + high % 2, wide + wide % 2)
    assert found.rate == pytest.approx(rate, rel=1e-4)
    assert (found.data[..., :high, :wide] - made.data).abs().max() < 0.03


@pytest.mark.parametrize("rate, channels", [(8000, 1), (16000, 2), (44100, 2), (48000, 1), (12345, 1)])
def test_the_sound_in_a_film_is_the_sound(rate, channels, tmp_path):
    sound = Media(tone(500, 1.0, rate).repeat(channels, 1)[None], "audio", float(rate))
    path = video.write_mp4(clip(), tmp_path / "a.mp4", sound=sound, meta=META)
    assert media.inspect_media(path).story == META
    data, played, story = video.read_sound(path)
    assert len(data) == channels and story == META and played == (rate if rate in video.AAC else 48000)
    assert data.shape[1] / played == pytest.approx(1.0, abs=2 * 1024 / played), "AAC speaks in frames of 1024"
    spectrum = np.abs(np.fft.rfft(data[0].numpy()))
    assert spectrum.argmax() * played / data.shape[1] == pytest.approx(500, abs=10)
    assert data[0].square().mean().sqrt().item() == pytest.approx(0.5 / math.sqrt(2), rel=0.15)


def test_what_is_no_film_is_not_written_and_nothing_is_left(tmp_path):
    for made, says in [
        (Media(torch.rand(2, 3, 3, 8, 8), "video", 8.0), "one row"),
        (Media(torch.rand(1, 0, 3, 8, 8), "video", 8.0), "without content"),
        (Media(torch.rand(1, 3, 3, 8, 8), "video"), "without a rate"),
        (Media(torch.full((1, 3, 3, 8, 8), torch.nan), "video", 8.0), "aren't finite"),
    ]:
        with pytest.raises(ValueError, match=says):
            video.write_mp4(made, tmp_path / "a.mp4")
    with pytest.raises(BadInput, match="written as .mp4"):
        video.write_mp4(clip(), tmp_path / "a.avi")
    assert not any(tmp_path.iterdir())


# FLAC and WAV


@pytest.mark.parametrize("rate, channels", [(8000, 1), (44100, 2), (48000, 1), (16000, 2)])
def test_flac_keeps_24_bits_and_the_story(rate, channels, tmp_path):
    made = heard(1, 0.7, rate, channels=channels)
    found = media.inspect_media(video.write_flac(made, tmp_path / "a.flac", meta=META))
    assert found.media.data.shape == made.data.shape and found.media.rate == rate and found.story == META
    assert (found.media.data - made.data).abs().max() < 1.5 / 2**23
    assert media.inspect_media(video.write_flac(made, tmp_path / "b.flac")).story == {}


def test_flac_is_clipped_at_full_scale_and_has_one_or_two_channels(tmp_path):
    loud = Media(torch.tensor([[[2.0, -2.0, 0.5] * 2000]]), "audio", 8000.0)
    found = media.read_media(video.write_flac(loud, tmp_path / "a.flac")).data
    assert found[0, 0, :3].tolist() == pytest.approx([1, -1, 0.5], abs=1e-6)
    with pytest.raises(BadInput, match="3 channels"):
        video.write_flac(Media(torch.zeros(1, 3, 100), "audio", 8000.0), tmp_path / "b.flac")


@pytest.mark.parametrize("make, says", [
    (lambda p: (p / "a.wav").write_bytes(media.encode_wav(heard(1))[:200]), "broken or cut short"),
    (lambda p: (p / "a.flac").write_bytes(b"fLaC not really"), "broken or cut short"),
    (lambda p: (p / "a.mp4").write_bytes(video.write_mp4(clip(), p / "x.mp4").read_bytes()[:400]),
     "broken or cut short"),
    (lambda p: (p / "a.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42 and then nothing of the kind"),
     "broken or cut short"),
    (lambda p: wavfile.write(p / "a.wav", 8000, np.zeros((0, 1), np.int16)), "holds no sound"),
    (lambda p: (p / "a.wav").touch(), "empty"),
])  # fmt: skip
def test_a_broken_film_or_sound_is_named_in_one_sentence(make, says, tmp_path):
    make(tmp_path)
    path = next(p for p in tmp_path.iterdir() if p.stem == "a")
    with pytest.raises(BadInput, match=says) as caught:
        media.read_media(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_sound_is_read_alike_by_the_leaf_that_rewards_use(tmp_path):
    made = heard(1, 0.3, 22050, channels=2)
    path = media.write_media(made, tmp_path / "a.wav", meta=META)
    data, rate, story = audio.read_sound(path)
    assert torch.equal(data[None], made.data) and rate == 22050 and story == META
    other, rate, _ = audio.read_sound(wav16(tmp_path / "b.wav", made.data[0], 22050))
    assert (other - made.data[0]).abs().max() < 1e-4
    with pytest.raises(BadInput, match="no such file"):
        audio.read_sound(tmp_path / "c.wav")


def test_silence_and_loudness_over_full_scale_are_told(tmp_path):
    wavfile.write(tmp_path / "s.wav", 8000, np.zeros(800, np.float32))
    wavfile.write(tmp_path / "l.wav", 8000, np.linspace(-2, 2, 800, dtype=np.float32))
    assert "silent" in media.inspect_media(tmp_path / "s.wav").notes[0]
    assert "peak 2.00" in media.inspect_media(tmp_path / "l.wav").notes[0]


# To look at


def drawn(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def spectrogram(sound: Media, width: int = 600) -> np.ndarray:
    """The lower part of a sound's picture: [rows,columns,3]."""
    return drawn(audio_view.sound_picture(sound, width))[audio_view.WAVE_HIGH :]


def test_a_higher_tone_stands_higher_in_the_spectrogram():
    low, high = (Media(tone(f, 1.0, 16000)[None, None], "audio", 16000.0) for f in (500, 4000))
    rows = [spectrogram(sound).sum(2).sum(1).argmax() for sound in (low, high)]
    assert rows[0] > rows[1] + 30, "the picture's top is the highest frequency"


def test_a_picture_marks_clipping_and_takes_silence_short_sounds_and_stereo():
    over = Media((tone(200, 0.5, 8000, 3.0).clamp(-1, 1))[None, None], "audio", 8000.0)
    red = (drawn(audio_view.sound_picture(over)) == [0xC8, 0x37, 0x2D]).all(2).sum()
    fine = Media(over.data * 0.5, "audio", 8000.0)
    assert red > 100 and not (drawn(audio_view.sound_picture(fine)) == [0xC8, 0x37, 0x2D]).all(2).any()
    silent, short = Media(torch.zeros(1, 1, 8000), "audio", 8000.0), Media(torch.rand(1, 2, 10) - 0.5, "audio", 44100.0)
    for odd in (silent, short, replace(fine, rate=8.0)):  # of which nothing can be heard
        assert audio_view.still_picture(odd).data.isfinite().all()
        assert drawn(audio_view.sound_picture(odd)).shape[2] == 3
    with pytest.raises(ValueError, match="aren't finite"):
        audio_view.sound_picture(Media(torch.full((1, 1, 100), torch.nan), "audio", 8000.0))
