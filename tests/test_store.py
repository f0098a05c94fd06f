"""What a run leaves behind: whole or not at all, and never twice."""

from __future__ import annotations

import json
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from workbench.core.errors import BadInput
from workbench.engine import compare
from workbench.runs import store
from workbench.runs.checkpoints import CheckpointStore

RUN = {
    "name": "mine",
    "created": "2026-01-01T00:00:00",
    "status": "running",
    "config": {"pipeline": "p"},
    "rewards": {"r": "2"},
}


def sample(n, k=0):
    return {
        "index": n,
        "k": k,
        "prompt": "a cat",
        "seed": 5,
        "file": f"media/{n}.png",
        "sha256": "0",
        "scores": {"r": 0.5},
    }


@pytest.fixture
def folder(tmp_path):
    folder = store.RunFolder.open(tmp_path, "mine", RUN["config"])
    folder.write("run.json", RUN)
    return folder


def test_an_unfinished_run_of_the_same_config_is_found_again_and_any_other_is_not(tmp_path, folder):
    assert store.RunFolder.open(tmp_path, "mine", RUN["config"]).path == folder.path
    assert store.RunFolder.open(tmp_path, "mine", {"pipeline": "q"}).path != folder.path
    assert store.RunFolder.open(tmp_path, "mine", RUN["config"], fresh=True).path != folder.path
    folder.write("run.json", RUN | {"status": "done"})
    assert store.RunFolder.open(tmp_path, "mine", RUN["config"]).path != folder.path


def test_settings_that_are_tuples_are_found_again_as_the_lists_that_json_makes_of_them(tmp_path):
    _, contestants = compare.contestant_blocks(["srpo"], "starter-image-teacher", None)
    assert any(isinstance(v, tuple) for v in contestants["srpo"].values()), "or this shows nothing"
    asked = {"pipeline": "starter-image-teacher", "contestants": contestants}
    folder = store.RunFolder.open(tmp_path, "mine", asked)
    folder.write("run.json", RUN | {"config": asked})
    assert store.RunFolder.open(tmp_path, "mine", asked).path == folder.path


def test_rewinding_forgets_unfinished_batches_torn_lines_and_failures(folder):
    folder.append_event({"contestant": "a", "batch": 0, "step": 0})
    folder.append_event({"contestant": "a", "batch": 0, "final": True, "samples": [sample(0)]})
    folder.append_event({"contestant": "a", "batch": 1, "step": 0})
    folder.append_event({"contestant": "b", "batch": 0, "failed": "out of memory"})
    with open(folder.path / "events.jsonl", "a") as f:
        f.write('{"contestant": "a", "batch": 1, "fin')
    assert folder.drop_unfinished() == {("a", 0)}
    assert [e.get("step", "final") for e in folder.events()] == [0, "final"]


def test_the_run_json_of_another_program_is_no_run_to_go_on_with(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "run.json").write_text('{"id": 7}')
    assert not store.RunFolder(tmp_path / "foreign").matches("x", {})
    assert store.RunFolder.open(tmp_path, "x", {}).path.name.endswith("-x")


def test_syncing_twice_indexes_each_artefact_once(tmp_path, folder):
    folder.append_event({"contestant": "a", "batch": 0, "final": True, "samples": [sample(0), sample(1)]})
    cost = {"name": "a", "method": "sample", "samples": 2, "nfe": 4, "seconds": 2.0}
    folder.write("summary.json", {"contestants": [cost, {"name": "b", "failed": "it broke"}]})
    for _ in range(2):
        store.sync_index(tmp_path, folder)
    with store.open_index(tmp_path) as db:
        assert db.execute("SELECT COUNT(*) FROM artefacts").fetchone()[0] == 2
        assert db.execute("SELECT reward, version, value FROM scores").fetchall()[0][:] == ("r", "2", 0.5)
    assert store.seconds_per_call(tmp_path, "p") == {"sample": 0.5}


def test_a_failed_transaction_leaves_the_index_as_it_was(tmp_path):
    with pytest.raises(sqlite3.IntegrityError), store.open_index(tmp_path) as db:
        db.execute(
            "INSERT INTO runs (folder, name, created, status, pipeline, config) VALUES ('f','n','c','s','p','{}')"
        )
        db.execute(
            "INSERT INTO runs (folder, name, created, status, pipeline, config) VALUES ('f','n','c','s','p','{}')"
        )
    with store.open_index(tmp_path) as db:
        assert db.execute("SELECT COUNT(*) FROM runs").fetchone()[0] == 0


def test_an_index_from_a_newer_workbench_is_refused(tmp_path):
    with store.open_index(tmp_path) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == len(store.SCHEMA)
    db = sqlite3.connect(tmp_path / "workbench.db")
    db.execute("PRAGMA user_version=999")
    db.close()
    with pytest.raises(BadInput, match="newer workbench"), store.open_index(tmp_path):
        pass


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    store.write_atomic(path, "old")

    def no_space(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        store.write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    """Whoever is last wins, with a whole file, and leaves nothing else behind."""
    path, texts = tmp_path / "x.bin", [str(k) * 200_000 for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: [store.write_atomic(path, text) for _ in range(5)], texts))
    assert path.read_text() in texts and [*tmp_path.iterdir()] == [path]


def test_numbers_that_json_cannot_say_are_never_written(folder):
    with pytest.raises(ValueError, match="JSON compliant"):
        folder.append_event({"contestant": "a", "batch": 0, "metrics": {"reward": float("nan")}})


def test_a_folder_that_cannot_be_written_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="use another|choose another"):
        store.RunFolder.open(tmp_path / "file", "mine", {})


def test_a_damaged_run_file_is_named(folder):
    (folder.path / "run.json").write_text(json.dumps(RUN)[:20])
    with pytest.raises(BadInput, match="damaged"):
        folder.read()


def test_a_file_of_json_that_is_no_record_is_called_damaged(folder):
    (folder.path / "run.json").write_text("[1, 2]")
    with pytest.raises(BadInput, match="damaged"):
        folder.read()


def test_an_index_that_another_program_holds_is_named(tmp_path, monkeypatch):
    with store.open_index(tmp_path):
        pass
    real = sqlite3.connect
    other = real(tmp_path / "workbench.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(store.sqlite3, "connect", lambda path, timeout, **how: real(path, timeout=0, **how))
    with pytest.raises(BadInput, match="another program holds the index"), store.open_index(tmp_path):
        pass
    other.close()


def test_an_edited_record_of_the_best_is_refused_by_its_place(tmp_path):
    checkpoints = CheckpointStore(tmp_path, keep_last=1)
    for content in ("{}", '{"update": "x"}', "[]"):
        (tmp_path / "best.json").write_text(content)
        with pytest.raises(BadInput, match=r"best\.json"):
            _ = checkpoints.best_record
