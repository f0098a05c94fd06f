"""The app: generate, align, compare, vote, and turn votes into rewards, in a browser on this machine.

    make app                      http://127.0.0.1:7860
    workbench app --port 8000     the same, elsewhere

Each tab is a file in workbench/ui. What a tab does is a run, a vote or a score like any other, in the folder of runs.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from workbench.ui import theme
from workbench.ui.context import Place  # noqa: E402
from workbench.ui.jobs import Desk  # noqa: E402
from workbench.ui.tabs import (
    leaderboard,
    rewards,
    runs,
    studio,
    vote,  # noqa: E402
)

TABS = {"Studio": studio, "Blind vote": vote, "Leaderboard": leaderboard, "Runs": runs, "Rewards": rewards}
WORK = (  # torch comes with these
    "workbench.ui.studio_comparison",
    "workbench.ui.run_processes",
    "workbench.ui.lora_uploads",
    "workbench.ui.widgets.comparison_view",
    "workbench.ui.widgets.run_view",
    "workbench.ui.widgets.reward_scores",
    "workbench.ui.widgets.standings",
    "workbench.feedback.blinding",
    "workbench.feedback.pairing",
    "workbench.feedback.votes",
)
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
LARGEST = "200mb"  # of an uploaded file
EXPIRY = 86_400  # seconds that a temporary file is kept
PREFIX = "workbench-app-"
HEADER = """<header class="wb-head"><h1>Media Alignment Workbench</h1>
<p class="wb-note">Any pipeline, any reward, any way to align — and judges that nobody optimised.</p></header>"""


def build(place: Place) -> gr.Blocks:
    """The page. What it shows is copied to `place.temp` first; no path comes from a user."""
    with gr.Blocks(title="Media Alignment Workbench", delete_cache=(3600, EXPIRY)) as page:
        gr.HTML(HEADER)
        with gr.Tabs():
            for name, tab in TABS.items():
                with gr.Tab(name, id=name.split()[-1].lower()):
                    tab.build(page, place)
    return page


class Gate:
    """ASGI: whoever asks for something waits until all that the tabs work with is imported.

    One thread imports it, after the page stands. Where many do it at once, Python breaks their deadlocks by handing out
    modules that are half imported.
    """

    def __init__(self, app, ready: threading.Event):
        self.app, self.ready = app, ready

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and not self.ready.is_set():
            await asyncio.to_thread(self.ready.wait)
        await self.app(scope, receive, send)


def wake(ready: threading.Event) -> None:
    """Import what the tabs work with. What can't be imported says so to whoever asks for it."""
    try:
        for name in WORK:
            importlib.import_module(name)
    finally:
        ready.set()


def temporary() -> Path:
    """A folder that this user alone can read, which gradio's own temporary files share; those that earlier apps left
    behind are removed, and files that grow old."""
    home = Path(tempfile.gettempdir())
    for old in home.glob(f"{PREFIX}*"):
        if time.time() - old.stat().st_mtime > EXPIRY:
            shutil.rmtree(old, ignore_errors=True)  # another user's stays
    made = Path(tempfile.mkdtemp(prefix=PREFIX))  # mode 0700
    os.environ["GRADIO_TEMP_DIR"] = str(made / "served")
    own = made / "own"
    own.mkdir()
    threading.Thread(target=_sweep, args=(made,), name="sweep", daemon=True).start()
    return own


def _sweep(folder: Path) -> None:
    while folder.is_dir():
        os.utime(folder)  # this app lives
        expire(folder)
        time.sleep(3600)


def expire(folder: Path) -> None:
    """Remove the files in it that are old."""
    for file in folder.rglob("*"):
        if file.is_file() and time.time() - file.stat().st_mtime > EXPIRY:
            file.unlink(missing_ok=True)


def refused(sentence: str) -> Exception:
    from workbench.core.types import BadInput  # and torch with it: not before the page stands

    return BadInput(sentence)


def users(file: Path) -> list[tuple[str, str]]:
    """The people who may enter: a line `name:password` each. Raises BadInput."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise refused(f"--auth: {file} can't be read; give a text file with name:password on each line") from None
    pairs = [line.split(":", 1) for line in lines]
    if not pairs or any(len(pair) < 2 or not all(pair) for pair in pairs):
        raise refused(f"--auth: {file} must hold name:password on each line, both not empty")
    return [(name, password) for name, password in pairs]


def serve(
    runs: Path, port: int = 7860, host: str = "127.0.0.1", auth: Path | None = None, share: bool = False
) -> tuple[gr.Blocks, str]:
    """Serve the page in the background; the blocks, and the address.

    Raises BadInput when it would be open to others without anybody having to log in, or when the port is taken.
    """
    if (share or host not in LOOPBACK) and auth is None:
        what = "--share" if share else f"--host {host}"
        raise refused(f"{what} opens the app to others: give --auth FILE, with name:password on each line")
    place = Place(runs=Path(runs).absolute(), temp=temporary(), desk=Desk(), ready=threading.Event())
    page = build(place)
    page.queue(max_size=256)
    try:
        _, url, shared = page.launch(
            server_name=host, server_port=port, auth=users(auth) if auth else None, share=share, prevent_thread_lock=True,
            theme=theme.theme(), css=theme.CSS, head=theme.HEAD, quiet=True, show_error=False, max_file_size=LARGEST,
            allowed_paths=[str(place.temp)], footer_links=["api"], run_history=False, enable_monitoring=False,
            ssr_mode=False, mcp_server=False, pwa=False, app_kwargs={"middleware": [Middleware(Gate, ready=place.ready)]},
        )  # fmt: skip
    except OSError:
        raise refused(f"--port: {port} is taken on this machine; give another") from None
    threading.Thread(target=wake, args=(place.ready,), name="wake", daemon=True).start()
    print(f"Media Alignment Workbench: {shared or url}", flush=True)
    return page, url


if __name__ == "__main__":
    serve(Path("runs"))[0].block_thread()
