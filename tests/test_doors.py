"""A sample of what benchmarks/doors.py tries by the thousand: odd configs and edited runs get an answer."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from workbench.core.errors import BadInput
from workbench.core.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # last: a file there is called as the package `rewards` is

import door_configs  # noqa: E402
import door_runs  # noqa: E402
from door_outcomes import try_input  # noqa: E402

import pipelines  # noqa: E402
from pipelines.call_arguments import read_arguments  # noqa: E402
from workbench.runs import records, store  # noqa: E402


def test_a_mutated_config_is_planned_or_answered_in_one_sentence():
    outcomes = [door_configs.try_mutation(*mutation) for mutation in door_configs.iterate_mutations(120, seed=11)]
    assert [o for o in outcomes if not o.good] == []
    assert {"value", "sentence"} == {o.answer for o in outcomes}, "some are valid still, and some are not"


@pytest.mark.parametrize("text", door_configs.TEXTS, ids=lambda text: repr(text[:12]))
def test_what_yaml_stumbles_over_is_one_sentence_as_a_run_and_as_a_pipeline(tmp_path, text):
    (tmp_path / "config.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    for is_pipeline in (False, True):
        answer, note = try_input(lambda p=is_pipeline: door_configs.plan_config(tmp_path / "config.yaml", p))
        assert answer == "sentence", note


def test_an_argument_of_the_pipelines_call_is_checked_against_its_signature():
    """As diffusers declares it, and without importing diffusers."""
    import inspect

    import diffusers

    for name in ("StableDiffusionPipeline", "WanPipeline", "StableAudioPipeline"):
        parameters = inspect.signature(getattr(diffusers, name).__call__).parameters
        assert set(read_arguments(name)) == set(parameters) - {"self", "kwargs"}
    changed = pipelines.read_config({"name": "sd-turbo", "call": {"width": "64", "guidance_scale": "1e1"}})
    assert changed.call["width"] == 64 and changed.call["guidance_scale"] == 10.0, "numbers in quotes are numbers"
    for call, says in {
        "heigth": "takes no 'heigth'; did you mean 'height'",
        "width": r"call.width: expected a whole number, got \[64\]",
    }.items():
        with pytest.raises(BadInput, match=says):
            pipelines.read_config({"name": "sd-turbo", "call": {call: [64]}})
    with pytest.raises(BadInput, match="must be at least 1, got -8"):
        pipelines.read_config({"name": "sd-turbo", "call": {"width": -8}})


# --- edited runs -----------------------------------------------------------------------------------------------------

CHEAP = ("report as a table", "read_run", "votes")  # doors that load no weights and draw nothing


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    return door_runs.make_runs(tmp_path_factory.mktemp("doors") / "runs")


def test_an_edited_run_opens_or_is_answered_in_one_sentence(tmp_path, template):
    for n, (kind, name, edit) in enumerate(door_runs.iterate_edits(40, seed=3)):
        runs = tmp_path / str(n)
        shutil.copytree(template, runs)
        edit(runs)
        for door in CHEAP:
            with contextlib.redirect_stdout(io.StringIO()):
                answer, note = try_input(lambda r=runs, d=door: door_runs.DOORS[d](r))
            assert answer in ("value", "sentence"), (door, kind, name, note)


def test_a_record_is_refused_by_the_place_where_it_was_edited(tmp_path):
    folder = tmp_path / "20260101-000000-mine"
    shutil.copytree(door_runs.OLD_RUN, folder)
    summary = json.loads((folder / "summary.json").read_text())
    summary["contestants"][1]["rewards"]["oracle"]["mean"] = "high"
    (folder / "summary.json").write_text(json.dumps(summary))
    says = r"summary.json.contestants\[1\].rewards.oracle.mean: expected a number, got 'high'; .* was edited"
    with pytest.raises(BadInput, match=says):
        store.RunFolder(folder).read("summary.json")
    assert records.is_event({"contestant": "a"}) and not records.is_event({"contestant": 1})
    assert not records.is_event({"contestant": "a", "final": True, "batch": 0}), "a batch ends with its samples"


def test_a_damaged_run_keeps_no_other_from_its_start(tmp_path):
    shutil.copytree(door_runs.OLD_RUN, tmp_path / "20260101-000000-old-run")
    (tmp_path / "20260101-000000-old-run" / "run.json").write_text("[" * 3000)
    assert store.RunFolder.open(tmp_path, "demo", {"pipeline": "p"}).path.name.endswith("-demo")
    with pytest.raises(BadInput, match="nested more than 100 deep; remove the run folder, or start anew"):
        store.RunFolder.open(tmp_path, "old-run", {"pipeline": "p"})


def test_what_a_killed_writer_left_goes_when_the_run_is_opened_again(tmp_path):
    folder = store.RunFolder.open(tmp_path, "mine", {"pipeline": "p"})
    left = folder.path / "media" / f".{'0a' * 16}.tmp"
    others = [folder.path / ".mine.tmp", folder.path / "media" / "0a.tmp", tmp_path / f".{'0b' * 16}.tmp"]
    for path in (left, *others):
        path.write_text("half")
    with folder.exclusive_lock():
        assert not left.exists() and all(path.exists() for path in others), "nothing but its own"
        new = folder.path / f".{'0c' * 16}.tmp"
        new.write_text("being written")
    assert new.exists(), "newer than the lock: somebody is at work on it"
