"""What the handlers of several tabs share: when a tab is opened, and how a refusal reaches the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio as gr
from gradio.context import get_render_context

UNLIMITED = {"concurrency_limit": None, "show_progress": "hidden"}  # who votes or reads waits for nobody's models


def on_open(page: gr.Blocks) -> Callable:
    """The event to listen to: the tab that is being drawn is chosen, or the page loads where there are no tabs."""
    block = get_render_context()
    return block.select if isinstance(block, gr.Tab) else page.load


@contextmanager
def bad_input_shown() -> Iterator[None]:
    """BadInput becomes the one sentence that the page or the program is answered with."""
    from workbench.core.errors import BadInput  # and torch with it: not before the page stands

    try:
        yield
    except BadInput as error:
        raise gr.Error(str(error), print_exception=False) from None
