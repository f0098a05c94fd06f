"""A dropdown whose value is judged by what it is for, in one sentence of ours, and not by the list that it shows."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

import gradio as gr

MAX_LETTERS = 200  # of a value; every name here is shorter


class _QuietMeta(type(gr.Dropdown)):  # type: ignore[misc]  # a metaclass that only gradio's components know
    """Gradio's own writes an interface file beside the source of each new component."""

    def __new__(cls, name: str, bases: tuple, attributes: dict) -> Any:
        return ABCMeta.__new__(cls, name, bases, attributes)


class Choice(gr.Dropdown, metaclass=_QuietMeta):
    """`gr.Dropdown` refuses a value that its list of the moment lacks. When one event replaces the list while another
    sends what the page still shows, that is a raw error for something that nobody did. This one takes what the page
    holds, as text, numbers or a list of these; whoever reads the form checks each name."""

    is_template = True  # to the browser it is a dropdown

    def preprocess(self, payload: Any) -> Any:
        if isinstance(payload, list):
            return [_plain_value(value) for value in payload]
        return _plain_value(payload)


def _plain_value(value: Any) -> str | int | float | None:
    return value if value is None or isinstance(value, int | float) else str(value)[:MAX_LETTERS]
