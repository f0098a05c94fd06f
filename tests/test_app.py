"""The app over HTTP, as the browser drives it: previews on the way, a judged table at the end, one sentence for bad input."""

from __future__ import annotations

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

import app as page


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    _, url, _ = page.build(runs).queue().launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield Client(url, verbose=False), runs


def ask(client, prompts, contestants=("base", "ReNO"), reward="starter_clip", iterations=3):
    job = client.submit(prompts, "starter-image", list(contestants), reward, iterations, 0, api_name="/compare")
    return job.result(timeout=120), job.outputs()


def test_a_comparison_streams_previews_and_ends_in_a_judged_table(client):
    client, runs = client
    (gallery, table, note), outputs = ask(client, "a red circle\ntwo blue squares")
    assert len(gallery) == 4 and len(outputs) > 4
    assert [row[0] for row in table["data"]] == ["base", "ReNO"] and "oracle" in table["headers"]
    assert all(item["image"].endswith(".png") for item in gallery), "pictures must not be re-encoded with loss"
    assert "Run folder" in note and len(list(runs.glob("*/summary.json"))) == 1


@pytest.mark.parametrize(
    ("prompts", "contestants", "sentence"),
    [("  \n", ["base"], "no prompt in it"), ("a red circle", [], "at least one")],
)
def test_bad_input_is_answered_by_one_sentence(client, prompts, contestants, sentence):
    with pytest.raises(AppError, match=sentence):
        ask(client[0], prompts, contestants)
