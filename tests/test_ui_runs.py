"""The tab of runs: processes that outlive the page, curves that grow, and nothing of a user that becomes a path or
HTML."""

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
from ui_fixtures import launch_tab

from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.types import Media
from workbench.runs.store import RunFolder
from workbench.ui import run_processes
from workbench.ui.overrides import check_overrides
from workbench.ui.tabs import runs
from workbench.ui.widgets import curves, run_view, samples

EVIL = "<img src=x onerror=alert(1)>{{evil}}${evil}"
SMALL = ["limit=2", "samples_per_prompt=1", "batch=1", "watch=[saturated_pixels]",
         "contestants={base: sample, reno: {iterations: 20}}"]  # fmt: skip

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
    with pytest.raises(BadInput, match="at work on this device"):
        run_processes.start_run(context.runs, "methods-student", SMALL)
    with pytest.raises(BadInput, match="worked on already"):
        run_processes.resume_run(context.runs, name)
    codes, (said,) = launcher.launch(tmp_path / "other", processes=1, code=OTHER, out=str(context.runs))
    states = said.split()
    assert codes == [0], said
    assert states[0] == "running" and states[1] in ("stopping", "stopped")
    wait(lambda: not run_processes.run_state(folder).is_live, 20)
    assert run_processes.run_state(folder).name == "stopped"
    client.predict(name, api_name="/resume")
    wait(lambda: not run_processes.run_state(folder).is_live, 90)
    assert run_processes.run_state(folder).name == "done", run_processes.log_tail(folder)
    assert {c["name"] for c in folder.read("summary.json")["contestants"]} == {"base", "reno"}
    assert curves.read_series(folder.path / "events.jsonl").mean_lines()["reward"]["reno"], "its curve can be drawn"
    with pytest.raises(BadInput, match="finished"):
        run_processes.resume_run(context.runs, name)
    rows = client.predict(api_name="/runs")[-1]
    assert {"run": name, "state": "done"}.items() <= rows[0].items()


def test_a_process_that_was_killed_is_told_as_crashed_with_its_last_words(tmp_path, sleeper):
    folder = written(tmp_path)
    adopted(folder, sleeper)
    (folder.path / "process.log").write_text("loading\n\x1b[31mout of memory\x1b[0m\n")
    assert run_processes.run_state(folder) == run_processes.RunState("running", started_here=True)
    os.killpg(sleeper.pid, signal.SIGKILL)
    wait(lambda: run_processes.run_state(folder).name == "crashed", 5)
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
    wait(lambda: process.poll() is not None, 10)
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
    for act in (run_processes.find_run, run_processes.stop_run, run_processes.resume_run):
        with pytest.raises(BadInput, match="no run of this name"):
            act(tmp_path, name)


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
        run_processes.start_run(tmp_path, "demo", [text])
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
