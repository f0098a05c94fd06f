"""One reader for all: a picture is the same to whoever looks at its file, and a broken one is one sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from reward_fixtures import small_settings

from rewards.encoders import image_text
from rewards.people import votes
from rewards.people.curation import perceptual_hash
from rewards.sets.exemplar import PictureEmbedder
from workbench.core.errors import BadInput
from workbench.core.io import image, media


def clear(path):
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(path)
    return torch.ones(3, 32, 32)


def sixteen_bits(path):
    grey = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(grey).save(path)
    return torch.from_numpy(grey.astype(np.float32) / 65535).expand(3, 32, 32)


def turned(path):
    rgb = np.zeros((32, 32, 3), np.uint8)
    rgb[:16, :, 0] = 255  # red above
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(rgb[::-1].copy()).save(path, exif=exif)
    return torch.from_numpy(rgb).permute(2, 0, 1) / 255


@pytest.mark.parametrize("make", [clear, sixteen_bits, turned])
def test_a_picture_is_the_same_to_scores_sets_votes_and_training(make, tmp_path):
    looks = make(tmp_path / "x.png").float()
    model = small_settings("clip")["model"]
    assert torch.equal(image.read_image(tmp_path / "x.png"), looks)
    assert torch.equal(media.read_media(tmp_path / "x.png").data[0], looks)
    assert torch.equal(PictureEmbedder(model).read(tmp_path / "x.png").data[0], looks)
    row = {"prompt": "", "a_path": "x.png", "b_path": "x.png", "winner": "tie"}
    (tmp_path / "votes.jsonl").write_text(json.dumps(row))
    seen = votes.read_votes(tmp_path / "votes.jsonl", model)
    torch.testing.assert_close(seen.a.float(), image_text.load_encoder(model, "cpu").embed_images(looks[None]))


def test_different_pictures_of_16_bits_are_no_copies_of_each_other(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(3000, 65000, (64, 64)).astype(np.uint16)).save(tmp_path / f"{name}.png")
    one, two = (perceptual_hash(tmp_path / f"{name}.png") for name in "ab")
    assert (one != two).sum() > 30
    Image.open(tmp_path / "a.png").save(tmp_path / "again.tif")
    assert (one == perceptual_hash(tmp_path / "again.tif")).all()


@pytest.mark.parametrize("content", [None, b"", b"no picture", "cut"])
def test_a_file_that_is_no_picture_is_one_sentence_that_names_it(content, tmp_path):
    if content == "cut":
        Image.effect_noise((64, 64), 50).save(tmp_path / "x.png")
        content = (tmp_path / "x.png").read_bytes()[:900]
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(BadInput, match=r"x\.png: can't be read as a picture \(.+\); repair or remove it$"):
        image.read_image(tmp_path / "x.png")
    row = {"prompt": "", "a_path": "x.png", "b_features": [1.0], "winner": "a"}
    (tmp_path / "votes.jsonl").write_text(json.dumps(row))
    with pytest.raises(BadInput, match=r"votes\.jsonl, line 1: .*x\.png: "):
        votes.read_votes(tmp_path / "votes.jsonl")


def test_pixels_without_a_known_range_are_refused_rather_than_guessed(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BadInput, match="pixels of mode F have no known range"):
        image.read_image(tmp_path / "x.tif")
