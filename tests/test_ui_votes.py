"""The vote and leaderboard tabs over HTTP and in a browser: blind until the vote, nothing executed, refusals in a
sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from vote_fixtures import cast_many_votes, write_run

import pipelines
from workbench.core.errors import BadInput
from workbench.core.types import Media
from workbench.feedback import votes
from workbench.ui import reward_offers
from workbench.ui.context import AppContext
from workbench.ui.jobs import JobQueue
from workbench.ui.tabs import leaderboard, vote
from workbench.ui.widgets import standings, study_view

NAMES = ("zebra_base", "zebra_aligned", "zebra_third")  # words that appear nowhere else on a page
EVIL = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>${window.pwned=1}{{pwned}}'


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """A page with the two tabs, as the app has them, on runs whose contestants' and pipeline's names can be searched
    for."""
    root = tmp_path_factory.mktemp("app")
    context = AppContext(root / "runs", root / "temp", JobQueue())
    with pytest.MonkeyPatch.context() as env:
        env.setenv("GRADIO_TEMP_DIR", str(root / "cache"))
        with gr.Blocks() as page:
            with gr.Tab("First"):
                gr.Markdown("nothing")
            with gr.Tab("Blind vote"):
                vote.build_tab(page, context)
            with gr.Tab("Leaderboard"):
                leaderboard.build_tab(page, context)
        _, url, _ = page.queue().launch(
            prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False, run_history=False
        )
        empty = Client(url, verbose=False).predict("ada", api_name="/battle")
        write_run(context.runs, "pictures", names=NAMES, prompts=(f"two circles {EVIL}",), pipeline="zebra-pipeline")
        write_run(context.runs, "sounds", names=NAMES, modality="audio", pipeline="zebra-pipeline")
        yield SimpleNamespace(url=url, context=context, client=Client(url, verbose=False), empty=empty)
        page.close()


def test_without_runs_there_is_no_pair_and_no_error(app):
    assert app.empty == {}


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_nothing_before_the_vote_names_a_contestant_and_the_answer_to_the_vote_does(app, modality):
    battle = app.client.predict("ada", 0, modality, api_name="/battle")
    texts = [json.dumps(battle), httpx.get(app.url).text, httpx.get(f"{app.url}config").text]
    for side in ("left", "right"):
        texts += [Path(battle[side]).name, Path(battle[side]).read_bytes().decode("latin-1")]
    assert battle["modality"] == modality
    assert not [word for word in ("zebra", "level", "noise") for text in texts if word in text]
    answer = app.client.predict(battle["battle"], "left", f"key-{battle['battle']}", api_name="/vote")
    assert {answer["left"]["contestant"], answer["right"]["contestant"]} < set(NAMES)
    assert set(answer["left"]["scores"]) == {"level", "noise"}


@pytest.mark.parametrize(("modality", "given"), [("image", "image"), ("video", "image"), ("audio", "audio")])
def test_a_vote_shows_what_both_were_made_from_and_its_file_names_nobody(tmp_path, modality, given):
    data = torch.rand(1, 3, 40, 64) if given == "image" else torch.rand(1, 1, 8000) - 0.5
    source = Media(data, given, 0.0 if given == "image" else 8000.0)
    context = AppContext(tmp_path, tmp_path / "temp", None)
    name = "first" if modality == "video" else "source"
    folder = write_run(
        tmp_path, names=NAMES[:2], prompts=("zebra_red", "blue"), modality=modality, inputs={name: source}
    )
    battles = [vote.ask_pair(context, rater) for rater in ("ada", "bob", "carl")]
    for battle in battles:
        (shown,) = battle["inputs"]
        assert (shown["name"], shown["modality"]) == (name, given) and shown["label"] in ("Source", "First frame")
        assert json.loads(json.dumps(battle["prompt"])) in ("zebra_red", "blue")
        words = Path(shown["file"]["path"]).name + Path(shown["file"]["path"]).read_bytes().decode("latin-1")
        assert "zebra" not in words and next((folder.path / "inputs").iterdir()).stem not in words
    assert len({battle["inputs"][0]["file"]["path"] for battle in battles}) == 1, "written once"
    next((folder.path / "inputs").iterdir()).unlink()
    assert vote.ask_pair(context, "dora")["inputs"], "what was written is there for others"
    shutil.rmtree(context.temp)
    assert vote.ask_pair(context, "emil")["inputs"] == []


def test_a_repeated_call_is_one_vote_and_a_vote_can_be_taken_back(app):
    battle = app.client.predict("bob", api_name="/battle")
    call = (battle["battle"], "tie", f"key-{battle['battle']}", EVIL, 1.5, 2.5)
    before = len(votes.standing_votes(app.context.runs))
    assert app.client.predict(*call, api_name="/vote") == app.client.predict(*call, api_name="/vote")
    assert len(votes.standing_votes(app.context.runs)) == before + 1
    stored = votes.standing_votes(app.context.runs, rater="bob")[-1]
    assert (stored.choice, stored.reason, stored.dwell) == ("tie", EVIL, (1.5, 2.5))
    assert app.client.predict(battle["battle"], "an-undo-key", api_name="/undo")["undone"]
    assert len(votes.standing_votes(app.context.runs)) == before


@pytest.mark.parametrize(
    ("call", "values", "says"),
    [
        ("/vote", {"reason": "x" * 10_000}, "reason: at most 2,000 characters"),
        ("/vote", {"key": "../../etc/passwd"}, "key: give 8 to 100"),
        ("/vote", {"key": "x" * 5000}, "key: give 8 to 100"),
        ("/vote", {"key": {"a": 1}}, "key: give 8 to 100"),
        ("/vote", {"choice": "<b>left</b>"}, "is none of left, right, tie, bad"),
        ("/vote", {"battle": "'; DROP TABLE votes; --"}, "no such pair"),
        ("/vote", {"dwell_left": 1e308}, "seconds"),
        ("/vote", {"dwell_right": "long"}, "seconds"),
        ("/undo", {"battle": "unknown-battle"}, "no such pair"),
        ("/battle", {"rater": ""}, "rater: give a text"),
        ("/battle", {"rater": "x" * 10_000}, "rater: give a text"),
        ("/battle", {"run": 10**30}, "run: give the number"),
        ("/battle", {"run": "../../etc"}, "run: give the number"),
        ("/battle", {"modality": "../"}, "modality: '../' is none of"),
        ("/leaderboard", {"rater": "x" * 10_000}, "rater: give a text"),
    ],
)
def test_absurd_calls_are_refused_in_one_sentence(app, call, values, says):
    battle = app.client.predict("carl", api_name="/battle")
    usual = {
        "/vote": {"battle": battle["battle"], "choice": "left", "key": "a-usual-key", "reason": "",
                  "dwell_left": 0, "dwell_right": 0},
        "/undo": {"battle": battle["battle"], "key": "a-usual-key"},
        "/battle": {"rater": "carl", "run": 0, "modality": ""},
        "/leaderboard": {"run": 0, "modality": "", "rater": ""},
    }  # fmt: skip
    before = len(votes.standing_votes(app.context.runs))
    with pytest.raises(AppError, match=says) as refused:
        app.client.predict(**(usual[call] | values), api_name=call)
    assert "Traceback" not in str(refused.value) and len(str(refused.value)) < 300
    assert len(votes.standing_votes(app.context.runs)) == before


def test_the_leaderboard_escapes_every_word_and_tells_what_to_do_while_it_is_empty(tmp_path):
    context = AppContext(tmp_path, tmp_path / "temp", None)
    assert "Blind vote" in standings.draw_leaderboard(context) and "<table" not in standings.draw_leaderboard(context)
    write_run(tmp_path, names=("base", "reno"), pipeline=EVIL)
    cast_many_votes(tmp_path, 60, {"base": -1.0, "reno": 1.0})
    page = standings.draw_leaderboard(context)
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert "${" not in page and "{{" not in page, "an HTML block is a template too"
    assert page.index("reno") < page.index("base") and "60 votes" in page and "better than chance" in page


def test_the_leaderboard_warns_of_groups_that_never_met_and_of_leaning_sides(tmp_path):
    context = AppContext(tmp_path, tmp_path / "temp", None)
    write_run(tmp_path, "one", names=("a", "b")), write_run(tmp_path, "two", names=("c", "d"))
    cast_many_votes(tmp_path, 200, dict.fromkeys("abcd", 0.0))
    page = standings.draw_leaderboard(context)
    assert "never met" in page and "no position bias shown" in page
    with votes.open_for_writing(tmp_path) as db:
        db.execute("UPDATE votes SET choice = 'left' WHERE id % 3 > 0")
    assert "votes lean to the left" in standings.draw_leaderboard(context)
    assert "never met" not in standings.draw_leaderboard(context, standings.Selection(run=1))
    assert "No votes with these filters" in standings.draw_leaderboard(context, standings.Selection(modality="video"))


def test_votes_are_handed_out_as_files_and_become_a_reward(tmp_path):
    context = AppContext(tmp_path / "runs", tmp_path / "temp", None)
    write_run(context.runs, names=("base", "reno"), pipeline="starter-image")
    cast_many_votes(context.runs, 80, {"base": -3.0, "reno": 3.0})
    for kind in ("votes.jsonl", "votes.parquet", "votes.csv", "pairs.jsonl"):
        copy, sentence = standings.export_votes(context, kind)
        assert Path(copy).is_relative_to(context.temp) and Path(copy).read_bytes() == (context.runs / kind).read_bytes()
        assert ("12 pairs" if kind == "pairs.jsonl" else "80 votes") in sentence
    first, last = standings.learn_reward(context)
    assert "80 votes" in first["told"][0] and "better than chance" in last["told"][0]
    assert last["block"].startswith("reward:\n  learned:\n    path:")
    assert votes.standing_votes(context.runs), "and the folder of what was learned is no run"
    config, (name,) = pipelines.read_config("starter-image"), reward_offers.list_tastes(context.runs)
    assert name in [offered for _, offered in reward_offers.list_rewards(config, context.runs)], "the Studio has it"
    assert "votes on pictures, and starter-music makes sounds" in reward_offers.explain_misfit(
        name, pipelines.read_config("starter-music"), context.runs
    )


def test_the_leaderboard_ranks_kinds_apart_and_shows_and_searches_reasons(tmp_path):
    context = AppContext(tmp_path, tmp_path / "temp", None)
    (
        write_run(tmp_path, "one", names=("base", "reno")),
        write_run(tmp_path, "two", names=("base", "reno"), modality="audio"),
    )
    cast_many_votes(tmp_path, 60, {"base": -1.0, "reno": 1.0})
    with votes.open_for_writing(tmp_path) as db:
        db.execute("UPDATE votes SET reason = ? WHERE id = 1", (f"hands {EVIL}",))
    page = standings.draw_leaderboard(context)
    assert page.index("Pictures") < page.index("Sounds") and page.count("mw-ratings") == 2 and "Cycles" in page
    assert "hands &lt;img" in page and "<img" not in page
    assert "hands" not in standings.draw_leaderboard(context, standings.Selection(word="feet"))
    assert {row["modality"] for row in standings.list_ranks(context)} == {"image", "audio"}
    study = {"name": "mine", "runs": tuple(path.parent.name for path in tmp_path.glob("*/run.json"))}
    notes = study_view.make_study(context, study, 2)
    drawn_study = study_view.draw_study(context, "mine", notes)
    assert (
        "2 gold pairs" in drawn_study and "/vote/mine" in drawn_study and study_view.list_studies(context) == ["mine"]
    )
    assert standings.list_criteria(context, 1) == ["overall"]


def test_too_few_votes_teach_nothing_and_leave_nothing(tmp_path):
    context = AppContext(tmp_path, tmp_path / "temp", None)
    write_run(tmp_path, names=("base", "reno"), pipeline="starter-image")
    cast_many_votes(tmp_path, 4, {"base": 0.0, "reno": 0.0})
    with pytest.raises(BadInput, match="not enough votes yet"):
        list(standings.learn_reward(context))
    assert not any((tmp_path / "learned").iterdir())


def only(page, kind):
    page.get_by_role("tab", name="Blind vote").click()
    page.get_by_text("What to vote on").click()
    page.locator("#vote-kind input").click()
    page.get_by_role("option", name=kind, exact=True).click()
    media = "audio" if kind == "Sounds" else "img"
    page.wait_for_selector(f".mw-vote-media {media}", timeout=30_000)


def awake(page, choice="left"):
    page.wait_for_selector(f"[data-choice={choice}]:not([disabled])", timeout=30_000)


def told(page, words):
    page.wait_for_function(
        "w => document.querySelector('.mw-vote-told').textContent.includes(w)", arg=words, timeout=30_000
    )


def test_a_person_votes_by_keyboard_and_is_told_nothing_before(app, browser):
    page, requests = browser.new_page(viewport={"width": 390, "height": 844}), []
    page.on("request", lambda r: requests.append(r.url))
    page.goto(app.url)
    only(page, "Pictures")
    awake(page)
    assert not [word for word in NAMES for text in (page.content(), *requests) if word in text]
    before = len(votes.standing_votes(app.context.runs))
    page.locator(".mw-vote-reason input").fill(EVIL)
    page.locator(".mw-vote-reason input").press("a")
    assert len(votes.standing_votes(app.context.runs)) == before, "a letter in the reason is no vote"
    page.locator(".mw-vote-prompt").click()
    for _ in range(3):  # a key that sticks is one vote
        page.keyboard.press("ArrowRight")
    told(page, "Kept: B is better")
    assert "zebra" in page.locator(".mw-vote-who").first.inner_text()
    stored = votes.standing_votes(app.context.runs)
    assert len(stored) == before + 1 and (stored[-1].choice, stored[-1].reason) == ("right", EVIL + "a")
    page.keyboard.press("u")
    told(page, "Taken back")
    assert len(votes.standing_votes(app.context.runs)) == before
    page.keyboard.press("n")
    awake(page)
    assert "zebra" not in page.locator(".mw-vote").inner_html(), "the next pair is blind again"
    page.keyboard.press("t")
    told(page, "Kept: a tie")
    assert page.evaluate("window.pwned") is None, "prompts and reasons are text"
    page.get_by_role("tab", name="Leaderboard").click()
    page.wait_for_selector(".mw-ratings", timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no sideways scrolling on a phone"
    page.close()


def test_a_sound_must_be_heard_before_the_buttons_wake(app, browser):
    page = browser.new_page()
    page.goto(app.url)
    only(page, "Sounds")
    told(page, "Listen to both first")
    page.locator(".mw-vote-prompt").click()
    before = len(votes.standing_votes(app.context.runs))
    page.keyboard.press("a")
    page.wait_for_timeout(500)
    assert page.locator("[data-choice=left]").is_disabled() and len(votes.standing_votes(app.context.runs)) == before
    for side in ("left", "right"):  # one second each
        page.evaluate("s => document.querySelector(`[data-side=${s}] audio`).play()", side)
        page.wait_for_function("s => document.querySelector(`[data-side=${s}] audio`).ended", arg=side, timeout=30_000)
    awake(page)
    page.keyboard.press("x")
    told(page, "Kept: both bad")
    stored = votes.standing_votes(app.context.runs)[-1]
    assert stored.choice == "bad" and min(stored.dwell) > 0.8
    page.close()
