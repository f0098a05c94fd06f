"""The vote and leaderboard tabs over HTTP and in a browser: blind until the vote, nothing executed, refusals in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from vote_fixtures import poll, run

from workbench.core.types import BadInput
from workbench.feedback import votes
from workbench.ui.context import Place
from workbench.ui.jobs import Desk
from workbench.ui.tabs import leaderboard, vote
from workbench.ui.widgets import standings

NAMES = ("zebra_base", "zebra_aligned", "zebra_third")  # words that appear nowhere else on a page
EVIL = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>${window.pwned=1}{{pwned}}'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """A page with the two tabs, as the app has them, on runs whose contestants' and pipeline's names can be searched for."""
    root = tmp_path_factory.mktemp("app")
    place = Place(root / "runs", root / "temp", Desk())
    with pytest.MonkeyPatch.context() as env:
        env.setenv("GRADIO_TEMP_DIR", str(root / "cache"))
        with gr.Blocks() as page:
            with gr.Tab("First"):
                gr.Markdown("nothing")
            with gr.Tab("Blind vote"):
                vote.build(page, place)
            with gr.Tab("Leaderboard"):
                leaderboard.build(page, place)
        _, url, _ = page.queue().launch(
            prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", ssr_mode=False, run_history=False
        )
        empty = Client(url, verbose=False).predict("ada", api_name="/battle")
        run(place.runs, "pictures", names=NAMES, prompts=(f"two circles {EVIL}",), pipeline="zebra-pipeline")
        run(place.runs, "sounds", names=NAMES, modality="audio", pipeline="zebra-pipeline")
        yield SimpleNamespace(url=url, place=place, client=Client(url, verbose=False), empty=empty)
        page.close()


def test_without_runs_there_is_no_pair_and_no_error(app):
    assert app.empty == {}


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_nothing_before_the_vote_names_a_contestant_and_the_answer_to_the_vote_does(app, modality):
    asked = app.client.predict("ada", 0, modality, api_name="/battle")
    seen = [json.dumps(asked), httpx.get(app.url).text, httpx.get(f"{app.url}config").text]
    for side in ("left", "right"):
        seen += [Path(asked[side]).name, Path(asked[side]).read_bytes().decode("latin-1")]
    assert asked["modality"] == modality
    assert not [word for word in ("zebra", "level", "noise") for text in seen if word in text]
    told = app.client.predict(asked["battle"], "left", f"key-{asked['battle']}", api_name="/vote")
    assert {told["left"]["contestant"], told["right"]["contestant"]} < set(NAMES)
    assert set(told["left"]["scores"]) == {"level", "noise"}


def test_a_repeated_call_is_one_vote_and_a_vote_can_be_taken_back(app):
    asked = app.client.predict("bob", api_name="/battle")
    call = (asked["battle"], "tie", f"key-{asked['battle']}", EVIL, 1.5, 2.5)
    before = len(votes.effective(app.place.runs))
    assert app.client.predict(*call, api_name="/vote") == app.client.predict(*call, api_name="/vote")
    assert len(votes.effective(app.place.runs)) == before + 1
    kept = votes.effective(app.place.runs, rater="bob")[-1]
    assert (kept.choice, kept.reason, kept.dwell) == ("tie", EVIL, (1.5, 2.5))
    assert app.client.predict(asked["battle"], "an-undo-key", api_name="/undo")["undone"]
    assert len(votes.effective(app.place.runs)) == before


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
    asked = app.client.predict("carl", api_name="/battle")
    usual = {
        "/vote": {"battle": asked["battle"], "choice": "left", "key": "a-usual-key", "reason": "", "dwell_left": 0, "dwell_right": 0},
        "/undo": {"battle": asked["battle"], "key": "a-usual-key"},
        "/battle": {"rater": "carl", "run": 0, "modality": ""},
        "/leaderboard": {"run": 0, "modality": "", "rater": ""},
    }  # fmt: skip
    before = len(votes.effective(app.place.runs))
    with pytest.raises(AppError, match=says) as refused:
        app.client.predict(**(usual[call] | values), api_name=call)
    assert "Traceback" not in str(refused.value) and len(str(refused.value)) < 300
    assert len(votes.effective(app.place.runs)) == before


def test_the_leaderboard_escapes_every_word_and_tells_what_to_do_while_it_is_empty(tmp_path):
    place = Place(tmp_path, tmp_path / "temp", None)
    assert "Blind vote" in standings.draw(place) and "<table" not in standings.draw(place)
    run(tmp_path, names=("base", "reno"), pipeline=EVIL)
    poll(tmp_path, 60, {"base": -1.0, "reno": 1.0})
    page = standings.draw(place)
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert "${" not in page and "{{" not in page, "an HTML block is a template too"
    assert page.index("reno") < page.index("base") and "60 votes" in page and "better than chance" in page


def test_the_leaderboard_warns_of_groups_that_never_met_and_of_leaning_sides(tmp_path):
    place = Place(tmp_path, tmp_path / "temp", None)
    run(tmp_path, "one", names=("a", "b")), run(tmp_path, "two", names=("c", "d"))
    poll(tmp_path, 200, dict.fromkeys("abcd", 0.0))
    page = standings.draw(place)
    assert "never met" in page and "no position bias shown" in page
    with votes.writing(tmp_path) as db:
        db.execute("UPDATE votes SET choice = 'left' WHERE id % 3 > 0")
    assert "votes lean to the left" in standings.draw(place)
    assert "never met" not in standings.draw(place, run=1) and "No votes with these filters" in standings.draw(place, modality="video")  # fmt: skip


def test_votes_are_handed_out_as_files_and_become_a_reward(tmp_path):
    place = Place(tmp_path / "runs", tmp_path / "temp", None)
    run(place.runs, names=("base", "reno"))
    poll(place.runs, 80, {"base": -3.0, "reno": 3.0})
    for kind in ("votes.jsonl", "votes.parquet", "pairs.jsonl"):
        copy, sentence = standings.export(place, kind)
        assert Path(copy).is_relative_to(place.temp) and Path(copy).read_bytes() == (place.runs / kind).read_bytes()
        assert ("12 pairs" if kind == "pairs.jsonl" else "80 votes") in sentence
    first, last = standings.learn(place)
    assert "80 votes" in first["told"][0] and "better than chance" in last["told"][0]
    assert last["block"].startswith("reward:\n  learned:\n    path:")
    assert votes.effective(place.runs), "and the folder of what was learned is no run"


def test_too_few_votes_teach_nothing_and_leave_nothing(tmp_path):
    place = Place(tmp_path, tmp_path / "temp", None)
    run(tmp_path, names=("base", "reno"))
    poll(tmp_path, 4, {"base": 0.0, "reno": 0.0})
    with pytest.raises(BadInput, match="not enough votes yet"):
        list(standings.learn(place))
    assert not any((tmp_path / "learned").iterdir())


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright, to drive a browser")
    if not CHROMIUM:
        pytest.skip("needs a Chromium, to drive it")
    with driver.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


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
    before = len(votes.effective(app.place.runs))
    page.locator(".mw-vote-reason input").fill(EVIL)
    page.locator(".mw-vote-reason input").press("a")
    assert len(votes.effective(app.place.runs)) == before, "a letter in the reason is no vote"
    page.locator(".mw-vote-prompt").click()
    for _ in range(3):  # a key that sticks is one vote
        page.keyboard.press("ArrowRight")
    told(page, "Kept: B is better")
    assert "zebra" in page.locator(".mw-vote-who").first.inner_text()
    kept = votes.effective(app.place.runs)
    assert len(kept) == before + 1 and (kept[-1].choice, kept[-1].reason) == ("right", EVIL + "a")
    page.keyboard.press("u")
    told(page, "Taken back")
    assert len(votes.effective(app.place.runs)) == before
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
    before = len(votes.effective(app.place.runs))
    page.keyboard.press("a")
    page.wait_for_timeout(500)
    assert page.locator("[data-choice=left]").is_disabled() and len(votes.effective(app.place.runs)) == before
    for side in ("left", "right"):  # one second each
        page.evaluate("s => document.querySelector(`[data-side=${s}] audio`).play()", side)
        page.wait_for_function("s => document.querySelector(`[data-side=${s}] audio`).ended", arg=side, timeout=30_000)
    awake(page)
    page.keyboard.press("x")
    told(page, "Kept: both bad")
    kept = votes.effective(app.place.runs)[-1]
    assert kept.choice == "bad" and min(kept.dwell) > 0.8
    page.close()
