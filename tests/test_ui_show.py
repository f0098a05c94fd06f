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
from report_fixtures import contestant, summary_of

from workbench.core.io import media
from workbench.core.types import Media
from workbench.runs import store
from workbench.ui.widgets import audio_player, comparison_view


def stored(folder, made: dict[str, list[Media]], kind: str) -> store.RunFolder:
    """A finished run of synthetic media, as the driver leaves it."""
    folder.mkdir()
    names = list(made)
    with (folder / "events.jsonl").open("w") as log:
        for name, parts in made.items():
            (folder / "media" / name).mkdir(parents=True)
            samples = []
            for n, part in enumerate(parts):
                file = media.write(part, folder / "media" / name / f"{n:04d}-0", meta={"contestant": name})
                sample = {
                    "index": n,
                    "prompt": f"<i>{kind}</i> ${{{n}}}",
                    "k": 0,
                    "seed": n,
                    "category": None,
                    "latents": None,
                }
                samples.append(sample | {"scores": {"starter_clip": 0.5}, "file": file.relative_to(folder).as_posix(), "sha256": media.fingerprint(file)})  # fmt: skip
            log.write(
                json.dumps(
                    {"contestant": name, "batch": 0, "step": 0, "metrics": {}, "final": True, "samples": samples}
                )
                + "\n"
            )
    asked = {"contestants": dict.fromkeys(names), "reward": "starter_clip", "pipeline": "starter-image"}
    (folder / "run.json").write_text(json.dumps({"status": "done", "config": asked}))
    parts = [contestant(n, 0.5, 0.2, 16, None) for n in names]
    (folder / "summary.json").write_text(json.dumps(summary_of(*parts, modality=kind)))
    return store.RunFolder(folder)


def tone(loud: float, rate: int = 16000, seconds: float = 1.0) -> Media:
    t = torch.arange(int(rate * seconds)) / rate
    return Media(loud * torch.sin(2 * math.pi * 997 * t)[None, None], "audio", rate)


def test_sounds_are_shown_and_played_equally_loud_from_untouched_files(tmp_path):
    folder = stored(tmp_path / "run", {"base": [tone(0.1)], "reno": [tone(0.8)]}, "audio")
    found = comparison_view.result(folder, tmp_path / "temp")
    assert (
        found.html.count("<audio controls") == 2 and found.html.count("data:image/png") == 2 and "wb-sync" in found.html
    )
    quiet, loud = (float(c["volume"]) for c in found.rows[0]["cells"])
    assert quiet == 1 and loud == pytest.approx(1 / 8, rel=0.01)
    assert Path(found.rows[0]["cells"][1]["file"]).read_bytes() == (tmp_path / "run/media/reno/0000-0.wav").read_bytes()
    assert comparison_view.pair(comparison_view.kept(found)["rows"], "audio", 0, "base", "reno") is None


def test_clips_share_one_clock_and_slide_by_their_middle_frames(tmp_path):
    clip = Media(torch.rand(1, 6, 3, 16, 16), "video", 8.0)
    folder = stored(tmp_path / "run", {"base": [clip], "reno": [clip]}, "video")
    found = comparison_view.result(folder, tmp_path / "temp")
    assert (
        found.html.count("<canvas") == 2 and found.html.count('data-rate="8.0"') == 2 and 'data-wb="seek"' in found.html
    )
    left, _ = comparison_view.pair(comparison_view.kept(found)["rows"], "video", 0, "base", "reno")
    assert Image.open(left).format == "PNG" and Image.open(left).size == (512, 512)


def test_prompts_are_text_and_files_outside_the_run_are_not_served(tmp_path):
    picture = Media(torch.rand(1, 3, 16, 16), "image")
    folder = stored(tmp_path / "run", {"base": [picture], "reno": [picture]}, "image")
    log = (folder.path / "events.jsonl").read_text()
    (tmp_path / "secret.png").write_bytes((folder.path / "media/reno/0000-0.png").read_bytes())
    (folder.path / "events.jsonl").write_text(log.replace("media/reno/0000-0.png", "../secret.png"))
    found = comparison_view.result(folder, tmp_path / "temp")
    assert "<i>image" not in found.html and "&lt;i&gt;image&lt;/i&gt; &#36;&#123;0&#125;" in found.html
    assert "missing" in found.html and not list((tmp_path / "temp").rglob("*secret*"))


def test_large_pictures_slide_as_they_are_and_tiny_ones_grow_by_whole_steps(tmp_path):
    large, tiny = Media(torch.rand(1, 3, 300, 300), "image"), Media(torch.rand(1, 3, 32, 32), "image")
    folder = stored(tmp_path / "run", {"base": [large, tiny], "reno": [large, tiny]}, "image")
    rows = comparison_view.kept(comparison_view.result(folder, tmp_path / "temp"))["rows"]
    big = comparison_view.pair(rows, "image", 0, "base", "reno")[1]
    assert Path(big).read_bytes() == (folder.path / "media/reno/0000-0.png").read_bytes()
    small = np.asarray(Image.open(comparison_view.pair(rows, "image", 1, "base", "reno")[1]))
    assert np.array_equal(small[::16, ::16], np.asarray(Image.open(folder.path / "media/reno/0001-0.png")))
    slider = gr.ImageSlider(type="filepath", format="png").postprocess((big, big))
    assert all(Path(part.path).suffix == ".png" for part in slider.root)
    assert (
        comparison_view.pair(rows, "image", 5, "base", "reno") is None
        and comparison_view.pair(rows, "image", 0, "base", "nobody") is None
    )


def test_everything_is_downloaded_as_one_zip(tmp_path):
    folder = stored(tmp_path / "run", {"base": [Media(torch.rand(1, 3, 8, 8), "image")]}, "image")
    names = zipfile.ZipFile(comparison_view.archive(folder, tmp_path / "temp")).namelist()
    assert {"run/run.json", "run/events.jsonl", "run/media/base/0000-0.png"} <= set(names)


def test_served_copies_are_removed_when_nobody_asks_for_them(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"x")
    kept, old = (
        comparison_view.served(tmp_path, file),
        comparison_view.served(tmp_path, file.with_name("run.png") if file.rename(tmp_path / "run.png") else file),
    )
    os.utime(old, (0, 0))
    comparison_view.sweep(tmp_path, old=60)
    assert kept.exists() and not old.exists()


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_loudness_is_that_of_the_standard(rate):
    """BS.1770: a full-scale sine of 997 Hz is -3.01 LUFS, half the amplitude 6.02 less; silence has none."""
    assert audio_player.loudness(tone(1.0, rate)) == pytest.approx(-3.01, abs=0.05)
    assert audio_player.loudness(tone(0.5, rate)) == pytest.approx(-9.03, abs=0.05)
    assert audio_player.loudness(tone(0.0, rate)) == -math.inf
    pause = Media(torch.cat([tone(1.0, rate, 4.0).data, torch.zeros(1, 1, 12 * rate)], 2), "audio", rate)
    assert audio_player.loudness(pause) == pytest.approx(-3.01, abs=0.3), "silence is gated out; ungated it would be -9"


def test_the_spectrogram_shows_a_tone_where_it_is():
    picture = np.asarray(Image.open(io.BytesIO(audio_player.picture(tone(0.5)))).convert("L")).astype(float)
    assert picture.shape == (audio_player.WAVE + audio_player.MEL, audio_player.WIDE)
    band = audio_player.MEL - 1 - picture[audio_player.WAVE :].mean(1).argmax()
    mel = np.linspace(*(2595 * math.log10(1 + f / 700) for f in (20, 8000)), audio_player.MEL + 2)[1:-1]
    assert abs(700 * (10 ** (mel[band] / 2595) - 1) - 997) < 40
