"""Objects that methods depend on but don't import: prompt expanders, reward models, references, stored noise.

A method's setting names such an object by text; the driver builds the object and puts it into the setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rewards.latent import LatentReward
from workbench.core.errors import BadInput
from workbench.core.text import quote_value
from workbench.methods import NRG, RPO, Centred, InstructVideo, Reuse, RewardCondition, Rewrite
from workbench.runs import preference_data
from workbench.runs.captioned_media import CaptionedFolder, ScoredFolder
from workbench.runs.prompt_expanders import Chat, make_expander
from workbench.runs.prompt_inputs import PromptList
from workbench.runs.run_noise import RunNoise

DEPENDENCIES: dict[type, tuple[str, Callable[[Any], Any]]] = {
    Rewrite: ("expander", make_expander),
    Centred: ("expander", make_expander),
    NRG: ("model", LatentReward),
    RPO: ("references", preference_data.read_references),
    Reuse: ("noise", RunNoise),
    InstructVideo: ("clips", CaptionedFolder),
    RewardCondition: ("examples", ScoredFolder),
}

PROMPT_SETTINGS: dict[type, str] = {RPO: "validation_prompts"}  # that name prompts as a run's `prompts` does


def name_prompts(methods: Mapping[str, Any]) -> dict[str, Any]:
    """Place in the config -> prompts that a contestant's own settings name. Raises BadInput for what names none."""
    sources = {
        f"contestants.{name}.{setting}": getattr(method, setting)
        for name, method in methods.items()
        if (setting := PROMPT_SETTINGS.get(type(method))) and getattr(method, setting)
    }
    for where, source in sources.items():
        if not isinstance(source, str | Mapping | list | tuple):
            raise BadInput(f"{where}: a list of prompts, or a file, got {quote_value(source)}")
    return sources


def with_prompts(methods: Mapping[str, Any], prompt_lists: Mapping[str, PromptList]) -> dict[str, Any]:
    """The methods with the prompts that their settings name, read, where these are no plain texts."""
    resolved = dict(methods)
    for name, method in methods.items():
        setting = PROMPT_SETTINGS.get(type(method), "")
        listed, named = prompt_lists.get(f"contestants.{name}.{setting}"), getattr(method, setting, ())
        if listed is not None and (isinstance(named, str) or any(type(item) is not str for item in named)):
            resolved[name] = replace(method, **{setting: listed.prompts})
    return resolved


def resolve_dependencies(method):
    """The method with the object that its setting names in place of the name. Raises BadInput for an unknown name, or a
    server that does not answer."""
    setting, make = DEPENDENCIES.get(type(method), ("", None))
    value = getattr(method, setting, None)
    if make is None or not isinstance(value, (str, dict)):
        return method
    if not value and isinstance(method, (Reuse, InstructVideo)):  # plain sampling; samples of its own
        return method
    if not value:
        raise BadInput(f"{type(method).__name__}: the setting {setting!r} is missing; see: workbench list methods")
    part = make(value)
    if isinstance(part, Chat):
        part.check()
    return replace(method, **{setting: part})


def list_dependency_files(method: Any) -> list[Path]:
    """The files of the objects that a method's setting names, where the method itself does not know them."""
    if isinstance(method, Reuse) and method.noise:
        noise = method.noise if isinstance(method.noise, RunNoise) else RunNoise(str(method.noise))
        return noise.input_files()
    if isinstance(method, InstructVideo) and method.clips:
        return CaptionedFolder(str(method.clips)).input_files()
    if isinstance(method, RewardCondition) and method.examples:
        return ScoredFolder(str(method.examples)).input_files()
    return []
