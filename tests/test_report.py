"""A report says what the numbers say, shows everybody, and needs nothing but itself."""

import base64
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from report_fixtures import compared_summary, make_contestant, summary_of, usual_summary
from rich.console import Console
from vote_fixtures import write_run

from workbench.core import inputs as core_inputs
from workbench.core.errors import BadInput
from workbench.core.inputs import MediaInput
from workbench.core.io import media
from workbench.core.types import Media, Prompt
from workbench.report import notebook_view, pages
from workbench.report.charts import Axis, Doublings, progress_charts, scaling_charts
from workbench.report.pages import collect_samples, select_samples, write_report
from workbench.report.tables import console_table

SIZE = 64
COLOURS = {"red": (0.88, 0.2, 0.2), "blue": (0.2, 0.4, 0.95), "green": (0.15, 0.7, 0.35), "yellow": (0.95, 0.8, 0.2)}
EVIL = 'a circle <script>alert("x")</script> & more'
PROMPTS = [
    ("a red circle", "color"), ("a blue square", "color"), ("a large green circle", "size"),
    ("a small yellow square", "size"), ("two blue circles", "count"), (EVIL, "count"),
    ("a red square left of a blue circle", "position"), ("a green square above a yellow circle", "position"),
]  # fmt: skip


def picture(prompt: str, shade: float) -> Media:
    """What the prompt asks for, roughly: [1,3,64,64]."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    out = torch.full((3, SIZE, SIZE), 0.08 + 0.1 * shade)
    colours = [c for c in COLOURS if c in prompt] or ["red"]
    places = [(32, 32)] if len(colours) == 1 and "two" not in prompt else [(18, 22), (46, 42)]
    for n, (cx, cy) in enumerate(places):
        r = 14 if "large" in prompt else 7 if "small" in prompt else 10
        round_ = ((x - cx) ** 2 + (y - cy) ** 2).sqrt() - r
        square = torch.maximum((x - cx).abs(), (y - cy).abs()) - r
        alpha = (0.5 - (square if "square" in prompt and n == 0 else round_)).clamp(0, 1)
        colour = torch.tensor(COLOURS[colours[n % len(colours)]])[:, None, None]
        out = out * (1 - alpha) + colour * alpha * (0.55 + 0.45 * shade)
    return Media(out[None], "image")


@pytest.fixture
def run(tmp_path):
    """Three contestants with real pictures, a fourth that failed, and progress that a method reported."""
    config = {"name": "demo", "pipeline": "starter-image", "reward": {"starter_clip": 1.0}, "prompts": "p.txt"}
    record = {
        "name": "demo", "created": "2026-01-02T03:04:05", "command": "workbench run configs/runs/demo.yaml seed=0",
        "config": config, "versions": {"torch": "2.9.0"}, "git": "abc123", "seed": 0, "device": "cpu",
    }  # fmt: skip
    events = []
    for n, name in enumerate(("base", "best_of_n", "reno")):
        (tmp_path / "media" / name).mkdir(parents=True)
        events += [{"contestant": name, "batch": b, "step": s, "metrics": {"reward": 0.24 + n * 0.03 * s / 9 + b / 100}}
                   for b in range(2) for s in range(10)]  # fmt: skip
        for k in range(2):
            rows = []
            for index, (prompt, category) in enumerate(PROMPTS):
                file = f"media/{name}/{index:04d}-{k}.png"
                scores = {"starter_clip": 0.24 + 0.03 * n, "oracle": float((index * 7 + n + k) % (4 - n) > 0)}
                path = media.write_media(
                    picture(prompt, (n + 1) / 3), tmp_path / file, meta={"prompt": prompt, "scores": scores}
                )
                rows.append({"index": index, "prompt": prompt, "k": k, "seed": 100 * index + k, "category": category,
                             "file": file, "sha256": media.file_digest(path), "scores": scores})  # fmt: skip
            events.append(
                {"contestant": name, "batch": k, "step": 10, "metrics": {}, "final": True, "cost": {}, "samples": rows}
            )
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "summary.json").write_text(json.dumps(usual_summary()))
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    return tmp_path


def page_of(run):
    return write_report(run).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags with their attributes, and the text between them, as a browser would take them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.skip = [], "", False
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.skip = tag == "style"

    def handle_data(self, data):
        self.text += "" if self.skip else data + " "


def test_report_needs_nothing_but_itself(run):
    """Every picture is inlined, and no style, script, font or link asks for anything else."""
    text = page_of(run)
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    sources = [
        value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "srcset", "data")
    ]
    assert len(sources) == 3 * len(PROMPTS) and all(s.startswith("data:image/png;base64,") for s in sources)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text
    assert len(text) < 3_000_000


def test_prompts_and_reasons_are_text_not_markup(run):
    summary = usual_summary() | {"alarm": "<b>beware</b>", "run": "<i>demo</i>"}
    (run / "summary.json").write_text(json.dumps(summary))
    text = page_of(run)
    page = Page(text)
    assert "<script" not in text and "<no>" not in text and "<b>beware" not in text and "<i>demo" not in text
    assert EVIL in page.text and "OutOfMemoryError: <no> room" in page.text and "<b>beware</b>" in page.text
    assert any(attrs.get("alt") == f"reno: {EVIL}, right" for tag, attrs in page.tags if tag == "img")


def test_everybody_is_shown_the_failed_one_too(run):
    page = Page(page_of(run))
    for name in ("base", "best_of_n", "reno", "draft"):
        assert name in page.text
    assert "failed: OutOfMemoryError: <no> room" in page.text
    assert "workbench run configs/runs/demo.yaml seed=0" in page.text
    assert "abc123" in page.text and "torch 2.9.0" in page.text and "pipeline: starter-image" in page.text


def test_alarm_and_control_are_shown_only_when_there_is_one(run):
    assert "alarm" not in Page(page_of(run)).text
    (run / "summary.json").write_text(
        json.dumps(usual_summary() | {"alarm": "reno raised the wrong thing", "control": "shuffled"})
    )
    text = Page(page_of(run)).text
    assert "Reward hacking alarm reno raised the wrong thing" in text and "Control run" in text


def test_pictures_are_chosen_by_position_and_balanced_over_categories(run):
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    keys = select_samples(collect_samples(events), ["base", "best_of_n", "reno"])
    assert keys == [(0, 0), (2, 0), (4, 0), (6, 0), (1, 0), (3, 0), (5, 0), (7, 0)]
    worse = json.loads(json.dumps(events))
    for e in worse:
        for s in e.get("samples", ()):
            s["scores"] = {k: 1 - v for k, v in s["scores"].items()}
    assert select_samples(collect_samples(worse), ["base", "best_of_n", "reno"]) == keys
    samples_of = collect_samples(events)
    del samples_of["reno"][2, 0]
    assert (2, 1) in select_samples(samples_of, ["base", "best_of_n", "reno"])  # the first that everybody made


def test_a_picture_that_is_gone_changed_or_outside_is_called_missing(run):
    (run / "media/reno/0000-0.png").unlink()
    media.write_media(picture("a red circle", 1.0), run / "media/base/0002-0.png", meta={})
    page = Page(page_of(run))
    assert page.text.count("missing") == 2
    events = (run / "events.jsonl").read_text().replace("media/best_of_n/0004-0.png", "../secret.png")
    (run / "events.jsonl").write_text(events)
    shutil.copy(run / "media/best_of_n/0004-0.png", run.parent / "secret.png")
    assert Page(page_of(run)).text.count("missing") == 3


def test_the_same_run_gives_the_same_report(run):
    first = page_of(run), media.file_digest(run / "grid.png")
    assert (page_of(run), media.file_digest(run / "grid.png")) == first
    size = media.read_media(run / "grid.png").data.shape
    assert size[2] > size[3] > 3 * 320  # eight rows, three columns of 160 pixels drawn twice as dense


@pytest.mark.parametrize(("modality", "suffix", "data"), [
    ("video", ".apng", torch.rand(1, 4, 3, 16, 16)), ("audio", ".wav", torch.rand(1, 1, 8000) - 0.5)])  # fmt: skip
def test_clips_and_sounds_are_on_the_page_and_on_the_sheet(modality, suffix, data, tmp_path):
    rows = []
    (tmp_path / "media" / "base").mkdir(parents=True)
    for k in range(2):
        sample = Media(data.roll(k, -1), modality, 8000.0 if modality == "audio" else 8.0)
        path = media.write_media(sample, tmp_path / "media" / "base" / f"0000-{k}{suffix}", meta={"prompt": "p"})
        rows.append({"index": 0, "prompt": "p", "k": k, "seed": k, "category": None, "scores": {},
                     "file": str(path.relative_to(tmp_path)), "sha256": media.file_digest(path)})  # fmt: skip
    event = {"contestant": "base", "batch": 0, "step": 0, "metrics": {}, "final": True, "cost": {}, "samples": rows}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    (tmp_path / "run.json").write_text(json.dumps({"name": "demo", "config": {"reward": "clip"}}))
    (tmp_path / "summary.json").write_text(
        json.dumps(summary_of(make_contestant("base", 0.5, 0.2, 8), modality=modality))
    )
    page = write_report(tmp_path).read_text()
    assert {"video": "data:image/apng;base64,", "audio": "data:audio/wav;base64,"}[modality] in page
    sheet = media.read_media(tmp_path / "grid.png").data
    assert sheet.std() > 0.1 and media.read_media(tmp_path / rows[0]["file"]).modality == modality


def given_run(folder, modality, inputs):
    """Two contestants on two prompts that come with inputs."""
    run = write_run(folder, names=("base", "reno"), prompts=PLAIN, modality=modality, inputs=inputs)
    parts = [make_contestant(name, 0.5, 0.2, 8) for name in ("base", "reno")]
    run.write("summary.json", summary_of(*parts, modality=modality, prompts=2))
    return run.path


PLAIN, GREY = ("make it red", "make it blue"), Media(torch.full((1, 3, 24, 48), 0.5), "image")


@pytest.mark.parametrize(
    ("modality", "inputs", "begins", "over"),
    [
        ("image", {"source": GREY, "mask": GREY}, ["data:image/png"] * 2, True),
        ("image", {"reference": GREY}, ["data:image/png"], False),
        ("video", {"first": GREY}, ["data:image/png"], False),
        ("video", {"source": Media(torch.rand(1, 9, 3, 24, 48), "video", 4.0)}, ["data:image/apng"], False),
        ("audio", {"source": Media(torch.rand(1, 1, 8000) - 0.5, "audio", 8000.0)}, ["data:audio/wav"], False),
    ],
)
def test_what_samples_were_made_from_comes_first_on_the_page_and_the_sheet(tmp_path, modality, inputs, begins, over):
    folder = given_run(tmp_path, modality, inputs)
    page = Page(text := page_of(folder))
    figures = text.split("<figure")[1:]
    assert len(figures) == 2 and ("Above each row" if modality == "audio" else "First in each row") in page.text
    titles = ["first frame" if name == "first" else name for name in inputs]
    for figure, prompt in zip(figures, PLAIN, strict=True):
        cells = re.findall(
            r'<(?:img|audio controls preload="none") src="([^;]*);[^"]*" (?:alt|aria-label)="([^"]*)"', figure
        )
        assert [begin for begin, _ in cells[: len(begins)]] == begins
        assert [words for _, words in cells[: len(begins)]] == [f"{title} of: {prompt}" for title in titles]
        assert [words.partition(":")[0] for _, words in cells[len(begins) :]] == ["base", "reno"]
    assert ("--source: url(data:image/png" in text) == over == ("|result − source|" in page.text)
    assert text.count('class="pair" tabindex="0"') == (4 if over else 0)
    names = [attrs.get("style", "") for tag, attrs in page.tags if tag == "div" and attrs.get("class") == "gallery"]
    assert f"--across: {2 if modality == 'audio' else 2 + len(inputs)}" in names[0]
    if begins == ["data:image/apng"]:
        clip = Image.open(io.BytesIO(base64.b64decode(text.split("data:image/apng;base64,")[1].split('"')[0])))
        assert (clip.n_frames, clip.size) == (4, (16, 16)), "as many frames as were made of it"
    sheet = media.read_media(folder / "grid.png").data
    assert sheet.shape[-1] == 2 * (2 * 24 + 148 + (2 + len(inputs)) * (14 + 160))
    assert not re.search(r"@import|https?://|<script", text)


def test_a_source_is_laid_over_a_result_in_its_size_and_one_that_is_gone_is_called_missing(tmp_path):
    folder = given_run(tmp_path, "image", {"source": GREY})
    source = re.search(r"--source: url\(data:image/png;base64,([^)]*)\)", page_of(folder))[1]
    assert Image.open(io.BytesIO(base64.b64decode(source))).size == (256, 256), "cropped to 16 x 16, as its results are"
    next((folder / "inputs").iterdir()).unlink()
    core_inputs._CACHE.rows.clear()  # as in another process
    text = page_of(folder)
    assert Page(text).text.count("missing source") == 2 and "--source:" not in text


def test_a_report_without_inputs_has_nothing_of_them(run):
    text, sheet = page_of(run), (pages.TEMPLATES / "report.css").read_text()
    assert f"<style>\n{sheet}\n</style>" in text and "the optimised reward.</p>\n<div" in text
    assert (
        '<figure><figcaption><span>a red circle</span><small>color</small></figcaption>\n<div class="cells">\n<div'
        in text
    )
    assert not [word for word in ("--source", "difference;", 'class="pair"', "cell from", "given") if word in text]


def test_a_notebook_shows_what_a_prompt_comes_with_once_before_its_samples():
    samples, scores = Media(torch.rand(3, 3, 8, 8), "image"), [{"a": 0.1}] * 3
    given = Prompt("make it red", {"first": MediaInput.of(GREY)})
    shown = notebook_view.media_html(samples, [given, given, "plain"], scores)
    assert shown.count("<figure") == 4 and shown.index("first frame") < shown.index("make it red")
    plain = notebook_view.media_html(samples, ["make it red"] * 2 + ["plain"], scores)
    assert shown.replace(notebook_view.input_figures(given)[0], "") == plain
    wide, narrow = (
        Image.open(io.BytesIO(notebook_view.contact_sheet(samples, prompts, scores))).width
        for prompts in ([given, given, "plain"], ["make it red", "make it red", "plain"])
    )
    assert wide == narrow + 2 * (14 + 160)


def test_a_run_without_oracle_pictures_or_command_still_reports(run):
    summary = usual_summary()
    for c in summary["contestants"]:
        c.pop("oracle", None), c.pop("versus_base", None), c.pop("diversity", None), c.pop("peak_mb", None)
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "run.json").write_text(json.dumps({"name": "demo", "config": {"reward": "clip"}}))
    (run / "events.jsonl").write_text("")
    text = Page(page_of(run)).text
    assert "The command was not recorded" in text and "See for yourself" not in text and "reward: clip" in text


@pytest.mark.parametrize("oracle", ["oracle", "edit_oracle"])
def test_a_sample_is_marked_by_the_oracle_that_judged_it(tmp_path, oracle):
    folder = given_run(tmp_path, "image", {"source": GREY})
    log = folder / "events.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    for event in events:
        for n, sample in enumerate(event.get("samples", ())):
            sample["scores"] |= {oracle: [1.0, 0.0, None][n % 3]}
    log.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    verdicts = re.findall(r'<div class="cell( right| wrong|)">', page_of(folder))
    assert verdicts == [" right", " right", " wrong", " wrong"]


def test_a_folder_that_is_no_run_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(BadInput, match=r"no run\.json here"):
        write_report(tmp_path)


def test_curves_average_batches_only_where_all_of_them_report():
    events = [{"contestant": "reno", "batch": b, "step": s, "metrics": {"loss": 9.0, "reward": s + 10.0 * b}}
              for b, last in ((0, 5), (1, 3)) for s in range(last)]  # fmt: skip
    first = progress_charts(events)[0]
    assert first["name"] == "reward" and first["lines"] == {"reno": [(0, 5.0), (1, 6.0), (2, 7.0)]}


def test_axis_ticks_are_round_and_hold_every_value():
    for low, high in ((0, 1), (0.228, 0.322), (-0.07, 0.33), (3, 4100), (5, 5)):
        axis = Axis.over([low, high])
        assert 0 <= axis.at(low) <= axis.at(high) <= 100 and 2 <= len(axis.ticks) <= 7
        assert len({label for _, label in axis.labels()}) == len(axis.ticks)


def test_terminal_table_shows_everybody_and_marks_what_was_optimised():
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(console_table(usual_summary() | {"run": "[bold]demo[/bold]"}))
    text = console.export_text()
    assert "[bold]demo[/bold]" in text and "draft" in text and "OutOfMemoryError" in text
    assert "0.310* [0.298, 0.322]" in text and "0.240 [0.228, 0.252]" in text and "0.78 [0.72, 0.84]" in text


@pytest.fixture
def against(tmp_path):
    """The page of a summary as `workbench compare` leaves one, changed at will; without pictures."""

    def write(change=lambda summary: None, of=compared_summary):
        summary = of()
        change(summary)
        (tmp_path / "run.json").write_text(json.dumps({"name": "demo", "config": {}}))
        (tmp_path / "summary.json").write_text(json.dumps(summary))
        text = page_of(tmp_path)
        assert not re.search(r"\b(nan|NaN|inf|None)\b", text)
        return text

    return write


def test_scaling_plots_the_judge_and_beside_it_what_was_optimised(against):
    charts = scaling_charts(compared_summary())
    assert [(c["name"], c["optimised"]) for c in charts] == [("oracle", False), ("starter_clip", True)]
    assert [n for n, _ in charts[0]["lines"]["reno"]] == [1.0, 8.0, 64.0] and charts[0]["level"]["mean"] == 0.52
    lone = [(n, e["mean"]) for n, e in charts[0]["lines"]["fk"]]
    assert lone == [(32.0, 0.56)]  # it has no curve, so its end is a point
    assert "draft" not in charts[0]["lines"]
    text = against()
    assert "<title>reno, 64 denoiser rows per sample: 0.78 [0.72, 0.84]</title>" in text
    assert text.count("class=final") == 2 * 4 and text.count('class="level') == 2
    markers = re.findall(r"<title>reno, [^<]*</title>.*?cx=\"([\d.]+)%\"", text)[:3]
    low, middle, high = map(float, markers)
    assert low < middle < high and abs((middle - low) - (high - middle)) < 0.01  # 1, 8, 64: doublings


def test_contestants_at_one_budget_stand_beside_each_other():
    shifts = scaling_charts(compared_summary())[0]["shifts"]
    assert len(set(shifts.values())) == 3 and sum(shifts.values()) == pytest.approx(0) and "base" not in shifts


def test_points_that_cannot_be_drawn_are_left_out(against):
    def spoil(summary):
        reno = summary["contestants"][2]
        reno["curve"][1]["rewards"]["oracle"] = {"mean": None, "ci95": None, "n": 0}
        reno["curve"][2]["rewards"]["oracle"]["ci95"] = [float("nan"), float("nan")]
        reno["curve"][0]["nfe"] = 0
        reno["wins"]["oracle"] = {"mean": None, "ci95": None, "n": 0}
        reno["diversity"], reno["peak_mb"], reno["seconds"] = None, float("nan"), None
        summary["contestants"][3]["wins"] = {"oracle": {"mean": 1.0, "ci95": None, "n": 1}}

    text = against(spoil)
    assert "<title>reno, 64 denoiser rows per sample: 0.78</title>" in text and "reno, 8 denoiser" in text
    assert text.count("<title>reno") == 1 + 2  # the end alone for the oracle; what was optimised keeps its two


def test_without_curves_there_is_no_scaling_plot(against):
    assert scaling_charts(usual_summary()) == []
    text = Page(against(of=usual_summary)).text
    assert "What more budget buys" not in text and "Wins against" not in text and "What it cost" in text


def test_win_rate_stands_in_the_table_with_its_interval_and_its_meaning(against):
    page = Page(against())
    assert "71 % 65 to 77 %" in page.text
    meaning = (
        "the share of pictures that the oracle likes better than base’s with the same prompt and seed, a tie "
        "counting half"
    )
    assert meaning in page.text and any(t == "abbr" and meaning in a["title"] for t, a in page.tags)


def test_costs_are_listed_and_a_shortfall_is_marked(against):
    text = Page(against()).text
    assert "50 % fell short 32 32 0.67 10.7 913" in text
    assert (
        text.count("fell short") == 1 and text.count("failed: OutOfMemoryError: <no> room") == 3
    )  # in words, and in both tables


def test_other_pipelines_are_named_beside_their_contestants(against):
    text = against()
    assert "<small>starter-image-teacher</small>" in text and "the same seed;" in text
    text = against(of=usual_summary)
    assert "<small>starter-image" not in text and "same starting noise" in text


def test_names_are_text_not_markup_wherever_they_stand(against):
    """A run's own contestants have plain names, but a summary that comes from elsewhere may not."""
    evil = "<img src=x onerror=alert(1)>"

    def spoil(summary):
        text = json.dumps(summary).replace('"reno"', json.dumps(evil)).replace("starter-image-teacher", "<b>other</b>")
        text = text.replace('"starter_clip"', '"<u>clip</u>"')
        summary.clear(), summary.update(json.loads(text))

    text = against(spoil)
    assert "<img src=x" not in text and "<b>other" not in text and "<u>" not in text
    assert evil in Page(text).text and "<b>other</b>" in Page(text).text and "<u>clip</u>" in Page(text).text


def test_the_command_can_be_copied_as_it_was_typed(against, tmp_path):
    against()
    command = "workbench compare reno '{best_of_n: {n: 8}}' --prompts 'a & b.txt' --name \"<x>\""
    (tmp_path / "run.json").write_text(json.dumps({"name": "demo", "config": {}, "command": command}))
    text = page_of(tmp_path)
    command_text = re.search(r'<pre class="command"[^>]*>(.*?)</pre>', text, re.S)[1]
    assert html.unescape(command_text) == command and "user-select: all" in text


def test_the_alarm_stands_before_everything_but_the_headline(against):
    text = Page(against(lambda summary: summary.update(alarm="reno raised the wrong thing."))).text
    assert text.index("Reward hacking alarm reno raised the wrong thing.") < text.index("answered the same")
    assert "Believe what was only watched" in text


def test_kinds_with_few_prompts_are_said_to_be_unsure(against):
    assert "intervals are too narrow to rely on" in against()

    def more(summary):
        for c in summary["contestants"]:
            for part in c.get("oracle", {}).values():
                part["n"] = 200

    assert "too narrow" not in against(more)


def test_a_doubling_axis_has_few_round_ticks():
    for low, high in ((1, 1), (1, 64), (3, 4100), (0.5, 2), (50, 100_000)):
        axis = Doublings.over([low, high])
        assert 0 <= axis.at(low) <= axis.at(high) <= 100 and 2 <= len(axis.labels()) <= 7
    assert [label for _, label in Doublings.over([1, 64]).labels()] == ["1", "2", "4", "8", "16", "32", "64"]


def test_terminal_table_has_the_win_rate_when_there_is_one():
    console = Console(width=240, file=io.StringIO(), record=True)
    console.print(console_table(compared_summary()))
    text = console.export_text()
    assert "71 [65, 77]" in text and "wins %: samples that the oracle likes better than the base’s" in text
