"""A run or a study as a folder of static pages: complete, of relative links, and on request without any name."""

from __future__ import annotations

import json
import re
import zipfile

import pytest
import torch
from report_fixtures import make_estimate
from vote_fixtures import write_run

from workbench.cli import main
from workbench.core.io import media, video
from workbench.core.types import Media
from workbench.feedback import gallery, studies

NAMES = ("plainest", "bestofmany", "renoised")
PROMPTS = tuple(f'<b>circle</b> "{n}" & more' for n in range(3))


def finish(runs, name="demo", modality="image", **more):
    """A finished run with a summary."""
    folder = write_run(runs, name, NAMES, PROMPTS, modality, **more)
    parts = [{"name": n, "method": "sample", "samples": 3, "rewards": {"level": make_estimate(k / 3, 0.01)}}
             for k, n in enumerate(NAMES)]  # fmt: skip
    folder.write("summary.json", {"run": folder.path.name, "modality": modality, "prompts": 3, "seeds": 1,
                                  "contestants": parts, "alarm": None})  # fmt: skip
    return folder


def links_of(page):
    return re.findall(r'(?:src|href|poster)="([^"]+)"', page)


def test_a_run_becomes_pages_whose_links_are_all_inside_the_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gallery, "ROWS_PER_PAGE", 2)
    run = finish(tmp_path / "runs", inputs={"source": Media(torch.rand(1, 3, 8, 8), "image")})
    out = tmp_path / "out"
    (run.path / "media" / "renoised" / "0001-0.png").write_bytes(b"changed")
    assert main(["publish", str(run.path), "--out", str(out), "--zip"]) == 1
    assert "row 2, renoised" in capsys.readouterr().err
    pages = sorted(out.glob("*.html"))
    assert [p.name for p in pages] == ["index.html", "page-2.html"]
    texts = [p.read_text() for p in pages]
    used = {link for text in texts for link in links_of(text)}
    assert all((out / link).is_file() for link in used) and not any(
        ":" in link or link.startswith("/") for link in used
    )
    assert {f"media/{p.name}" for p in (out / "media").iterdir()} <= used
    assert len([link for link in used if link.startswith("media/")]) == 3 * 3 - 1 + 3
    assert "://" not in "".join(texts) and "<script" not in "".join(texts) and "<b>circle</b>" not in "".join(texts)
    assert "&lt;b&gt;circle&lt;/b&gt;" in texts[0] and 'loading="lazy"' in texts[0] and "0.33" in texts[0]
    original = run.path / "media" / "plainest" / "0000-0.png"
    assert (out / "media" / "00000-0.png").read_bytes() == original.read_bytes()
    assert set(zipfile.ZipFile(tmp_path / "out.zip").namelist()) >= {"out/index.html", "out/media/00000-0.png"}
    assert main(["publish", str(run.path), "--out", str(out)]) == 2
    assert "there is something already" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_a_blind_gallery_names_no_contestant_in_any_of_its_bytes(tmp_path, modality, capsys):
    run = finish(tmp_path / "runs", "renoised", modality, pipeline="secretpipe")
    out = tmp_path / "out"
    assert main(["publish", str(run.path), "--out", str(out), "--blind", "--zip"]) == 0
    files = [p for p in out.rglob("*") if p.is_file()]
    everything = b"".join(str(p.relative_to(out)).encode() + p.read_bytes() for p in files)
    for name in (*NAMES, "secretpipe", run.path.name, str(tmp_path)):
        assert name.encode() not in everything
    with zipfile.ZipFile(tmp_path / "out.zip") as packed:
        content = b"".join(packed.read(name) for name in packed.namelist()) + " ".join(packed.namelist()).encode()
    assert not any(name.encode() in content for name in NAMES)
    key = json.loads((tmp_path / "out.key.json").read_text())
    assert sorted(key) == ["A", "B", "C"] and sorted(key.values()) == sorted(NAMES)
    suffix = {"image": ".png", "video": ".mp4", "audio": ".flac"}[modality]
    column = next(k for k, name in enumerate(key.values()) if name == "renoised")
    copy = media.read_media(out / "media" / f"00001-{column}{suffix}")
    original = media.read_media(next((run.path / "media" / "renoised").glob("0001-0.*")))
    assert copy.data.shape == original.data.shape and copy.rate == original.rate
    grey = torch.stack([x.data.mean(-3 if modality != "audio" else 1).flatten() for x in (copy, original)])
    assert torch.corrcoef(grey)[0, 1] > 0.7  # colours of noise are coarser in a film
    if modality == "image":
        assert torch.equal(copy.data, original.data)
    capsys.readouterr()


def test_clips_are_copied_as_films_that_begin_to_play_at_once(tmp_path):
    run = finish(tmp_path / "runs", "clips", "video")
    assert main(["publish", str(run.path), "--out", str(tmp_path / "out"), "--contestants", "renoised,plainest"]) == 0
    film = tmp_path / "out" / "media" / "00000-0.mp4"
    data = film.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat") and data.count(b"avcC") == 1
    with video.open_stream(film, "video") as (_, stream):
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.index("<b>renoised</b>") < page.index("<b>plainest</b>") and "bestofmany" not in page
    assert 'preload="none"' in page and (tmp_path / "out" / "media" / "00000-0-poster.png").is_file()


def test_a_study_is_published_with_its_ratings_and_without_names_where_it_is_blind(tmp_path, capsys):
    run = finish(tmp_path / "runs")
    studies.create_study(tmp_path / "runs", {"name": "asked", "runs": (run.path.name,)})
    words = ["publish", "asked", "--runs", str(tmp_path / "runs"), "--out"]
    assert main([*words, str(tmp_path / "named")]) == 0
    assert "asked" in (tmp_path / "named" / "index.html").read_text()
    assert main([*words, str(tmp_path / "blind"), "--blind"]) == 0
    page = (tmp_path / "blind" / "index.html").read_text()
    assert not any(name in page for name in (*NAMES, "asked"))
    for wrong, sentence in (
        (["publish", str(tmp_path), "--out", str(tmp_path / "x")], "is no run folder"),
        (["publish", "nowhere", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "x")], "there is no study"),
        ([*words, str(tmp_path / "no" / "x")], "there is no folder"),
        ([*words, str(tmp_path / "x"), "--contestants", "reno"], "renoised"),
    ):
        capsys.readouterr()
        assert main(wrong) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
