"""The studio with pipelines that make samples from a source, a mask or a first frame: over HTTP as a program drives it,
and its fields as plain functions. A real, tiny InstructPix2Pix and an inpainting pipeline with random weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import gradio as gr
import httpx
import pytest
import tiny
import tiny_conditioned  # noqa: F401  # adds its pipelines to tiny's
import torch
import yaml
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from input_fixtures import execute, write_edits
from PIL import Image
from vote_fixtures import write_run

from pipelines import config as pipeline_config
from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, prompt_inputs
from workbench.core.io import media
from workbench.core.types import Media
from workbench.engine.plan import plan_run
from workbench.runs import config as run_config
from workbench.runs import prompts as run_prompts
from workbench.ui import (
    contestant_choices,
    form_advice,
    input_uploads,
    limits,
    prompt_choices,
    reward_offers,
    studio_comparison,
)
from workbench.ui.comparison_request import ComparisonRequest
from workbench.ui.contestant_choices import read_pipeline
from workbench.ui.context import AppContext
from workbench.ui.form import read_form
from workbench.ui.jobs import JobQueue
from workbench.ui.overrides import check_overrides
from workbench.ui.tabs import studio

EDIT, PAINT = "StableDiffusionInstructPix2PixPipeline", "StableDiffusionInpaintPipeline"
LINES = ["sample", "best_of_n n=2"]


@pytest.fixture(scope="module", autouse=True)
def configured(tmp_path_factory):
    """The only configured pipelines are a tiny editor, a tiny inpainter, and the starter pack's."""
    folder, weights = tmp_path_factory.mktemp("pipelines"), tmp_path_factory.mktemp("weights")
    for name, cls in {"tiny-edit": EDIT, "tiny-paint": PAINT}.items():
        settings = tiny.settings(cls) | {"class": cls, "repo": str(tiny.save(cls, weights)), "steps": 2}
        known = pipeline_config.read_arguments(cls)
        settings["call"] = {argument: value for argument, value in settings["call"].items() if argument in known}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    starter = pipeline_config.FOLDER / "starter-image.yaml"
    (folder / starter.name).write_text(starter.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_config, "FOLDER", folder)
        yield


@pytest.fixture(scope="module")
def app(tmp_path_factory, configured):
    context = AppContext(tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("temp"), JobQueue())
    tab = studio.Studio(context)
    with gr.Blocks() as page:
        tab.draw(page)
    _, url, _ = page.queue().launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False, allowed_paths=[str(context.temp)]
    )
    yield SimpleNamespace(client=Client(url, verbose=False), url=url, context=context, tab=tab, page=page)
    page.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three pictures of noise; the first twice, under two names."""
    folder = tmp_path_factory.mktemp("pictures")
    for n, name in enumerate(("a", "b", "c")):
        x = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(n))
        media.write_media(Media(x, "image"), folder / name)
    (folder / "again.png").write_bytes((folder / "a.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def compared(app, pictures):
    given = {"source": handle_file(pictures / "a.png")}
    return app.client.predict(
        "make it red", "tiny-edit", LINES, {"unchanged": 1.0}, [], inputs=given, api_name="/compare"
    )


def at_rest(pipeline="tiny-edit", prompts=("make it red",), rewards=("unchanged",), **more):
    return ComparisonRequest(prompts, pipeline, LINES, dict.fromkeys(rewards, 1.0), **({"watch": []} | more))


def keep(app, **files):
    kinds = dict.fromkeys(files, "")
    return input_uploads.keep_inputs(files, None, kinds, app.context)


def field_values(app, pipeline, files, sketch=None, rewards=("unchanged",)):
    """What the page sends when Compare is pressed."""
    slots = [["sample", None, None, None, "", ""], *[[None, None, None, None, "", ""]] * 3]
    mix = [v for n in range(4) for v in ((rewards[n] if n < len(rewards) else None), 1.0)]
    given = [files.get(name) for name in limits.INPUTS]
    return ["make it red", "", pipeline, [], 0, 1, 0, 16, 0, *sum(slots, []), *mix, *given, sketch]


# --- results ---------------------------------------------------------------------------------------------------------


def test_a_comparison_from_a_source_shows_it_first_and_lays_it_over_every_result(app, compared, pictures):
    assert compared["state"] == "done" and len(compared["files"]) == 2
    served = {Path(unquote(g["url"].removeprefix("gradio_api/file="))) for g in compared["inputs"]}
    assert [file.read_bytes() for file in served] == [(pictures / "a.png").read_bytes()], "as it was given"
    (update,) = app.tab.open_page("", SimpleNamespace(query_params={"run": compared["run"]}))
    page = update[len(app.tab.editor.outputs()) + 1]
    rows = page.split('<section class="wb-row">')[1:]
    assert len(rows) == 1 and "black is what stayed the same" in page
    first, *others = rows[0].split("<figure")[1:]
    assert "wb-given" in first and 'alt="source of: make it red"' in first and "--wb-across:3" in rows[0]
    assert len(others) == 2 and all("wb-over" in figure for figure in others)
    over = Path(unquote(rows[0].split('wb-over wb-tiny" src="gradio_api/file=')[1].split('"')[0]))
    made = next(Path(compared["folder"]).glob("media/base/*.png"))
    assert Image.open(over).size == Image.open(made).size == (16, 16)


def test_the_report_and_the_contact_sheet_begin_with_the_source(compared):
    folder = Path(compared["folder"])
    page = (folder / "report.html").read_text()
    assert page.count('class="cell from"') == 1 and page.count('class="pair" tabindex="0"') == 2
    assert page.count("--source: url(data:image/png;base64,") == 1 and "mix-blend-mode: difference" in page
    assert "<script" not in page and "https://" not in page
    assert Image.open(folder / "grid.png").width == 2 * (2 * 24 + 148 + 3 * (14 + 160))


# --- the page as a browser drives it ----------------------------------------------------------------------------------


def send_event(app, handler: str, values: list, session: str) -> dict:
    """What the page answers when a browser sends this event: {"success": bool, "output": ...}."""
    number = next(n for n, fn in app.page.fns.items() if fn.name == handler)
    call = {"data": values, "fn_index": number, "session_hash": session, "event_data": None}
    httpx.post(f"{app.url}gradio_api/queue/join", json=call).raise_for_status()
    with httpx.stream("GET", f"{app.url}gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        for line in stream.iter_lines():
            message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("the page did not answer")


def test_what_the_form_still_holds_is_judged_by_us_when_events_cross(app):
    """The lists of one pipeline arrive while the choices for another are sent: a slow machine, a quick hand."""
    values = field_values(app, "tiny-paint", {}, rewards=("starter_clip",))
    uploads = len(app.tab.editor.given.inputs())
    chosen = ["starter-image", None, None, None, *values[:-uploads]]
    assert send_event(app, "update_choices", chosen, "crossing")["success"]
    values = field_values(app, "tiny-edit", {}, rewards=("starter_clap",))  # the list has none of sounds
    for _ in range(2):  # and once more, after the page has answered
        answer = json.dumps(send_event(app, "start_comparison", values, "crossing"))
        assert "not in the list of choices" not in answer
        assert "source: tiny-edit makes its samples from a picture" in answer


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_the_same_picture_is_encoded_once_and_another_one_anew(app, compared, pictures):
    policy, calls = app.tab.manager.load._cached[1], []
    hook = policy.pipe.vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        for name, is_new in (("again.png", False), ("b.png", True)):
            calls.clear()
            live = app.tab.manager.start(at_rest(inputs=keep(app, source=pictures / name), seed=7))
            for _ in live.job.watch(0.05):
                pass
            assert live.folder.read()["status"] == "done" and bool(calls) == is_new
    finally:
        hook.remove()


def test_two_uploads_of_one_picture_are_one_request(app, pictures):
    one, two, other = (
        studio_comparison.build_config(at_rest(inputs=keep(app, source=pictures / name)), app.context)
        for name in ("a.png", "again.png", "b.png")
    )
    assert one == two and one.prompts[0]["source"].startswith(str(app.context.runs / "inputs"))
    prompts = [plan_run(config).rows[0][1] for config in (one, two, other)]
    assert prompts[0] == prompts[1] != prompts[2] and prompt_inputs(prompts[0]).keys() == {"source"}


def test_every_input_has_a_field_with_a_sentence():
    assert tuple(limits.INPUTS) == NAMES and all(hint.endswith(".") for _, hint in limits.INPUTS.values())


@pytest.mark.parametrize(
    ("pipeline", "shown"), [("starter-image", set()), ("tiny-edit", {"source"}), ("tiny-paint", {"source", "mask"})]
)
def test_the_form_shows_an_upload_for_each_input_of_the_pipeline_and_no_other(app, pipeline, shown):
    boxes = app.tab.editor.given.choose_pipeline(pipeline)[: len(NAMES)]
    assert {name for name, box in zip(NAMES, boxes, strict=True) if box["visible"]} == shown
    values = field_values(app, pipeline, {}, rewards=("brightness",))[: -len(app.tab.editor.given.inputs())]
    updates = app.tab.editor.update_choices("another", None, None, None, *values)
    boxes = updates[-len(app.tab.editor.given.outputs()) :][: len(NAMES)]
    assert {name for name, box in zip(NAMES, boxes, strict=True) if box["visible"]} == shown


def test_rewards_that_need_a_source_are_offered_where_the_pipeline_gives_one(app):
    offered = {
        p: {n for _, n in reward_offers.list_rewards(read_pipeline(p, app.context.runs), app.context.runs)}
        for p in ("starter-image", "tiny-edit", "tiny-paint")
    }
    assert not offered["starter-image"] & {"unchanged", "background"}
    assert "unchanged" in offered["tiny-edit"] and "background" not in offered["tiny-edit"]
    assert {"unchanged", "background"} <= offered["tiny-paint"]
    edit = read_pipeline("tiny-edit", app.context.runs)
    assert "unchanged" in reward_offers.default_watch(edit, ["brightness"], app.context.runs)
    alternatives = {p: {n for _, n in contestant_choices.list_alternatives(p, app.context.runs)} for p in offered}
    assert not alternatives["starter-image"] & {"tiny-edit", "tiny-paint"} and "tiny-edit" in alternatives["tiny-paint"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"inputs": {}}, "source: tiny-edit makes its samples from a picture as their source; give one"),
        ({"pipeline": "starter-image"}, "source: nothing in this comparison takes one"),
        ({"pipeline": "starter-image", "inputs": {}}, "unchanged compares with the source of a sample, and starter"),
        ({"rewards": {"background": 1.0}}, "background compares with the mask of a sample, and tiny-edit"),
        ({"contestants": ["sample", "sample@tiny-paint"]}, "mask: tiny-paint makes its samples from"),
        ({"inputs": {"source": "/etc/passwd"}}, "source: its file is gone; give it again"),
    ],
)  # fmt: skip
def test_what_lacks_an_input_or_has_one_too_many_is_refused_in_one_sentence(app, pictures, changed, sentence):
    usual = {"prompts": ["x"], "pipeline": "tiny-edit", "contestants": LINES, "rewards": {"unchanged": 1.0}}
    usual |= {"watch": [], "inputs": keep(app, source=pictures / "a.png")}
    if changed == {"pipeline": "starter-image"}:
        changed = changed | {"rewards": {"brightness": 1.0}}
    with pytest.raises(BadInput, match=sentence) as raised:
        studio_comparison.build_config(ComparisonRequest(**usual | changed), app.context)
    assert len(str(raised.value)) < 250


def test_only_uploaded_files_of_the_right_kind_are_opened_for_a_program(app, pictures, tmp_path):
    sound = media.write_media(Media(torch.rand(1, 1, 800) - 0.5, "audio", 8000.0), tmp_path / "sound")
    torn = tmp_path / "torn.png"
    torn.write_bytes((pictures / "a.png").read_bytes()[:200])
    uploaded = {"path": str(pictures / "a.png"), "meta": {"_type": "gradio.FileData"}}
    for given, sentence in [
        ({"source": handle_file(sound)}, "sound.wav: is a sound, and the source is a picture"),
        ({"source": handle_file(torn)}, "torn.png: can't be read as a picture"),
        ({"source": str(pictures / "a.png")}, "inputs.source: give an uploaded file"),
        ({"source": {"path": "/etc/passwd"}}, "inputs.source: give an uploaded file"),
        ({"soruce": handle_file(sound)}, "inputs: unknown 'soruce'"),
        ({}, "source: tiny-edit makes its samples from a picture"),
    ]:
        with pytest.raises(AppError, match=sentence):
            call = ("x", "tiny-edit", LINES, {"unchanged": 1.0}, [], 0, 1, 0, 16, given)
            app.client.predict(*call, api_name="/compare")
    with pytest.raises(BadInput, match="give an uploaded file"):  # what gradio itself would let through
        app.tab.editor.given.read_uploads("tiny-edit", {"source": uploaded})


def test_an_upload_is_shown_at_once_or_refused_where_it_was_dropped(app, pictures, tmp_path):
    show = app.tab.editor.given._handler("source")
    preview, canvas = show("tiny-paint", str(pictures / "a.png"))
    assert "Source, 32 x 24" in preview and Image.open(canvas["background"]).size == (768, 576)
    assert canvas["layers"] == [], "a mask is painted over the source"
    spread = app.tab.editor.given.spread_canvas
    assert spread("tiny-paint", str(pictures / "again.png"), None, None) == canvas, "also when the pipeline comes later"
    assert spread("tiny-edit", str(pictures / "a.png"), None, None) is None
    assert show("tiny-edit", str(pictures / "a.png"))[1] == gr.skip(), "no mask, no canvas"
    (tmp_path / "x.png").write_text("<b>no picture</b>")
    assert 'role="alert"' in show("tiny-edit", str(tmp_path / "x.png"))[0]
    assert show("tiny-edit", None) == ["", gr.skip()]


# --- masks -----------------------------------------------------------------------------------------------------------


def paint(path, box, size=(64, 48)):
    layer = Image.new("RGBA", size, (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), box)
    layer.save(path)
    return str(path)


def test_what_is_painted_is_white_in_the_mask_in_the_size_of_the_source(app, pictures, tmp_path):
    layers = [paint(tmp_path / "1.png", (0, 0, 32, 24)), paint(tmp_path / "2.png", (60, 44, 64, 48))]
    values = field_values(app, "tiny-paint", {"source": str(pictures / "a.png")}, {"layers": layers})
    request = app.tab.editor.read_request(*values)
    mask = media.read_media(request.inputs["mask"]).data
    assert mask.shape == (1, 3, 24, 32) and mask.unique().tolist() == [0, 1]
    assert mask[..., :12, :16].all() and mask[..., 22:, 30:].all() and mask.mean() == pytest.approx(0.25 + 4 / 768)
    plan = plan_run(studio_comparison.build_config(request, app.context))
    assert prompt_inputs(plan.rows[0][1]).keys() == {"source", "mask"}


def test_a_mask_is_painted_or_given_and_one_of_them_is_needed(app, pictures, tmp_path):
    source, empty = str(pictures / "a.png"), {"layers": [paint(tmp_path / "empty.png", (0, 0, 0, 0))]}
    painted = {"layers": [paint(tmp_path / "1.png", (0, 0, 9, 9))]}
    request = app.tab.editor.read_request(*field_values(app, "tiny-paint", {"source": source}, empty))
    with pytest.raises(BadInput, match="mask: tiny-paint makes its samples from a picture as their mask"):
        studio_comparison.build_config(request, app.context)
    with pytest.raises(BadInput, match="painted and given as a file"):
        app.tab.editor.read_request(*field_values(app, "tiny-paint", {"source": source, "mask": source}, painted))
    request = app.tab.editor.read_request(*field_values(app, "tiny-edit", {"source": source, "mask": source}, painted))
    assert request.inputs.keys() == {"source"}, "what is hidden does not count"


# --- again -----------------------------------------------------------------------------------------------------------


def test_a_link_brings_the_source_back_and_the_same_seed_the_same_pictures(app, compared, pictures):
    app.tab.manager.find_folder(compared["run"])
    for file in (app.context.runs / "inputs").iterdir():
        file.unlink()  # the run folder has what it needs
    (update,) = app.tab.open_page("", SimpleNamespace(query_params={"run": compared["run"]}))
    fields = update[: len(app.tab.editor.outputs())]
    assert fields[0]["value"] == "make it red"
    given = dict(zip(NAMES, fields[-len(app.tab.editor.given.outputs()) :][len(NAMES) : 2 * len(NAMES)], strict=True))
    assert Path(given["source"]["value"]).read_bytes() == (pictures / "a.png").read_bytes()
    assert given["mask"]["value"] is None
    *_, last = app.tab.repeat_seed({"run": compared["run"]})
    again = app.context.runs / last[len(app.tab.editor.outputs()) + 4]["run"]
    for file in Path(compared["folder"]).glob("media/*/*.png"):
        repeated = again / file.relative_to(compared["folder"])
        assert torch.equal(media.read_media(file).data, media.read_media(repeated).data)


def test_while_it_works_the_page_shows_what_it_works_from(app, pictures):
    live = app.tab.manager.start(at_rest(inputs=keep(app, source=pictures / "c.png")))
    views = [update[1] for update in app.tab.follow_comparison(live)]
    assert any('aria-label="What the samples are made from"' in v and 'alt="source"' in v for v in views[:-1])


def test_a_link_to_trainings_brings_the_source_of_their_first_sample(tmp_path):
    first = Media(torch.full((1, 3, 24, 32), 0.5), "image")
    folder = write_run(tmp_path, "trained", prompts=("red", "blue"), pipeline="tiny-edit", inputs={"source": first})
    config = {"pipeline": "tiny-edit", "reward": "unchanged", "prompts": "gone.jsonl", "method": "nft"}
    folder.write("run.json", folder.read() | {"config": config | {"train": {"rounds": 3}}})
    (folder.path / "export").mkdir()
    (folder.path / "export" / "export.json").write_text("{}")
    manager = studio_comparison.ComparisonManager(AppContext(tmp_path, tmp_path, JobQueue()))
    request = manager.request_for_trainings(f"run:{folder.path.name}")
    assert (request.pipeline, request.prompts) == ("tiny-edit", ["red", "blue"])
    assert torch.equal(media.read_media(request.inputs["source"]).data, media.quantise_media(first).data)


# --- lists of prompts ------------------------------------------------------------------------------------------------


@pytest.fixture
def prompt_lists(tmp_path, monkeypatch, pictures):
    """configs/prompts with a list of every kind; those with sources name the pictures."""
    folder = tmp_path / "configs" / "prompts"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes((pictures / name).read_bytes())
    rows = [{"prompt": f"edit {n}", "source": "ab"[n % 2] + ".png"} for n in range(34)]
    (folder / "tiny-edit-test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "few.csv").write_text("prompt,source\nmake it red,a.png\nmake it red,b.png\n")
    (folder / "listed.json").write_text(json.dumps(["a", "b"]))
    (folder / "plain.txt").write_text("a circle\n")
    (folder / "photos").mkdir()
    (folder / "photos" / "0.png").write_bytes((pictures / "c.png").read_bytes())
    (folder / "photos" / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "restore it"}')
    (folder / "tiny-edit-test").mkdir()  # pictures alone: no list
    monkeypatch.setattr(prompt_choices, "CONFIGS", folder.parent)
    monkeypatch.setattr(run_prompts, "CONFIGS", folder.parent)
    return folder


def test_lists_of_every_kind_are_offered_where_their_inputs_fit_and_an_editors_own_is_suggested(app, prompt_lists):
    offered = {
        pipeline: prompt_choices.offer_lists(contestant_choices.list_inputs(pipeline, app.context.runs), "", Path())
        for pipeline in ("starter-image", "tiny-edit", "tiny-paint")
    }
    plain = [("listed (2 prompts)", "listed"), ("plain (1 prompt)", "plain")]
    assert offered["starter-image"] == [("the prompts above", ""), *plain]
    assert offered["tiny-edit"][1:] == [
        ("few (2 prompts, each with a source)", "few"),
        ("photos (1 prompt, each with a source)", "photos"),
        ("tiny-edit-test (34 prompts, each with a source)", "tiny-edit-test"),
        *plain,
    ]
    assert [name for _, name in offered["tiny-paint"]] == ["", "listed", "plain"], "no list has masks"
    assert prompt_choices.offer_lists({}, "few", Path())[-1] == ("few (does not go with this pipeline)", "few")

    def take(pipeline, chosen):
        values = field_values(app, pipeline, {}, rewards=("brightness",))
        values[1] = chosen
        return form_advice.fit_form(read_form(values), app.context.runs).prompt_list

    assert take("tiny-edit", "") == take("tiny-edit", "gone") == "tiny-edit-test"
    assert take("tiny-edit", "few") == "few" and take("starter-image", "few") == ""
    assert take("starter-image", "plain") == "plain" == take("tiny-edit", "plain")


def test_a_list_brings_a_source_with_each_prompt_and_says_what_does_not_fit(app, prompt_lists, pictures):
    config = studio_comparison.build_config(at_rest(prompts="tiny-edit-test"), app.context)
    assert (config.prompts, config.limit) == ("configs/prompts/tiny-edit-test.jsonl", 0), "no path of this machine"
    first = studio_comparison.build_config(at_rest(prompts="tiny-edit-test", limit=3), app.context)
    assert first.limit == 3 and len(plan_run(first).rows) == 3
    rows = plan_run(config).rows
    assert len(rows) == 34 and len({prompt_inputs(row[1])["source"].digest for row in rows}) == 2
    assert len(plan_run(studio_comparison.build_config(at_rest(prompts="photos"), app.context)).rows) == 1
    one = keep(app, source=pictures / "c.png")
    assert len(studio_comparison.build_config(at_rest(prompts="listed", inputs=one), app.context).prompts) == 2
    plain = {"rewards": ("brightness",), "pipeline": "starter-image"}
    for request, sentence in [
        (at_rest(prompts="few", **plain), "those of few come with a source, and nothing in this comparison takes one"),
        (at_rest(prompts="plain"), "source: tiny-edit makes its samples from a picture as their source; give one"),
        (at_rest(prompts="few", pipeline="tiny-paint"), "mask: .*choose a list whose prompts have one"),
        (at_rest(prompts="few", inputs=one), "source: is given, and the prompts of the list come with files"),
        (at_rest(prompts="tiny-edit-test", seeds=1000), "34 prompts x 1000 seeds are 34,000 samples"),
        (at_rest(prompts="run:nowhere"), "no run of this name here"),
    ]:
        with pytest.raises(BadInput, match=sentence) as raised:
            studio_comparison.build_config(request, app.context)
        assert len(str(raised.value)) < 250


def test_a_run_of_a_file_with_sources_is_repeated_and_edited_with_each_prompts_own(app, tmp_path):
    values = {"pipeline": "tiny-edit", "contestants": {"base": "sample"}, "name": "filed"}
    values |= {"reward": {"unchanged": {}}, "watch": {"brightness": {}}}  # as `workbench compare` writes them
    values["prompts"] = str(write_edits(tmp_path / "data", instructions=2, sources=2))
    plan = plan_run(run_config.check_config(run_config.build_dataclass(run_config.RunConfig, values, "test")))
    folder = execute(plan, app.context.runs)
    folder.write("run.json", folder.read() | {"status": "done"})
    shutil.rmtree(tmp_path / "data")
    request = app.tab.manager.read_request(folder)
    name = f"run:{folder.path.name}"
    assert request.prompts == name and request.inputs == {}
    assert (request.rewards, request.watch) == ({"unchanged": 1.0}, ["brightness"])
    fields = app.tab.editor.fill_fields(request)
    assert fields[1]["value"] == name and fields[1]["choices"][-1] == (f"those of {folder.path.name}", name)
    live = app.tab.manager.repeat_run(folder.path.name)
    for _ in live.job.watch(0.05):
        pass
    for file in folder.path.glob("media/base/*.png"):
        again = live.folder.path / file.relative_to(folder.path)
        assert torch.equal(media.read_media(file).data, media.read_media(again).data)
    edited = dataclasses.replace(app.tab.manager.read_request(live.folder), contestants=["best_of_n n=2"])
    prompts = [row[1] for row in plan_run(studio_comparison.build_config(edited, app.context)).rows]
    assert prompts == [row[1] for row in plan.rows] and len({*prompts}) == 4
    shutil.rmtree(folder.path)
    assert edited.prompts == f"run:{live.folder.path.name}", "which stands on its own"


def test_a_long_run_is_asked_for_again_whole_and_one_that_is_not_finished_says_how_to_repeat_it(tmp_path):
    folder = write_run(tmp_path, "long", prompts=[f"edit {n}" for n in range(133)])
    stored = SimpleNamespace(prompts="gone.jsonl", limit=0)
    assert prompt_choices.ask_again(stored, folder, tmp_path) == ([f"edit {n}" for n in range(133)], {}, 0)
    folder.write("run.json", folder.read() | {"status": "stopped"})
    with pytest.raises(BadInput, match="not finished, so not all of its prompts are known"):
        prompt_choices.ask_again(stored, folder, tmp_path)


@pytest.mark.parametrize(
    "text", ["prompts={folder: photos}", "prompts.folder=photos", "test=[{prompt: a, source: cat}]"]
)
def test_an_override_from_the_page_names_no_files_for_prompts(text):
    with pytest.raises(BadInput, match="from here prompts are texts"):
        check_overrides([text])
