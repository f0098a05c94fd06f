"""The studio: over HTTP as a program drives it, and its parts as plain functions. Real pipeline, rewards and runs
throughout."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import gradio as gr
import httpx
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from safetensors.torch import save_file

import pipelines
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.schema import build_dataclass
from workbench.engine.plan import plan_run
from workbench.methods import METHODS, trains_weights
from workbench.ui import contestant_choices, lora_uploads, studio_comparison, theme
from workbench.ui.comparison_request import ComparisonRequest
from workbench.ui.context import AppContext
from workbench.ui.jobs import JobQueue
from workbench.ui.tabs import studio

CONTESTANTS = ["sample", "best_of_n n=3", "reno iterations=2"]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """A page that is really served, a client of it, and where it works."""
    context = AppContext(tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("temp"), JobQueue())
    tab = studio.Studio(context)
    with gr.Blocks() as page:
        tab.draw(page)
    how = {"theme": theme.make_theme(), "css": theme.CSS, "head": theme.HEAD, "allowed_paths": [str(context.temp)]}
    _, url, _ = page.queue().launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False, **how
    )
    yield SimpleNamespace(client=Client(url, verbose=False), url=url, context=context, tab=tab)
    page.close()


@pytest.fixture(scope="module")
def compared(app):
    job = app.client.submit("a red circle\ntwo blue squares", "starter-image", CONTESTANTS, api_name="/compare")
    return job.result(timeout=120), job.outputs()


def at_rest(app, prompts="a red circle", lines=CONTESTANTS, **more):
    return ComparisonRequest(prompts.splitlines(), "starter-image", lines, {"starter_clip": 1.0}, **more)


def test_previews_and_costs_stream_while_it_works(compared):
    _, seen = compared
    views = [v for v in seen if "contestants" in v and v["run"]]
    assert len(views) > 2 and any(p["previews"] for p in views[-2]["contestants"])
    assert views[0]["share"] < 1 and [c["name"] for c in views[0]["contestants"]] == ["base", "best_of_n", "reno"]
    rows = [sum(c["rows"] for c in v["contestants"]) for v in views]
    assert rows == sorted(rows) and rows[-1] == 2 + 6 + 6
    for part in views[-1]["contestants"]:
        assert all(p["uri"].startswith("data:image/png;base64,") for p in part["previews"])


def test_the_result_is_judged_and_its_files_are_the_untouched_ones(app, compared):
    result, _ = compared
    assert result["state"] == "done" and result["headline"]
    scores = result["summary"]["contestants"][2]["rewards"]
    assert scores["starter_clip"]["optimised"] and not scores["oracle"]["optimised"] and "saturated_pixels" in scores
    assert [f["contestant"] for f in result["files"]] == ["base", "best_of_n", "reno"] * 2
    for file in result["files"]:
        copy = Path(unquote(file["url"].removeprefix("gradio_api/file=")))
        assert copy.is_relative_to(app.context.temp) and Image.open(copy).format == "PNG"
        assert media.read_meta(copy)["prompt"] == file["prompt"]
    samples = next(Path(result["folder"]).glob("media/reno/*.png")).read_bytes()
    got = [httpx.get(f"{app.url}{f['url']}") for f in result["files"] if f["contestant"] == "reno"]
    assert samples in [g.content for g in got] and {g.headers["content-type"] for g in got} == {"image/png"}


def test_stop_answers_at_once_and_keeps_the_best_so_far(app, compared):
    lines = ["sample", "reno iterations=4000"]
    job = app.client.submit("a red circle", "starter-image", lines, api_name="/compare")
    while not (job.outputs() and any(c["reward"] for c in job.outputs()[-1].get("contestants", []))):
        time.sleep(0.05)
    key, began = job.outputs()[-1]["key"], time.monotonic()
    assert app.client.predict(key, api_name="/stop") == {"stopping": True}
    assert time.monotonic() - began < 2
    result = job.result(timeout=30)
    assert result["state"] == "stopped" and "goes on from here" in result["note"]
    assert [f["contestant"] for f in result["files"]] == ["base", "reno"]
    base, reno = (f["scores"]["starter_clip"] for f in result["files"])
    assert reno >= base and result["summary"]["contestants"][1]["nfe"] < 4000
    assert app.client.predict(key, api_name="/stop") == {"stopping": False}, "there is nothing left to stop"


def test_a_link_reopens_a_comparison_with_its_settings(app, compared):
    result, _ = compared
    assert app.client.predict(result["run"], api_name="/open")["summary"] == result["summary"]
    (update,) = app.tab.open_page(SimpleNamespace(query_params={"run": result["run"]}))
    fields, results = update[: len(app.tab.editor.outputs())], update[len(app.tab.editor.outputs()) :]
    assert fields[0] == "a red circle\ntwo blue squares"
    assert "<table" in results[1] and results[1].count("<img") == 6 and result["run"] in results[1]
    assert results[4]["run"] == result["run"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "", ".", "workbench.db", "<script>alert(1)</script>", "x" * 9000])
def test_an_unknown_link_is_answered_by_one_sentence(app, name):
    with pytest.raises(AppError, match="there is no comparison of this name here"):
        app.client.predict(name, api_name="/open")
    (update,) = app.tab.open_page(SimpleNamespace(query_params={"run": name}))
    assert "there is no comparison" in update[len(app.tab.editor.outputs())] and "<script>" not in str(update)


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others(app, compared):
    result, _ = compared
    samples = []
    for repeat in (app.tab.repeat_seed, app.tab.vary_seed):
        *_, last = repeat({"run": result["run"]})
        state = last[len(app.tab.editor.outputs()) + 4]
        samples.append(
            {f.name: media.read_media(f).data for f in (app.context.runs / state["run"] / "media/reno").iterdir()}
        )
    first = {f.name: media.read_media(f).data for f in Path(result["folder"], "media/reno").iterdir()}
    assert all(torch.equal(first[n], samples[0][n]) for n in first)
    assert not any(torch.equal(first[n], samples[1][n]) for n in first)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"prompts": ["x" * 10_000]}, "10,000 letters"),
        ({"prompts": [" "]}, "no prompt in it"),
        ({"prompts": "../../etc/passwd"}, "no list of this name"),
        ({"prompts": [f"{n}" for n in range(99)]}, "too many"),
        ({"pipeline": "/etc"}, "only configured ones"),
        ({"contestants": ["sample@/etc/passwd"]}, "only configured ones"),
        ({"contestants": []}, "at least one"),
        ({"contestants": ["sample"] * 5}, "at most 4"),
        ({"contestants": ["best_of_m"]}, "did you mean 'best_of_n'"),
        ({"contestants": ["reno itterations=3"]}, "did you mean 'iterations'"),
        ({"contestants": ["best_of_n n=1000000"]}, "denoiser calls a sample"),
        ({"contestants": ["reno iterations=1e300"]}, "at most"),
        ({"contestants": ["reno lr=inf"]}, "lr"),
        ({"contestants": ["reno name=sample"]}, "no setting"),
        ({"contestants": ["reuse noise=/etc/passwd"]}, "reads a file"),
        ({"contestants": ["grpo"]}, "trains weights"),
        ({"contestants": ["x" * 500]}, "500 letters"),
        ({"rewards": {}}, "at least one"),
        ({"rewards": {"os:system": 1.0}}, "unknown reward"),
        ({"rewards": {"starter_clip": math.inf}}, "weight"),
        ({"rewards": {"starter_clip": "1; drop"}}, "weight"),
        ({"watch": ["antigravity:X"]}, "unknown reward"),
        ({"watch": ["starter_clip"]}, "can't be held out"),
        ({"seed": -1}, "seed: a whole number"),
        ({"seeds": 10**9}, "seeds: a whole number"),
        ({"batch": 0.5}, "batch: a whole number"),
        ({"calls": 10**12}, "calls: a whole number"),
        ({"prompts": ["a", "b"], "seeds": 100}, "200 samples"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence_before_anything_loads(tmp_path, monkeypatch, changed, sentence):
    monkeypatch.setattr("pipelines.load", lambda *a, **k: pytest.fail("weights were loaded"))
    request = {
        "prompts": ["a red circle"],
        "pipeline": "starter-image",
        "contestants": CONTESTANTS,
        "rewards": {"starter_clip": 1.0},
    }
    bench = studio_comparison.ComparisonManager(AppContext(tmp_path, tmp_path, JobQueue()))
    with pytest.raises(BadInput, match=sentence) as raised:
        bench.start(ComparisonRequest(**request | changed))
    assert len(str(raised.value)) < 400 and not list(tmp_path.iterdir())


def test_a_refusal_reaches_the_program_and_the_page(app):
    with pytest.raises(AppError, match="did you mean 'iterations'"):
        app.client.predict("a red circle", "starter-image", ["reno itterations=3"], api_name="/compare")
    slots = [["reno", 1e12, 5.0, 0.9, "", ""], *[[None, None, None, None, "", ""]] * 3]
    mix = ["starter_clip", 1.0, *[None, 1.0] * 3]
    values = ["a <b>red</b> circle", "", "starter-image", ["oracle"], 0, 1, 0, 16, *sum(slots, []), *mix]
    clicked = app.tab.start_comparison(*values)
    assert "wb-bad" in next(clicked)[0]
    with pytest.raises(gr.Error):
        next(clicked)


def test_somebody_elses_job_shows_a_place_in_the_queue(app, compared):
    free = threading.Event()
    app.context.jobs.submit("another <b>comparison</b>", lambda stop: iter([free.wait(30)]))
    live = app.tab.manager.start(at_rest(app))
    views = app.tab.follow_comparison(live)
    first = next(views)
    assert "1 job before this one" in first[1] and "another &lt;b&gt;comparison" in first[1]
    assert app.tab.manager.stop(live.key) is not None and live.job.state == "stopped", "one that waits is over at once"
    *_, last = views
    assert "Stopped before it began" in last[0]
    free.set()


def test_who_only_looks_on_does_not_stop_it_by_leaving(app, compared):
    live = app.tab.manager.start(at_rest(app, lines=["best_of_n n=40"]))
    onlooker = app.tab.follow_comparison(live, is_owner=False)
    next(onlooker)
    onlooker.close()
    assert not live.job.stop.is_set()
    owner = app.tab.follow_comparison(live)
    next(owner)
    owner.close()
    assert live.job.stop.is_set() or live.job.is_over


def test_a_stopped_comparison_goes_on_where_it_was(app, compared):
    live = app.tab.manager.start(at_rest(app, lines=["sample", "best_of_n n=60"]))
    for _ in live.job.watch(0.1):
        if live.contestants["best_of_n"].preview_updates > 1:
            app.tab.manager.stop(live.key)
    name = live.folder.path.name
    assert live.folder.read()["status"] == "stopped"
    more = app.tab.manager.repeat_run(name)
    for _ in more.job.watch(0.1):
        pass
    assert more.folder.path.name == name and more.folder.read()["status"] == "done"
    assert more.folder.read("summary.json")["contestants"][1]["nfe"] == 60


def test_the_pipeline_is_loaded_once_for_many_comparisons(monkeypatch):
    calls = []
    monkeypatch.setattr(pipelines, "load", lambda source, **how: calls.append(source) or object())
    load, one, other = (
        studio_comparison.PipelineCache(),
        pipelines.read_config("starter-image"),
        pipelines.read_config("starter-image-teacher"),
    )
    first = load(one, device="cpu")
    assert load(pipelines.read_config("starter-image"), device="cpu") is first and len(calls) == 1
    assert load(other, device="cpu") is not first and load(one, device="cpu") is not first and len(calls) == 3


def test_equal_calls_fit_every_method_to_the_budget(tmp_path):
    context = AppContext(tmp_path, tmp_path, JobQueue())
    wish = studio_comparison.build_config(at_rest(None, calls=16), context)
    assert wish.contestants["best_of_n"]["n"] == 16 and wish.contestants["reno"]["iterations"] == 15


def test_only_fitting_methods_and_rewards_are_offered(tmp_path):
    one, teacher = (
        {n for _, n in contestant_choices.list_methods(p, ["starter_clip"], tmp_path)}
        for p in ("starter-image", "starter-image-teacher")
    )
    assert (
        {"sample", "best_of_n", "reno"} <= one and "fk" in teacher and "grpo" not in teacher and "reuse" not in teacher
    )
    dull = {n for _, n in contestant_choices.list_methods("starter-image", ["saturated_pixels"], tmp_path)}
    assert "best_of_n" in dull and "reno" not in dull
    offered = {n for _, n in contestant_choices.list_rewards("starter-image", tmp_path)}
    assert {"starter_clip", "oracle"} <= offered and not offered & {"kid", "judge", "remote", "social"}
    assert "oracle" not in {n for _, n in contestant_choices.list_rewards("sdxl-turbo", tmp_path)}
    assert contestant_choices.default_watch("starter-image", ["starter_clip"], tmp_path)[0] == "oracle"


@pytest.mark.parametrize(
    "method", [m for m, cls in METHODS.items() if not trains_weights(cls) and m not in contestant_choices.FILE_METHODS]
)
def test_a_contestant_survives_the_way_through_the_fields(method, tmp_path):
    blocks = contestant_choices.read_contestants([f"{method}@starter-image-teacher"], tmp_path)
    (line,) = contestant_choices.format_lines(blocks, tmp_path)
    name, values, more, on = contestant_choices.parse_line(line)
    repeat = contestant_choices.read_contestants([contestant_choices.format_line(name, values, more, on)], tmp_path)
    samples = [
        build_dataclass(METHODS[method], {k: v for k, v in b.items() if k not in ("name", "pipeline")}, "x")
        for b in (*blocks.values(), *repeat.values())
    ]
    assert samples[0] == samples[1] and on == "starter-image-teacher"


def test_a_trained_run_is_offered_by_name_and_never_as_a_path(tmp_path):
    folder = tmp_path / "20260101-trained" / "export"
    folder.mkdir(parents=True)
    (folder.parent / "run.json").write_text("{}")
    (folder / "export.json").write_text("{}")
    assert contestant_choices.find_pipeline("run:20260101-trained", tmp_path) == str(folder)
    blocks = contestant_choices.read_contestants(["sample", "sample@run:20260101-trained"], tmp_path)
    assert blocks["20260101-trained"] == {"name": "sample", "pipeline": str(folder)}
    with pytest.raises(BadInput, match="only configured ones"):
        contestant_choices.read_contestants([f"sample@{folder}"], tmp_path)


def test_a_lora_from_elsewhere_is_kept_by_name_and_a_contestant_runs_on_it(tmp_path):
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {f"{layer}.lora_A.weight": torch.rand(2, 96), f"{layer}.lora_B.weight": torch.rand(96, 2)}
    file = tmp_path / "My Style!.safetensors"
    save_file(pair, file)
    runs = tmp_path / "runs"
    name = lora_uploads.keep_lora(file, runs)
    assert re.fullmatch(r"lora:my-style-[0-9a-f]{8}", name) and name == lora_uploads.keep_lora(file, runs), (
        "the same file is kept once"
    )
    blocks = contestant_choices.read_contestants(["sample", f"reno@{name} iterations=2"], runs)
    assert blocks["reno"] == {"name": "reno", "iterations": 2, "lora": lora_uploads.list_loras(runs)[name]}
    assert contestant_choices.format_lines(blocks, runs)[1] == f"reno@{name} iterations=2"
    assert (f"with LoRA: {name[5:]}", name) in contestant_choices.list_alternatives("starter-image", runs)
    request = ComparisonRequest(["a red circle"], "starter-image", ["sample", f"sample@{name}"], {"starter_clip": 1.0})
    assert (
        plan_run(studio_comparison.build_config(request, AppContext(runs, tmp_path, JobQueue())))
        .pipelines[name[5:]]
        .lora
        == lora_uploads.list_loras(runs)[name]
    )
    with pytest.raises(BadInput, match="no such LoRA"):
        contestant_choices.read_contestants(["sample@lora:../../etc"], runs)


def test_a_link_to_trainings_puts_them_beside_their_base(tmp_path):
    folder = tmp_path / "20260101-trained" / "export"
    folder.mkdir(parents=True)
    config = {
        "pipeline": "starter-image-teacher",
        "reward": "oracle_soft",
        "prompts": ["a red circle"],
        "method": "nft",
    }
    (folder.parent / "run.json").write_text(
        json.dumps({"name": "trained", "config": config | {"train": {"rounds": 3}}})
    )
    (folder / "export.json").write_text("{}")
    bench = studio_comparison.ComparisonManager(AppContext(tmp_path, tmp_path, JobQueue()))
    request = bench.request_for_trainings("run:20260101-trained")
    assert (request.pipeline, list(request.prompts)) == ("starter-image-teacher", ["a red circle"])
    assert list(request.contestants) == ["sample", "sample@run:20260101-trained"]
    for name in ("run:other", "", str(folder), "../20260101-trained"):
        with pytest.raises(BadInput, match="mistyped"):
            bench.request_for_trainings(name)


def test_the_theme_asks_for_nothing_from_the_network():
    assert not theme.make_theme()._stylesheets and "http" not in theme.CSS + theme.HEAD and "@import" not in theme.CSS
