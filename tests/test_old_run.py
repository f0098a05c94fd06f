"""A run folder from before settings were renamed (made at ccde062, trimmed) still opens everywhere.

Its config says seeds, at_once, times, share, bound, slow, most, and
train.{updates,prompts,held,evaluate,save,keep,clip}.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

import pipelines
from workbench import cli
from workbench.core import schema
from workbench.runs import config, store

OLD_RUN = Path(__file__).parent / "data" / "old-run"
NAMED = {
    "pipeline": "starter-image-base",
    "contestants": {
        "base": "sample",
        "best_of_n": {"n": 2},
        "nft": {"group": 2, "at_once": 1, "times": 2, "share": 0.9, "bound": 4.0, "slow": 0.01, "most": 0.4,
                "updates": 1, "lr": "1e-3"},
    },
    "reward": "starter_clip",
    "watch": ["oracle"],
    "prompts": ["a red circle", "a blue square", "a small green triangle"],
    "test": ["a yellow circle", "a big red square"],
    "seeds": 2,
    "batch": 4,
    "train": {"updates": 2, "prompts": 2, "held": 1, "evaluate": 1, "save": 1, "keep": 1, "clip": 0.5, "best": "oracle",
              "lora": {"rank": 1, "alpha": 1}, "report_to": []},
}  # fmt: skip


@pytest.fixture
def runs(tmp_path) -> Path:
    shutil.copytree(OLD_RUN, tmp_path / "runs" / "20261130-143815-old-run")
    return tmp_path / "runs"


@pytest.fixture
def folder(runs) -> store.RunFolder:
    (found,) = store.list_run_folders(runs)
    return found


def call(capsys, *arguments) -> str:
    assert cli.main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_the_store_reads_and_indexes_it(runs, folder):
    store.sync_index(runs, folder)
    with store.open_index(runs) as db:
        assert db.execute("SELECT COUNT(*) FROM artefacts").fetchone()[0] == 12
        assert db.execute("SELECT COUNT(*) FROM scores").fetchone()[0] == 24
    assert folder.read()["config"]["samples_per_prompt"] == 2
    assert folder.read()["config"]["train"]["rounds"] == 2
    assert "sample" in store.seconds_per_call(runs, "starter-image-base")


def test_its_config_today_is_the_same_run(runs, folder, tmp_path, monkeypatch):
    """A file with the names of then, the same with overrides, and what is on disk are one run, which goes on."""
    (tmp_path / "old-run.yaml").write_text(yaml.safe_dump(NAMED, sort_keys=False))
    record = json.loads((folder.path / "run.json").read_text())
    (folder.path / "run.json").write_text(json.dumps(record | {"status": "stopped"}))
    monkeypatch.setattr(schema, "_ANNOUNCED", set())
    for overrides in ([], ["train.updates=2"], ["train.rounds=2", "seeds=2", "contestants.nft.at_once=1"]):
        wanted = config.read_run_config(tmp_path / "old-run.yaml", overrides)
        assert folder.matches("old-run", vars(wanted))
    assert not folder.matches("old-run", vars(config.read_run_config(tmp_path / "old-run.yaml", ["train.updates=3"])))


def test_it_is_planned_again(folder, capsys):
    plan = json.loads(call(capsys, "run", folder.path, "--dry-run", "--json"))
    assert "2 rounds of 2 prompts" in " ".join(plan["checks"])


def test_a_finished_one_is_opened_and_nothing_is_made_again(folder, capsys, monkeypatch):
    monkeypatch.setattr(pipelines, "load", lambda *_, **__: pytest.fail("weights were loaded"))
    before, events = folder.read("summary.json"), folder.events()
    summary = json.loads(call(capsys, "run", folder.path, "--json"))
    assert summary["contestants"][2]["training"] == before["contestants"][2]["training"]
    assert [c["rewards"] for c in summary["contestants"]] == [c["rewards"] for c in before["contestants"]]
    assert folder.events() == events and (folder.path / "report.html").is_file()


def test_its_report_is_written_again(folder, capsys):
    call(capsys, "report", folder.path)
    assert "old-run" in (folder.path / "report.html").read_text()


def test_what_it_exported_is_a_pipeline(folder):
    base = pipelines.read_config("starter-image-base")
    trained = pipelines.read_config(folder.path)
    assert (trained.repo, trained.steps, trained.call) == (base.repo, base.steps, base.call)
    assert trained.lora == str(folder.path / "export")


def test_export_finds_what_it_trained(folder, capsys):
    """As far as its weights, which are trimmed away."""
    assert cli.main(["export", str(folder.path), "--out", str(folder.path / "again")]) == 1
    assert "checkpoint" in (error := capsys.readouterr().err) and "is damaged" in error


def test_the_page_of_runs_lists_it(runs, folder):
    from workbench.ui.widgets import run_view

    (row,) = run_view.list_runs(runs)
    assert row["run"] == folder.path.name and row["state"] == "done" and row["pipeline"] == "starter-image-base"
    assert row["contestants"] == "base, best_of_n, nft"
