"""The app: generate, align, compare, vote, and turn votes into rewards, in a browser on this machine.

    make app                      http://127.0.0.1:7860
    workbench app --port 8000     the same, elsewhere

Each tab is a file in workbench/ui/tabs. What a tab does is a run, a vote or a score like any other, in the folder of
runs.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402
from starlette.types import ASGIApp, Receive, Scope, Send  # noqa: E402

from workbench.core.errors import BadInput  # noqa: E402
from workbench.core.io.parsing import read_text, split_lines
from workbench.ui import theme  # noqa: E402
from workbench.ui.context import AppContext  # noqa: E402
from workbench.ui.jobs import JobQueue  # noqa: E402
from workbench.ui.site_guard import LOOPBACK, AllowedHosts, LoginThrottle, guard_site, read_host  # noqa: E402
from workbench.ui.tabs import leaderboard, rewards, runs, studio, vote  # noqa: E402
from workbench.ui.upload_owners import UploadOwners  # noqa: E402

TABS = {"Studio": studio, "Blind vote": vote, "Leaderboard": leaderboard, "Runs": runs, "Rewards": rewards}
WORK_MODULES = (  # torch comes with these
    "workbench.ui.studio_comparison",
    "workbench.ui.run_processes",
    "workbench.ui.lora_uploads",
    "workbench.ui.widgets.live_view",
    "workbench.ui.widgets.result_view",
    "workbench.ui.widgets.run_view",
    "workbench.ui.widgets.reward_scores",
    "workbench.ui.widgets.standings",
    "workbench.feedback.blinding",
    "workbench.feedback.pairing",
    "workbench.feedback.votes",
)
MAX_UPLOAD = "200mb"  # of an uploaded file
EXPIRY = 86_400  # seconds that a temporary file is kept
MAX_SESSIONS = 128  # open pages that are remembered; gradio keeps the settings of all components, 0.4 MB, for each
PREFIX = "workbench-app-"
HEADER = """<header class="wb-head"><h1>Media Alignment Workbench</h1>
<p class="wb-note">Any pipeline, any reward, any way to align — and judges that nobody optimised.</p></header>"""


def build_page(context: AppContext) -> gr.Blocks:
    """The page. What it shows is copied to `context.temp` first; no path comes from a user."""
    with gr.Blocks(title="Media Alignment Workbench", delete_cache=(3600, EXPIRY)) as page:
        gr.HTML(HEADER)
        with gr.Tabs():
            for name, tab in TABS.items():
                with gr.Tab(name, id=name.split()[-1].lower()):
                    tab.build_tab(page, context)
    return page


class ImportGate:
    """ASGI: whoever asks for something waits until all that the tabs work with is imported.

    One thread imports it, after the page stands. Where many do it at once, Python breaks their deadlocks by handing out
    modules that are half imported.
    """

    def __init__(self, app: ASGIApp, imports_done: threading.Event):
        self.app, self.imports_done = app, imports_done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and not self.imports_done.is_set():
            await asyncio.to_thread(self.imports_done.wait)
        await self.app(scope, receive, send)


def import_work_modules(imports_done: threading.Event) -> None:
    """Import what the tabs work with. What can't be imported says so to whoever asks for it."""
    try:
        for name in WORK_MODULES:
            importlib.import_module(name)
    finally:
        imports_done.set()


def make_temp_folder() -> Path:
    """A folder that this user alone can read, which gradio's own temporary files share; those that earlier apps left
    behind are removed, and files that grow old."""
    system_temp = Path(tempfile.gettempdir())
    for stale in system_temp.glob(f"{PREFIX}*"):
        if time.time() - stale.stat().st_mtime > EXPIRY:
            shutil.rmtree(stale, ignore_errors=True)  # another user's stays
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # mode 0700
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "served")
    private = folder / "own"
    private.mkdir()
    threading.Thread(target=_sweep_hourly, args=(folder,), name="sweep", daemon=True).start()
    return private


def _sweep_hourly(folder: Path) -> None:
    while folder.is_dir():
        os.utime(folder)  # this app lives
        remove_old_files(folder)
        time.sleep(3600)


def remove_old_files(folder: Path) -> None:
    """Remove the files in it that are old."""
    for file in folder.rglob("*"):
        if file.is_file() and time.time() - file.stat().st_mtime > EXPIRY:
            file.unlink(missing_ok=True)


def read_users(file: Path) -> list[tuple[str, str]]:
    """The people who may enter: a line `name:password` each. Raises BadInput."""
    try:
        lines = [line for line in split_lines(read_text(file)) if line.strip()]
    except BadInput as error:
        raise BadInput(f"--auth: {error}; give a text file with name:password on each line") from None
    pairs = [line.split(":", 1) for line in lines]
    if not pairs or any(len(pair) < 2 or not all(pair) for pair in pairs):
        raise BadInput(f"--auth: {file} must hold name:password on each line, both not empty")
    return [(name, password) for name, password in pairs]


def serve(
    runs: Path,
    port: int = 7860,
    host: str = "127.0.0.1",
    auth: Path | None = None,
    share: bool = False,
    allowed_hosts: Sequence[str] = (),
) -> tuple[gr.Blocks, str]:
    """Serve the page in the background; the blocks, and the address. `allowed_hosts`: names besides its own by which it
    may be called, such as that of a proxy.

    Raises BadInput when it would be open to others without anybody having to log in, or when the port is taken.
    """
    if (share or host not in LOOPBACK) and auth is None:
        option = "--share" if share else f"--host {host}"
        raise BadInput(f"{option} opens the app to others: give --auth FILE, with name:password on each line")
    hosts = AllowedHosts(host, allowed_hosts)
    context = AppContext(
        runs=Path(runs).absolute(), temp=make_temp_folder(), jobs=JobQueue(), imports_done=threading.Event()
    )
    page = build_page(context)
    page.queue(max_size=256)
    try:
        _, url, public_url = page.launch(
            server_name=host, server_port=port, auth=read_users(auth) if auth else None, share=share,
            prevent_thread_lock=True, theme=theme.make_theme(), css=theme.CSS, head=theme.HEAD, quiet=True,
            show_error=False, max_file_size=MAX_UPLOAD, allowed_paths=[str(context.temp)], footer_links=["api"],
            run_history=False, enable_monitoring=False, ssr_mode=False, mcp_server=False, pwa=False,
            state_session_capacity=MAX_SESSIONS,
            app_kwargs={
                "lifespan": guard_site(hosts),
                "middleware": [
                    *([Middleware(LoginThrottle), Middleware(UploadOwners)] if auth else []),
                    Middleware(ImportGate, imports_done=context.imports_done),
                ],
            },
        )  # fmt: skip
    except OSError:
        raise BadInput(f"--port: {port} is taken on this machine; give another") from None
    if public_url:
        hosts.named.add(read_host(public_url.partition("://")[2]))
    threading.Thread(target=import_work_modules, args=(context.imports_done,), name="imports", daemon=True).start()
    print(f"Media Alignment Workbench: {public_url or url}", flush=True)
    return page, url


if __name__ == "__main__":
    serve(Path("runs"))[0].block_thread()
