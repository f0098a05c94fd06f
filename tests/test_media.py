"""Files keep what they are given: pixels, sound and story; what can't be read is refused by name."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.io.media import Cell
from workbench.core.types import Media

META = {"prompt": "a red “kreis” 円\nand more", "seed": 7, "scores": {"clip": 0.31, "oracle": None}, "12": "12"}


@pytest.fixture
def picture():
    return Media(torch.rand(1, 3, 24, 16, generator=torch.Generator().manual_seed(0)), "image")


@pytest.fixture
def sound():
    return Media(torch.rand(1, 2, 500, generator=torch.Generator().manual_seed(0)) * 2 - 1, "audio", 8000.0)


def test_picture_is_lossless_and_its_story_comes_back_exactly(picture, tmp_path):
    path = media.write_media(picture, tmp_path / "one.png", meta=META)
    assert torch.equal(media.read_media(path).data, media.quantise_media(picture).data)
    assert media.read_meta(path) == META
    with Image.open(path) as image:  # other programs read the plain chunks
        assert image.text["prompt"] == META["prompt"] and image.text["seed"] == "7"


def test_same_input_same_bytes(picture, sound, tmp_path):
    for made, suffix in ((picture, ".png"), (sound, ".wav")):
        first, second = (media.write_media(made, tmp_path / (n + suffix), meta=META) for n in "ab")
        assert first.read_bytes() == second.read_bytes()
        assert media.file_digest(first) == media.file_digest(second)
        other = media.write_media(made, tmp_path / ("c" + suffix), meta=META | {"seed": 8})
        assert media.file_digest(other) != media.file_digest(first)
    assert media.encode_png(picture) == media.encode_png(media.quantise_media(picture))


def test_bytes_without_meta_tell_nothing(picture, sound, tmp_path):
    """For blind votes: neither prompt nor contestant can be read from the file."""
    assert (
        b"iTXt" not in media.encode_png(picture)
        and b"tEXt" not in media.encode_png(picture)
        and b"LIST" not in media.encode_wav(sound)
    )
    assert media.read_meta(media.write_media(picture, tmp_path / "x.png")) == {}
    assert media.read_meta(media.write_media(sound, tmp_path / "x.wav")) == {}
    story = media.write_media(picture, tmp_path / "y.png", meta=META)
    assert b"kreis" in story.read_bytes() and b"kreis" not in media.encode_thumbnail(story)


def test_write_finishes_or_leaves_nothing(picture, tmp_path):
    assert media.write_media(picture, tmp_path / "0001-0").name == "0001-0.png"
    with pytest.raises(TypeError):
        media.write_media(picture, tmp_path / "b.png", meta={"scores": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["0001-0.png"]


@pytest.mark.parametrize(
    "name, data, modality",
    [("a.mp4", torch.zeros(1, 2, 3, 8, 8), "video"), ("a.jpg", torch.zeros(1, 3, 8, 8), "image")],
)
def test_what_cannot_be_written_losslessly_is_refused(name, data, modality, tmp_path):
    with pytest.raises(BadInput, match=modality):
        media.write_media(Media(data, modality, 8.0), tmp_path / name)


@pytest.mark.parametrize(
    "data", [torch.zeros(2, 3, 8, 8), torch.full((1, 3, 8, 8), float("nan")), torch.zeros(3, 8, 8)]
)
def test_several_rows_or_broken_values_are_no_picture(data, tmp_path):
    with pytest.raises(ValueError, match="one row|finite"):
        media.write_media(Media(data, "image"), tmp_path / "x.png")


def save(array, path, **kw):
    Image.fromarray(np.asarray(array)).save(path, **kw)
    return path


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 0], rgba[0, 0, 3], rgba[0, 1, 3], rgba[1, :, 3] = 255, 255, 51, 0  # red: opaque, a fifth, clear
    got = media.read_media(save(rgba, tmp_path / "a.png")).data
    assert got.shape == (1, 3, 2, 2)
    assert got[0, :, 0, 0].tolist() == [1, 0, 0] and got[0, :, 1, 1].tolist() == [1, 1, 1]
    assert got[0, 1, 0, 1].item() == pytest.approx(0.8, abs=0.005)
    with Image.open(tmp_path / "a.png") as image:
        image.convert("LA").save(tmp_path / "la.png")
        image.quantize(8).save(tmp_path / "p.png")
    assert media.read_media(tmp_path / "la.png").data[0, :, 1, 1].tolist() == [1, 1, 1]
    assert media.read_media(tmp_path / "p.png").data[0, :, 1, 1].tolist() == [1, 1, 1]


def test_grey_and_sixteen_bit_pictures_keep_their_values(tmp_path):
    grey = media.read_media(save(np.array([[0, 128, 255]], np.uint8), tmp_path / "g.png")).data
    assert grey.shape == (1, 3, 1, 3) and grey[0, 2, 0].tolist() == pytest.approx([0, 128 / 255, 1])
    deep = media.read_media(save(np.array([[0, 300, 65535]], np.uint16), tmp_path / "d.png")).data
    assert deep[0, 1, 0].tolist() == pytest.approx([0, 300 / 65535, 1], rel=1e-6)
    Image.new("1", (3, 2), 1).save(tmp_path / "bit.png")
    Image.new("CMYK", (3, 2), (0, 0, 0, 0)).save(tmp_path / "ink.jpg")
    assert (
        media.read_media(tmp_path / "bit.png").data.min() == 1
        and media.read_media(tmp_path / "ink.jpg").data.min() > 0.98
    )


def test_photographs_are_turned_upright(tmp_path):
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held on its side
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert media.read_media(tmp_path / "photo.jpg").data.shape == (1, 3, 8, 4)


def test_sound_is_lossless_and_its_story_comes_back_exactly(sound, tmp_path):
    path = media.write_media(sound, tmp_path / "one.wav", meta=META)
    got = media.read_media(path)
    assert torch.equal(got.data, sound.data) and got.rate == 8000.0 and got.modality == "audio"
    assert media.read_meta(path) == META


@pytest.mark.parametrize("dtype, value, want", [(np.int16, -16384, -0.5), (np.uint8, 192, 0.5), (np.int32, 2**30, 0.5)])
def test_sounds_of_every_width_come_in_one_range(dtype, value, want, tmp_path):
    wavfile.write(tmp_path / "x.wav", 16000, np.full(10, value, dtype))
    got = media.read_media(tmp_path / "x.wav")
    assert got.data.shape == (1, 1, 10) and got.data.unique().tolist() == [want] and got.rate == 16000


@pytest.mark.parametrize("name, content", [
    ("empty.png", b""), ("words.png", b"not a picture"), ("notes.txt", b"hello"), ("cut.png", "cut"),
    ("bits.png", "flip"), ("clip.mp4", b"\x00\x00\x00\x18ftypmp42"), ("noise.wav", b"RIFFxxxxnothing"),
    ("cut.wav", "cut"), ("missing.png", None),
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_in_one_sentence(name, content, picture, sound, tmp_path):
    path = tmp_path / name
    if isinstance(content, str):
        whole = media.encode_wav(sound) if path.suffix == ".wav" else media.encode_png(picture)
        content = whole[: len(whole) // 2] if content == "cut" else whole[:60] + b"\xff" * 40 + whole[100:]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        media.read_media(path)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(BadInput):
        media.read_media(tmp_path)


def sheet(picture, right, note="clip 0.31", prompts=("a red circle\ncolor",), **kw):
    return media.draw_contact_sheet(
        [[Cell(picture, right, note)] * 2] * len(prompts), rows=prompts, columns=["base", "reno"], **kw
    )


def pixels(data, tmp_path):
    (tmp_path / "sheet.png").write_bytes(data)
    return media.read_media(tmp_path / "sheet.png").data


def test_sheet_has_a_row_a_prompt_and_a_column_a_contestant(picture, tmp_path):
    one, three = (pixels(sheet(picture, True, prompts=("a prompt",) * n), tmp_path).shape for n in (1, 3))
    small = pixels(sheet(picture, True, side=80, scale=1), tmp_path).shape
    assert one[3] == three[3] and three[2] > 2 * one[2] and one[3] - 2 * small[3] == 2 * 2 * 80
    assert sheet(picture, True) == sheet(picture, True)
    with pytest.raises(ValueError, match="don't fit"):
        media.draw_contact_sheet([[Cell(picture)]], rows=["a"], columns=["base", "reno"])


def test_verdicts_are_told_apart_without_colour(picture, tmp_path):
    right, wrong, unknown = (pixels(sheet(picture, r, ""), tmp_path) for r in (True, False, None))
    ink = [(p.mean(1)[..., -90:, :] < 0.7) for p in (right, wrong, unknown)]  # the strip under the pictures
    assert (ink[0] != ink[1]).sum() > 40 and not ink[2].any() and ink[0].any()


def test_long_words_and_lost_pictures_stay_inside_their_place(picture, tmp_path):
    """The right margin stays white, whatever the prompt, the names and the notes."""
    long = "w" * 400
    cells = [[Cell(picture, True, long), Cell(None, None, long)]]
    got = pixels(
        media.draw_contact_sheet(cells, rows=[(long + " ") * 9 + "\n" + long], columns=[long, long], title="t"),
        tmp_path,
    )
    assert got[..., -40:].min() == 1 and got[..., :40].min() == 1


def test_tiny_pictures_grow_by_whole_pixels(tmp_path):
    """A thumbnail of a small picture has the same colours and no others; a large one shrinks to fit."""
    checks = (torch.arange(64).reshape(1, 1, 8, 8) % 3 / 2).expand(1, 3, 8, 8)
    path = media.write_media(Media(checks, "image"), tmp_path / "c.png")
    (tmp_path / "t.png").write_bytes(media.encode_thumbnail(path, 100))
    assert torch.equal(
        media.read_media(tmp_path / "t.png").data,
        media.read_media(path).data.repeat_interleave(12, 2).repeat_interleave(12, 3),
    )
    big = media.write_media(Media(torch.zeros(1, 3, 300, 600), "image"), tmp_path / "big.png")
    (tmp_path / "t.png").write_bytes(media.encode_thumbnail(big, 100))
    assert media.read_media(tmp_path / "t.png").data.shape == (1, 3, 50, 100)


def test_a_label_that_is_too_long_is_cut_in_its_name_and_keeps_its_number():
    label = partial(media._Sheet(["base"], "", 160, 2).shorten_note, size=12, width=144)
    assert label("starter_clip 0.512") == "starter_clip 0.512"
    told = label("starter_video_clip_of_nine_frames -0.081")
    assert told.startswith("starter_video") and told.endswith("… -0.081")
    assert label("x" * 90).endswith("x…")
