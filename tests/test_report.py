"""A report says what the numbers say, shows everybody, and needs nothing but itself."""

import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console

from workbench import media
from workbench.findings import headline, number
from workbench.report import Axis, curves, samples, selection, table, write_report
from workbench.types import BadInput, Media

SIZE = 64
COLOURS = {"red": (0.88, 0.2, 0.2), "blue": (0.2, 0.4, 0.95), "green": (0.15, 0.7, 0.35), "yellow": (0.95, 0.8, 0.2)}
EVIL = 'a circle <script>alert("x")</script> & more'
PROMPTS = [
    ("a red circle", "color"), ("a blue square", "color"), ("a large green circle", "size"), ("a small yellow square", "size"),
    ("two blue circles", "count"), (EVIL, "count"), ("a red square left of a blue circle", "position"),
    ("a green square above a yellow circle", "position"),
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


def estimate(mean, half, **more):
    return {"mean": mean, "ci95": [round(mean - half, 4), round(mean + half, 4)], "n": 16, **more}


def contestant(name, oracle, clip, nfe, versus=None):
    part = {
        "name": name, "method": name, "samples": 16,
        "rewards": {"starter_clip": estimate(clip, 0.012, optimised=True),
                    "brightness": estimate(0.41, 0.02, optimised=False)},
        "oracle": {"overall": estimate(oracle, 0.06)}
        | {c: estimate(min(0.95, oracle + d), 0.05) for c, d in (("color", 0.15), ("size", 0.05), ("count", -0.1), ("position", -0.2))},
        "diversity": 0.21, "nfe": nfe, "reward_calls": nfe if versus else 0, "decodes": nfe, "seconds": nfe / 48, "peak_mb": 913.4,
    }  # fmt: skip
    return part if versus is None else part | {"versus_base": {"oracle": versus, "starter_clip": estimate(0.06, 0.01)}}


def summary_of(*contestants, **more):
    return {
        "run": "demo",
        "modality": "image",
        "prompts": 8,
        "seeds": 2,
        "contestants": list(contestants),
        "alarm": None,
    } | more


def usual():
    return summary_of(
        contestant("base", 0.52, 0.24, 64),
        contestant("best_of_n", 0.57, 0.28, 1600, estimate(0.05, 0.07)),
        contestant("reno", 0.78, 0.31, 1600, estimate(0.26, 0.07)),
        {"name": "draft", "method": "draft", "failed": "OutOfMemoryError: <no> room"},
    )


@pytest.fixture
def run(tmp_path):
    """Three contestants with real pictures, a fourth that failed, and progress that a method reported."""
    config = {"name": "demo", "pipeline": "starter-image", "reward": {"starter_clip": 1.0}, "prompts": "p.txt"}
    record = {"name": "demo", "created": "2026-01-02T03:04:05", "command": "workbench run configs/runs/demo.yaml seed=0",
              "config": config, "versions": {"torch": "2.9.0"}, "git": "abc123", "seed": 0, "device": "cpu"}  # fmt: skip
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
                path = media.write(
                    picture(prompt, (n + 1) / 3), tmp_path / file, meta={"prompt": prompt, "scores": scores}
                )
                rows.append({"index": index, "prompt": prompt, "k": k, "seed": 100 * index + k, "category": category,
                             "file": file, "sha256": media.fingerprint(path), "scores": scores})  # fmt: skip
            events.append(
                {"contestant": name, "batch": k, "step": 10, "metrics": {}, "final": True, "cost": {}, "samples": rows}
            )
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "summary.json").write_text(json.dumps(usual()))
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
    summary = usual() | {"alarm": "<b>beware</b>", "run": "<i>demo</i>"}
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
        json.dumps(usual() | {"alarm": "reno raised the wrong thing", "control": "shuffled"})
    )
    text = Page(page_of(run)).text
    assert "Reward hacking alarm reno raised the wrong thing" in text and "Control run" in text


def test_headline_claims_what_the_paired_intervals_show_and_no_more():
    said = headline(usual())
    assert said[0] == "reno raises the oracle from 0.52 to 0.78; no difference is shown for best_of_n (0.57)."
    assert "best_of_n +0.05 [−0.02, +0.12], which includes zero; reno +0.26 [+0.19, +0.33]" in " ".join(said)
    assert "draft failed: OutOfMemoryError: <no> room." in said
    assert any("both used about 1,600 denoiser calls" in s for s in said)


def test_headline_claims_no_win_when_intervals_overlap():
    """Without paired differences the intervals themselves must lie apart, and a larger mean alone is nothing."""
    first, second = contestant("base", 0.52, 0.24, 64), contestant("reno", 0.60, 0.31, 64, estimate(0, 1))
    del second["versus_base"]
    said = headline(summary_of(first, second))
    assert said[0] == "On the oracle, no difference from base (0.52) is shown for reno (0.60)."
    assert "reno’s interval [0.54, 0.66] overlaps base’s [0.46, 0.58]." in said
    second["oracle"]["overall"] = estimate(0.7, 0.06)
    assert headline(summary_of(first, second))[0] == "reno raises the oracle from 0.52 to 0.70."


@pytest.mark.parametrize(
    "versus, first",
    [
        (estimate(-0.2, 0.05), "reno lowers the oracle from 0.52 to 0.30."),
        (estimate(-0.2, 0.25), "On the oracle, no difference from base (0.52) is shown for reno (0.30)."),
    ],
)
def test_headline_tells_of_a_fall_as_plainly_as_of_a_rise(versus, first):
    said = headline(summary_of(contestant("base", 0.52, 0.24, 64), contestant("reno", 0.30, 0.31, 64, versus)))
    assert said[0] == first


def test_headline_does_not_call_an_optimised_reward_an_improvement():
    """With no oracle and nothing held out, the page says so; with something held out, that is what it speaks of."""
    pair = [contestant("base", 0.5, 0.24, 64), contestant("reno", 0.5, 0.31, 64, estimate(0, 0.1))]
    for c in pair:
        del c["oracle"]
    assert headline(summary_of(*pair))[0].startswith("On brightness, no difference")
    for c in pair:
        del c["rewards"]["brightness"]
    said = headline(summary_of(*pair))
    assert said[0] == "reno raises starter_clip from 0.240 to 0.310." and any(s.startswith("Beware") for s in said)


def test_headline_survives_missing_numbers():
    lone = contestant("base", 0.52, 0.24, 64)
    assert headline(summary_of(lone))[:2] == [
        "base scores 0.52 [0.46, 0.58] on the oracle.", "There is nothing to compare it with."]  # fmt: skip
    gone = {"name": "reno", "method": "reno", "failed": "did not finish"}
    assert headline(summary_of(gone)) == [
        "Nothing finished, so there is nothing to compare.",
        "reno failed: did not finish.",
    ]
    blind = contestant("reno", 0.9, 0.3, 64, {"mean": None, "ci95": None, "n": 0})
    blind["oracle"]["overall"] = {"mean": 0.9, "ci95": None, "n": 1}
    assert "no difference from base" in headline(summary_of(lone, blind))[0]


def test_pictures_are_chosen_by_position_and_balanced_over_categories(run):
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    keys = selection(samples(events), ["base", "best_of_n", "reno"])
    assert keys == [(0, 0), (2, 0), (4, 0), (6, 0), (1, 0), (3, 0), (5, 0), (7, 0)]
    worse = json.loads(json.dumps(events))
    for e in worse:
        for s in e.get("samples", ()):
            s["scores"] = {k: 1 - v for k, v in s["scores"].items()}
    assert selection(samples(worse), ["base", "best_of_n", "reno"]) == keys
    made = samples(events)
    del made["reno"][2, 0]
    assert (2, 1) in selection(made, ["base", "best_of_n", "reno"])  # the first that everybody made


def test_a_picture_that_is_gone_changed_or_outside_is_called_missing(run):
    (run / "media/reno/0000-0.png").unlink()
    media.write(picture("a red circle", 1.0), run / "media/base/0002-0.png", meta={})
    page = Page(page_of(run))
    assert page.text.count("missing") == 2
    events = (run / "events.jsonl").read_text().replace("media/best_of_n/0004-0.png", "../secret.png")
    (run / "events.jsonl").write_text(events)
    shutil.copy(run / "media/best_of_n/0004-0.png", run.parent / "secret.png")
    assert Page(page_of(run)).text.count("missing") == 3


def test_the_same_run_gives_the_same_report(run):
    first = page_of(run), media.fingerprint(run / "grid.png")
    assert (page_of(run), media.fingerprint(run / "grid.png")) == first
    size = media.read(run / "grid.png").data.shape
    assert size[2] > size[3] > 3 * 320  # eight rows, three columns of 160 pixels drawn twice as dense


def test_a_run_without_oracle_pictures_or_command_still_reports(run):
    summary = usual()
    for c in summary["contestants"]:
        c.pop("oracle", None), c.pop("versus_base", None), c.pop("diversity", None), c.pop("peak_mb", None)
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "run.json").write_text(json.dumps({"name": "demo", "config": {"reward": "clip"}}))
    (run / "events.jsonl").write_text("")
    text = Page(page_of(run)).text
    assert "The command was not recorded" in text and "See for yourself" not in text and "reward: clip" in text


def test_a_folder_that_is_no_run_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(BadInput, match=r"no run\.json here"):
        write_report(tmp_path)


def test_curves_average_batches_only_where_all_of_them_report():
    events = [{"contestant": "reno", "batch": b, "step": s, "metrics": {"loss": 9.0, "reward": s + 10.0 * b}}
              for b, last in ((0, 5), (1, 3)) for s in range(last)]  # fmt: skip
    first = curves(events)[0]
    assert first["name"] == "reward" and first["lines"] == {"reno": [(0, 5.0), (1, 6.0), (2, 7.0)]}


def test_axis_ticks_are_round_and_hold_every_value():
    for low, high in ((0, 1), (0.228, 0.322), (-0.07, 0.33), (3, 4100), (5, 5)):
        axis = Axis.over([low, high])
        assert 0 <= axis.at(low) <= axis.at(high) <= 100 and 2 <= len(axis.ticks) <= 7
        assert len({label for _, label in axis.labels()}) == len(axis.ticks)


def test_numbers_are_written_for_people():
    assert [number(x) for x in (0.834, -0.001, 12.34, 2000, None, float("nan"))] == [
        "0.83", "0.00", "12.3", "2,000", "–", "–"]  # fmt: skip
    assert number(-0.25) == "−0.25"


def test_terminal_table_shows_everybody_and_marks_what_was_optimised():
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(table(usual() | {"run": "[bold]demo[/bold]"}))
    text = console.export_text()
    assert "[bold]demo[/bold]" in text and "draft" in text and "OutOfMemoryError" in text
    assert "0.310* [0.298, 0.322]" in text and "0.240 [0.228, 0.252]" in text and "0.78 [0.72, 0.84]" in text
