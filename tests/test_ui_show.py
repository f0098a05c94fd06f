"""What the page makes of a finished run: pictures, clips and sounds side by side, served and downloaded."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image
from report_fixtures import make_contestant, summary_of
from vote_fixtures import write_run

from rewards.encoders.audio_frontend import LogMel, mel_filters
from workbench.core import inputs
from workbench.core.io import media
from workbench.core.types import Media
from workbench.report import audio_view, pages
from workbench.report.columns import build_table
from workbench.runs import store
from workbench.ui import served_files
from workbench.ui.widgets import result_view, samples


def stored(folder, media_by_name: dict[str, list[Media]], kind: str) -> store.RunFolder:
    """A finished run of synthetic media, as the driver leaves it."""
    folder.mkdir()
    names = list(media_by_name)
    with (folder / "events.jsonl").open("w") as log:
        for name, parts in media_by_name.items():
            (folder / "media" / name).mkdir(parents=True)
            samples = []
            for n, part in enumerate(parts):
                file = media.write_media(part, folder / "media" / name / f"{n:04d}-0", meta={"contestant": name})
                sample = {
                    "index": n,
                    "prompt": f"<i>{kind}</i> ${{{n}}}",
                    "k": 0,
                    "seed": n,
                    "category": None,
                    "latents": None,
                }
                samples.append(
                    sample
                    | {
                        "scores": {"starter_clip": 0.5},
                        "file": file.relative_to(folder).as_posix(),
                        "sha256": media.file_digest(file),
                    }
                )
            log.write(
                json.dumps(
                    {"contestant": name, "batch": 0, "step": 0, "metrics": {}, "final": True, "samples": samples}
                )
                + "\n"
            )
    config = {"contestants": dict.fromkeys(names), "reward": "starter_clip", "pipeline": "starter-image"}
    (folder / "run.json").write_text(json.dumps({"status": "done", "config": config}))
    parts = [make_contestant(n, 0.5, 0.2, 16, None) for n in names]
    (folder / "summary.json").write_text(json.dumps(summary_of(*parts, modality=kind)))
    return store.RunFolder(folder)


def tone(loud: float, rate: int = 16000, seconds: float = 1.0) -> Media:
    t = torch.arange(int(rate * seconds)) / rate
    return Media(loud * torch.sin(2 * math.pi * 997 * t)[None, None], "audio", rate)


def test_sounds_are_shown_and_played_equally_loud_from_untouched_files(tmp_path):
    folder = stored(tmp_path / "run", {"base": [tone(0.1)], "reno": [tone(0.8)]}, "audio")
    result = result_view.read_result(folder, tmp_path / "temp")
    assert (
        result.html.count("<audio controls") == 2
        and result.html.count("data:image/png") == 2
        and "wb-sync" in result.html
    )
    quiet, loud = (float(c["volume"]) for c in result.rows[0]["cells"])
    assert quiet == 1 and loud == pytest.approx(1 / 8, rel=0.01)
    assert (
        Path(result.rows[0]["cells"][1]["file"]).read_bytes() == (tmp_path / "run/media/reno/0000-0.wav").read_bytes()
    )
    assert result_view.slider_pair(result_view.slider_state(result)["rows"], "audio", 0, "base", "reno") is None


def test_clips_share_one_clock_and_slide_by_their_middle_frames(tmp_path):
    clip = Media(torch.rand(1, 6, 3, 16, 16), "video", 8.0)
    folder = stored(tmp_path / "run", {"base": [clip], "reno": [clip]}, "video")
    result = result_view.read_result(folder, tmp_path / "temp")
    assert (
        result.html.count("<canvas") == 2
        and result.html.count('data-rate="8.0"') == 2
        and 'data-wb="seek"' in result.html
    )
    left_file, _ = result_view.slider_pair(result_view.slider_state(result)["rows"], "video", 0, "base", "reno")
    assert Image.open(left_file).format == "PNG" and Image.open(left_file).size == (512, 512)


def test_a_clip_stands_beside_its_first_frame_and_slides_over_it(tmp_path):
    first = Media(torch.rand(1, 3, 40, 64), "image")
    folder = write_run(tmp_path, names=("base", "reno"), prompts=("a wave",), modality="video", inputs={"first": first})
    result = result_view.read_result(folder, tmp_path / "temp")
    grid = result.html.split('class="wb-grid wb-even"')[1]
    figures = grid.split("<figure")[1:]
    assert 'alt="first frame of: a wave"' in figures[0] and "wb-given" in figures[0] and len(figures) == 3
    assert "<canvas" in figures[1] and "wb-over" not in result.html, "a clip is no edit of its first frame"
    given = result.rows[0]["given"][0]
    assert Image.open(given["file"]).size == (16, 16), "in the size of the clips, as the pipeline took it"
    files = result_view.slider_state(result)["rows"]
    assert list(files[0]) == ["first frame", "base", "reno"]
    assert Image.open(result_view.slider_pair(files, "video", 0, "first frame", "reno")[0]).size == (512, 512)
    assert "first frame" in samples.draw_contestants(folder.path, pages.collect_samples(folder.events()))
    for file in (folder.path / "inputs").iterdir():
        file.write_bytes(media.encode_png(Media(torch.zeros(1, 3, 8, 8), "image")))
    inputs._CACHE.rows.clear()  # as in another process
    assert "missing" in result_view.read_result(folder, tmp_path / "temp").html, "another picture is not shown for it"


def test_a_sound_is_heard_below_what_it_was_made_from_and_as_loud(tmp_path):
    folder = write_run(
        tmp_path, names=("base", "reno"), prompts=("louder",), modality="audio", inputs={"source": tone(0.02)}
    )
    result = result_view.read_result(folder, tmp_path / "temp")
    above, grid = result.html.split('class="wb-grid wb-even"')
    assert above.count("<audio") == 1 and 'aria-label="source of: louder"' in above and grid.count("<audio") == 2
    (given,), cells = result.rows[0]["given"], result.rows[0]["cells"]
    assert float(given["volume"]) == 1 and all(float(cell["volume"]) < 0.5 for cell in cells), (
        "the source is the quietest"
    )
    assert (
        "<audio" in samples.draw_contestants(folder.path, pages.collect_samples(folder.events())).split("figcaption")[0]
    )


def test_the_table_of_results_has_the_columns_that_the_report_lists_for_the_app(tmp_path):
    picture = Media(torch.rand(1, 3, 16, 16), "image")
    result = result_view.read_result(
        stored(tmp_path / "run", {"base": [picture], "reno": [picture]}, "image"), tmp_path / "temp"
    )
    table = build_table(result.summary, "app")
    html = result.html.partition("<table")[2].partition("</table>")[0]
    assert [text.partition("<")[0].rpartition(">")[2] for text in html.split('<th scope="col"')[2:]] == [
        column.heading_in("app") for column in table.columns
    ]
    for column, cell in zip(table.columns, table.rows[1].cells, strict=True):
        assert f">{column.format_value(cell)}" in html


def test_prompts_are_text_and_files_outside_the_run_are_not_served(tmp_path):
    picture = Media(torch.rand(1, 3, 16, 16), "image")
    folder = stored(tmp_path / "run", {"base": [picture], "reno": [picture]}, "image")
    log = (folder.path / "events.jsonl").read_text()
    (tmp_path / "secret.png").write_bytes((folder.path / "media/reno/0000-0.png").read_bytes())
    (folder.path / "events.jsonl").write_text(log.replace("media/reno/0000-0.png", "../secret.png"))
    result = result_view.read_result(folder, tmp_path / "temp")
    assert "<i>image" not in result.html and "&lt;i&gt;image&lt;/i&gt; &#36;&#123;0&#125;" in result.html
    assert "missing" in result.html and not list((tmp_path / "temp").rglob("*secret*"))


def test_large_pictures_slide_as_they_are_and_tiny_ones_grow_by_whole_steps(tmp_path):
    large, tiny = Media(torch.rand(1, 3, 300, 300), "image"), Media(torch.rand(1, 3, 32, 32), "image")
    folder = stored(tmp_path / "run", {"base": [large, tiny], "reno": [large, tiny]}, "image")
    rows = result_view.slider_state(result_view.read_result(folder, tmp_path / "temp"))["rows"]
    big = result_view.slider_pair(rows, "image", 0, "base", "reno")[1]
    assert Path(big).read_bytes() == (folder.path / "media/reno/0000-0.png").read_bytes()
    small = np.asarray(Image.open(result_view.slider_pair(rows, "image", 1, "base", "reno")[1]))
    assert np.array_equal(small[::16, ::16], np.asarray(Image.open(folder.path / "media/reno/0001-0.png")))
    slider = gr.ImageSlider(type="filepath", format="png").postprocess((big, big))
    assert all(Path(part.path).suffix == ".png" for part in slider.root)
    assert (
        result_view.slider_pair(rows, "image", 5, "base", "reno") is None
        and result_view.slider_pair(rows, "image", 0, "base", "nobody") is None
    )


def test_everything_is_downloaded_as_one_zip(tmp_path):
    folder = stored(tmp_path / "run", {"base": [Media(torch.rand(1, 3, 8, 8), "image")]}, "image")
    names = zipfile.ZipFile(served_files.zip_folder(folder, tmp_path / "temp")).namelist()
    assert {"run/run.json", "run/events.jsonl", "run/media/base/0000-0.png"} <= set(names)


def test_served_copies_are_removed_when_nobody_asks_for_them(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"x")
    recent, old = (
        served_files.serve_copy(tmp_path, file),
        served_files.serve_copy(tmp_path, file.with_name("run.png") if file.rename(tmp_path / "run.png") else file),
    )
    os.utime(old, (0, 0))
    served_files.sweep_copies(tmp_path, max_age=60)
    assert recent.exists() and not old.exists()


def test_volumes_make_all_as_loud_as_the_quietest_that_can_be_heard():
    """Loudness itself is tests/test_loudness.py's; silence reads the gate of -70 LUFS, what is too short NaN."""
    assert result_view.playback_volumes([-9.0, -3.0]) == pytest.approx([1.0, 10 ** (-6 / 20)])
    assert result_view.playback_volumes([-70.0, -3.0, math.nan]) == [1.0, 1.0, 1.0]
    assert result_view.playback_volumes([-70.0, math.nan]) == [1.0, 1.0]


def test_the_spectrogram_shows_a_tone_where_it_is():
    picture = np.asarray(Image.open(io.BytesIO(audio_view.sound_picture(tone(0.5)))).convert("L")).astype(float)
    assert picture.shape == (audio_view.WAVE_HIGH + audio_view.MEL_HIGH, 600)
    band = audio_view.MEL_HIGH - 1 - picture[audio_view.WAVE_HIGH :].mean(1).argmax()
    bank = mel_filters(LogMel(16000, 2048, 512, 128, 20.0, 8000.0))
    assert abs(bank[:, band].argmax() * 16000 / 2048 - 997) < 40
