"""The whole app in a real browser, as a process of its own: what a person sees, does, and must not see."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace
from urllib.parse import urljoin

import httpx
import pytest
import torch

import app as workbench_app
from workbench.core.io import video
from workbench.core.paths import ROOT
from workbench.core.types import Media
from workbench.feedback import votes

TABS = tuple(workbench_app.TABS)
CONTESTANTS = ("best_of_n", "best of n", "reno", "ReNO", "starter-image")  # and "base", too short to search a page for
LONG = 60_000  # ms that a busy machine may take for what takes a second
# The text that can be read, with the colour behind it: nodes whose contrast is under WCAG's 4.5 (3 for large letters)
FAINT = """() => {
  const rgb = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (node) => {
    for (let n = node; n; n = n.parentElement) {
      const style = getComputedStyle(n), c = rgb(style.backgroundColor);
      if (style.backgroundImage !== 'none') return null;
      if (c[3] > .95) return c;
    }
    return [255, 255, 255, 1];
  };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !node.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    if (node.closest('script,style,svg,[disabled]')) continue;
    const paper = behind(node), style = getComputedStyle(node);
    if (!paper || !node.getClientRects().length) continue;
    const [a, b] = [light(rgb(style.color)), light(paper)].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.5 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5))
      found.push(`${text.slice(0, 40)} | ${ratio.toFixed(2)} | ${style.color} on ${paper}`);
  }
  return found;
}"""


# keeps every picture that the stage shows before it shows a table
WATCH = """() => {
  const stage = document.querySelector('#wb-stage');
  window.previews = [];
  new MutationObserver(() => {
    if (!stage.querySelector('table'))
      window.previews.push(...[...stage.querySelectorAll('.wb-card img')].map(i => i.src));
  }).observe(stage, {childList: true, subtree: true, attributes: true});
}"""


@pytest.fixture(scope="module")
def app(tmp_path_factory, browser):  # without one nothing starts
    """`workbench app` as anybody starts it."""
    runs = tmp_path_factory.mktemp("runs")
    for _ in range(3):  # a port that was free a moment ago may be taken by another test
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        command = [sys.executable, "-m", "workbench.cli", "app", "--port", str(port), "--runs", str(runs)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if line := process.stdout.readline():
            break
    assert f"http://127.0.0.1:{port}" in line, line
    yield SimpleNamespace(url=f"http://127.0.0.1:{port}/", runs=runs)
    process.terminate()
    process.wait(10)


@pytest.fixture(scope="module")
def visits(browser):
    """Where the visitors come from: they fetch the page's scripts once."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(LONG)
    context.add_init_script("if (!sessionStorage.came) { localStorage.clear(); sessionStorage.came = 1; }")
    yield context
    context.close()


@pytest.fixture
def page(app, visits, request):
    """A new visitor, whose requests are kept; ends without an error on the console."""
    look = getattr(request, "param", {})
    opened = visits.new_page()
    if "viewport" in look:
        opened.set_viewport_size(look["viewport"])
    opened.emulate_media(color_scheme=look.get("color_scheme", "light"))
    opened.asked, opened.waiting, errors = [], set(), []
    opened.on("request", lambda r: (opened.asked.append(r.url), opened.waiting.add(r)))
    for end in ("requestfinished", "requestfailed"):
        opened.on(end, lambda r: opened.waiting.discard(r))
    opened.on("pageerror", lambda e: errors.append(str(e)))
    opened.goto(app.url)
    opened.wait_for_selector("#wb-compare")
    yield opened
    opened.close()
    assert errors == []


def tab(page, name: str) -> None:
    """Choose a tab, which a phone may have no room for."""
    there = page.get_by_role("tab", name=name, exact=True)
    if not there.count():
        page.get_by_label("More tabs").click()
        there = page.locator(".overflow-dropdown button", has_text=name)
    there.click()


def settle(page) -> None:
    """Until all that was asked for is answered and the page stands still. What a page that was left had asked for may
    never be said to be over, so there is an end to that."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and [r for r in page.waiting if "heartbeat" not in r.url]:
        page.wait_for_timeout(30)
    page.waiting.clear()
    page.wait_for_function(
        """() => { const now = document.body.innerText + document.documentElement.scrollWidth;
        const still = window.before === now; window.before = now; return still; }""",
        polling=80,
    )


@pytest.fixture(scope="module")
def compared(app, browser):
    """The comparison that the page offers, pressed by its first visitor: what was seen on the way, and its result."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(2 * LONG)
    page.goto(app.url)
    page.wait_for_function("document.querySelector('#wb-stage')?.innerText.includes('Nothing compared yet')")
    page.wait_for_function("document.querySelector('#wb-compare textarea, textarea')?.value.includes('circle')")
    page.evaluate(WATCH)
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_selector("#wb-stage table")
    yield SimpleNamespace(page=page, previews=set(page.evaluate("window.previews")))
    page.close()


def test_a_newcomer_presses_one_button_and_sees_a_judged_comparison(app, compared):
    page = compared.page
    assert len(compared.previews) > 8, "previews change while the contestants work"
    words = page.locator("#wb-stage table").inner_text()
    assert "oracle" in words and "optimised" in words and len(page.locator("#wb-stage .wb-row").all()) == 4
    for image in page.locator("#wb-stage .wb-row img").all():
        image.scroll_into_view_if_needed()
    sizes = page.eval_on_selector_all(
        "#wb-stage .wb-row img", "f => f.map(i => [i.clientWidth, i.clientHeight, i.naturalWidth])"
    )
    assert len(sizes) == 12 and len({tuple(s) for s in sizes}) == 1 and sizes[0][2] == 64, "side by side, equal in size"
    first = page.locator("#wb-stage .wb-row img").first.get_attribute("src")
    assert httpx.get(urljoin(app.url, first)).content[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_slider_lays_one_contestant_over_another(compared):
    page = compared.page
    slider = page.locator(".wb-slider")
    slider.scroll_into_view_if_needed()
    images = slider.locator("img")
    assert images.count() >= 2 and len({i.get_attribute("src") for i in images.all()}) == 2
    handle = slider.locator("[role=slider], .outer, .inner").first
    box, frame = handle.bounding_box(), slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, frame["y"] + frame["height"] / 2)
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.2 * frame["width"], frame["y"] + frame["height"] / 2, steps=5)
    page.mouse.up()
    assert abs(handle.bounding_box()["x"] - box["x"]) > 30, "it follows the mouse"


def test_the_link_of_a_comparison_reopens_it_for_somebody_else(app, compared, browser):
    link = compared.page.locator("#wb-stage a", has_text="Link to this comparison").get_attribute("href")
    other = browser.new_page()
    other.goto(app.url + link.lstrip("/"))
    other.wait_for_selector("#wb-stage table", timeout=LONG)
    assert other.locator("#wb-stage table").inner_text() == compared.page.locator("#wb-stage table").inner_text()
    other.close()


def test_an_unknown_link_is_one_sentence_and_the_page_still_works(app, browser):
    other = browser.new_page()
    other.goto(app.url + "?run=..%2F..%2Fetc%2Fpasswd")
    other.wait_for_selector(".wb-bad", timeout=LONG)
    assert "no comparison of this name" in other.locator(".wb-bad").inner_text()
    assert other.get_by_role("button", name="Compare", exact=True).is_enabled()
    other.close()


def test_stop_is_heard_within_two_seconds_and_what_there_is_is_kept(app, page, compared):
    before = len(list(app.runs.glob("*/run.json")))
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_selector("#wb-stage .wb-card img")
    page.get_by_role("button", name="Stop", exact=True).click()
    pressed = time.monotonic()
    page.wait_for_function(
        "document.querySelector('#wb-status').innerText.includes('Stopping') || "
        "document.querySelector('#wb-stage table')"
    )
    assert time.monotonic() - pressed < 2
    page.wait_for_selector("#wb-stage .wb-links a")
    newest = max(app.runs.glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    assert len(list(app.runs.glob("*/run.json"))) == before + 1
    assert json.loads(newest.read_text())["status"] in ("stopped", "done")


def test_a_person_votes_blind_by_keyboard_and_the_leaderboard_follows(app, page, compared):
    tab(page, "Leaderboard")
    page.wait_for_function("document.querySelector('#leaderboard').innerText.length > 20")
    before = page.locator("#leaderboard").inner_text()
    page.reload()
    page.wait_for_selector("#leaderboard")  # the address says the tab
    del page.asked[:]
    answers = []
    page.on("response", lambda r: answers.append(r) if "gradio_api" in r.url else None)
    tab(page, "Blind vote")
    page.wait_for_selector("[data-choice=left]:not([disabled])")
    texts = [page.locator("#vote-arena").inner_html(), *page.asked]
    for source in page.eval_on_selector_all(".mw-vote-media img", "f => f.map(i => i.src)"):
        texts.append(httpx.get(source).content.decode("latin-1"))
    assert not [word for word in CONTESTANTS for text in texts if word in text], "nothing tells who is who"
    before_count = len(votes.standing_votes(app.runs))
    page.keyboard.press("b")
    page.wait_for_function("document.querySelector('.mw-vote-told').innerText.includes('Kept')")
    assert len(votes.standing_votes(app.runs)) == before_count + 1
    names = page.locator(".mw-vote-who").all_inner_texts()
    assert all(any(word in text for word in ("sample", "best_of_n", "reno", "base")) for text in names), names
    tab(page, "Leaderboard")
    page.wait_for_selector(".mw-ratings")
    assert page.locator("#leaderboard").inner_text() != before


def test_the_program_on_the_page_about_the_app_works(app, compared):
    text = (ROOT / "docs" / "app.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert "http://127.0.0.1:7860" in code
    code = (
        code.replace("http://127.0.0.1:7860", app.url)
        .replace("n=21", "n=2")
        .replace("n=8", "n=2")
        .replace("iterations=20", "iterations=1")
    )
    before = len(votes.standing_votes(app.runs))
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert "oracle" in process.stdout and len(votes.standing_votes(app.runs)) == before + 1


def test_a_picture_is_scored_and_its_map_drawn(app, page, compared, tmp_path):
    tab(page, "Rewards")
    picture = next(app.runs.glob("*/media/*/*.png"))
    page.locator("input[type=file]").first.set_input_files(picture)
    page.get_by_role("button", name=re.compile("^Score")).click()
    page.wait_for_function(
        "[...document.querySelectorAll('.wb-table, .wb-card')].some(t => t.checkVisibility() && "
        "t.innerText.includes('starter_clip'))"
    )


FORM = "#wb-form input:not([type=file]), #wb-form textarea"  # what can be typed in or chosen from


def test_a_form_that_is_touched_and_left_asks_for_the_same_and_comes_back_with_the_page(app, page, compared):
    def read_draft():
        settle(page)
        return page.evaluate("localStorage.getItem('wb-draft')")

    settle(page)
    page.get_by_label("n", exact=True).first.fill("64")
    page.keyboard.press("Tab")
    draft = read_draft()
    assert json.loads(draft)["values"][15:17] == ["best_of_n", 64]
    fields = [field for field in page.locator(FORM).all() if field.is_visible() and field.is_enabled()]
    assert len(fields) > 15
    fields[0].focus()
    for _ in range(2 * len(fields)):  # by keyboard, over the buttons and into the results
        page.keyboard.press("Tab")
    page.get_by_role("button", name="Compare", exact=True).focus()
    assert read_draft() == draft
    assert page.locator("[role=listbox]").count() == 0, "no list is left open over what comes next"
    for field in fields:  # by mouse; of a list, its first choice is looked at, and letters are typed that are no choice
        field.click()
        if field.get_attribute("role") == "combobox" and "watched" not in (field.get_attribute("aria-label") or ""):
            page.keyboard.type("zz")
        page.get_by_role("heading", name="Contestants").click()
    assert read_draft() == draft

    method = page.get_by_label("Contestant 2").first
    for name in ("zero order", "best of n"):  # another method is looked at, and this one chosen back
        method.click()
        page.get_by_role("option", name=name).click()
        settle(page)
    assert json.loads(read_draft())["values"][15:17] == ["best_of_n", 64]
    page.reload()
    page.wait_for_function("[...document.querySelectorAll('#wb-form input')].some(i => i.value === '64')")
    page.get_by_role("button", name="Compare", exact=True).click()
    page.wait_for_url("**?run=*")
    page.reload()  # which stops nothing
    page.wait_for_selector("#wb-stage table")
    run = json.loads((app.runs / page.url.partition("run=")[2] / "run.json").read_text())
    assert run["status"] == "done" and run["config"]["contestants"]["best_of_n"]["n"] == 64
    tab(page, "Runs")
    page.wait_for_url("**&tab=runs")
    page.go_back()
    page.wait_for_selector("#wb-stage table")


@pytest.mark.parametrize("page", [{"viewport": {"width": 390, "height": 844}}], indirect=True)
def test_on_a_phone_nothing_scrolls_sideways_and_results_come_first(app, page, compared):
    page.goto(compared.page.url)
    page.wait_for_selector("#wb-stage table")
    places = page.evaluate(
        "['wb-stage', 'wb-compare'].map(i => document.getElementById(i).getBoundingClientRect().top)"
    )
    assert places[0] < 400 < places[1]
    for name in TABS:
        tab(page, name)
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


@pytest.mark.parametrize(
    "page", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True, ids=["dark", "light"]
)
def test_every_word_can_be_read_in_light_and_in_dark(page, compared):
    dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert page.evaluate("document.body.classList.contains('dark')") == dark
    for name in TABS:
        tab(page, name)
        settle(page)
        assert page.evaluate(FAINT) == [], name


def test_the_page_asks_nothing_of_the_network(app, page):
    for name in TABS:
        tab(page, name)
        settle(page)
    away = [url for url in page.asked if not url.startswith((app.url, "data:", "blob:"))]
    assert away == [] and os.path.isdir(app.runs)


def test_a_dropped_zip_becomes_a_run_whose_clips_play_in_step_and_are_seen_closely(app, page, tmp_path):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for side, size in (("ours", 16), ("theirs", 24)):
            clip = Media(torch.rand(1, 5, 3, 16, size, generator=torch.Generator().manual_seed(size)), "video", 8.0)
            film = video.write_mp4(clip, tmp_path / f"{side}.mp4")
            archive.write(film, f"{side}/a red cat-0.mp4")
    tab(page, "Import")
    page.locator("input[type=file][accept*='.zip']").set_input_files(tmp_path / "two.zip")
    page.get_by_text("two.zip").first.wait_for()
    page.get_by_role("button", name="Import", exact=True).click()
    page.get_by_text("is stored").wait_for()
    page.get_by_role("link", name="See it side by side").click()
    page.wait_for_selector("video.wb-clip")
    assert page.locator(".wb-row h4").first.inner_text().startswith("a red cat")
    page.get_by_role("button", name="Pause").click()
    page.get_by_label("Time").fill("0.26")
    page.get_by_role("button", name="One frame on").click()
    assert page.locator(".wb-sync output").inner_text() == "0.38 s · frame 3"
    page.wait_for_function(
        "[...document.querySelectorAll('video.wb-clip')].every(v => Math.abs(v.currentTime - .4375) < .07)"
    )
    page.locator("video.wb-clip").nth(1).click()
    page.locator(".wb-closeup canvas").hover()
    page.wait_for_function(
        "/x \\d+ y \\d+ · .* difference/.test(document.querySelector('.wb-closeup output').innerText)"
    )
    page.keyboard.press("Escape")
    assert not page.locator(".wb-closeup").is_visible()
