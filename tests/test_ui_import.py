"""Folders and archives that somebody hands in to the app become a run; nothing of theirs becomes a path of ours."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest
from input_fixtures import write_picture

from workbench.core.errors import BadInput
from workbench.ui import import_uploads
from workbench.ui.context import AppContext
from workbench.ui.import_uploads import ImportRequest, execute_upload, plan_upload
from workbench.ui.jobs import JobQueue
from workbench.ui.tabs import media_import
from workbench.ui.widgets import result_view


@pytest.fixture
def pictures(tmp_path):
    """Two folders of two pictures with their prompts beside them, as the browser has sent them."""
    for side in "ab":
        for n in range(2):
            (tmp_path / side).mkdir(exist_ok=True)
            write_picture(tmp_path / side / f"{n}.png", 10 * n + ord(side))
            (tmp_path / side / f"{n}.txt").write_text(f"picture {n}")
    return {side: sorted(map(str, (tmp_path / side).iterdir())) for side in "ab"}


@pytest.fixture
def context(tmp_path):
    (tmp_path / "temp").mkdir()
    return AppContext(tmp_path / "runs", tmp_path / "temp", JobQueue())


def test_two_uploaded_folders_become_a_run_that_the_studio_shows(pictures, context):
    request = ImportRequest(
        ["Old & new", ""], [pictures["a"], pictures["b"]], rewards=["brightness"], title="first try"
    )
    plan = plan_upload(request, context.temp)
    assert list(plan.methods) == ["Old-new", "B"] and [row[1] for row in plan.rows] == ["picture 0", "picture 1"]
    assert not any(str(context.temp) in line for line in plan.checks), "the person knows nothing of our folders"
    folder, job = execute_upload(plan, context)
    assert [*job.watch(0.1)][-1]["done"] == 2 and folder.path.name.endswith("-first-try")
    shown = result_view.read_result(folder, context.temp)
    assert [[c["type"] for c in row["cells"]] for row in shown.rows] == [["image/png"] * 2] * 2
    assert "side by side" in media_import.draw_run(folder.path, context)


def test_a_zip_brings_a_contestant_for_each_of_its_folders(pictures, context, tmp_path):
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for side, files in pictures.items():
            for file in files:
                archive.write(file, f"{side}/{Path(file).name}")
        archive.writestr("__MACOSX/a/._0.png", b"x")
        archive.writestr("a/notes.exe", b"x")
    plan = plan_upload(ImportRequest([], [], str(tmp_path / "both.zip")), context.temp)
    assert list(plan.methods) == ["a", "b"] and len(plan.rows) == 2


def spoil(path: Path, how: str, picture: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        if how == "outside":
            archive.writestr("/escaped/0.png", picture)
        elif how == "link":
            member = zipfile.ZipInfo("a/0.png")
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, "/etc/passwd")
        elif how == "many":
            for n in range(9):
                archive.writestr(f"a/{n}.png", picture)
        elif how == "large":
            archive.writestr("a/0.png", b"\0" * 200_000, zipfile.ZIP_DEFLATED)
        elif how == "nothing":
            archive.writestr("a/readme.md", b"x")
    if how == "broken":
        path.write_bytes(b"PK\x03\x04 no zip")


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("link", "holds no pictures, clips or sounds"),
        ("nothing", "holds no pictures, clips or sounds"),
        ("many", "more than 8 files"),
        ("large", "more than 0 MB"),
        ("broken", "can't be read as a zip"),
    ],
)
def test_an_archive_that_is_none_or_holds_too_much_is_refused_and_leaves_nothing(
    how, sentence, pictures, context, tmp_path, monkeypatch
):
    monkeypatch.setattr(import_uploads, "MAX_FILES", 8)
    monkeypatch.setattr(import_uploads, "MAX_BYTES", 100_000)
    spoil(tmp_path / "x.zip", how, Path(pictures["a"][0]).read_bytes())
    with pytest.raises(BadInput, match=sentence):
        plan_upload(ImportRequest([], [], str(tmp_path / "x.zip")), context.temp)
    assert not list(context.temp.iterdir())


def test_a_member_that_points_outside_stays_inside(pictures, context, tmp_path):
    spoil(tmp_path / "x.zip", "outside", Path(pictures["a"][0]).read_bytes())
    plan = plan_upload(ImportRequest([], [], str(tmp_path / "x.zip")), context.temp)
    (path,) = next(iter(plan.imported.values()))
    assert path.resolve().is_relative_to(context.temp.resolve()) and not Path("/escaped").exists()


def test_nothing_and_files_of_one_name_are_said_in_a_sentence(pictures, context, tmp_path):
    with pytest.raises(BadInput, match="nothing is there to import"):
        plan_upload(ImportRequest(["", ""], [[], []]), context.temp)
    (tmp_path / "deep").mkdir()
    twin = write_picture(tmp_path / "deep" / "0.png", 3)
    with pytest.raises(BadInput, match="two files are called 0.png; give a zip"):
        plan_upload(ImportRequest([""], [[*pictures["a"], str(twin)]]), context.temp)
