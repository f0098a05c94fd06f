"""The studio: over HTTP as a program drives it, and its parts as plain functions. Real pipeline, rewards and runs
throughout."""

from __future__ import annotations

import dataclasses
import html
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
from pipelines.config import list_names
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.io.parsing import read_yaml
from workbench.core.schema import build_dataclass
from workbench.engine.plan import plan_run
from workbench.methods import METHODS, trains_weights
from workbench.ui import (
    contestant_choices,
    form_advice,
    live_comparison,
    lora_uploads,
    pipeline_offers,
    presets,
    reward_offers,
    studio_comparison,
    theme,
)
from workbench.ui.comparison_request import ComparisonRequest
from workbench.ui.context import AppContext
from workbench.ui.form import read_draft, read_form, request_of
from workbench.ui.jobs import JobQueue
from workbench.ui.tabs import studio

CONTESTANTS = ["sample", "best_of_n n=3", "reno iterations=2"]


def app_prompts(name: str) -> str:
    """The prompts that the app offers."""
    return "\n".join(presets.PRESETS[name].prompts)


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
    (update,) = app.tab.open_page("", SimpleNamespace(query_params={"run": result["run"]}))
    fields, results = update[: len(app.tab.editor.outputs())], update[len(app.tab.editor.outputs()) :]
    assert fields[0]["value"] == "a red circle\ntwo blue squares"
    assert "<table" in results[1] and results[1].count("<img") == 6 and result["run"] in results[1]
    assert results[4]["run"] == result["run"]


@pytest.mark.parametrize("name", ["../../etc/passwd", "", ".", "workbench.db", "<script>alert(1)</script>", "x" * 9000])
def test_an_unknown_link_is_answered_by_one_sentence(app, name):
    with pytest.raises(AppError, match="there is no comparison of this name here"):
        app.client.predict(name, api_name="/open")
    (update,) = app.tab.open_page("", SimpleNamespace(query_params={"run": name}))
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
        ({"prompts": ["a", "b"], "seeds": 1025}, "seeds: a whole number"),
        ({"prompts": [f"{n}" for n in range(99)], "seeds": 1000}, "99,000 samples; from here at most 20,000"),
        ({"limit": -1}, "limit: a whole number"),
        ({"rewards": {"social": 1.0}}, "social needs a head that `workbench social train` wrote"),
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
    values = ["a <b>red</b> circle", "", "starter-image", ["oracle"], 0, 1, 0, 16, 0, *sum(slots, []), *mix]
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


def test_a_comparison_goes_on_when_its_page_closes_and_another_page_finds_it_at_work(app, compared):
    live = app.tab.manager.start(at_rest(app, lines=["best_of_n n=60"]))
    page = app.tab.follow_comparison(live)
    assert f'data-wb-run="{live.reserved.path.name}"' in next(page)[1], "its address, from the click on"
    page.close()
    assert not live.job.stop.is_set()
    reopened = app.tab.open_page("", SimpleNamespace(query_params={"run": live.reserved.path.name}))
    update = next(reopened)
    fields, results = update[: len(app.tab.editor.outputs())], update[len(app.tab.editor.outputs()) :]
    assert fields[0]["value"] == "a red circle" and results[3] == live.key, "its Stop button stops it"
    *_, last = reopened
    assert not live.job.stop.is_set() and "<table" in last[len(app.tab.editor.outputs()) + 1]


def test_a_page_follows_a_comparison_that_a_restarted_app_goes_on_with(app, compared, monkeypatch):
    folder = app.tab.manager.find_folder(compared[0]["run"])
    record = folder.read()
    monkeypatch.setattr(studio, "LOOK_SECONDS", 0)
    folder.write("run.json", record | {"status": "queued"})
    pages = app.tab.open_page("", SimpleNamespace(query_params={"run": folder.path.name}))
    first = next(pages)[len(app.tab.editor.outputs()) :]
    assert "waits for its turn, in a process of its own" in first[1] and first[3] == folder.path.name
    folder.write("run.json", record)
    *_, last = pages
    assert last[len(app.tab.editor.outputs()) + 3] == "", "there is nothing left to stop"


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
        live_comparison.PipelineCache(),
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
    starter, turbo = (contestant_choices.read_pipeline(name, tmp_path) for name in ("starter-image", "sdxl-turbo"))
    offered = {n for _, n in reward_offers.list_rewards(starter, tmp_path)}
    assert {"starter_clip", "oracle"} <= offered and not offered & {"kid", "judge", "remote", "social"}
    assert "oracle" not in {n for _, n in reward_offers.list_rewards(turbo, tmp_path)}
    assert reward_offers.default_watch(starter, ["starter_clip"], tmp_path)[0] == "oracle"


# --- the form --------------------------------------------------------------------------------------------------------


def form_values(pipeline="starter-image", methods=("best_of_n",), rewards=("starter_clip",), watch=("oracle",), **more):
    """What the page sends of its form."""
    slots = [[m, None, None, None, "", ""] for m in (*methods, *[None] * (4 - len(methods)))]
    mix = [v for n in range(4) for v in (rewards[n] if n < len(rewards) else None, 1.0)]
    listed, typed = more.get("prompt_list", ""), more.get("prompts", "a red circle")
    return [typed, listed, pipeline, list(watch), 0, 1, 0, 16, 0, *sum(slots, []), *mix]


def updates_of(app, outputs, values):
    return dict(zip(outputs, values, strict=True))


def test_a_method_keeps_its_settings_when_its_field_is_left_and_when_another_was_looked_at(app):
    choose, first = app.tab.editor.choose_method, {"shown": "best_of_n", "earlier": {}}
    assert choose(first, "best_of_n", 64, None, None, "") == [gr.skip()] * 6, "a blur changes nothing"
    *_, other, about, rest, memory = choose(first, "reno", 64, None, None, "greedy=true")
    assert memory["shown"] == "reno" and memory["earlier"] == {"best_of_n": [[64, None, None], "greedy=true"]}
    back = choose(memory, "best_of_n", 7, 1.0, 0.5, "")
    assert back[0]["value"] == 64 and back[4]["value"] == "greedy=true" and back[1]["visible"] is False
    assert back[5]["earlier"] == {"reno": [[7, 1.0, 0.5], ""]}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, []),
        ({"rewards": ("sharpness", "saturated_pixels"), "methods": ("reno",)}, ["saturated_pixels has none"]),
        ({"pipeline": "starter-music"}, ["starter_clip judges pictures, and starter-music makes sounds"]),
        ({"pipeline": "starter-music", "prompt_list": "starter-image-test"}, ["prompts of starter-image-test are"]),
        ({"pipeline": "starter-music", "prompts": app_prompts("Pictures")}, ["the prompts are those for pictures"]),
        ({"pipeline": "sdxl-turbo"}, ["starter_clip knows the starter pack's world only", "hf download stabilityai"]),
        ({"rewards": ("exemplar",)}, ["exemplar compares with examples: name their folder"]),
        ({"rewards": ("editscore",), "pipeline": "starter-edit"}, ["nothing answers there: start one"]),
    ],
)  # fmt: skip
def test_a_choice_changes_no_other_value_and_what_does_not_go_together_is_told(app, changed, told):
    values, editor = form_values(**changed), app.tab.editor
    updates = updates_of(app, editor._choice_outputs(), editor.update_choices("starter-image", *[None] * 3, *values))
    held = [c for c in editor._plain_inputs() if c in updates and "value" in updates[c]]
    assert held == [], "every value stays"
    advice = html.unescape(updates[editor.advice])
    assert all(sentence in advice for sentence in told) and bool(told) == bool(advice)
    for name in changed.get("rewards", ()):
        assert name in {n for _, n in updates[editor.mix[0]["name"]]["choices"]}, "what is chosen is shown"
    methods = dict((name, label) for label, name in updates[editor.slots[0]["method"]]["choices"])
    flat = {"saturated_pixels", "editscore"} & {*changed.get("rewards", ())}
    assert "reno" in methods and ("needs a gradient" in methods["reno"]) == bool(flat)


def test_an_oracle_is_never_offered_to_be_optimised_and_what_is_optimised_is_not_watched(app):
    editor = app.tab.editor
    values = form_values(rewards=("starter_clip", "saturated_pixels"), watch=("oracle", "saturated_pixels"))
    updates = updates_of(app, editor._choice_outputs(), editor.update_choices("starter-image", *[None] * 3, *values))
    names = {name for _, name in updates[editor.mix[0]["name"]]["choices"]}
    assert {"starter_clip", "sharpness", "social"} <= names and not names & {"oracle", "oracle_soft"}
    assert updates[editor.watch]["value"] == ["oracle"] and "no longer only watched" in updates[editor.advice]
    assert "saturated_pixels" not in {name for _, name in updates[editor.watch]["choices"]}
    added = editor.add_reward("starter_clip", None, None, None)
    assert added[1] == gr.update(visible=True), "a new row is empty: nothing is optimised until somebody says so"


def test_one_click_takes_what_goes_with_a_pipeline_and_leaves_the_rest(app):
    form = read_form(form_values("starter-music", ("best_of_n", "reno"), ("starter_clip",), ("oracle", "contrast")))
    assert (fitted := form_advice.fit_form(form, app.context.runs)).methods == form.methods
    assert fitted.optimised == ["starter_clap"] and fitted.watch == ("oracle",) and fitted.prompts == "a red circle"
    shapes = dataclasses.replace(form, prompts=app_prompts("Pictures"))
    assert form_advice.fit_form(shapes, app.context.runs).prompt_list == "starter-music-test"
    for pipeline in ("starter-music", "starter-image", "starter-edit", "starter-video", "musicldm", "wan21-14b"):
        fitted = form_advice.fit_form(dataclasses.replace(shapes, pipeline=pipeline), app.context.runs)
        assert not form_advice.find_misfits(fitted, app.context.runs), pipeline


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_brings_all_that_belongs_together(app, name):
    editor = app.tab.editor
    updates = updates_of(app, editor.outputs(), editor._preset_filler(name)())
    values = [updates[c]["value"] if isinstance(updates[c], dict) and "value" in updates[c] else updates[c]
              for c in editor._plain_inputs()]  # fmt: skip
    values[0] = values[0] if isinstance(values[0], str) else ""
    form = read_form([None if isinstance(v, dict) else v for v in values])
    assert form_advice.find_misfits(form, app.context.runs) == []
    assert pipeline_offers.KINDS[{v: k for k, v in presets.KINDS.items()}[name]]
    config = studio_comparison.build_config(request_of(form, form_advice.contestant_lines(form.slots), {}), app.context)
    assert len(config.contestants) == 3 and config.watch and len(config.reward) == 1


def test_pipelines_are_grouped_and_marked_here_or_to_fetch(tmp_path):
    offers = pipeline_offers.offer_pipelines(tmp_path)
    labels = {name: label for label, name in offers}
    assert labels["starter-image"] == "starter-image · pictures · here" and "music" in labels["starter-music"]
    assert labels["sdxl-turbo"] == "sdxl-turbo · pictures · to fetch, about 7 GB"
    assert labels["flux-schnell"].endswith("to fetch, about 34 GB, Apache-2.0")
    kinds = [label.split(" · ")[1] for label, _ in offers]
    assert kinds == sorted(kinds, key=list(pipeline_offers.KINDS.values()).index) and len(kinds) == len(list_names())
    repos = {pipelines.read_config(name).repo for name in list_names()}
    assert set(read_yaml(pipeline_offers.FACTS)) <= repos, "nothing is said of weights that no pipeline has"


def test_a_taste_that_was_learned_here_is_offered_by_name_and_comes_back_from_a_run(app, compared, tmp_path):
    folder = tmp_path / "learned" / "20260101-abcd"
    folder.mkdir(parents=True)
    (folder / "head.json").write_text(json.dumps({"model": "starter:image/clip"}))
    config = contestant_choices.read_pipeline("starter-image", tmp_path)
    offers = {name: label for label, name in reward_offers.offer_rewards(config, (), tmp_path, optimise=True)}
    assert offers["taste:20260101-abcd"] == "taste:20260101-abcd (taste of the voters)"
    blocks = reward_offers.reward_blocks({"taste:20260101-abcd": 2.0}, tmp_path)
    assert blocks == {"taste-20260101-abcd": {"reward": "learned", "path": str(folder), "weight": 2.0}}
    ((label, block),) = blocks.items()
    assert reward_offers.restore_name(label, block, tmp_path) == ("taste:20260101-abcd", {"weight": 2.0})
    with pytest.raises(BadInput, match="unknown reward"):
        reward_offers.check_reward_name("taste:../../etc", tmp_path)


def test_a_draft_comes_back_as_it_was_and_one_of_another_version_is_told(app):
    values = form_values(methods=("best_of_n", "reno"), prompts="# a remark\na red circle\na blue square")
    values[9:12] = ["best_of_n", 64, None]
    memories = [{"shown": "best_of_n", "earlier": {"reno": [[7, 1.0, 0.5], ""]}}, *[{"shown": None, "earlier": {}}] * 3]
    draft = json.dumps({"run": "", "values": values, "memories": memories})
    update = next(app.tab.open_page(draft, SimpleNamespace(query_params={})))
    filled = updates_of(app, app.tab.editor.outputs(), update[: len(app.tab.editor.outputs())])
    slot = app.tab.editor.slots[0]
    assert filled[slot["knobs"][0]]["value"] == 64 and filled[slot["memory"]] == memories[0]
    assert filled[app.tab.editor.prompts]["value"].startswith("# a remark")
    assert read_draft(draft).prompts and request_of(read_draft(draft), ["sample"], {}).prompts == [
        "a red circle", "a blue square"
    ]  # fmt: skip
    for damaged in ("[]", "{", json.dumps({"values": values[:9], "memories": []}), draft.replace("64", "[1]")):
        update = next(app.tab.open_page(damaged, SimpleNamespace(query_params={})))
        assert "another version" in update[len(app.tab.editor.outputs())]


def test_lists_are_used_whole_and_their_results_paged(app, tmp_path):
    request = ComparisonRequest("starter-image-test", "starter-image", ["sample"], {"brightness": 1.0}, [], batch=86)
    plan = plan_run(studio_comparison.build_config(request, app.context))
    assert len(plan.rows) == 86 and plan.config.prompts == "configs/prompts/starter-image-test.txt"
    live = app.tab.manager.start(request)
    for _ in live.job.watch(0.05):
        pass
    pages = [app.tab._result_updates(live.folder, page) for page in (0, 3, 9)]
    assert ["Rows 1 to 24 of 86" in pages[0][1], "Rows 73 to 86 of 86" in pages[1][1]] == [True, True]
    assert pages[1][1] == pages[2][1] and pages[0][-1]["visible"] and pages[1][4]["page"] == 3
    again = app.tab.manager.read_request(live.folder)
    assert (again.prompts, again.limit) == ("starter-image-test", 0)
    assert "86 prompts × 1 seed, 1 contestant: 86 denoiser calls; about" in studio_comparison.describe_cost(
        plan, app.context.runs
    )


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
