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
from workbench.ui import theme  # noqa: E402
from workbench.ui.context import AppContext  # noqa: E402
from workbench.ui.jobs import JobQueue  # noqa: E402
from workbench.ui.role_gate import RoleGate  # noqa: E402
from workbench.ui.site_guard import LOOPBACK, AllowedHosts, LoginThrottle, guard_site, read_host  # noqa: E402
from workbench.ui.study_pages import add_studies  # noqa: E402
from workbench.ui.tabs import leaderboard, media_import, rewards, runs, studies, studio, vote  # noqa: E402
from workbench.ui.upload_owners import UploadOwners  # noqa: E402
from workbench.ui.users import read_roles  # noqa: E402
from workbench.ui.widgets import first_steps  # noqa: E402

TABS = {
    "Studio": studio, "Import": media_import, "Blind vote": vote, "Studies": studies, "Leaderboard": leaderboard,
    "Runs": runs, "Rewards": rewards,
}  # fmt: skip
WORK_MODULES = (  # torch comes with these
    "workbench.ui.studio_comparison",
    "workbench.ui.import_uploads",
    "workbench.ui.run_processes",
    "workbench.ui.run_queue",
    "workbench.ui.lora_uploads",
    "workbench.ui.widgets.live_view",
    "workbench.ui.widgets.result_view",
    "workbench.ui.widgets.run_view",
    "workbench.ui.widgets.reward_scores",
    "workbench.ui.widgets.standings",
    "workbench.ui.widgets.study_view",
    "workbench.feedback.blinding",
    "workbench.feedback.pairing",
    "workbench.feedback.votes",
    "workbench.feedback.study_media",
    "workbench.feedback.study_results",
    "workbench.feedback.raters",
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
        tabs = gr.Tabs(render=False)
        first_steps.draw_first_steps(page, context, tabs)
        tabs.render()
        with tabs:
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


def prepare_work(context: AppContext) -> None:
    """Import what the tabs work with; then go on with the queue of the server that was here before."""
    import_work_modules(context.imports_done)
    from workbench.ui import run_queue

    run_queue.restore_queue(context)


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


def serve(
    runs: Path,
    port: int = 7860,
    host: str = "127.0.0.1",
    auth: Path | None = None,
    share: bool = False,
    allowed_hosts: Sequence[str] = (),
    raters: Path | None = None,
) -> tuple[gr.Blocks, str]:
    """Serve the page in the background; the blocks, and the address. `allowed_hosts`: names besides its own by which it
    may be called, such as that of a proxy. `auth`, `raters`: files of admins, and of people who log in to vote only.

    Raises BadInput when it would be open to others without anybody having to log in, or when the port is taken.
    """
    if (share or host not in LOOPBACK) and auth is None:
        option = "--share" if share else f"--host {host}"
        raise BadInput(f"{option} opens the app to others: give --auth FILE, with name:password on each line")
    hosts, users = AllowedHosts(host, allowed_hosts), read_roles(auth, raters)
    context = AppContext(
        runs=Path(runs).absolute(), temp=make_temp_folder(), jobs=JobQueue(), imports_done=threading.Event()
    )
    page = build_page(context)
    page.queue(max_size=256)
    try:
        _, url, public_url = page.launch(
            server_name=host, server_port=port, auth=[*users.passwords.items()] or None, share=share,
            prevent_thread_lock=True, theme=theme.make_theme(), css=theme.CSS, head=theme.HEAD, quiet=True,
            show_error=False, max_file_size=MAX_UPLOAD, allowed_paths=[str(context.temp)], footer_links=["api"],
            run_history=False, enable_monitoring=False, ssr_mode=False, mcp_server=False, pwa=False,
            state_session_capacity=MAX_SESSIONS,
            app_kwargs={
                "lifespan": add_studies(context, users, guard_site(hosts)),
                "middleware": [
                    *([Middleware(LoginThrottle), Middleware(RoleGate, users=users), Middleware(UploadOwners)]
                      if auth else []),
                    Middleware(ImportGate, imports_done=context.imports_done),
                ],
            },
        )  # fmt: skip
    except OSError:
        raise BadInput(f"--port: {port} is taken on this machine; give another") from None
    if public_url:
        hosts.named.add(read_host(public_url.partition("://")[2]))
    threading.Thread(target=prepare_work, args=(context,), name="imports", daemon=True).start()
    print(f"Media Alignment Workbench: {public_url or url}", flush=True)
    return page, url


if __name__ == "__main__":
    serve(Path("runs"))[0].block_thread()
