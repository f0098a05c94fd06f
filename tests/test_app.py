"""The whole app: all tabs on one page, on this machine only, its files private, its calls named."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import diffusers  # noqa: F401  # a pipeline loads without its weights if diffusers comes after a gradio page was closed
import gradio as gr
import httpx
import pytest
from gradio_client import Client
from vote_fixtures import write_run

import app
from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.paths import ROOT
from workbench.feedback import studies
from workbench.ui import role_gate, users
from workbench.ui.tabs import studio, vote

CALLS = {"compare", "stop", "open", "lora", "battle", "vote", "undo", "leaderboard"}
CALLS |= {"runs", "run", "start", "stop_run", "resume", "report", "score", "saliency", "curate", "rewards"}
CALLS |= {"import", "check_import", "import_rewards"}
CALLS |= {"cost", "queue", "queue_job", "save_notes", "delete_run", "restore_run", "remove_binned", "runs_beside"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def page_and_url(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as env:
        env.delenv("GRADIO_TEMP_DIR", raising=False)
        env.setattr(studio.Studio, "_warm_up", lambda self, page: None)  # no test here waits for a model
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


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "evil.example", "Origin": "http://evil.example"},
     {"Origin": "https://evil.example"}, {"Origin": "null"},
     {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}],
)  # fmt: skip
def test_pages_of_other_sites_can_neither_read_nor_upload_nor_ask_whether_they_may(page_and_url, headers):
    """DNS rebinding, cross-site forms, preflights; and no answer tells a browser that it may hand it on."""
    _, url = page_and_url
    ask = {"Access-Control-Request-Method": "POST"}
    answers = [
        httpx.get(f"{url}config", headers=headers),
        httpx.post(f"{url}gradio_api/call/runs", json={"data": []}, headers=headers),
        httpx.post(f"{url}gradio_api/upload", files={"files": ("a.txt", b"0")}, headers=headers),
        httpx.options(f"{url}gradio_api/upload", headers=headers | ask),
    ]
    assert {answer.status_code for answer in answers} == {403}
    assert not any("access-control-allow-origin" in answer.headers for answer in answers)
    own = {"Origin": url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    upload = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.txt", b"0")}, headers=own)
    assert upload.status_code == 200 and len(upload.json()) == 1


def test_pages_that_are_remembered_take_bounded_memory(page_and_url):
    page, url = page_and_url
    assert page.state_holder.capacity == app.MAX_SESSIONS <= 256


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
        users.read_users(tmp_path / "users")


@pytest.fixture(scope="module")
def app_with_logins(tmp_path_factory):
    """(page, address) of an app with two admins and a rater, and a study to vote in."""
    folder = tmp_path_factory.mktemp("logins")
    (folder / "users").write_text("ada:love:lace\nbob:builder\n")
    (folder / "raters").write_text("rita:reads\n")
    run = write_run(folder, names=("zebra", "okapi"), prompts=("a red circle",), pipeline="gnu")
    studies.create_study(folder, {"name": "mine", "runs": (run.path.name,), "is_open": True})
    with pytest.MonkeyPatch.context() as env:
        env.setenv("GRADIO_TEMP_DIR", str(folder / "t"))
        env.setattr(studio.Studio, "_warm_up", lambda self, page: None)
        page, url = app.serve(folder, port=free_port(), auth=folder / "users", raters=folder / "raters")
        yield page, url
        page.close()


@pytest.fixture(scope="module")
def page_with_logins(app_with_logins):
    return app_with_logins[1]


def log_in(url: str, name: str, password: str) -> httpx.Client:
    client = httpx.Client(base_url=url)
    assert client.post("login", data={"username": name, "password": password}).status_code == 200
    return client


def test_whoever_logs_in_votes_under_that_name_and_no_other(page_with_logins, monkeypatch):
    monkeypatch.setattr(vote, "ask_pair", lambda context, rater, run, modality: {"rater": rater})
    client = Client(page_with_logins, auth=("bob", "builder"), verbose=False)
    assert client.predict("mallory", 0, "", api_name="/battle") == {"rater": "bob"}


def test_a_file_that_somebody_uploaded_is_for_nobody_else(page_with_logins):
    ada, bob = log_in(page_with_logins, "ada", "love:lace"), log_in(page_with_logins, "bob", "builder")
    (path,) = ada.post("gradio_api/upload", files={"files": ("secret.txt", b"of ada")}).json()
    assert ada.get(f"gradio_api/file={path}").text == "of ada"
    folder, name = os.path.split(path)
    for text in (path, f"{folder}/../{os.path.basename(folder)}/{name}", f"//{path}"):
        assert bob.get(f"gradio_api/file={text}").status_code == 403
        for file in (text, {"path": text}, {"path": "", "url": f"{page_with_logins}gradio_api/file={text}"}):
            for call, more in (("call/score", {}), ("queue/join", {"fn_index": 0}), ("run/predict", {})):
                asked = {"data": [[file]], "session_hash": "b"} | more
                assert bob.post(f"gradio_api/{call}", json=asked).status_code == 403, call
    twice = f'{{"data": [], "data": ["{path}"]}}'
    assert (
        bob.post("gradio_api/call/score", content=twice, headers={"Content-Type": "application/json"}).status_code
        == 400
    )
    assert ada.post("gradio_api/call/open", json={"data": [path]}).status_code == 200
    (same,) = bob.post("gradio_api/upload", files={"files": ("secret.txt", b"of ada")}).json()
    assert same == path and bob.get(f"gradio_api/file={path}").status_code == 200, "what one has oneself is no secret"


def list_addresses(page, routes, prefix: str = "") -> set[tuple[str, str]]:
    """(method, path) of every route of an app and of what is mounted in it, with something for each parameter."""
    addresses = set()
    for route in routes:
        path = re.sub(r"{[^}]*}", "x", prefix + getattr(route, "path", ""))
        if inner := getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None):
            addresses |= list_addresses(page, inner, path)
        else:
            addresses |= {(method, path) for method in getattr(route, "methods", None) or ("GET",)}
    return addresses


def test_a_rater_is_refused_every_route_every_call_and_every_file_of_the_app(app_with_logins):
    """By one gate that lets through what is named and nothing else; what gradio adds some day is refused too."""
    page, url = app_with_logins
    rita, open_rater = log_in(url, "rita", "reads"), httpx.Client(base_url=url)
    assert open_rater.post("vote/mine/enter", json={"name": "Olga"}).status_code == 200
    addresses = {a for a in list_addresses(page, page.app.routes) if not role_gate.FOR_ALL.fullmatch(a[1])}
    assert len(addresses) > 40 and {("GET", "/config"), ("POST", "/gradio_api/queue/join")} <= addresses
    for method, path in sorted(addresses):
        answer = rita.request(method, path.lstrip("/") or "/")
        assert answer.status_code == (303 if path == "/" else 403), (method, path)
        assert not role_gate.LOGIN_PAGE.fullmatch(path) or path == "/" or answer.status_code == 403
        if not (role_gate.LOGIN_PAGE.fullmatch(path) and method in ("GET", "HEAD")):
            assert open_rater.request(method, path.lstrip("/")).status_code == 403, (method, path)
    assert rita.get("/").headers["location"].endswith("vote/")
    secret = next(page.app.get_blocks().allowed_paths.__iter__())
    for number, call in enumerate(page.config["dependencies"]):
        asked = {"data": [], "fn_index": number, "session_hash": "r"}
        names = [f"call/{call['api_name']}", f"call/v2/{call['api_name']}", f"run/{call['api_name']}", "queue/join"]
        for name in (
            *names,
            "run/predict",
            "queue/data?session_hash=r",
            f"file={secret}",
            "upload",
            "info",
            "heartbeat/r",
        ):
            assert {rita.post(f"gradio_api/{name}", json=asked).status_code, rita.get(f"gradio_api/{name}").status_code,
                    open_rater.post(f"gradio_api/{name}", json=asked).status_code} == {403}, name  # fmt: skip
        if number > 8:  # all go by these addresses; a few suffice
            break
    for name in page.config["dependencies"]:
        assert rita.post(f"gradio_api/call/{name['api_name']}", json={"data": []}).status_code == 403
    assert httpx.get(f"{url}gradio_api/info").status_code == 401, "and a stranger is told to log in"
    assert httpx.get(url).status_code == 200, "where the login is"
    assert log_in(url, "ada", "love:lace").get("config").status_code == 200, "admins come in"


def test_after_a_logout_the_next_person_is_another_rater(app_with_logins):
    _, url = app_with_logins
    client = httpx.Client(base_url=url)
    assert client.post("vote/mine/state", json={}).json()["enter"] == "name"
    client.post("vote/mine/enter", json={"name": "Ann"})
    assert client.post("vote/mine/state", json={}).json()["rater"] == "Ann"
    client.post("login", data={"username": "rita", "password": "reads"})
    assert client.post("vote/mine/state", json={}).json()["rater"] == "rita", "a login counts from then on"
    client.get("logout")
    assert client.post("vote/mine/state", json={}).status_code == 401
    client.post("vote/mine/login", json={"name": "rita", "password": "reads"})
    assert client.post("vote/mine/state", json={}).json()["rater"] == "rita", "the study's own page logs in too"
    token = {name: value for name, value in client.cookies.items() if name.startswith(role_gate.COOKIE)}
    client.post("vote/mine/leave", json={})
    assert client.post("vote/mine/state", json={}).status_code == 401
    assert httpx.post(f"{url}vote/mine/state", json={}, cookies=token).status_code == 401, "nor does its cookie open it"
    wrong = client.post("vote/mine/login", json={"name": "rita", "password": "writes"})
    assert wrong.status_code == 400 and "reads" not in wrong.text


def test_with_a_file_of_users_nobody_else_comes_in_nor_guesses_on(page_with_logins):
    url = page_with_logins
    assert httpx.get(f"{url}config").status_code == 401
    assert log_in(url, "ada", "love:lace").get("config").status_code == 200
    wrong = [httpx.post(f"{url}login", data={"username": "ada", "password": f"{n}"}) for n in range(7)]
    assert [reply.status_code for reply in wrong] == [400] * 5 + [429] * 2
    assert "try again in" in wrong[-1].text and int(wrong[-1].headers["retry-after"]) > 0


def test_raters_need_admins_and_nobody_is_both(tmp_path):
    (tmp_path / "a").write_text("ada:x\n"), (tmp_path / "r").write_text("ada:y\n")
    with pytest.raises(BadInput, match="roles need admins"):
        app.serve(tmp_path, raters=tmp_path / "r")
    with pytest.raises(BadInput, match="'ada' is an admin in --auth as well"):
        app.serve(tmp_path, auth=tmp_path / "a", raters=tmp_path / "r")


def test_another_app_py_that_comes_first_is_told_and_not_served(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "app", SimpleNamespace(__file__="/somewhere/app.py"))
    assert cli.main(["app"]) == 2
    assert "another module called app comes first (/somewhere/app.py)" in capsys.readouterr().err


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
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert process.stdout.strip() == "[]", process.stderr


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
