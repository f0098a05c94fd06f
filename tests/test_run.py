"""Whole runs on the embedded starter pack: made, judged, stored, killed, resumed, repeated."""

from __future__ import annotations

import dataclasses
import errno
import json
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
import yaml

import pipelines
from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.paths import ROOT
from workbench.core.types import Batch, Event
from workbench.engine import run, run_record
from workbench.engine.plan import plan_run
from workbench.methods import METHODS, trains_weights
from workbench.report import findings
from workbench.runs import config, store
from workbench.runs.resolve import resolve_dependencies

PROMPTS = "configs/prompts/starter-image-test.txt"
BASE = {"pipeline": "starter-image", "reward": "starter_clip", "watch": ["oracle"], "prompts": PROMPTS, "name": "test"}
COST = {"seconds", "peak_mb"}


def settings(**change) -> config.RunConfig:
    return config.check_config(config.build_dataclass(config.RunConfig, BASE | change, "test"))


def execute(runs: Path, load=pipelines.load, **change) -> store.RunFolder:
    plan = plan_run(settings(**change))
    folder = store.RunFolder.open(runs, "test", dataclasses.asdict(plan.config), fresh=True)
    for _ in run.execute_run(plan, folder, load=load):
        pass
    return folder


def verdict(folder: store.RunFolder) -> dict:
    """The summary without what differs from run to run by nature: its folder's name and the clock."""
    summary = folder.read("summary.json")
    parts = [{k: v for k, v in c.items() if k not in COST} for c in summary["contestants"]]
    return summary | {"run": "", "contestants": parts}


def files(folder: store.RunFolder) -> dict[str, str]:
    kept = [p for top in ("media", "latents") for p in (folder.path / top).rglob("*") if p.is_file()]
    return {p.relative_to(folder.path).as_posix(): media.file_digest(p) for p in (*kept, folder.path / "grid.png")}


SMALL = {
    "contestants": {"base": "sample", "best_of_n": {"n": 3}, "reno": {"iterations": 2}},
    "limit": 5,
    "seeds": 2,
    "batch": 4,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return execute(tmp_path_factory.mktemp("runs"), **SMALL)


def test_a_run_leaves_everything_that_its_folder_promises(small):
    summary = small.read("summary.json")
    assert [c["name"] for c in summary["contestants"]] == ["base", "best_of_n", "reno"]
    assert summary["prompts"] == 5 and summary["seeds"] == 2 and small.read()["status"] == "done"
    for c in summary["contestants"]:
        assert (
            c["rewards"]["starter_clip"]["optimised"] is (c["name"] != "base")
            and not c["rewards"]["oracle"]["optimised"]
        )
        assert c["nfe"] == 10 * METHODS[c["method"]](**SETTINGS[c["name"]]).calls(1)
        assert c["reward_calls"] == {"base": 0, "best_of_n": 30, "reno": 30}[c["name"]]
        assert len(list((small.path / "media" / c["name"]).glob("*.png"))) == c["samples"] == 10
    for name in ("report.html", "grid.png", "events.jsonl"):
        assert (small.path / name).stat().st_size > 0
    with store.open_index(small.path.parent) as db:
        assert db.execute("SELECT COUNT(*) FROM artefacts").fetchone()[0] == 30
    assert not list(small.path.rglob("*.tmp"))


SETTINGS = {"base": {}, "best_of_n": {"n": 3}, "reno": {"iterations": 2}}


def test_the_score_of_a_stored_picture_is_the_score_in_the_table(small, capsys):
    """Pictures are judged as they are stored: whoever has the file can have the score again."""
    path = sorted((small.path / "media" / "reno").glob("*.png"))[0]
    assert cli.main(["score", str(path), "--reward", "starter_clip", "--reward", "oracle", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    meta = media.read_meta(path)
    assert row["prompt"] == meta["prompt"]
    assert {n: row[n] for n in ("starter_clip", "oracle")} == pytest.approx(meta["scores"], abs=1e-5)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(small, tmp_path):
    again, other = execute(tmp_path, **SMALL), execute(tmp_path, **SMALL | {"seed": 1, "limit": 1})
    assert files(again) == files(small) and verdict(again) == verdict(small)
    assert files(other)["media/base/0000-0.png"] != files(small)["media/base/0000-0.png"]


def test_a_run_killed_at_any_moment_goes_on_to_the_table_of_an_uninterrupted_one(small, launcher, tmp_path):
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(BASE | SMALL))
    arguments = ["run", str(path), "--runs", str(tmp_path / "runs")]
    for finished in (1, 4):  # killed after the first batch, then again in the middle of the second contestant
        process = psutil.Process(launcher.start(tmp_path / "launch", arguments=arguments))
        wait_for(process, tmp_path / "runs", finished)
        process.kill()
        while process.status() != psutil.STATUS_ZOMBIE:  # its parent is the launcher
            time.sleep(0.01)
    (folder,) = store.list_run_folders(tmp_path / "runs")
    assert folder.read()["status"] == "running"
    assert cli.main(arguments) == 0
    assert len(store.list_run_folders(tmp_path / "runs")) == 1
    assert verdict(folder) == verdict(small) and files(folder) == files(small)


def wait_for(process, runs: Path, finished: int):
    for _ in range(2400):
        found = [e for f in store.list_run_folders(runs) for e in f.events() if e.get("final")]
        if len(found) >= finished:
            return
        assert process.status() != psutil.STATUS_ZOMBIE, "the run ended before it could be killed"
        time.sleep(0.05)
    raise AssertionError("the run made no progress")


@dataclasses.dataclass(frozen=True)
class Broken:
    """Fails in its second batch."""

    needs = frozenset()
    paper = ""

    def calls(self, steps):
        return steps

    def __call__(self, policy, reward, batches):
        for batch in batches:
            if policy.nfe > 8:
                raise RuntimeError("out of luck")
            z = policy.noise(batch.seeds)
            m = policy.sample(batch.prompts, seeds=batch.seeds, noise=z).media
            yield Event(0, {"reward": float("nan")}, m, batch.prompts, batch.seeds, latents=z, final=True)


def test_two_processes_never_work_on_one_run(small):
    """The second one is told so; when the first dies the run is free again."""
    hold = (
        "import sys, time; from pathlib import Path; from workbench.runs import store\n"
        "with store.RunFolder(Path(sys.argv[1])).exclusive_lock():\n    print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, small.path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    plan = plan_run(settings(**SMALL))
    assert other.stdout.readline() == "held\n"
    with pytest.raises(BadInput, match="another process works on this run"):
        next(run.execute_run(plan, small))
    other.kill(), other.wait()
    with small.exclusive_lock():
        assert small.read()["status"] == "done"


def test_a_contestant_that_breaks_is_reported_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "broken", Broken)
    folder = execute(
        tmp_path, contestants={"base": "sample", "broken": "broken", "best_of_n": {"n": 2}}, limit=8, batch=4
    )
    base, broken, other = folder.read("summary.json")["contestants"]
    assert broken["failed"] == "RuntimeError: out of luck" and other["samples"] == 8
    assert "out of luck" in (folder.path / "failure-broken.txt").read_text()
    assert "out of luck" in (folder.path / "report.html").read_text() and folder.read()["status"] == "failed"
    assert any("out of luck" in sentence for sentence in findings.headline_sentences(folder.read("summary.json")))


def test_one_pipeline_is_in_memory_at_a_time(tmp_path):
    loaded, alive = [], []

    def load(*args, **how):
        alive.append(sum(policy() is not None for policy in loaded))
        policy = pipelines.load(*args, **how)
        loaded.append(weakref.ref(policy))
        return policy

    other = {"name": "sample", "pipeline": "starter-image-teacher"}
    execute(tmp_path, load, contestants={"one": "sample", "two": other}, limit=2)
    assert alive == [0, 0]


def test_a_disk_that_fills_up_stops_the_run_with_nothing_half_written_and_it_can_go_on(tmp_path, monkeypatch, capsys):
    path, real, calls = tmp_path / "test.yaml", store.write_atomic, []
    path.write_text(yaml.safe_dump(BASE | SMALL))

    def fills_up(target, data):
        calls.append(target)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(target, data)

    for module in (store, media):
        monkeypatch.setattr(module, "write_atomic", fills_up)
    assert cli.main(["run", str(path), "--runs", str(tmp_path / "runs")]) == 1
    assert "disk" in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main(["run", str(path), "--runs", str(tmp_path / "runs"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["contestants"][2]["samples"] == 10


def test_batches_are_seeded_so_that_what_ran_before_does_not_matter(small, tmp_path):
    torch.manual_seed(123)
    alone = execute(tmp_path, **SMALL | {"contestants": {"reno": {"iterations": 2}}})
    kept = {k: v for k, v in files(small).items() if k.startswith(("media/reno", "latents/reno"))}
    assert kept.items() <= files(alone).items()


def test_a_run_may_change_threads_under_way_as_it_does_in_a_server(tmp_path):
    plan = plan_run(settings(limit=2, method="sample"))
    folder = store.RunFolder.open(tmp_path, "test", dataclasses.asdict(plan.config), fresh=True)
    going = run.execute_run(plan, folder)
    while ThreadPoolExecutor(1).submit(next, going, None).result() is not None:
        pass
    assert folder.read()["status"] == "done"


def test_a_stopped_run_delivers_the_best_so_far_and_goes_on_to_the_table_of_an_uninterrupted_one(small, tmp_path):
    plan, stop = plan_run(settings(**SMALL)), threading.Event()
    folder = store.RunFolder.open(tmp_path, "test", dataclasses.asdict(plan.config), fresh=True)
    seen = []
    for p in run.execute_run(plan, folder, stop):
        seen.append(p)
        if p.contestant == "best_of_n":
            stop.set()
    assert seen[-1].event.final and seen[-1].contestant == "best_of_n" and seen[-1].event.media is not None
    assert folder.read()["status"] == "stopped"
    base, cut, never = folder.read("summary.json")["contestants"]
    assert "failed" not in base and {cut["failed"], never["failed"]} == {"did not finish"}
    for _ in run.execute_run(plan, folder):
        pass
    assert verdict(folder) == verdict(small) and files(folder) == files(small)


def test_a_stop_comes_between_two_calls_of_the_denoiser_and_what_has_nothing_to_deliver_delivers_nothing(tmp_path):
    plan, stop = plan_run(settings(limit=2, pipeline="starter-image-teacher", method="sample")), threading.Event()
    folder = store.RunFolder.open(tmp_path, "test", dataclasses.asdict(plan.config), fresh=True)
    policies = []

    def load(*args, **settings):
        policy = pipelines.load(*args, **settings)
        count = policy._count_rows
        policy._count_rows = lambda rows, live: (stop.set() if policy.nfe > 2 * rows else None, count(rows, live))
        policies.append(policy)
        return policy

    assert not [p for p in run.execute_run(plan, folder, stop, load) if p.event]
    assert 0 < policies[0].nfe < 2 * 8 and folder.read()["status"] == "stopped"


def test_what_the_budget_cuts_in_mid_chain_is_said_to_be_no_sample(tmp_path):
    folder = execute(
        tmp_path,
        pipeline="starter-image-teacher",
        contestants={"base": "sample", "fk": {"particles": 2}, "best_of_n": {"n": 3}},
        budget={"nfe": 20},
        limit=2,
    )
    summary = folder.read("summary.json")
    base, fk, best = summary["contestants"]
    assert fk["nfe"] < 2 * 2 * 8 * 2 and best["nfe"] == 2 * 8 * 2, "both were cut, and only one of them in mid-chain"
    assert "fk was cut by the budget in mid-chain: 2 of its 2 samples" in fk["predicted"]
    assert "predicted" not in base and "predicted" not in best
    assert [e["contestant"] for e in folder.events() if e.get("predicted")] == ["fk"]
    assert (
        fk["predicted"] in findings.headline_sentences(summary)
        and fk["predicted"] in (folder.path / "report.html").read_text()
    )


class Mean:
    """A judge of noisy latents that likes them bright."""

    objectives = ("mean",)

    def check(self, shape):
        pass

    def __call__(self, x, a, s, prompts):
        return x.flatten(1).mean(1, keepdim=True)


# each with one chain at a time, so that what it has called before it shows something tells how far that is
ONE = {
    "nrg": {"model": Mean(), "every": 1},
    "fk": {"particles": 1},
    "das": {"particles": 1},
    "svdd": {"candidates": 1},
    "beam": {"width": 1, "branches": 1},
}
# that one needs a LoRA
UNTRAINED = [name for name, cls in METHODS.items() if not trains_weights(cls) and name != "corrected"]


@pytest.fixture(scope="module")
def teacher():
    plan = plan_run(settings(pipeline="starter-image-teacher", method="sample"))
    return pipelines.load("starter-image-teacher", device="cpu"), plan.reward


@pytest.mark.parametrize("name", UNTRAINED)
def test_a_method_shows_predictions_if_and_only_if_it_is_known_for_it(teacher, name):
    policy, reward = teacher
    method, before = resolve_dependencies(METHODS[name](**ONE.get(name, {}))), policy.nfe
    next(method(policy, reward, [Batch(("a red circle",), (7,))]))
    chain = 2 * policy.steps  # rows of a whole one, guided
    assert (policy.nfe - before < chain) is METHODS[name].yields_predictions


def begun(tmp_path, *prompts):
    """A run of a prompt file, stopped after its first batch: the words that go on with it, the file and the run
    folder."""
    file, path = tmp_path / "prompts.txt", tmp_path / "test.yaml"
    file.write_text("\n".join(prompts))
    asked = BASE | {"prompts": str(file), "method": "sample", "batch": 1}
    path.write_text(yaml.safe_dump(asked))
    plan, stop = plan_run(config.read_run_config(path)), threading.Event()
    folder = store.RunFolder.open(tmp_path / "runs", "test", dataclasses.asdict(plan.config))
    for progress in run.execute_run(plan, folder, stop):
        if progress.event.final:
            stop.set()
    assert [e["batch"] for e in folder.events() if e.get("final")] == [0]
    return ["run", str(path), "--runs", str(tmp_path / "runs"), "--json"], file, folder


def test_a_run_does_not_go_on_with_a_prompt_file_that_was_edited_meanwhile(tmp_path, capsys):
    command, file, folder = begun(tmp_path, "a red circle", "a blue square")
    before = (folder.path / "events.jsonl").read_bytes()
    file.write_text("a green triangle\na blue square")
    for again in (command, ["run", str(folder.path)]):
        assert cli.main(again) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("workbench: ") and "prompts have changed" in said and "--new" in said
    assert (folder.path / "events.jsonl").read_bytes() == before, "what is refused stays as it was"
    assert cli.main([*command, "--new"]) == 0 and len(store.list_run_folders(tmp_path / "runs")) == 2


def test_a_run_that_began_before_prompts_were_digested_goes_on(tmp_path, capsys):
    command, _, folder = begun(tmp_path, "a red circle", "a blue square")
    folder.write("run.json", {k: v for k, v in folder.read().items() if k != "prompts"})
    assert cli.main(command) == 0 and folder.read()["status"] == "done"


def test_the_digest_of_a_run_follows_what_it_makes_and_not_where_that_is_written(tmp_path):
    (tmp_path / "one.txt").write_text("a red circle\na blue square")
    (tmp_path / "two.txt").write_text("# the same\na red circle\na blue square\n")
    one, two, other = (
        run_record.digest_prompts(plan_run(settings(method="sample", prompts=p)))
        for p in (str(tmp_path / "one.txt"), str(tmp_path / "two.txt"), ["a blue square", "a red circle"])
    )
    assert one == two != other


def test_a_run_is_called_done_only_when_it_can_be_voted_on(tmp_path, monkeypatch, capsys):
    """Killed, or locked out, between the two it goes on and is indexed."""
    command, _, folder = begun(tmp_path, "a red circle", "a blue square")

    def locked(*_):
        raise BadInput("another program holds the index")

    monkeypatch.setattr(store, "sync_index", locked)
    assert cli.main(command) == 2 and folder.read()["status"] == "running"
    monkeypatch.undo()
    assert cli.main(command) == 0 and folder.read()["status"] == "done"
    with store.open_index(folder.path.parent) as db:
        assert [row["status"] for row in db.execute("SELECT status FROM runs")] == ["done"]
        assert db.execute("SELECT COUNT(*) FROM artefacts").fetchone()[0] == 2


def test_a_run_folder_can_be_run_anew_beside_itself(tmp_path, capsys):
    _, _, folder = begun(tmp_path, "a red circle", "a blue square")
    before = (folder.path / "events.jsonl").read_bytes()
    assert cli.main(["run", str(folder.path), "--new"]) == 0
    new, old = (f for f in store.list_run_folders(tmp_path / "runs"))
    new, old = (new, old) if old.path == folder.path else (old, new)
    assert old.path == folder.path and (folder.path / "events.jsonl").read_bytes() == before
    assert new.read()["status"] == "done" and new.read()["command"].endswith("--new")
