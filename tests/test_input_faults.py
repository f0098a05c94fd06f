"""What careless and malicious people give as inputs of prompts: one sentence before any weight loads, or it works.

All files are made here, from a seed; plans are made of pipelines whose weights are never read.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from input_fixtures import plan_edits, write_picture
from PIL import Image

import workbench as w
from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.inputs import prompt_inputs
from workbench.core.io.media import read_media, write_media
from workbench.core.types import Media
from workbench.runs import prompt_inputs as checks
from workbench.runs.prompts import read_prompt_table

SIZE = (24, 20)
PIPELINES = {
    "edit": {"class": "StableDiffusionInstructPix2PixPipeline"},
    "paint": {"class": "StableDiffusionInpaintPipeline"},
    "plain": {"class": "StableDiffusionPipeline"},
    "clips": {"class": "WanVideoToVideoPipeline", "modality": "video", "rate": 8, "input_size": [5, 16, 16]},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Good and bad files of every kind, and configs of pipelines on a hub that nobody asks."""
    folder = tmp_path_factory.mktemp("faults")
    rng = np.random.default_rng(7)
    good = write_picture(folder / "ok.png", 1, SIZE).read_bytes()
    bad = {"empty.png": b"", "cut.png": good[:200], "text.png": b"hello", "html.png": b"<html>please log in</html>"}
    bad |= {"broken.png": good[:60] + bytes(200) + good[260:], "zip.png": b"PK\x03\x04" + rng.bytes(500)}
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    for frames in (2, 6):
        clip = torch.rand(1, frames, 3, 20, 24, generator=torch.Generator().manual_seed(frames))
        write_media(Media(clip, "video", 8.0), folder / f"clip{frames}")
    for rate in (8000, 48000):
        sound = torch.rand(1, 1 + (rate > 8000), rate // 10, generator=torch.Generator().manual_seed(rate)) - 0.5
        write_media(Media(sound, "audio", float(rate)), folder / f"sound{rate}")
    frames = [Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=100)
    frames[0].save(folder / "still.gif")
    frames[0].convert("CMYK").save(folder / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    frames[0].rotate(90, expand=True).save(folder / "turned.jpg", exif=exif, quality=95)
    half = np.zeros((20, 24), np.uint8)
    half[:, :12] = 255
    masks = {"mask": half, "bits16": half.astype(np.uint16) * 257, "ones": half // 255, "black": 0 * half}
    masks |= {"white": 0 * half + 255, "red": np.stack([half, 0 * half, 0 * half], 2), "small": half[:10, :12]}
    masks |= {"glass": np.stack([half] * 4, 2)}  # white paint on nothing, as drawing programs save a layer
    for name, pixels in masks.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "sub").mkdir()
    outside = tmp_path_factory.mktemp("elsewhere") / "far.png"
    outside.write_bytes(good)
    (folder / "link.png").symlink_to(outside), (folder / "loop.png").symlink_to("loop.png")
    (folder / "secret.png").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.png")
    for name, settings in PIPELINES.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"repo": "nobody/nothing", "steps": 2, **settings}))
    return folder


def listed(home: Path, *rows: object, name: str = "p.jsonl") -> str:
    (home / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(home / name)


def take(home: Path, rows: list, **modalities: str) -> checks.PromptList:
    return checks.take_prompts(read_prompt_table(listed(home, *rows)), modalities)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(BadInput) as caught:
        call(*args, **kwargs)
    words = str(caught.value)
    assert len(words) < 420 and words.isprintable(), words
    return words


BAD_SOURCES = {
    "gone.png": "gone.png: no such file; give a picture",
    "OK.PNG": "no such file; did you mean 'ok.png'?",
    "okk.png": "no such file; did you mean 'ok.png'?",
    "gone/ok.png": "no such file",
    "empty.png": "the file is empty",
    "cut.png": "can't be read as a picture",
    "broken.png": "can't be read as a picture",
    "text.png": "can't be read as a picture",
    "html.png": "can't be read as a picture",
    "zip.png": "can't be read as a picture",
    "clip6.apng": "source: clip6.apng is a clip, and a picture is needed",
    "moving.gif": "source: moving.gif is a clip, and a picture is needed",
    "sound8000.wav": "source: sound8000.wav is a sound, and a picture is needed",
    "sub": "sub: is a folder; name a file in it",
    ".": "is a folder; name a file in it",
    "pipe.png": "is no ordinary file",
    "loop.png": "levels of symbolic links",
    "secret.png": "can't be read as a picture",
    "/etc/passwd": "no picture, clip or sound",
    "../../../../../../../../etc/passwd": "no picture, clip or sound",
    "https://example.org/a.png": "source: https://example.org/a.png is an address; save the file",
    "s3://bucket/a.png": "is an address",
    "file:///etc/passwd": "is an address",
    "data:image/png;base64,iVBOR": "is an address",
    "a\0b.png": "null byte",
    "a\nb\x1b[31m.png": "no such file",
    "x" * 5000: "name too long",
}


@pytest.mark.parametrize("value", BAD_SOURCES, ids=lambda value: repr(value[:20]))
def test_a_source_that_is_none_is_named_with_its_line(home, value):
    words = refusal(take, home, [{"prompt": "a", "source": "ok.png"}, {"prompt": "b", "source": value}], source="image")
    assert "p.jsonl, line 2: " in words and BAD_SOURCES[value] in words, words


@pytest.mark.parametrize("value", [5, True, ["ok.png"], {"path": "ok.png"}, {"bytes": None, "path": "ok.png"}])
def test_a_source_that_is_no_path_is_named_with_its_line(home, value):
    words = refusal(take, home, [{"prompt": "a", "source": value}], source="image")
    assert "line 1: source: expected a path" in words


@pytest.mark.parametrize(
    "value", ["ok.png", " ok.png ", "sub/../ok.png", "still.gif", "cmyk.jpg", "turned.jpg", "link.png"]
)
def test_a_strange_picture_that_is_one_works_as_it_is_shown(home, value):
    (prompt,) = take(home, [{"prompt": "a", "source": value}], source="image").prompts
    assert prompt_inputs(prompt)["source"].read().data.shape == (1, 3, 20, 24)


def test_a_link_out_of_the_folder_and_a_path_out_of_it_are_said(home):
    far = (home / "link.png").resolve()
    rows = [{"prompt": str(n), "source": value} for n, value in enumerate(("link.png", str(far), "ok.png"))]
    assert "2 files lie outside of" in take(home, rows, source="image").unused


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        ("small.png", "the mask is 12 x 10 and the picture that it covers 24 x 20"),
        ("red.png", "red.png has colours"),
        ("glass.png", "has transparent places"),
        ("black.png", "has no white (its brightest value is 0 of 255)"),
        ("ones.png", "has no white (its brightest value is 1 of 255)"),
        ("clip6.apng", "mask: clip6.apng is a clip, and a picture is needed"),
        ("sound8000.wav", "mask: sound8000.wav is a sound"),
    ],
)
def test_a_mask_of_which_it_is_not_clear_what_is_white_is_refused(home, mask, sentence):
    row = {"prompt": "a", "source": "ok.png", "mask": mask}
    assert sentence in refusal(take, home, [row], source="image", mask="image")
    if not mask.endswith(".png"):
        return
    given = [{"prompt": "a", "source": Image.open(home / "ok.png"), "mask": Image.open(home / mask)}]
    words = refusal(checks.take_prompts, read_prompt_table(given), {"source": "image", "mask": "image"})
    assert sentence.removeprefix(f"{mask} ") in words, "in memory as in a file"


def test_a_black_mask_is_no_fault_where_only_a_reward_reads_it(home):
    row = {"prompt": "a", "source": "ok.png", "mask": "black.png"}
    assert len(take(home, [row], source="image", mask="").prompts) == 1
    assert "has no white" in refusal(take, home, [{**row, "mask": "ones.png"}], source="image", mask="")


@pytest.mark.parametrize(("mask", "share"), [("mask.png", 0.5), ("bits16.png", 0.5), ("white.png", 1.0)])
def test_a_mask_of_any_depth_covers_what_is_white(home, mask, share):
    (prompt,) = take(home, [{"prompt": "a", "source": "ok.png", "mask": mask}], source="image", mask="image").prompts
    assert (prompt_inputs(prompt)["mask"].read().data >= 0.5).float().mean() == share


@pytest.mark.parametrize(
    ("pipeline", "rows", "sentence"),
    [
        *(("edit", [{"prompt": "a", column: "ok.png"}], f"call its column '{column}' `source`")
          for column in ("image", "input_image", "init_image", "original", "soruce", "image_path")),
        ("paint", [{"prompt": "a", "source": "ok.png", "mask_image": "mask.png"}], "its column 'mask_image' `mask`"),
        ("edit", [{"prompt": "a"}, {"prompt": "b"}], "give a .jsonl or .csv with a column `source`"),
        ("edit", [{"prompt": "a", "source": "  "}], "no prompt comes with one"),
        ("edit", [{"prompt": "a", "source": "ok.png"}, {"prompt": "b"}], "line 2: 'b' comes without a source"),
        ("clips", [{"prompt": "a", "source": "clip2.apng"}], "a clip of 2 frames is too short for"),
        ("clips", [{"prompt": "a", "source": "moving.gif"}], "a clip of 3 frames is too short for"),
        ("clips", [{"prompt": "a", "source": "ok.png"}], "ok.png is a picture, and a clip is needed"),
    ],
)  # fmt: skip
def test_a_list_that_lacks_what_the_pipeline_takes_says_what_to_do(home, pipeline, rows, sentence):
    words = refusal(plan_edits, home / f"{pipeline}.yaml", listed(home, *rows), watch=None)
    assert sentence in words and words.startswith("prompts: "), words


def test_a_list_that_has_more_than_is_needed_or_says_it_twice_works(home):
    row = {"prompt": "a", "source": "ok.png"}
    plain = plan_edits(home / "plain.yaml", listed(home, row, {**row, "source": "gone.png"}), watch=None)
    assert len(plain.rows) == 1 and "columns not used: source" in " ".join(plain.checks)
    twice = plan_edits(home / "edit.yaml", listed(home, *[row] * 3, {**row, "source": "still.gif"}), watch=None)
    assert len(twice.rows) == 2 and "2 repeated left out" in " ".join(twice.checks)
    assert plan_edits(home / "clips.yaml", listed(home, {"prompt": "a", "source": "clip6.apng"}), watch=None).rows


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ('{"text": "a"}', "name the file of each row in a column `file_name`"),
        ('{"file_name": "gone.png", "text": "a"}', "metadata.jsonl, line 1: .*gone.png: no such file"),
        ("", "metadata.jsonl has no prompt in it"),
        ("[]", "line 1: a prompt is a text"),
        ("{", "line 1"),
    ],
)
def test_a_folder_whose_metadata_name_no_files_says_so(home, tmp_path, metadata, sentence):
    shutil.copy(home / "ok.png", tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text(metadata + "\n")
    with pytest.raises(BadInput, match=sentence):
        plan_edits(home / "edit.yaml", {"folder": str(tmp_path)}, watch=None)


def test_a_table_with_pictures_inside_says_how_to_take_them_out(home, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    picture = (home / "ok.png").read_bytes()
    rows = [{"prompt": "a", "source": {"bytes": picture, "path": "ok.png"}}, {"prompt": "b", "source": None}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    words = refusal(plan_edits, home / "edit.yaml", str(tmp_path / "p.parquet"), watch=None)
    assert "row 1: source: the table holds the file itself" in words and "name it in a .jsonl" in words
    plain = plan_edits(home / "plain.yaml", str(tmp_path / "p.parquet"), watch=None)
    assert [str(row[1]) for row in plain.rows] == ["a", "b"], "nobody there takes the pictures"


def test_of_a_long_list_no_more_files_are_opened_than_the_run_needs(home, monkeypatch):
    opened = []
    measure = checks.measure_file
    monkeypatch.setattr(checks, "measure_file", lambda path, **more: opened.append(path) or measure(path, **more))
    rows = [{"prompt": f"a {n}", "source": "ok.png"} for n in range(30_000)]
    began = time.process_time()
    plan = plan_edits(home / "edit.yaml", listed(home, *rows), watch=None, limit=4)
    assert len(plan.rows) == 4 and len(opened) <= 4 and time.process_time() - began < 5


def test_every_door_says_it_in_one_sentence(home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompts = listed(home, {"prompt": "a", "source": "https://example.org/a.png"})
    run = {"pipeline": str(home / "edit.yaml"), "method": "sample", "reward": "brightness", "prompts": prompts}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    compare = ["compare", "best_of_n", "--pipeline", str(home / "edit.yaml"), "--calls", "8", "--reward", "brightness"]
    for command in (["run", "run.yaml"], [*compare, "--prompts", prompts]):
        assert cli.main(command) == 2
        words = capsys.readouterr().err
        assert "line 1: source: https://example.org/a.png is an address" in " ".join(words.split()), words
    made = str(home / "ok.png")
    score = ["score", made, "--reward", "unchanged"]
    for more, sentence in [
        (["--source", str(home / "gone.png")], "no such file"),
        (["--source", str(home / "sound8000.wav")], "compares image with what it was made from, and got audio"),
        (["--source", str(home / "empty.png")], "the file is empty"),
        (["--source", "https://example.org/a.png"], "a.png is an address"),
        (["--prompts", prompts], "is an address"),
    ]:
        assert cli.main([*score, *more]) in (1, 2)
        output = capsys.readouterr()
        assert sentence in " ".join((output.out + output.err).split()), output
    given = [{"prompt": "a", "source": "https://example.org/a.png"}]
    with pytest.raises(BadInput, match="is an address"):
        w.align(str(home / "edit.yaml"), "sample", reward="brightness", prompts=given)
    assert read_media(made).data.shape == (1, 3, 20, 24)
