"""The whole app: all tabs on one page, on this machine only, its files private, its calls named."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import diffusers  # noqa: F401  # a pipeline loads without its weights if diffusers comes after a gradio page was closed
import gradio as gr
import httpx
import pytest
from gradio_client import Client

import app
from workbench.core.errors import BadInput
from workbench.core.paths import ROOT

CALLS = {"compare", "stop", "open", "lora", "battle", "vote", "undo", "leaderboard"}
CALLS |= {"runs", "run", "start", "stop_run", "resume", "report", "score", "saliency", "curate", "rewards"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def page_and_url(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as env:
        env.delenv("GRADIO_TEMP_DIR", raising=False)
        page, url = app.serve(runs, port=free_port())
        yield page, url
        page.close()


def test_the_page_has_every_tab_and_programs_find_every_call(page_and_url):
    _, url = page_and_url
    endpoints = Client(url, verbose=False).view_api(return_format="dict")["named_endpoints"]
    assert {name.strip("/") for name in endpoints} == CALLS
    config = httpx.get(f"{url}config").json()
    assert [c["props"]["label"] for c in config["components"] if c["type"] == "tabitem"] == list(app.TABS)
    assert all(call["description"] for call in endpoints.values()), "what a call does is told where it is listed"


def test_only_files_that_were_meant_for_the_page_are_served(page_and_url, tmp_path):
    page, url = page_and_url
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (ROOT / "pyproject.toml", "/etc/passwd", secret, "../../../../etc/passwd"):
        assert httpx.get(f"{url}gradio_api/file={path}").status_code in (403, 404), path
    (private,) = map(os.path.abspath, page.allowed_paths)
    assert stat.S_IMODE(os.stat(os.path.dirname(private)).st_mode) == 0o700


def test_an_oversized_upload_is_refused(page_and_url, monkeypatch):
    _, url = page_and_url
    monkeypatch.setattr(page_and_url[0], "max_file_size", 1000)
    assert httpx.post(f"{url}gradio_api/upload", files={"files": ("a.png", b"0" * 2000)}).status_code == 413


@pytest.mark.parametrize("how", [{"host": "0.0.0.0"}, {"share": True}])
def test_it_is_not_opened_to_others_without_a_login(tmp_path, how):
    with pytest.raises(BadInput, match="--auth FILE"):
        app.serve(tmp_path, **how)


@pytest.mark.parametrize("text", ["", "ada", "ada:", ":secret"])
def test_a_file_of_users_that_lets_in_nobody_or_anybody_is_refused(tmp_path, text):
    (tmp_path / "users").write_text(text)
    with pytest.raises(BadInput, match="name:password"):
        app.read_users(tmp_path / "users")


def test_with_a_file_of_users_nobody_else_comes_in(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "t"))
    (tmp_path / "users").write_text("ada:love:lace\n")
    page, url = app.serve(tmp_path, port=free_port(), auth=tmp_path / "users")
    try:
        assert httpx.get(f"{url}config").status_code == 401
        login = httpx.post(f"{url}login", data={"username": "ada", "password": "love:lace"})
        assert httpx.get(f"{url}config", cookies=login.cookies).status_code == 200
        assert httpx.post(f"{url}login", data={"username": "ada", "password": "love"}).status_code == 400
    finally:
        page.close()


def test_a_taken_port_is_told_in_one_sentence(page_and_url, tmp_path):
    with pytest.raises(BadInput, match="is taken"):
        app.serve(tmp_path, port=int(page_and_url[1].rstrip("/").rsplit(":", 1)[1]))


def test_old_temporary_files_are_swept_and_new_ones_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(app.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    stale = tmp_path / f"{app.PREFIX}dead"
    stale.mkdir()
    os.utime(stale, (0, 0))
    private = app.make_temp_folder()
    assert not stale.exists() and private.is_dir() and os.environ["GRADIO_TEMP_DIR"].startswith(str(private.parent))
    old, new = private / "old.png", private / "new.png"
    for file in (old, new):
        file.write_bytes(b"x")
    os.utime(old, (0, 0))
    app.remove_old_files(private.parent)
    assert not old.exists() and new.exists()


def test_the_page_stands_before_torch_is_imported(tmp_path):
    code = (
        "import sys, app; from pathlib import Path; from workbench.ui.jobs import JobQueue; from workbench.ui.context "
        f"import AppContext\napp.build_page(AppContext(Path({str(tmp_path)!r}), Path({str(tmp_path)!r}), JobQueue())); "
        "print('torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert process.stdout.strip() == "False", process.stderr


def test_many_who_come_at_the_first_moment_wait_for_the_imports_and_are_all_answered(tmp_path):
    """Imports that race each other hand out half modules; one thread makes them, and calls wait at the gate."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", "app", "--port", str(port), "--runs", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        process.stdout.readline()

        def call(n: int) -> str:
            name, data = [("battle", ["ada", 0, ""]), ("leaderboard", [0, "", ""]), ("open", ["nothing"])][n % 3]
            api = f"http://127.0.0.1:{port}/gradio_api/call/{name}"
            event = httpx.post(api, json={"data": data, "session_hash": str(n)}, timeout=120).json()["event_id"]
            return httpx.get(f"{api}/{event}", timeout=120).text

        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(call, range(24)))
    finally:
        process.kill()
        process.wait()
    assert [a for n, a in enumerate(answers) if n % 3 < 2 and "event: complete" not in a] == []
    assert all("there is no comparison of this name" in a for n, a in enumerate(answers) if n % 3 == 2), answers[2]


def test_tabs_import_widgets_and_widgets_know_no_tab():
    files = [*(ROOT / "workbench" / "ui").glob("*.py"), *(ROOT / "workbench" / "ui" / "widgets").glob("*.py")]
    assert [file.name for file in files if "ui.tabs" in file.read_text(encoding="utf-8")] == []


def test_gradio_is_new_enough_for_what_the_page_relies_on():
    assert tuple(map(int, gr.__version__.split(".")[:2])) >= (6, 25)
