"""Folders of media from elsewhere become a run: paired as asked, stored as they are, scored, voted on, learnt from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from input_fixtures import write_picture
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from workbench.cli import main
from workbench.core.errors import BadInput
from workbench.core.io import media, video
from workbench.core.types import Media
from workbench.engine import import_media
from workbench.runs.media_folders import list_media_rows
from workbench.runs.media_pairing import pair_media
from workbench.runs.store import RunFolder, list_run_folders

PROMPTS = ("a red cat", "a blue dog", "two green birds", "a small horse", "a grey mouse", "a white swan")


def write_png(path: Path, prompt: str, size=(12, 10), shade: int = 90) -> None:
    """A picture with its prompt as A1111 writes it."""
    info = PngInfo()
    info.add_text("parameters", f"{prompt}\nNegative prompt: bad\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path, pnginfo=info)


@pytest.fixture
def folders(tmp_path):
    """Two folders with the same prompts under other names: of other sizes, and in another order."""
    for n, prompt in enumerate(PROMPTS):
        write_png(tmp_path / "dark" / f"{n:05d}.png", prompt, shade=30)
        write_png(tmp_path / "light" / f"image-{len(PROMPTS) - n}.png", prompt, (20, 16), shade=220)
    return tmp_path


def import_folders(*words, runs) -> RunFolder:
    assert main(["import", *map(str, words), "--runs", str(runs)]) == 0
    return list_run_folders(runs)[0]


def logged(run: RunFolder) -> dict[str, list[dict]]:
    return {
        who: [s for e in run.events() if e["contestant"] == who for s in e["samples"]]
        for who in dict.fromkeys(e["contestant"] for e in run.events())
    }


def test_two_folders_are_paired_by_their_prompts_scored_and_stored_byte_for_byte(folders, tmp_path, capsys):
    run = import_folders(folders / "dark", folders / "light", "--reward", "brightness", runs=tmp_path / "runs")
    samples = logged(run)
    assert [s["prompt"] for s in samples["dark"]] == [s["prompt"] for s in samples["light"]] == list(PROMPTS)
    for who, rows in samples.items():
        for s in rows:
            stored, given = run.path / s["file"], folders / who / s["origin"]
            assert os.path.samefile(stored, given), "a link, and no copy"
            assert media.file_digest(stored) == s["sha256"]
    dark, light = ({s["scores"]["brightness"] for s in samples[who]} for who in ("dark", "light"))
    assert max(dark) < 0.2 and min(light) > 0.8
    (summary,) = [run.read("summary.json")]
    assert [c["method"] for c in summary["contestants"]] == ["imported", "imported"] and summary["prompts"] == 6
    page = (run.path / "report.html").read_text()
    assert "light (0.86) scores higher on brightness than dark (0.12)" in page and "Denoiser rows" not in page
    capsys.readouterr()
    assert main(["report", str(run.path), "--verify"]) == 0


def test_an_import_goes_on_where_it_was_stopped_and_copies_where_that_is_asked(folders, tmp_path, monkeypatch):
    words = [folders / "dark", folders / "light", "--copy", "--batch", "2", "--reward", "brightness"]
    whole = import_folders(*words, runs=tmp_path / "other")
    places, place_file = iter(range(9)), import_media.place_file

    def stop_at_the_eighth(*args, **settings):
        if next(places) == 7:
            raise KeyboardInterrupt
        return place_file(*args, **settings)

    monkeypatch.setattr(import_media, "place_file", stop_at_the_eighth)
    assert main(["import", *map(str, words), "--runs", str(tmp_path / "runs")]) == 130
    (stopped,) = list_run_folders(tmp_path / "runs")
    assert sum(map(len, logged(stopped).values())) == 6 and not stopped.read("summary.json")
    monkeypatch.setattr(import_media, "place_file", place_file)
    run = import_folders(*words, runs=tmp_path / "runs")
    assert run.path == stopped.path and logged(run) == logged(whole)
    assert not os.path.samefile(run.path / logged(run)["dark"][0]["file"], folders / "dark" / "00000.png")


def test_what_two_ways_would_pair_otherwise_is_never_guessed(folders, tmp_path):
    for n, prompt in enumerate(reversed(PROMPTS)):
        write_png(tmp_path / "same" / f"{n:05d}.png", prompt)
    sides = {name: list_media_rows(folders / name) for name in ("dark", "same", "light")}
    two = {name: sides[name] for name in ("dark", "same")}
    with pytest.raises(BadInput, match="by prompt 6 samples belong together and by name 6 others; say which"):
        pair_media(two)
    by_prompt, by_name, by_order = (pair_media(two, way) for way in ("prompt", "name", "order"))
    assert [[f.prompt for f in row.files] for row in by_prompt.rows] == [[p, p] for p in PROMPTS]
    assert [[f.name for f in row.files] for row in by_name.rows] == [[f"{n:05d}"] * 2 for n in range(6)]
    assert "prompts of 6 pairs differ" in " ".join(by_name.notes) and by_order.rows == by_name.rows
    assert pair_media({name: sides[name] for name in ("dark", "light")}).way == "prompt"
    (folders / "light" / "image-3.png").unlink()
    fewer = {"dark": sides["dark"], "light": list_media_rows(folders / "light")}
    left = pair_media(fewer)
    assert len(left.rows) == 5 and [row.prompt for row in left.unpaired["dark"]] == [PROMPTS[3]]
    assert "dark: 1 files without a counterpart are left out: 00003" in " ".join(left.notes)
    with pytest.raises(BadInput, match="by order each folder needs as many files, and dark has 6, light has 5"):
        pair_media(fewer, "order")


def lay_out(root: Path, layout: str) -> None:
    """The same six prompts, two samples of each, as suites and programs lay them out."""
    rows = []
    for n, prompt in enumerate(PROMPTS):
        for k in range(2):
            place = {
                "geneval": f"{n:05d}/samples/{k:04d}.png",
                "t2i-compbench": f"samples/{prompt}_{2 * n + k:06d}.png",
                "metadata": f"{n}-{k}.png",
                "beside": f"{n}-{k}.png",
            }[layout]
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            write_picture(root / place, 10 * n + k)
            rows.append({"file_name": place, "caption": prompt})
            if layout == "beside":
                (root / place).with_suffix(".txt").write_text(prompt)
        if layout == "geneval":
            (root / f"{n:05d}/metadata.jsonl").write_text(json.dumps({"tag": "x", "include": [], "prompt": prompt}))
    if layout == "metadata":
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize("layout", ["geneval", "t2i-compbench", "metadata", "beside"])
def test_prompts_are_read_from_where_suites_and_programs_put_them(layout, tmp_path):
    lay_out(tmp_path / layout, layout)
    folder = list_media_rows(tmp_path / layout)
    assert [row.prompt for row in folder.rows if row.prompt == PROMPTS[2]] == [PROMPTS[2]] * 2
    assert {row.prompt for row in folder.rows} == set(PROMPTS)
    assert [(row.index, row.k) for row in pair_media({"x": folder}).rows] == [
        (n, k) for n in range(6) for k in range(2)
    ]


def test_a_list_of_prompts_belongs_to_files_by_name_by_number_or_in_order(tmp_path):
    lay_out(tmp_path / "bare", "metadata")
    (tmp_path / "bare" / "metadata.jsonl").unlink()
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    by_number = list_media_rows(tmp_path / "bare", tmp_path / "p.txt")
    assert [row.prompt for row in by_number.rows] == [p for p in PROMPTS for _ in range(2)]
    table = "file_name,prompt\n" + "".join(f"{n}-1.png,{p}\n" for n, p in enumerate(PROMPTS))
    (tmp_path / "p.csv").write_text(table)
    by_name = list_media_rows(tmp_path / "bare", tmp_path / "p.csv")
    assert [row.prompt for row in by_name.rows] == [q for p in PROMPTS for q in ("", p)]
    (tmp_path / "p.jsonl").write_text(
        "\n".join(json.dumps({"index": n + 7, "prompt": p}) for n, p in enumerate(PROMPTS))
    )
    for path in (tmp_path / "bare").glob("*.png"):
        path.rename(path.with_name(f"{int(path.name[0]) + 7}_{path.name[2:]}"))
    by_index = list_media_rows(tmp_path / "bare", tmp_path / "p.jsonl")
    assert [row.prompt for row in by_index.rows] == [p for p in PROMPTS for _ in range(2)]
    with pytest.raises(BadInput, match="6 prompts for the 12 files"):
        list_media_rows(tmp_path / "bare", tmp_path / "p.txt")


def test_clips_and_sounds_of_any_kind_are_imported_and_shown(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for n, prompt in enumerate(PROMPTS[:2]):
        for side in ("a", "b"):
            (tmp_path / f"clips-{side}").mkdir(exist_ok=True), (tmp_path / f"sounds-{side}").mkdir(exist_ok=True)
            clip = torch.rand(1, 3, 3, 16, 16 if side == "a" else 24, generator=generator)
            video.write_mp4(Media(clip, "video", 8.0), tmp_path / f"clips-{side}" / f"{prompt}-{n}.mp4")
            sound = Media(torch.rand(1, 1, 800, generator=generator) - 0.5, "audio", 8000.0)
            video.write_flac(sound, tmp_path / f"sounds-{side}" / f"{n}.flac")
    clips = import_folders(tmp_path / "clips-a", tmp_path / "clips-b", "--reward", "sharpness", runs=tmp_path / "runs")
    assert [s["prompt"] for s in logged(clips)["clips-b"]] == ["a blue dog", "a red cat"]
    assert all(s["file"].endswith(".mp4") and s["scores"]["sharpness"] for s in logged(clips)["clips-a"])
    assert "<video" in (clips.path / "report.html").read_text()
    sounds = import_folders(tmp_path / "sounds-a", tmp_path / "sounds-b", runs=tmp_path / "other")
    page = (sounds.path / "report.html").read_text()
    assert "<audio" in page and "No reward scored these samples" in page
    assert [s["prompt"] for s in logged(sounds)["sounds-a"]] == ["0", "1"]


def test_samples_of_a_run_enter_beside_those_from_elsewhere(folders, tmp_path):
    earlier = import_folders(folders / "dark", "--reward", "brightness", "--name", "first", runs=tmp_path / "runs")
    run = import_folders(f"theirs={folders / 'light'}", earlier.path, runs=tmp_path / "both")
    assert set(logged(run)) == {"theirs", "first-dark"}
    assert [s["prompt"] for s in logged(run)["first-dark"]] == [s["prompt"] for s in logged(run)["theirs"]]


def test_a_broken_file_costs_its_own_row(folders, tmp_path):
    (folders / "light" / "image-2.png").write_bytes((folders / "light" / "image-2.png").read_bytes()[:90])
    (folders / "light" / "notes.docx").write_bytes(b"no medium")
    words = [folders / "dark", folders / "light", "--pair", "order", "--reward", "brightness"]
    run = import_folders(*words, runs=tmp_path / "runs")
    broken = [s for s in logged(run)["light"] if not s["file"]]
    assert len(broken) == 1 and "image-2.png" in broken[0]["reason"] and broken[0]["scores"] == {"brightness": None}
    assert run.read("summary.json")["contestants"][1]["blank"]["count"] == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "nowhere is no folder"),
        (["empty"], "no media files in this folder"),
        (["dark", "sounds"], "they can't be compared, for dark holds image, sounds holds audio"),
        (["sounds", "--reward", "brightness"], "reward brightness judges"),
        (["bare", "--reward", "starter_clip"], "reads prompts, and not every file has one; give metadata.jsonl"),
        (["dark", "--reward", "unchanged"], "compares with the source of each sample, and 6 of 6 have none"),
        (["dark", "dark"], "two folders have this name"),
        (["dark", "bare", "--pair", "prompt"], "by prompt no file of one folder belongs to one of another"),
        (["dark", "--prompts", "gone.txt"], "gone.txt"),
    ],
)
def test_what_can_not_be_imported_is_said_in_one_sentence(words, sentence, folders, tmp_path, capsys):
    (folders / "empty").mkdir(), (folders / "sounds").mkdir(), (folders / "bare").mkdir()
    sound = media.encode_wav(Media(torch.zeros(1, 1, 80), "audio", 8000.0))
    (folders / "sounds" / "a.wav").write_bytes(sound)
    write_picture(folders / "bare" / "x.png", 1)
    places = [str(folders / w) if w in ("nowhere", "empty", "dark", "sounds", "bare") else w for w in words]
    assert main(["import", *places, "--runs", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not list_run_folders(tmp_path / "runs")


def test_a_config_names_folders_of_media_and_does_without_a_pipeline(folders, tmp_path, capsys):
    contestants = {name: {"media": str(folders / name)} for name in ("dark", "light")}
    (tmp_path / "c.yaml").write_text(json.dumps({"contestants": contestants, "watch": ["brightness"]}))
    assert main(["run", str(tmp_path / "c.yaml"), "--runs", str(tmp_path / "runs")]) == 0
    contestants["made"] = "sample"
    (tmp_path / "c.yaml").write_text(json.dumps({"contestants": contestants, "watch": ["brightness"]}))
    capsys.readouterr()
    assert main(["run", str(tmp_path / "c.yaml"), "--runs", str(tmp_path / "runs")]) == 2
    assert "can't stand beside samples that are yet to be made" in capsys.readouterr().err
