"""The tab of runs: processes that outlive the page, curves that grow, and nothing of a user that becomes a path or
HTML."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from ui_fixtures import launch_tab

from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.types import Media
from workbench.report.grid_page import write_grid_page
from workbench.runs import run_bin
from workbench.runs.store import RunFolder
from workbench.ui import run_choices, run_processes, run_queue
from workbench.ui.context import AppContext
from workbench.ui.jobs import JobQueue
from workbench.ui.overrides import check_overrides
from workbench.ui.tabs import runs
from workbench.ui.widgets import curves, queue_view, run_view, samples

EVIL = "<img src=x onerror=alert(1)>{{evil}}${evil}"
SMALL = ["limit=2", "samples_per_prompt=1", "batch=1", "watch=[saturated_pixels]",
         "contestants={base: sample, reno: {iterations: 60}}"]  # fmt: skip

OTHER = """
import pathlib, time
from workbench.ui import run_processes as processes
runs = pathlib.Path(out)
while not (found := [p for p in runs.glob("*/events.jsonl") if p.stat().st_size]):
    time.sleep(0.05)
folder = processes.find_run(runs, found[0].parent.name)
print(processes.run_state(folder).name)
processes.stop_run(runs, folder.path.name)
print(processes.run_state(folder).name)
"""


def wait(what, seconds=60.0):
    end = time.monotonic() + seconds
    while not (result := what()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return result


def written(folder, name="20260101-120000-toy", status="running", events=(), **more):
    """A run folder as a run writes it."""
    path = folder / name
    path.mkdir(parents=True)
    config = {"pipeline": "starter-image", "reward": "starter_clip", "device": "cpu", "seed": 0}
    record = {
        "name": "toy",
        "created": "2026-01-01T12:00:00+0000",
        "config": config,
        "methods": {"base": {}, "reno": {}},
    }
    (path / "run.json").write_text(json.dumps(record | {"status": status} | more))
    (path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return RunFolder(path)


def adopted(folder, process, **more):
    """The folder with the record of a process that a page started."""
    record = {"pid": process.pid, "began": psutil.Process(process.pid).create_time(), "stop": None} | more
    (folder.path / "process.json").write_text(json.dumps(record))


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill(), process.wait()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs-page")
    return launch_tab(runs.build_tab, folder / "runs", folder / "temp")


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_run_is_started_stopped_by_another_page_and_resumed_to_its_end(page, launcher, tmp_path):
    """Over HTTP; the other page is another process, which has nothing but the files."""
    client, context = page
    context.runs.mkdir(exist_ok=True)
    sentence, name = client.predict("methods-student", "\n".join(SMALL), api_name="/start")
    assert "is starting" in sentence
    folder = run_processes.find_run(context.runs, name)
    sentence, second = client.predict("methods-student", "\n".join([*SMALL, "name=second"]), api_name="/start")
    assert "waits for its turn, 1 before it" in sentence
    jobs = client.predict(api_name="/queue")[2]
    assert [(job["run"], job["state"]) for job in jobs] == [(name, "working"), (second, "waiting")]
    said, queue, *_ = client.predict(jobs[1]["key"], "pause", api_name="/queue_job")
    assert said == "" and "paused" in queue and 'data-action="resume"' in queue
    for call in (run_processes.prepare_resume, lambda runs, run: run_queue.resume_run(context, run)):
        with pytest.raises(BadInput, match="worked on already"):
            call(context.runs, name)
    codes, (said,) = launcher.launch(tmp_path / "other", processes=1, code=OTHER, out=str(context.runs))
    states = said.split()
    assert codes == [0], said
    assert states[0] == "running" and states[1] in ("stopping", "stopped")
    wait(lambda: not run_processes.run_state(folder).is_live)
    assert run_processes.run_state(folder).name == "stopped"
    wait(lambda: len(context.jobs.list_jobs()) == 1)
    client.predict(name, api_name="/resume")
    wait(lambda: not run_processes.run_state(folder).is_live, 180)
    assert run_processes.run_state(folder).name == "done", run_processes.log_tail(folder)
    assert {c["name"] for c in folder.read("summary.json")["contestants"]} == {"base", "reno"}
    assert curves.read_series(folder.path / "events.jsonl").mean_lines()["reward"]["reno"], "its curve can be drawn"
    with pytest.raises(BadInput, match="finished"):
        run_queue.resume_run(context, name)
    states = {row["run"]: row["state"] for row in client.predict(api_name="/runs")[-1]}
    assert states == {name: "done", second: "queued"}, "what is paused does not begin"
    client.predict(jobs[1]["key"], "cancel", api_name="/queue_job")
    wait(lambda: client.predict(api_name="/queue")[2] == [])
    assert not (context.runs / second / "process.json").exists()
    assert run_processes.run_state(run_processes.find_run(context.runs, second)).name == "stopped"
    assert "not in the queue any more" in client.predict(jobs[1]["key"], "up", api_name="/queue_job")[0]


def test_a_process_that_was_killed_is_told_as_crashed_with_its_last_words(tmp_path, sleeper):
    folder = written(tmp_path)
    adopted(folder, sleeper)
    (folder.path / "process.log").write_text("loading\n\x1b[31mout of memory\x1b[0m\n")
    assert run_processes.run_state(folder) == run_processes.RunState("running", started_here=True)
    os.killpg(sleeper.pid, signal.SIGKILL)
    wait(lambda: run_processes.run_state(folder).name == "crashed")
    assert (
        "out of memory" in run_processes.run_state(folder).reason
        and "\x1b" not in run_processes.run_state(folder).reason
    )


def test_one_that_does_not_listen_is_killed_after_the_grace(tmp_path):
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
    process.stdout.readline()
    folder = written(tmp_path)
    adopted(folder, process)
    run_processes.stop_run(tmp_path, folder.path.name, grace=0.6)
    assert run_processes.run_state(folder).name == "stopping"
    wait(lambda: process.poll() is not None)
    assert process.returncode == -signal.SIGKILL and run_processes.run_state(folder).name == "stopped"


def test_a_number_that_was_used_again_is_not_taken_for_the_run(tmp_path, sleeper):
    folder = written(tmp_path)
    adopted(folder, sleeper, began=psutil.Process(sleeper.pid).create_time() - 3600)
    assert run_processes.run_state(folder).name == "crashed"
    with pytest.raises(BadInput, match="not at work"):
        run_processes.stop_run(tmp_path, folder.path.name)
    assert sleeper.poll() is None


def test_a_run_started_elsewhere_is_seen_by_its_lock_and_not_stopped(tmp_path):
    folder = written(tmp_path)
    assert run_processes.run_state(folder).name == "crashed"
    with folder.exclusive_lock():
        assert run_processes.run_state(folder).name == "running"
        with pytest.raises(BadInput, match="not started from here"):
            run_processes.stop_run(tmp_path, folder.path.name)
        with pytest.raises(BadInput, match="another process"), folder.exclusive_lock():
            pass


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"pid": "x"}', '{"pid": -1, "began": 0}', '{"pid": 1e300, "began": "?"}']
)
def test_a_damaged_process_record_stops_nothing_and_breaks_nothing(tmp_path, content):
    folder = written(tmp_path)
    (folder.path / "process.json").write_text(content)
    assert run_processes.run_state(folder).name == "crashed"


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc", "", ".", "..", EVIL, "20260101-120000-toy/../20260101-120000-toy"]
)
def test_only_the_name_of_a_listed_run_is_a_run(tmp_path, name):
    written(tmp_path)
    for act in (run_processes.find_run, run_processes.stop_run, run_processes.prepare_resume):
        with pytest.raises(BadInput, match="no run of this name"):
            act(tmp_path, name)


# --- the queue ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sleepers(monkeypatch):
    """Runs whose processes only sleep, in the order in which they begin."""
    begun = []

    def launch(folder):
        run_processes.write_status(folder, "running")
        begun.append(subprocess.Popen(["sleep", "60"], start_new_session=True))
        adopted(folder, begun[-1])

    monkeypatch.setattr(run_processes, "launch_run", launch)
    yield begun
    for process in begun:
        process.kill(), process.wait()
    run_queue._locks.close()


def served(folder, restored=True):
    """The place of a server of these runs."""
    context = AppContext(folder, folder / "temp", JobQueue())
    if restored:
        run_queue.restore_queue(context)
    return context


def states(context):
    return [(job.saved["run"], job.state) for job in context.jobs.list_jobs()]


def test_a_queue_survives_its_server_and_never_begins_two_at_once(tmp_path, sleepers, capsys):
    first = served(tmp_path)
    for name in ("1-a", "2-b", "3-c"):
        run_queue.submit_run(first, written(tmp_path, name, status="queued"))
    wait(lambda: states(first)[0] == ("1-a", "working") and len(sleepers) == 1)
    first.jobs.pause(first.jobs.list_jobs()[2])
    assert states(served(tmp_path)) == [] and "not kept over a restart" in capsys.readouterr().err, "one server has it"
    run_queue._locks.close()  # the server is gone, its process of the first run lives
    again = served(tmp_path)
    assert states(again) == [("1-a", "working"), ("2-b", "waiting"), ("3-c", "paused")]
    time.sleep(1)
    assert len(sleepers) == 1, "the one that lives is waited for"
    sleepers[0].kill(), sleepers[0].wait()
    wait(lambda: ("2-b", "working") in states(again))
    assert ("3-c", "paused") in states(again)
    run_queue.stop_run(again, "2-b")
    wait(lambda: states(again) == [("3-c", "paused")])
    assert run_processes.run_state(run_processes.find_run(tmp_path, "2-b")).name == "stopped"


def test_a_run_at_work_is_paused_by_a_stop_and_goes_on_when_it_is_resumed(tmp_path, sleepers):
    context = served(tmp_path, restored=False)
    job = run_queue.submit_run(context, written(tmp_path, "1-a", status="queued"))
    other = run_queue.submit_run(context, written(tmp_path, "2-b", status="queued"))
    wait(lambda: len(sleepers) == 1)
    context.jobs.pause(job)
    wait(lambda: states(context) == [("1-a", "paused"), ("2-b", "working")])
    run_queue.resume_run(context, "1-a")
    assert states(context) == [("1-a", "waiting"), ("2-b", "working")]
    context.jobs.stop(other)
    wait(lambda: states(context) == [("1-a", "working")] and len(sleepers) == 3)
    context.jobs.stop(job)
    wait(lambda: states(context) == [])


def test_a_comparison_that_waited_when_its_server_went_becomes_a_run_of_its_own(tmp_path, sleepers, capsys):
    config = {"pipeline": "starter-image", "reward": "starter_clip", "prompts": ["a red circle"], "method": "sample",
              "name": "studio"}  # fmt: skip
    claimed = RunFolder.open(tmp_path, "studio", config)
    (tmp_path / "queue").mkdir()
    entries = [{"title": "a", "run": claimed.path.name, "config": config}, {"title": "b", "run": "../../etc"}]
    entries += [{"title": "c", "run": "x", "config": config | {"pipeline": "no such"}}]
    (tmp_path / "queue" / "queue.json").write_text(json.dumps({"jobs": entries}))
    context = served(tmp_path)
    assert [name for name, _ in states(context)] == [claimed.path.name] and claimed.read()["config"]["limit"] == 0
    said = capsys.readouterr().err
    assert "left out of the queue: b: its run is gone" in said and "left out of the queue: c: " in said


def test_what_can_be_done_about_a_job_is_offered_and_nothing_else(tmp_path):
    queue, free = JobQueue(), threading.Event()
    here = queue.submit(EVIL, lambda stop: iter([free.wait(20)]))
    run = queue.submit("run", lambda stop: iter([1]), saved={"run": "r"}, has_process=True)
    last = queue.submit("last", lambda stop: iter([1]), device="cuda:7")
    queue.device = "cpu"
    page = queue_view.draw_queue(queue.list_jobs())
    assert "<img src=x" not in page and "onerror=alert(1)&gt;" in page
    assert queue_view.list_actions(here, -1, 2) == ["stop"] and queue_view.list_actions(run, 0, 1) == [
        "pause",
        "cancel",
    ]
    with pytest.raises(BadInput, match="can't be paused"):
        queue.pause(here)
    queue.move(last, -1)
    assert queue.list_jobs() in ([here, last, run], [here, run]), "another device may begin at once"
    free.set()
    wait(lambda: queue.list_jobs() == [])
    bars = queue_view.draw_machine(queue_view.measure_machine())
    assert "cores" in bars and "memory" in bars
    gpu = {"name": EVIL, "memory_used_gb": None, "memory_gb": None, "percent": None}
    bars = queue_view.draw_machine(queue_view.measure_machine() | {"gpus": [gpu, gpu | {"percent": 50}]})
    assert "unknown until this page works on it" in bars and ": 50 %" in bars and "<img src=x" not in bars


# --- the board of runs -----------------------------------------------------------------------------------------------


def test_every_config_is_offered_by_groups_with_what_it_says_of_itself(tmp_path):
    from workbench.core.paths import CONFIGS

    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("# My own\npipeline: starter-image\nmethod: sample\n")
    offered = run_choices.offer_configs(tmp_path)
    names = [name for _, name in offered]
    assert len(offered) == len(list((CONFIGS / "runs").rglob("*.yaml"))) + len(list((CONFIGS / "grids").iterdir())) + 1
    assert (
        offered[0] == ("yours: mine  (My own)", "yours/mine") and "demo" in names and "grids/starter-guidance" in names
    )
    groups = [label.partition(":")[0] for label, _ in offered]
    assert sorted(set(groups), key=groups.index) == list(run_choices.GROUPS), "those of a group stand together"
    for name in ("../mine", "mine", str(tmp_path / "configs" / "mine.yaml"), EVIL):
        with pytest.raises(BadInput, match="no config of this name"):
            run_choices.find_config(tmp_path, name)


def test_a_cost_is_told_before_a_start_and_so_is_the_wait(page):
    client, context = page
    said = client.predict("grids/starter-guidance", "limit=2", api_name="/cost")
    assert "9 contestants, 84 denoiser calls, time unknown" in said and "memory unknown" in said
    assert "unknown key" in client.predict("demo", "seedz=4", api_name="/cost")
    said = client.predict("demo", "limit=2", "iterations=1,2", "steps=1,2", "", "reno", api_name="/cost")
    assert "4 contestants, 60 denoiser calls" in said, "two prompts, two noises, 2 or 3 passes of 1 or 2 steps"
    for axis, sentence in (("lora=/etc/x", "no files of LoRAs"), ("pipeline=/models", "only configured pipelines"),
                           ("method.noise=/etc/passwd", "no path"), ("reward.clip=1", "not among this run"),
                           ("steps", "write SETTING=VALUE"),
                           ("pipeline.repo=evil", "only its name, steps")):  # fmt: skip
        assert sentence in client.predict("demo", "limit=2", axis, "", "", "reno", api_name="/cost"), axis


def test_a_run_is_titled_tagged_found_deleted_and_restored(page, tmp_path):
    client, context = page
    folder = written(context.runs, "20240101-000000-noted", status="done")
    name = folder.path.name
    assert "Saved" in client.predict(name, EVIL, "#paper, good", "the greens are better", api_name="/save_notes")
    assert json.loads((folder.path / "notes.json").read_text())["tags"] == ["paper", "good"]

    def search(words):
        table, *_, rows = client.predict(words, api_name="/runs")
        return table, [row["run"] for row in rows]

    for words in ("#paper", "greens", "noted state:done", "paper -bad"):
        table, names = search(words)
        assert names == [name] and "#good" in table and "<img src=x" not in table
    assert search("#pape")[1] == [] and name not in search("-greens")[1]
    assert "one word of" in client.predict(name, "", "a/b", "", api_name="/save_notes")
    assert "Choose a run" in client.predict("../x", "", "", "", api_name="/save_notes")
    with folder.exclusive_lock():
        assert "another process works on" in client.predict(name, api_name="/delete_run")
    assert "is in the bin" in client.predict(name, api_name="/delete_run")
    assert search("#paper")[1] == [] and [f.path.name for f in run_bin.list_binned(context.runs)] == [name]
    assert "the bin has no run" in client.predict("20240101", api_name="/restore_run")[0]
    assert "is back" in client.predict(name, api_name="/restore_run")[0] and search("#paper")[1] == [name]


def test_runs_stand_beside_each_other_and_those_of_the_same_prompts_are_marked(page):
    client, context = page
    estimate = {"mean": 0.5, "ci95": [0.4, 0.6], "n": 2, "optimised": False}
    for name, seed, title in (
        ("20230101-000000-one", 1, "first"),
        ("20230102-000000-two", 1, EVIL),
        ("20230103-000000-x", 2, ""),
    ):
        sample = {"index": 0, "k": 0, "seed": seed, "prompt": "a", "file": None, "scores": {"clip": 0.5}}
        events = [{"contestant": "reno", "batch": 0, "step": n, "metrics": {"reward": n / 10}} for n in range(3)]
        events += [{"contestant": "reno", "batch": 0, "step": 2, "final": True, "samples": [sample]}]
        folder = written(context.runs, name, status="done", events=events)
        rows = {"name": "reno", "method": "reno", "samples": 1, "rewards": {"clip": estimate}, "nfe": 8, "seconds": 1.0}
        folder.write("summary.json", {"contestants": [rows], "prompts": 1, "seeds": 1, "modality": "image"})
        folder.write("notes.json", {"title": title, "note": "", "tags": []})
    names = [f.path.name for f in (run_processes.find_run(context.runs, n) for n in
             ("20230101-000000-one", "20230102-000000-two", "20230103-000000-x"))]  # fmt: skip
    table, chart = client.predict(names, api_name="/runs_beside")
    assert table.count("0.50 [0.40, 0.60]") == 3 and table.count(">A<") == 2 and table.count(">B<") == 1
    assert "first: reno" in chart and "20230103-000000-x: reno" in chart and chart.count("<polyline") == 3
    assert "<img src=x" not in table + chart
    assert "no run of this name" in client.predict(["../x"], api_name="/runs_beside")[0]


# --- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["prompts=/etc/passwd", "test=../secret.txt", "pipeline=some/model", "pipeline=/models",
     "contestants.base.pipeline=.", "contestants.reno.lora=../x.safetensors", "reward=os:system", "method=os:system",
     "contestants.reno.name=os:system", "reward.judge.url=http://10.0.0.1/", "reward={clip: {model: /x}}",
     "watch=[a.b]", "samples_per_prompt=1e9", "seeds=2000", "batch=.inf", "contestants.reno.lr=.nan",
     "samples_per_prompt=[[[[[[[[[[1]]]]]]]]]]", "no-equals-sign", "pipeline.name=some/model", "pipeline.repo=evil",
     "pipeline={name: starter-image, repo: 1}", "pipeline.components.vae=x",
     "pipeline.steps=1e6", "pipeline.call.height=true", "pipeline.call.prompt=word", "contestants.base.pipeline.lora=x",
     "pipeline=[starter-image]", "pipeline='starter-image {repo: x}'", "pipeline.scheduler.class=X",
     "a=" + "9" * 400, "a: &a [*a]=1", "samples_per_prompt=&x 4", "name=../../evil"],
)  # fmt: skip
def test_an_override_that_names_a_file_an_address_or_an_absurd_number_is_one_sentence(tmp_path, text):
    with pytest.raises(BadInput) as raised:
        run_processes.prepare_run(tmp_path, "demo", [text])
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    ["contestants.reno=!!pairs [name: rewrite, expander: {url: 'http://10.0.0.1/', model: m, key: SECRET}]",
     "contestants.reno=!!pairs [name: reuse, noise: /etc/passwd]", "contestants.reno=!!omap [noise: /etc/passwd]",
     "contestants.reno=[[name, reuse], [noise, /etc/passwd]]", "contestants=!!set {/etc/passwd}",
     "contestants.reno.noise=!!binary L2V0Yy9wYXNzd2Q=",
     "reward=!!pairs [clip: {model: /x}]", "prompts=!!pairs [a: /etc/passwd]", "samples_per_prompt=!!pairs [a: 1e9]",
     "seed=0x" + "f" * 280],
)  # fmt: skip
def test_nothing_that_yaml_can_make_of_a_text_is_let_through_unseen(text):
    with pytest.raises(BadInput, match="from here|could not determine a constructor|a number of 282 digits"):
        check_overrides([text])


@pytest.mark.parametrize(
    "text",
    ["samples_per_prompt=4", "contestants.reno.iterations=50", "prompts=[a red circle, 'any <text>, /even this']",
     "prompts=starter-image-test", "pipeline=starter-image", "reward={starter_clip: 1, brightness: 0.2}",
     "train.rounds=10", "device=cpu", "test=null", "curve=true", "pipeline.steps=8",
     "pipeline={name: starter-image-teacher, steps: 4, call: {guidance_scale: 2.5}}",
     "contestants.base.pipeline.call.guidance_scale=3.5"],
)  # fmt: skip
def test_what_a_page_may_set_passes(text):
    check_overrides([text])


def test_what_the_config_itself_refuses_is_said_before_a_process_starts(page):
    client, context = page
    before = len(list(context.runs.glob("*"))) if context.runs.exists() else 0
    for config, text, sentence in [
        ("demo", "seedz=4", "unknown key"),
        ("demo", "contestants.reno.iterations=lots", "whole number"),
        ("demo", "seeds.x=3", "nothing can be set inside that"),
        ("demo", "prompts=[1, 2]", "a prompt is a text, got 1"),
        ("demo", "contestants.reno=[1]", "expected a method"),
        ("demo", "watch=[{oracle: {}}]", "names of rewards only"),
    ]:
        html, _ = client.predict(config, text, api_name="/start")
        assert sentence in html and "wb-bad" in html
    assert len(list(context.runs.glob("*")) if context.runs.exists() else []) == before


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_a_log_is_read_from_where_it_ended_and_anew_when_it_was_replaced(tmp_path):
    path = tmp_path / "events.jsonl"
    event = {"contestant": "reno", "batch": 0, "metrics": {"reward": 0.5}}
    path.write_text(json.dumps(event | {"step": 0}) + "\n" + json.dumps(event | {"step": 1})[:20])
    result = curves.Series(path).read()
    assert not result.mean_lines() and result.changes == 1, "a torn line is not one"
    with path.open("a") as f:
        f.write(json.dumps(event | {"step": 1})[20:] + "\n{not json}\n[1]\n")
    assert result.read().mean_lines() == {"reward": {"reno": [(0, 0.5), (1, 0.5)]}}
    path.with_name("new").write_text(json.dumps(event | {"step": 7}) + "\n")
    path.with_name("new").rename(path)
    assert list(result.read().values["reward"]["reno"][0]) == [7]


def test_updates_of_a_training_are_one_line_and_its_sampling_another_clock(tmp_path):
    events = [
        {"contestant": "grpo", "phase": "train", "step": n, "metrics": {"reward": n / 10, "lr": None}} for n in range(5)
    ]
    events += [{"contestant": "grpo", "phase": "watch", "step": 4, "metrics": {"held oracle": 0.3}, "alarm": "it fell"}]
    events += [{"contestant": "grpo", "batch": 0, "step": 0, "metrics": {"reward": 9.0}}]
    result = curves.read_series(written(tmp_path, events=events).path / "events.jsonl")
    assert result.mean_lines() == {"reward": {"grpo": [(n, n / 10) for n in range(5)]}} and result.alarm == "it fell"


def test_a_thinned_line_keeps_its_ends_and_its_spikes():
    line = [(float(n), 0.0) for n in range(100_000)]
    line[54_321] = (54_321.0, 9.0)
    line[77_777] = (77_777.0, -9.0)
    thinned = curves.thin_line(line)
    assert (
        len(thinned) <= 400
        and {line[0], line[-1], line[54_321], line[77_777]} <= set(thinned)
        and thinned == sorted(thinned)
    )


def test_texts_of_users_are_shown_as_texts(tmp_path):
    picture = Media(torch.rand(1, 3, 8, 8), "image")
    folder = written(tmp_path, status="failed", methods={EVIL: {}})
    media.write_media(picture, folder.path / "a.png", meta={"prompt": EVIL})
    for update in ("000000", "000020"):
        (folder.path / "samples" / "grpo" / update).mkdir(parents=True)
        media.write_media(picture, folder.path / "samples" / "grpo" / update / "0000-0", meta={"prompt": EVIL})
    sample = {"index": 0, "k": 0, "seed": 1, "prompt": EVIL, "file": "a.png", "scores": {}}
    lines = [{"contestant": EVIL, "batch": 0, "step": n, "metrics": {EVIL: float(n)}} for n in range(3)]
    lines += [
        {"contestant": EVIL, "batch": 0, "final": True, "samples": [sample]},
        {"contestant": EVIL, "failed": EVIL, "alarm": EVIL},
    ]
    (folder.path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    series, state = curves.read_series(folder.path / "events.jsonl"), run_processes.run_state(folder)
    html = [
        run_view.draw_header(folder, state, series),
        run_view.draw_curves(folder, state, series),
        run_view.draw_samples(folder, series),
        run_view.runs_table(run_view.list_runs(tmp_path)),
    ]
    for part in html:
        assert "onerror=alert(1)&gt;" in part, "the text is there"
        assert "<img src=x" not in part and "{{" not in part and "${" not in part


def test_samples_over_time_stand_next_to_the_base_at_the_same_seed(tmp_path):
    for who in ("grpo-2", "nft"):
        for update in (0, 20, 40):
            folder = tmp_path / who / f"{update:06d}"
            folder.mkdir(parents=True)
            for row in range(2):
                shade = torch.full((1, 3, 4, 4), update / 40 if update else 0.0)
                media.write_media(Media(shade, "image"), folder / f"{row:04d}-0", meta={"prompt": f"prompt {row}"})
    result = samples.find_timeline(tmp_path)
    assert list(result) == ["grpo-2", "nft"] and list(result["nft"]["0001-0"]) == [0, 20, 40]
    page = samples.draw_timeline(tmp_path)
    assert page.count("<img") == 2 * 2 * 3 and page.index(">base<") < page.index("update 20") < page.index("update 40")
    assert "prompt 1" in page and samples.draw_timeline(tmp_path / "nowhere") == ""


def test_a_log_that_names_a_file_outside_its_run_shows_nothing_of_it(tmp_path):
    media.write_media(Media(torch.rand(1, 3, 8, 8), "image"), tmp_path / "secret")
    sample = {"index": 0, "k": 0, "seed": 1, "prompt": "a", "scores": {}}
    logged = {"base": {(0, 0): sample | {"file": "../secret.png"}}, "reno": {(0, 0): sample | {"file": "/etc/passwd"}}}
    folder = written(tmp_path / "runs")
    assert "<img" not in samples.draw_contestants(folder.path, logged) and "not made" in samples.draw_contestants(
        folder.path, logged
    )


def test_a_report_runs_in_a_frame_without_scripts(page):
    client, context = page
    folder = written(context.runs, name="20250101-000000-told", status="done")
    (folder.path / "report.html").write_text('<script>alert("x")</script><p>all of it</p>')
    html, file = client.predict(folder.path.name, api_name="/report")
    assert 'sandbox=""' in html and "<script" not in html and "all of it" in html
    file = file["value"] if isinstance(file, dict) else file
    assert Path(file).read_text().endswith("<p>all of it</p>"), "the download is the file itself"


def test_a_damaged_run_is_listed_as_such_and_the_others_stay(tmp_path):
    written(tmp_path, name="20260101-000000-good", status="done")
    (written(tmp_path, name="20260102-000000-bad").path / "run.json").write_text("{")
    assert [r["state"] for r in run_view.list_runs(tmp_path)] == ["damaged", "done"]


def test_one_visit_of_a_browser_to_the_board_the_queue_and_a_grid(page, browser):
    client, context = page
    cells = ("steps-1", "steps-2")
    config = {"pipeline": "starter-image", "reward": {}, "contestants": {n: {"name": "sample"} for n in cells}}
    config |= {"grid": {"x": {"pipeline.steps": [1, 2]}}}
    events = [
        {"contestant": name, "batch": 0, "step": 0, "final": True, "samples": [
            {"index": 0, "k": 0, "seed": 7, "prompt": EVIL, "file": f"{name}.png", "scores": {"brightness": n / 2}}]}
        for n, name in enumerate(cells)
    ]  # fmt: skip
    folder = written(context.runs, "20220101-000000-grid", status="done", events=events, config=config)
    for n, name in enumerate(cells):
        media.write_media(Media(torch.full((1, 3, 8, 8), n / 2), "image"), folder.path / name)
    estimate = {"ci95": None, "n": 1, "optimised": False}
    rows = [
        {"name": n, "method": "sample", "samples": 1, "rewards": {"brightness": estimate | {"mean": k / 2}}, "nfe": 1}
        for k, n in enumerate(cells)
    ]
    folder.write("summary.json", {"contestants": rows, "prompts": 1, "seeds": 1, "modality": "image"})
    (folder.path / "report.html").write_text("<p>all of it</p>")
    write_grid_page(folder.path)
    free = threading.Event()
    context.jobs.submit(
        "a long job", lambda stop: iter(lambda: None if not stop.wait(0.05) and not free.is_set() else 1, 1)
    )

    site = browser.new_page()
    errors = []
    site.on("pageerror", lambda error: errors.append(str(error)))
    site.goto(client.src)
    site.wait_for_selector(f'[data-run="{folder.path.name}"]', timeout=60_000)
    site.locator("#queue [data-action=stop]").click()
    site.wait_for_function("document.querySelector('#queue').innerText.includes('Nothing is at work')", timeout=60_000)
    site.locator(f'[data-run="{folder.path.name}"]').click()
    site.wait_for_function("document.body.innerText.includes('20220101-000000-grid: done')", timeout=60_000)
    site.get_by_text("Report", exact=True).first.click()
    frame = site.frame_locator("iframe[title^='Grid of']")
    cell = frame.locator("td[data-contestant=steps-2]")
    cell.wait_for(timeout=60_000)
    assert (
        cell.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 256
        and "brightness 0.50" in cell.inner_text()
    )
    assert cell.evaluate("td => td.style.getPropertyValue('--share')") == "0.54", "the highest score"
    cell.locator("button.shot").click()
    assert "steps 2" in frame.locator("#caption").inner_text()
    site.keyboard.press("ArrowLeft")
    assert "steps 1" in frame.locator("#caption").inner_text() and "seed 7" in frame.locator("#caption").inner_text()
    assert EVIL in frame.locator("#told").inner_text() and frame.locator("td img[src=x]").count() == 0
    frame.locator("#close").click()
    frame.locator("#page").select_option("0")
    assert "brightness 0.50" in cell.inner_text() and cell.locator("img").count() == 0, "the means"
    free.set()
    site.close()
    assert errors == []
