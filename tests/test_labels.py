"""Labels of pictures in scripts that this machine may have no font for."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image, ImageFont

from workbench.core.io import labels, media
from workbench.core.types import Media


@pytest.fixture
def no_fonts(monkeypatch):
    monkeypatch.setattr(labels, "_installed_fonts", lambda: ())


def draw_rows(rows) -> Image.Image:
    cell = media.Cell(Media(torch.zeros(1, 3, 8, 8), "image"))
    data = media.draw_contact_sheet([[cell]] * len(rows), rows=rows, columns=["base"], side=60, scale=1)
    return Image.open(io.BytesIO(data))


def test_symbols_that_no_font_has_are_named_and_letters_are_not_drawn_as_boxes(no_fonts):
    assert labels.drawable_text("plain… text") == "plain… text"
    assert labels.drawable_text("\U0001f534 red\ufe0f circle") == "[large red circle] red circle"
    for words in ("一个红色的圆圈", "赤い円", "빨간 원", "دائرة", "grüner Kreis \U0001f534"):
        assert labels.drawable_text(words) is None


def test_a_letter_counts_as_drawable_only_in_a_font_that_has_it():
    try:
        ImageFont.truetype("DejaVuSans.ttf", 20)
    except OSError:
        pytest.skip("the font is not installed here")
    assert labels._has_letter("DejaVuSans.ttf", "ü") and not labels._has_letter("DejaVuSans.ttf", "丸")


def test_prompts_that_can_not_be_drawn_are_numbered_and_the_sheet_says_so_once(no_fonts):
    plain, numbered = draw_rows(["a", "b"]), draw_rows(["一个", "b"])
    assert numbered.height > plain.height, "room for the sentence below"
    same = draw_rows(["prompt 1", "b"])
    assert numbered.crop((0, 0, *same.size)).tobytes()[: 3 * same.width * 80] == same.tobytes()[: 3 * same.width * 80]
