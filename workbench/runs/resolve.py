"""What a method's text settings stand for: methods import neither judges nor clients, so the driver hands them over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rewards.latent import LatentReward
from workbench.core.types import BadInput
from workbench.methods import NRG, RPO, Centred, Rewrite
from workbench.runs import preference_data
from workbench.runs.prompt_expanders import Chat, expander

PARTS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    Rewrite: ("expander", expander),
    Centred: ("expander", expander),
    NRG: ("model", LatentReward),
    RPO: ("references", preference_data.references),
}


def supplied(method):
    """The method with what its settings name. Raises BadInput for a name that stands for nothing, or a server that does
    not answer."""
    setting, make = PARTS.get(type(method), ("", None))
    value = getattr(method, setting, None)
    if make is None or not isinstance(value, (str, dict)):
        return method
    if not value:
        raise BadInput(f"{type(method).__name__}: the setting {setting!r} is missing; see: workbench list methods")
    part = make(value)
    if isinstance(part, Chat):
        part.check()
    return replace(method, **{setting: part})
