"""A page with one tab of the app, as a browser or a program meets it."""

from __future__ import annotations

import gradio as gr
from gradio_client import Client

from workbench.ui.context import AppContext
from workbench.ui.jobs import JobQueue


def launch_tab(build, runs, temp):
    """(client, place) of a page that holds the one tab."""
    temp.mkdir(parents=True, exist_ok=True)
    context = AppContext(runs, temp, JobQueue())
    with gr.Blocks() as page:
        build(page, context)
    _, url, _ = page.queue().launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", allowed_paths=[str(temp)], ssr_mode=False,
        max_file_size="80mb",
    )  # fmt: skip
    return Client(url, verbose=False), context
