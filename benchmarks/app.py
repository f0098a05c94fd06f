"""How long a person waits for the app, in a real browser, and what it looks like.

    python benchmarks/app.py                     # start, first preview, stop: three rounds, each a new process
    python benchmarks/app.py --pictures docs/app # and its pictures, light, dark and on a phone

Waiting begins at the click, or at the command, and ends when it is drawn. The baseline of the start is the import of
gradio alone, measured in the same rounds: no page of gradio's stands earlier.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DESK, PHONE = {"width": 1440, "height": 1000}, {"width": 390, "height": 844}
ASKED = "Which of the two shows what the words ask for?"
VOTES = 150  # cast before the leaderboard's picture is taken


@contextmanager
def app(runs: Path) -> Iterator[tuple[str, float]]:
    """(its address, seconds from the command until it says so)."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    began = time.perf_counter()
    command = [sys.executable, "-m", "workbench.cli", "app", "--port", str(port), "--runs", str(runs)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    process.stdout.readline()
    try:
        yield f"http://127.0.0.1:{port}/", time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def importing() -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "import gradio"], check=True, env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}
    )
    return time.perf_counter() - began


def press(page: Page, name: str) -> float:
    page.get_by_role("button", name=name, exact=True).click()
    return time.perf_counter()


def compare(page: Page) -> float:
    """Seconds from the click to the first preview."""
    began = press(page, "Compare")
    page.wait_for_selector("#wb-stage .wb-card img")
    return time.perf_counter() - began


def result(page: Page) -> None:
    page.wait_for_selector("#wb-stage table")


def waits(browser, runs: Path) -> dict[str, float]:
    found = {"gradio alone, imported": importing()}
    with app(runs) as (url, found["command to address"]):
        page = browser.new_page(viewport=DESK)
        page.set_default_timeout(120_000)
        began = time.perf_counter()
        page.goto(url)
        page.wait_for_function(
            "document.querySelector('#wb-compare') && document.querySelector('textarea')?.value.includes('circle')"
        )
        found["address to a page that can be used"] = time.perf_counter() - began
        found["click to first preview, at once"] = compare(page)
        result(page)
        found["click to first preview"] = compare(page)
        began = press(page, "Stop")
        page.wait_for_function(
            "document.querySelector('#wb-status').innerText.includes('Stopping') || "
            "document.querySelector('#wb-stage table')"
        )
        found["stop to answer"] = time.perf_counter() - began
        result(page)
        found["stop to the result that was kept"] = time.perf_counter() - began
        began = press(page, "Compare")
        page.wait_for_selector("#wb-stage .wb-card img")
        result(page)
        found["click to result: 4 prompts, base, best of 21, ReNO of 20 steps"] = time.perf_counter() - began
        page.close()
    return found


def people(runs: Path) -> None:
    """Votes of three people who see what the oracle sees, and else toss a coin."""
    sys.path.insert(0, str(ROOT))
    from workbench.feedback import pairing, votes
    from workbench.runs import store

    for n in range(VOTES):
        found = pairing.ask_next_pair(runs, f"person {n % 3}", lambda pair: pair)
        if found is None:
            return
        battle, pair, _ = found
        with store.open_index(runs) as db:
            seen = dict(db.execute("SELECT artefact, value FROM scores WHERE reward = 'oracle'").fetchall())
        gap = (seen.get(pair.left.artefact) or 0) - (seen.get(pair.right.artefact) or 0)
        votes.record_vote(
            runs, battle, "left" if gap > 0 else "right" if gap < 0 else "tie", f"picture-{n:08d}", dwell=(2, 2)
        )


def zip_contestants(run: Path) -> Path:
    """results.zip with two contestants of a run, a folder each."""
    path = run.parent / "results.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("base", "reno"):
            for file in sorted((run / "media" / name).iterdir()):
                archive.write(file, f"{name}/{file.name}")
    return path


def pictures(browser, runs: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    def shoot(page: Page, name: str, whole: bool = False) -> None:
        page.wait_for_timeout(1500 if name != "live" else 0)
        page.screenshot(path=folder / f"{name}.png", full_page=whole)
        small = [
            "-c",
            f"from PIL import Image as I; p={str(folder / name)!r}+'.png'; "
            "I.open(p).convert('P', palette=1, colors=256).save(p, optimize=True)",
        ]
        subprocess.run([sys.executable, *small], check=True)

    with app(runs) as (url, _):
        page = browser.new_page(viewport=DESK)
        page.set_default_timeout(120_000)
        page.goto(url)
        page.wait_for_selector("#wb-compare")
        compare(page)
        shoot(page, "live")
        result(page)
        shoot(page, "studio")
        subprocess.run(
            [
                sys.executable,
                "-m",
                "workbench.cli",
                "run",
                "demo",
                "limit=24",
                "samples_per_prompt=1",
                "--runs",
                str(runs),
            ],
            check=True,
            cwd=ROOT,
        )
        people(runs)
        run = max(runs.glob("*-demo"))
        for name in ("Import", "Blind vote", "Leaderboard", "Runs", "Rewards"):
            page.get_by_role("tab", name=name, exact=True).click()
            if name == "Import":
                panel = page.locator("[role=tabpanel]:visible")
                panel.locator("input[type=file][accept*='.zip']").set_input_files(zip_contestants(run))
                page.get_by_text("results.zip").first.wait_for()
                page.get_by_role("button", name="Import", exact=True).click()
                page.get_by_text("is stored").wait_for()
            if name == "Blind vote":
                page.wait_for_selector("[data-choice=left]:not([disabled])")
            if name == "Runs":
                page.wait_for_timeout(1500)
                page.locator("[data-run]").first.click()
            if name == "Rewards":
                panel = page.locator("[role=tabpanel]:visible")
                panel.locator("input[type=file]").first.set_input_files(sorted(runs.glob("*/media/reno*/*.png"))[:2])
                panel.get_by_role("button", name="Score", exact=True).click()
                page.wait_for_timeout(12_000)
            shoot(page, name.split()[-1].lower())
        page.close()
        made = ["study", "new", "shapes", "--runs", str(run), "--open", "--instructions", ASKED]
        subprocess.run([sys.executable, "-m", "workbench.cli", *made], check=True, cwd=ROOT)
        page = browser.new_page(viewport=DESK)
        page.goto(f"{url}vote/shapes")
        page.locator("[name=name]").fill("Ann")
        page.get_by_role("button", name="Begin").click()
        page.get_by_role("button", name="Vote", exact=True).click()
        shoot(page, "study")
        page.close()
        for name, how in {"dark": {"viewport": DESK, "color_scheme": "dark"}, "phone": {"viewport": PHONE}}.items():
            page = browser.new_page(**how)
            page.goto(f"{url}?run={run.name}")
            page.wait_for_selector("#wb-stage table", timeout=120_000)
            if name == "phone":
                page.evaluate("document.querySelector('#wb-stage').scrollIntoView()")
            shoot(page, name)
            page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="take the pictures instead of the times")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        if args.pictures:
            return pictures(browser, Path(home), args.pictures)
        rounds = [waits(browser, Path(home) / str(n)) for n in range(args.rounds)]
    for name in rounds[0]:
        seconds = [r[name] for r in rounds]
        print(f"{statistics.median(seconds):7.2f} s  [{min(seconds):.2f}, {max(seconds):.2f}]  {name}")


if __name__ == "__main__":
    main()
