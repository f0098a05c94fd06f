"""The tab of runs: processes that outlive the page, curves that grow, and nothing of a user that becomes a path or HTML."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from ui_fixtures import launched

from workbench.core.io import media
from workbench.core.types import BadInput, Media
from workbench.runs.store import RunFolder
from workbench.ui import run_processes
from workbench.ui.overrides import harmless
from workbench.ui.tabs import runs
from workbench.ui.widgets import curves, run_view, samples

EVIL = "<img src=x onerror=alert(1)>{{evil}}${evil}"
SMALL = ["limit=2", "seeds=1", "batch=1", "watch=[saturated_pixels]",
         "contestants={base: sample, reno: {iterations: 40}}"]  # fmt: skip

OTHER = """
import pathlib, sys, time
from workbench.ui import run_processes as processes
runs = pathlib.Path(sys.argv[1])
while not (found := [p for p in runs.glob("*/events.jsonl") if p.stat().st_size]):
    time.sleep(0.05)
folder = processes.find(runs, found[0].parent.name)
print(processes.state(folder).name)
processes.stop(runs, folder.path.name)
print(processes.state(folder).name)
"""


def wait(what, seconds=60.0):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
    return found


def written(home, name="20260101-120000-toy", status="running", events=(), **more):
    """A run folder as a run writes it."""
    path = home / name
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
    home = tmp_path_factory.mktemp("runs-page")
    return launched(runs.build, home / "runs", home / "temp")


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_run_is_started_stopped_by_another_page_and_resumed_to_its_end(page):
    """Over HTTP; the other page is another interpreter, which has nothing but the files."""
    client, place = page
    place.runs.mkdir(exist_ok=True)
    other = subprocess.Popen([sys.executable, "-c", OTHER, place.runs], stdout=subprocess.PIPE, text=True)
    said, name = client.predict("methods-student", "\n".join(SMALL), api_name="/start")
    assert "is starting" in said
    folder = run_processes.find(place.runs, name)
    with pytest.raises(BadInput, match="at work on this device"):
        run_processes.start(place.runs, "methods-student", SMALL)
    with pytest.raises(BadInput, match="worked on already"):
        run_processes.resume(place.runs, name)
    seen = other.communicate(timeout=90)[0].split()
    assert seen[0] == "running" and seen[1] in ("stopping", "stopped")
    wait(lambda: not run_processes.state(folder).live, 20)
    assert run_processes.state(folder).name == "stopped"
    client.predict(name, api_name="/resume")
    wait(lambda: not run_processes.state(folder).live, 90)
    assert run_processes.state(folder).name == "done", run_processes.tail(folder)
    assert {c["name"] for c in folder.read("summary.json")["contestants"]} == {"base", "reno"}
    assert curves.series(folder.path / "events.jsonl").lines()["reward"]["reno"], "its curve can be drawn"
    with pytest.raises(BadInput, match="finished"):
        run_processes.resume(place.runs, name)
    listed = client.predict(api_name="/runs")[-1]
    assert {"run": name, "state": "done"}.items() <= listed[0].items()


def test_a_process_that_was_killed_is_told_as_crashed_with_its_last_words(tmp_path, sleeper):
    folder = written(tmp_path)
    adopted(folder, sleeper)
    (folder.path / "process.log").write_text("loading\n\x1b[31mout of memory\x1b[0m\n")
    assert run_processes.state(folder) == run_processes.State("running", ours=True)
    os.killpg(sleeper.pid, signal.SIGKILL)
    wait(lambda: run_processes.state(folder).name == "crashed", 5)
    assert "out of memory" in run_processes.state(folder).why and "\x1b" not in run_processes.state(folder).why


def test_one_that_does_not_listen_is_killed_after_the_grace(tmp_path):
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
    process.stdout.readline()
    folder = written(tmp_path)
    adopted(folder, process)
    run_processes.stop(tmp_path, folder.path.name, grace=0.6)
    assert run_processes.state(folder).name == "stopping"
    wait(lambda: process.poll() is not None, 10)
    assert process.returncode == -signal.SIGKILL and run_processes.state(folder).name == "stopped"


def test_a_number_that_was_used_again_is_not_taken_for_the_run(tmp_path, sleeper):
    folder = written(tmp_path)
    adopted(folder, sleeper, began=psutil.Process(sleeper.pid).create_time() - 3600)
    assert run_processes.state(folder).name == "crashed"
    with pytest.raises(BadInput, match="not at work"):
        run_processes.stop(tmp_path, folder.path.name)
    assert sleeper.poll() is None


def test_a_run_started_elsewhere_is_seen_by_its_lock_and_not_stopped(tmp_path):
    folder = written(tmp_path)
    assert run_processes.state(folder).name == "crashed"
    with folder.alone():
        assert run_processes.state(folder).name == "running"
        with pytest.raises(BadInput, match="not started from here"):
            run_processes.stop(tmp_path, folder.path.name)
        with pytest.raises(BadInput, match="another process"), folder.alone():
            pass


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"pid": "x"}', '{"pid": -1, "began": 0}', '{"pid": 1e300, "began": "?"}']
)
def test_a_damaged_process_record_stops_nothing_and_breaks_nothing(tmp_path, content):
    folder = written(tmp_path)
    (folder.path / "process.json").write_text(content)
    assert run_processes.state(folder).name == "crashed"


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc", "", ".", "..", EVIL, "20260101-120000-toy/../20260101-120000-toy"]
)
def test_only_the_name_of_a_listed_run_is_a_run(tmp_path, name):
    written(tmp_path)
    for act in (run_processes.find, run_processes.stop, run_processes.resume):
        with pytest.raises(BadInput, match="no run of this name"):
            act(tmp_path, name)


# --- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["prompts=/etc/passwd", "test=../secret.txt", "pipeline=some/model", "pipeline=/models", "contestants.base.pipeline=.",
     "contestants.reno.lora=../x.safetensors", "reward=os:system", "reward.judge.url=http://10.0.0.1/", "reward={clip: {model: /x}}",
     "watch=[a.b]", "seeds=1e9", "batch=.inf", "contestants.reno.lr=.nan", "seeds=[[[[[[[[[[1]]]]]]]]]]", "no-equals-sign",
     "a=" + "9" * 400, "a: &a [*a]=1", "seeds=&x 4", "name=../../evil"],
)  # fmt: skip
def test_an_override_that_names_a_file_an_address_or_an_absurd_number_is_one_sentence(tmp_path, text):
    with pytest.raises(BadInput) as told:
        run_processes.start(tmp_path, "demo", [text])
    assert "\n" not in str(told.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    ["contestants.reno=!!pairs [name: rewrite, expander: {url: 'http://10.0.0.1/', model: m, key: SECRET}]",
     "contestants.reno=!!pairs [name: reuse, noise: /etc/passwd]", "contestants.reno=!!omap [noise: /etc/passwd]",
     "contestants.reno=[[name, reuse], [noise, /etc/passwd]]", "contestants=!!set {/etc/passwd}",
     "contestants.reno.noise=!!binary L2V0Yy9wYXNzd2Q=", "contestants.reno.noise=2026-01-01",
     "reward=!!pairs [clip: {model: /x}]", "prompts=!!pairs [a: /etc/passwd]", "seeds=!!pairs [a: 1e9]",
     "seed=0x" + "f" * 280],
)  # fmt: skip
def test_nothing_that_yaml_can_make_of_a_text_is_let_through_unseen(text):
    with pytest.raises(BadInput, match="from here"):
        harmless([text])


@pytest.mark.parametrize("text", ["seeds=4", "contestants.reno.iterations=50", "prompts=[a red circle, 'any <text>, /even this']",
                                  "prompts=starter-image-test", "pipeline=starter-image", "reward={starter_clip: 1, brightness: 0.2}",
                                  "train.updates=10", "device=cpu", "test=null", "curve=true"])  # fmt: skip
def test_what_a_page_may_set_passes(text):
    harmless([text])


def test_what_the_config_itself_refuses_is_said_before_a_process_starts(page):
    client, place = page
    before = len(list(place.runs.glob("*"))) if place.runs.exists() else 0
    for config, text, said in [
        ("demo", "seedz=4", "unknown key"),
        ("demo", "contestants.reno.iterations=lots", "whole number"),
        ("demo", "seeds.x=3", "nothing can be set inside that"),
        ("demo", "prompts=[1, 2]", "a prompt is a text, got 1"),
        ("demo", "contestants.reno=[1]", "expected a method"),
        ("demo", "watch=[{oracle: {}}]", "names of rewards only"),
    ]:
        shown, _ = client.predict(config, text, api_name="/start")
        assert said in shown and "wb-bad" in shown
    assert len(list(place.runs.glob("*")) if place.runs.exists() else []) == before


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_a_log_is_read_from_where_it_ended_and_anew_when_it_was_replaced(tmp_path):
    path = tmp_path / "events.jsonl"
    event = {"contestant": "reno", "batch": 0, "metrics": {"reward": 0.5}}
    path.write_text(json.dumps(event | {"step": 0}) + "\n" + json.dumps(event | {"step": 1})[:20])
    found = curves.Series(path).read()
    assert not found.lines() and found.changes == 1, "a torn line is not one"
    with path.open("a") as f:
        f.write(json.dumps(event | {"step": 1})[20:] + "\n{not json}\n[1]\n")
    assert found.read().lines() == {"reward": {"reno": [(0, 0.5), (1, 0.5)]}}
    path.with_name("new").write_text(json.dumps(event | {"step": 7}) + "\n")
    path.with_name("new").rename(path)
    assert list(found.read().found["reward"]["reno"][0]) == [7]


def test_updates_of_a_training_are_one_line_and_its_sampling_another_clock(tmp_path):
    events = [
        {"contestant": "grpo", "phase": "train", "step": n, "metrics": {"reward": n / 10, "lr": None}} for n in range(5)
    ]
    events += [{"contestant": "grpo", "phase": "watch", "step": 4, "metrics": {"held oracle": 0.3}, "alarm": "it fell"}]
    events += [{"contestant": "grpo", "batch": 0, "step": 0, "metrics": {"reward": 9.0}}]
    found = curves.series(written(tmp_path, events=events).path / "events.jsonl")
    assert found.lines() == {"reward": {"grpo": [(n, n / 10) for n in range(5)]}} and found.alarm == "it fell"


def test_a_thinned_line_keeps_its_ends_and_its_spikes():
    line = [(float(n), 0.0) for n in range(100_000)]
    line[54_321] = (54_321.0, 9.0)
    line[77_777] = (77_777.0, -9.0)
    few = curves.thin(line)
    assert len(few) <= 400 and {line[0], line[-1], line[54_321], line[77_777]} <= set(few) and few == sorted(few)


def test_texts_of_users_are_shown_as_texts(tmp_path):
    picture = Media(torch.rand(1, 3, 8, 8), "image")
    folder = written(tmp_path, status="failed", methods={EVIL: {}})
    media.write(picture, folder.path / "a.png", meta={"prompt": EVIL})
    for update in ("000000", "000020"):
        (folder.path / "samples" / "grpo" / update).mkdir(parents=True)
        media.write(picture, folder.path / "samples" / "grpo" / update / "0000-0", meta={"prompt": EVIL})
    sample = {"index": 0, "k": 0, "seed": 1, "prompt": EVIL, "file": "a.png", "scores": {}}
    lines = [{"contestant": EVIL, "batch": 0, "step": n, "metrics": {EVIL: float(n)}} for n in range(3)]
    lines += [
        {"contestant": EVIL, "batch": 0, "final": True, "samples": [sample]},
        {"contestant": EVIL, "failed": EVIL, "alarm": EVIL},
    ]
    (folder.path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))
    series, now = curves.series(folder.path / "events.jsonl"), run_processes.state(folder)
    shown = [run_view.header(folder, now, series), run_view.drawn(folder, now, series), run_view.shown(folder, series),
             run_view.listing(run_view.rows(tmp_path))]  # fmt: skip
    for part in shown:
        assert "onerror=alert(1)&gt;" in part, "the text is there"
        assert "<img src=x" not in part and "{{" not in part and "${" not in part


def test_samples_over_time_stand_next_to_the_base_at_the_same_seed(tmp_path):
    for who in ("grpo-2", "nft"):
        for update in (0, 20, 40):
            home = tmp_path / who / f"{update:06d}"
            home.mkdir(parents=True)
            for row in range(2):
                shade = torch.full((1, 3, 4, 4), update / 40 if update else 0.0)
                media.write(Media(shade, "image"), home / f"{row:04d}-0", meta={"prompt": f"prompt {row}"})
    found = samples.over_time(tmp_path)
    assert list(found) == ["grpo-2", "nft"] and list(found["nft"]["0001-0"]) == [0, 20, 40]
    page = samples.timeline(tmp_path)
    assert page.count("<img") == 2 * 2 * 3 and page.index(">base<") < page.index("update 20") < page.index("update 40")
    assert "prompt 1" in page and samples.timeline(tmp_path / "nowhere") == ""


def test_a_log_that_names_a_file_outside_its_run_shows_nothing_of_it(tmp_path):
    media.write(Media(torch.rand(1, 3, 8, 8), "image"), tmp_path / "secret")
    sample = {"index": 0, "k": 0, "seed": 1, "prompt": "a", "scores": {}}
    made = {"base": {(0, 0): sample | {"file": "../secret.png"}}, "reno": {(0, 0): sample | {"file": "/etc/passwd"}}}
    folder = written(tmp_path / "runs")
    assert "<img" not in samples.contestants(folder.path, made) and "not made" in samples.contestants(folder.path, made)


def test_a_report_runs_in_a_frame_without_scripts(page):
    client, place = page
    folder = written(place.runs, name="20250101-000000-told", status="done")
    (folder.path / "report.html").write_text('<script>alert("x")</script><p>all of it</p>')
    shown, file = client.predict(folder.path.name, api_name="/report")
    assert 'sandbox=""' in shown and "<script" not in shown and "all of it" in shown
    file = file["value"] if isinstance(file, dict) else file
    assert Path(file).read_text().endswith("<p>all of it</p>"), "the download is the file itself"


def test_a_damaged_run_is_listed_as_such_and_the_others_stay(tmp_path):
    written(tmp_path, name="20260101-000000-good", status="done")
    (written(tmp_path, name="20260102-000000-bad").path / "run.json").write_text("{")
    assert [r["state"] for r in run_view.rows(tmp_path)] == ["damaged", "done"]
