"""Media files as cameras, editors, browsers and phones write them: the right value, or one sentence; never a traceback,
and never more memory than is stated."""

from __future__ import annotations

import logging
import random
import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image, ImageCms

from rewards import REWARDS
from rewards.encoders.preprocess import resize_images
from rewards.sets.exemplar import PictureEmbedder, list_examples
from rewards.video.frames import Consistency, Frames, Motion
from workbench.core.errors import BadInput
from workbench.core.io import budget, clips, folders, formats, media
from workbench.engine import score_media
from workbench.evaluation import score_batches, scoring
from workbench.runs import preference_data

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # last: a file there is called as the package `rewards` is

import door_media  # noqa: E402
from door_bombs import animation, apng, make_bombs, png, wav  # noqa: E402
from door_outcomes import try_input  # noqa: E402

STARTER = "starter:image/clip"


@pytest.fixture(scope="module")
def seeds() -> dict[str, door_media.Seed]:
    return {seed.name: seed for seed in door_media.make_seeds()}


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


# Every door, hundreds of files


def test_hundreds_of_whole_and_damaged_files_get_an_answer_at_every_door(tmp_path):
    """benchmarks/doors.py does it with thousands, in processes that are timed."""
    cases = door_media.make_cases(250, seed=random.Random(0).randrange(10**6))
    beside = written(tmp_path, "good.png", cases[0].content)
    expected = {"brightness": cases[0].value}
    faults = {}
    for case in cases:
        answer, note = try_input(lambda case=case: door_media.try_doors(case, tmp_path, beside, expected))
        if answer not in ("value", "sentence"):
            faults[case.kind, case.name] = (answer, note)
    assert not faults


# Sounds


def test_wavs_of_audio_editors_pipes_and_telephones_hold_the_same_tone(seeds, tmp_path):
    tone = door_media._tone(2).data
    for name, off in [
        ("wav of an editor", 1e-4), ("wav of a pipe", 1e-4), ("wav without sizes", 1e-4), ("wav of 24 bits", 1e-6),
        ("wav of doubles", 1e-7), ("wav of 8 bits", 1e-2), ("wav, mu-law", 2e-2), ("wav, a-law", 2e-2), ("rifx", 1e-4),
        ("rf64", 1e-4), ("w64", 1e-4), ("aiff", 1e-4), ("caf", 1e-4), ("au", 1e-4), ("flac", 1e-6),
    ]:  # fmt: skip
        sound = media.read_media(written(tmp_path, f"x{seeds[name].suffix}", seeds[name].content))
        assert sound.rate == 8000 and sound.data.shape == tone.shape, name
        assert (sound.data - tone).abs().max() < off, name
    for name in ("wav, adpcm", "mp3", "vorbis", "opus", "aac"):
        sound = media.read_media(written(tmp_path, f"x{seeds[name].suffix}", seeds[name].content))
        spectrum = torch.fft.rfft(sound.data[0, 1]).abs()
        assert spectrum.argmax() * sound.rate / sound.data.shape[2] == pytest.approx(440, abs=5), name


def test_a_float_wav_of_libsndfile_and_six_channels_are_read_as_they_are(tmp_path):
    x = np.random.default_rng(0).uniform(-1.5, 1.5, (900, 6)).astype(np.float32)
    soundfile.write(tmp_path / "x.wav", x, 44100, subtype="FLOAT")  # with a PEAK chunk
    assert b"PEAK" in (tmp_path / "x.wav").read_bytes()
    sound = media.read_media(tmp_path / "x.wav")
    assert torch.equal(sound.data[0], torch.from_numpy(x.T)) and sound.rate == 44100
    soundfile.write(tmp_path / "x.wav", x / 2, 44100, format="WAVEX", subtype="PCM_24")
    assert (media.read_media(tmp_path / "x.wav").data[0] - torch.from_numpy(x.T) / 2).abs().max() < 1e-6


def test_what_a_file_is_its_content_says_to_every_reader(seeds, tmp_path):
    for name, suffix, kind in [
        ("mp3", ".wav", "MP3"), ("flac", ".wav", "FLAC"), ("png", ".jpg", "PNG"), ("webp", ".png", "WebP"),
        ("aac", ".mp4", "M4A"), ("wav", ".mp3", "WAV"), ("webm", ".mp4", "WebM"), ("jpeg", ".heic", "JPEG"),
    ]:  # fmt: skip
        whole = media.inspect_media(written(tmp_path, f"whole{seeds[name].suffix}", seeds[name].content))
        named = media.inspect_media(written(tmp_path, f"named{suffix}", seeds[name].content))
        assert torch.equal(whole.media.data, named.media.data) and named.media.rate == whole.media.rate
        assert f"its content is {kind}, whatever its name says" in named.notes and not whole.notes


def test_a_wav_that_is_cut_short_is_refused_and_not_read_as_a_shorter_one(seeds, tmp_path):
    for name in ("wav", "wav of an editor", "rifx", "rf64", "aiff", "flac", "mp4 with sound", "webm"):
        content = seeds[name].content[: len(seeds[name].content) * 2 // 3]
        with pytest.raises(BadInput, match="cut short"):
            media.read_media(written(tmp_path, f"x{seeds[name].suffix}", content))


def test_a_film_without_pictures_is_a_sound_and_a_cover_is_no_film(tmp_path):
    tone = door_media._tone(1, 1.0).data[0]
    with av.open(str(tmp_path / "x.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=8000, layout="mono")
        door_media.video._encode_samples(file, stream, tone.numpy(), "fltp", 8000)
    sound = media.inspect_media(tmp_path / "x.mp4")
    assert sound.modality == "audio" and sound.media.rate == 8000 and not sound.notes


# Pictures


def test_a_phone_s_picture_of_several_is_its_first_even_where_its_index_is_stale(seeds, tmp_path):
    content = seeds["jpeg of two pictures"].content
    first = media.inspect_media(written(tmp_path, "x.jpg", content))
    assert first.modality == "image" and first.media.data.shape == (1, 3, 24, 32)
    cut = content[: content.rindex(b"\xff\xd8\xff")]  # an editor kept the index and dropped the second picture
    assert torch.equal(media.read_media(written(tmp_path, "y.jpg", cut)).data, first.media.data)


def test_colours_of_other_profiles_come_into_srgb_and_srgb_stays_as_it_is(tmp_path):
    green = Image.new("RGB", (8, 8), (0, 200, 0))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(srgb)  # a profile whose red is sRGB's green and the reverse
    tags = {srgb[132 + 12 * n : 136 + 12 * n]: 132 + 12 * n for n in range(struct.unpack(">I", srgb[128:132])[0])}
    swapped[tags[b"rXYZ"] : tags[b"rXYZ"] + 4], swapped[tags[b"gXYZ"] : tags[b"gXYZ"] + 4] = b"gXYZ", b"rXYZ"
    for profile, colour, note in [
        (srgb, (0, 200, 0), None),
        (bytes(swapped), (200, 0, 0), "brought to sRGB"),
        (b"no profile", (0, 200, 0), "taken for sRGB"),
    ]:
        green.save(tmp_path / "x.png", icc_profile=profile)
        found = media.inspect_media(tmp_path / "x.png")
        assert (found.media.data[0, :, 0, 0] * 255).tolist() == pytest.approx(colour, abs=3)
        assert (note is None and not found.notes) or note in found.notes[0]


def test_a_line_is_scored_by_what_can_and_too_narrow_for_a_model(tmp_path):
    Image.new("RGB", (500_000, 1), (255, 255, 255)).save(tmp_path / "x.png")
    (row,) = scoring.score_files([tmp_path / "x.png"], ["brightness"], None)
    assert row["brightness"] == pytest.approx(1.0)
    assert len(media.encode_thumbnail(tmp_path / "x.png")) < 10_000
    with pytest.raises(BadInput, match="too narrow"):
        resize_images(torch.ones(1, 3, 1, 500_000), (224, 112_000_000))
    assert resize_images(torch.ones(1, 3, 1, 900), (64, 57_600)).shape == (1, 3, 64, 57_600)


# Clips


def moving(frames: int, held: int = 0) -> list[np.ndarray]:
    """A square that moves two pixels a frame over a texture; the middle picture comes `held` times more."""
    texture = np.random.default_rng(0).integers(60, 120, (48, 64, 3)).astype(np.uint8)
    out = []
    for t in range(frames):
        picture = texture.copy()
        picture[12:36, 2 * t : 2 * t + 12] = (250, 220, 30)
        out += [picture] * (1 + held * (t == frames // 2))
    return out


def film(path: Path, pictures: list, times: list[int], codec="libx264", layout="yuv444p", rate=30, turn=0, **settings):
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], layout
        stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if turn:
            stream.set_display_rotation(turn)
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
            frame = frame.reformat(format=layout)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def motion(path: Path) -> float:
    (row,) = scoring.score_files([path], ["motion"], None)
    assert not row["error"]
    return row["motion"]


def test_the_same_scene_moves_as_much_at_a_constant_and_at_a_variable_rate(tmp_path):
    """As phones and screen recorders write it: a picture that stands still is written once."""
    times = [0]
    for n in range(20):
        times.append(times[-1] + (40 if n != 10 else 800))
    even = film(tmp_path / "even.mp4", moving(20, held=19), list(range(0, 39 * 40, 40)), rate=25)
    expected = motion(even)
    assert expected > 0.1
    for suffix in (".mp4", ".mkv", ".webm"):
        codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
        path = film(tmp_path / f"uneven{suffix}", moving(20), times[:20], codec, rate=25)
        clip = media.inspect_media(path).content
        assert len(clip) == 39 and clip.rate == pytest.approx(25, rel=0.02), suffix
        assert motion(path) == pytest.approx(expected, rel=0.05), suffix
    frames = [Image.fromarray(p) for p in moving(20)]
    waits = [40 if n != 10 else 800 for n in range(20)]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], duration=waits, lossless=True)
    clip = media.inspect_media(tmp_path / "x.webp").content
    assert (len(clip), len(clip.pictures), clip.rate) == (39, 20, 25.0)
    assert motion(tmp_path / "x.webp") == pytest.approx(expected, rel=0.05)


def test_a_recorder_s_uneven_stamps_neither_lose_nor_double_the_scene(tmp_path):
    """MediaRecorder: no constant rate, stamps in whole milliseconds that jitter."""
    jitter = np.random.default_rng(0).integers(-6, 7, 24)
    times = [max(0, round(n * 83.3) + int(j)) for n, j in enumerate(jitter)]
    clip = media.inspect_media(film(tmp_path / "x.webm", moving(24), times, "libvpx-vp9")).content
    assert clip.rate == pytest.approx(12, rel=0.05) and len(clip) / clip.rate == pytest.approx(2.0, abs=0.1)
    assert len(set(clip.order.tolist())) >= 22


@pytest.mark.parametrize(("turn", "quarter_turns"), [(0, 0), (-90, -1), (90, 1), (180, 2)])
def test_a_film_is_turned_as_the_phone_was_held(tmp_path, turn, quarter_turns):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = (250, 20, 20)
    clip = media.read_media(film(tmp_path / "x.mp4", [picture] * 3, [0, 40, 80], turn=turn))
    upright = torch.from_numpy(np.rot90(picture, quarter_turns).copy()).permute(2, 0, 1) / 255
    assert clip.data.shape[2:] == upright.shape and (clip.data[0, 1] - upright).abs().mean() < 0.02


def test_alpha_of_a_film_is_laid_on_white_and_long_pixels_become_square(tmp_path):
    picture = np.zeros((48, 64, 4), np.uint8)
    picture[..., 0], picture[:, :32, 3] = 255, 255
    clip = media.read_media(film(tmp_path / "x.webm", [picture] * 3, [0, 40, 80], "libvpx-vp9", "yuva420p"))
    assert clip.data[0, 1, :, 24, 8].tolist() == pytest.approx([1, 0, 0], abs=0.03)
    assert clip.data[0, 1, :, 24, 56].tolist() == pytest.approx([1, 1, 1], abs=0.03)
    wide = film(tmp_path / "x.mp4", moving(3), [0, 40, 80], sample_aspect_ratio=Fraction(3, 2))
    found = media.inspect_media(wide)
    assert found.content.size == (96, 48) and "pixels of 3:2, made square" in found.notes


def test_animations_play_as_in_browsers(tmp_path):
    frames = [Image.fromarray(p) for p in moving(4)]
    for name, how in [("x.gif", {}), ("x.webp", {"lossless": True}), ("x.png", {})]:
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=0, **how)
        clip = media.read_media(tmp_path / name)
        assert clip.data.shape[1] == 4 and clip.rate == 10.0, "a delay of 0 is a tenth of a second"
    exif = Image.Exif()
    exif[0x0112] = 6  # held on its side
    frames[0].save(tmp_path / "y.webp", save_all=True, append_images=frames[1:], duration=50, exif=exif)
    assert media.inspect_media(tmp_path / "y.webp").content.size == (48, 64)
    cover = Image.new("RGB", (64, 48), "white")
    cover.save(tmp_path / "x.png", save_all=True, append_images=frames, duration=50, default_image=True)
    clip = media.read_media(tmp_path / "x.png")
    assert clip.data.shape[1] == 4 and clip.rate == 20.0 and clip.data[0, 0].mean() < 0.9, "the cover is no frame"
    assert clips.time_evenly([0.03, 0.04] * 6, "x", (8, 8), budget.Budget())[1] == pytest.approx(1 / 0.035, rel=1e-6)


def test_a_small_file_that_asks_for_much_is_refused_before_it_is_decoded(tmp_path):
    for name, content in [
        ("x.gif", animation("GIF", [10] * 5 + [655_350])), ("x.webp", animation("WEBP", [1, 1, 2**24 - 1])),
        ("x.png", apng([(1, 1000), (65535, 1)])), ("y.png", png(12_000, 12_000)),
        ("x.wav", wav(1, 1, 1, 2, 16, 40_000, bytes(40_000))),
    ]:  # fmt: skip
        with pytest.raises(BadInput, match=r"megapixels|million values"):
            media.inspect_media(written(tmp_path, name, content))
    assert len(make_bombs()) > 30, "these, and others, are among the hundreds above"


def test_a_clip_is_held_in_eight_bits_and_a_held_picture_once(tmp_path):
    path = written(tmp_path, "x.gif", animation("GIF", [20] * 5 + [5000]))
    clip = media.inspect_media(path).content
    assert clip.pictures.dtype == torch.uint8 and len(clip.pictures) == 6 and len(clip) == 255 and clip.rate == 50
    shown = clip.frames()
    assert shown.data.shape == (1, 255, 3, 72, 96) and torch.equal(shown.data[0, 254], shown.data[0, 5])
    assert torch.equal(clip.frames([3, 200]).data, shown.data[:, [3, 200]])


def test_rewards_say_the_same_of_a_clip_in_eight_bits_as_of_its_numbers(tmp_path):
    frames = [Image.fromarray(p) for p in moving(11)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:], duration=40)
    found = media.inspect_media(tmp_path / "x.png")
    rewards = [REWARDS[n]() for n in ("brightness", "contrast", "colourfulness", "sharpness", "saturated_pixels")]
    rewards += [Motion(), Motion("difference"), Frames(REWARDS["brightness"](), segments=3), Consistency(STARTER)]
    rewards.append(REWARDS["starter_video_clip"]())
    for reward in rewards:
        whole = reward(media=found.media, prompts=["a red circle moving right quickly"])
        parts = reward.score_clip(found.content, ["a red circle moving right quickly"])
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


# Folders


@pytest.fixture
def folder(seeds, tmp_path) -> Path:
    for name, seed in [
        ("a.jfif", "jpeg"),
        ("b.heic", "heic"),
        ("c.unknown", "png"),
        ("d.aiff", "aiff"),
        ("e.webm", "webm"),
    ]:
        written(tmp_path, name, seeds[seed].content)
    written(tmp_path, "broken.png", b"no picture")
    for name in ("notes.md", "scores.csv", ".hidden.png", "Thumbs.db"):
        written(tmp_path, name, b"words")
    return tmp_path


def test_a_folder_is_read_by_content_and_what_is_left_out_is_said(folder, caplog):
    with caplog.at_level(logging.WARNING):
        rows = scoring.score_files([folder], ["brightness", "loudness"], None)
    assert [Path(r["file"]).name for r in rows] == ["a.jfif", "b.heic", "broken.png", "c.unknown", "d.aiff", "e.webm"]
    assert [bool(r["error"]) for r in rows] == [False, False, True, False, False, False]
    assert "2 file(s) left out, which are no media: notes.md, scores.csv" in caplog.text and "hidden" not in caplog.text
    items = list(score_media.read_items(folder))
    (lost,) = [
        r for r in score_media.score_items(items[:4], {"b": REWARDS["brightness"]()}, [None] * 4) if "error" in r
    ]
    assert "broken.png" in lost["error"] and lost["b"] != lost["b"]


def test_references_follow_the_same_rule(folder, caplog):
    (folder / "broken.png").unlink()
    listing = list_examples(str(folder), PictureEmbedder(STARTER))
    assert [p.name for p in listing.files] == ["a.jfif", "b.heic", "c.unknown"]
    assert listing.left_out_sentence("pictures") == (
        "4 file(s) left out, which are no pictures: d.aiff, e.webm, notes.md and 1 more"
    )
    with caplog.at_level(logging.WARNING):
        references = preference_data.read_references(str(folder))
    assert references((3, 16, 16)).data.shape == (3, 3, 16, 16) and "d.aiff" in caplog.text
    assert folders.modality_of(folder / "d.aiff") == "audio" and folders.modality_of(folder / "notes.md") is None


def test_a_reward_that_breaks_on_an_odd_file_costs_its_score_and_no_other(tmp_path, monkeypatch):
    def crash(self, **_):
        raise IndexError("list index out of range")

    monkeypatch.setattr(REWARDS["contrast"], "__call__", crash)
    (row,) = scoring.score_files(
        [written(tmp_path, "x.png", door_media.make_seeds()[0].content)], ["contrast", "brightness"], None
    )
    assert row["brightness"] is not None and row["contrast"] is None and "list index out of range" in row["error"]


def test_formats_are_told_apart_and_words_are_none(seeds):
    for seed in seeds.values():
        assert formats.format_of(seed.content[: formats.HEAD]) is not None, seed.name
    for words in (
        b"",
        b"P",
        b"hello",
        b"\xff\xfeh\0e\0",
        b"GIF",
        b"RIFF\0\0\0\0JUNK",
        b"%PDF-1.4",
        b"PK\3\4",
        b"\0" * 400,
    ):
        assert formats.format_of(words) is None, words


def test_decoders_keep_quiet(seeds, tmp_path, capfd):
    for name in ("mp3", "tiff", "mp4 with sound", "jpeg"):
        content = bytearray(seeds[name].content)
        for at in range(len(content) // 2, len(content), 7):
            content[at] ^= 0x55
        try_input(
            lambda name=name, content=content: (
                media.read_media(written(tmp_path, f"x{seeds[name].suffix}", bytes(content))) and ""
            )
        )
    assert capfd.readouterr().err == ""


def test_a_picture_in_memory_is_no_longer_than_it_takes(tmp_path):
    """Files are read one by one: the most that is held is one batch."""
    held, most = 0, 0

    class Watched(score_media.Item):
        def read(self):
            nonlocal held, most
            held += 1
            most = max(most, held)
            return super().read()

    def judge(*, media, prompts, references=None):
        nonlocal held
        held -= len(media)
        return media.data.flatten(1).mean(1)

    judge.spec = REWARDS["brightness"].spec
    path = written(tmp_path, "x.png", door_media.make_seeds()[0].content)
    rows = score_media.score_items([Watched(None, str(path))] * 50, {"b": judge}, [None] * 50)
    assert len(rows) == 50 and most <= score_batches.ROWS + 1 and held == 0
