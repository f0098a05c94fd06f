"""Uploading an export, by the hub's real client, to a hub of our own on this machine."""

import base64
import json
import multiprocessing
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from workbench.core.errors import BadInput
from workbench.tools import hub as client

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["workbench.tools.hub"])


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as an upload asks of it: repositories are made, files arrive in one commit. `me` is the only
    user."""

    def do_POST(self):
        told = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.server.asked.append(self.path)
        if self.path == "/api/repos/create":
            self.server.run_records.append(json.loads(told))
        if self.server.broken:
            return self.answer(500, {"error": "Internal error"})
        mine = self.headers.get("Authorization") == "Bearer secret"
        self.answer(401 if not mine else 200, self.reply(told) if mine else {"error": "Invalid username or password."})

    def do_GET(self):
        self.answer(200, {"id": "me/mine", "private": self.server.private})

    def reply(self, told: str) -> dict:
        if self.path == "/api/repos/create":
            return {"url": f"{self.server.address}/me/mine"}
        if self.path.endswith("/preupload/main"):
            return {
                "files": [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(told)["files"]
                ]
            }
        if self.path.endswith("/commit/main"):
            for line in map(json.loads, told.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"success": True, "commitUrl": f"{self.server.address}/me/mine/commit/0", "commitOid": "0" * 40}
        return {"errors": [], "warnings": []}  # of the model card's header

    def answer(self, code: int, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address, server.files, server.asked = f"http://127.0.0.1:{server.server_port}", {}, []
    server.run_records, server.private, server.broken = [], False, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A card\n")
    (folder / "pytorch_lora_weights.safetensors").write_bytes(os.urandom(512))
    return folder


def push(hub, folder, token, private=False):
    """In a process of its own: the hub's client looks at the environment once, when it is imported."""
    env = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token, "NO_PROXY": "127.0.0.1"}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    log = folder.with_suffix(".log")
    process = PROCESSES.Process(target=pushed, args=(env, log, folder, private))
    process.start()
    process.join(120)
    return SimpleNamespace(returncode=process.exitcode, stderr=log.read_text())


def pushed(env, log, folder, private):
    assert "huggingface_hub" not in sys.modules
    os.environ.update(env)
    with log.open("w") as said:
        os.dup2(said.fileno(), sys.stderr.fileno())
    try:
        client.push_export(folder, "me/mine", private=private)
    except BadInput as error:
        sys.exit(f"refused: {error}")
    except client.HubUnreachable as error:
        sys.exit(f"unreached: {error}")


def test_an_export_arrives_at_the_hub_byte_for_byte(hub, export):
    done = push(hub, export, "secret")
    assert done.returncode == 0, done.stderr
    assert hub.files == {path.name: path.read_bytes() for path in export.iterdir()}
    assert hub.asked[0] == "/api/repos/create"


def test_a_hub_that_refuses_is_quoted_in_one_sentence_and_the_export_stays(hub, export):
    done = push(hub, export, "wrong")
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("refused")]
    assert done.returncode == 1 and "--push me/mine" in said and f"exported to {export}" in said
    assert not hub.files and (export / "README.md").is_file()


@pytest.mark.parametrize("how", ["refuses connections", "breaks down"])
def test_a_hub_that_cannot_be_reached_is_a_failure_and_no_bad_input(hub, export, how):
    hub.broken = how == "breaks down"
    if how == "refuses connections":
        hub.shutdown(), hub.server_close()
    done = push(hub, export, "secret")
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("unreached")]
    assert "--push me/mine" in said and f"exported to {export}" in said and "Traceback" not in done.stderr


def test_a_private_push_makes_a_private_repository(hub, export):
    hub.private = True
    assert push(hub, export, "secret", private=True).returncode == 0 and hub.files
    assert push(hub, export, "secret").returncode == 0
    assert hub.run_records[0].get("private") or hub.run_records[0].get("visibility") == "private", (
        "as this version of the hub says it"
    )
    assert not {"private", "visibility"} & hub.run_records[1].keys(), (
        "who does not ask gets what the hub's own settings say"
    )


def test_a_private_push_does_not_go_into_a_public_repository(hub, export):
    done = push(hub, export, "secret", private=True)
    assert done.returncode == 1 and "refused: --push me/mine: is there already, and public" in done.stderr
    assert not hub.files
