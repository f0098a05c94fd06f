"""Safety checkers and watermarkers of pipelines: off unless a config asks for them, and then no sample is changed
silently.

A safety checker replaces what it flags by a black picture, which a reward would judge as one; a watermarker draws into
pictures. Both pass samples on as arrays, without gradient. A checker that is kept only flags here: the policy makes
flagged rows NaN (`flagged_rows`), and the pictures themselves keep their gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipelines import weight_folder

# Component of a pipeline -> the arguments of its class that switch it off.
SWITCHES: dict[str, dict[str, Any]] = {
    "safety_checker": {"safety_checker": None, "requires_safety_checker": False},
    "watermarker": {"watermarker": None},  # DeepFloyd IF
    "watermark": {"add_watermarker": False},  # Stable Diffusion XL, where the package invisible-watermark is installed
}
# Classes that have a safety checker, as far as a config without a local folder tells.
CHECKED_CLASSES = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline", "IFPipeline", "AltDiffusionPipeline")
FLAGS = ("nsfw_content_detected", "nsfw_detected")  # of a pipeline's output: one truth value per sample, or None
FLAGGED = "flagged by the pipeline's safety checker"


def guards_off(components: Mapping[str, Any], parameters: Collection[str]) -> dict[str, Any]:
    """Arguments of a pipeline class with these constructor parameters that switch off what `components` does not ask
    for. `true` asks for the pipeline's own."""
    off = (switch for name, switch in SWITCHES.items() if components.get(name) is None)
    return {key: value for switch in off for key, value in switch.items() if key in parameters}


def describe_guards(config: Any) -> list[str]:
    """Sentences on what is off, or kept, in a PipelineConfig's pipeline; none where it has nothing of the kind."""
    folder: Path | None = None if config.file else config.folder
    there = weight_folder.list_components(folder) if folder else {}
    has = {name: name in there for name in ("safety_checker", "watermarker")}
    has["safety_checker"] |= folder is None and config.pipeline in CHECKED_CLASSES
    has["watermark"] = config.pipeline.startswith("StableDiffusionXL") and find_spec("imwatermark") is not None
    lines = []
    for name in (name for name, present in has.items() if present):
        if config.components.get(name) is None:
            explicit = name in config.components
            lines += [] if explicit else [f"its {name} is off; components: {{{name}: true}} keeps it"]
        elif name == "safety_checker":
            lines.append("its safety_checker is kept: a sample that it flags is no picture but a row without scores")
    return lines


def pass_pictures(run_checker: Callable[..., Any]) -> Callable[..., Any]:
    """A pipeline's `run_safety_checker` that flags and changes nothing, so that the graph to the pictures is kept."""

    @functools.wraps(run_checker)
    def flag_only(image: Any, *args: Any, **kwargs: Any) -> tuple:
        with torch.no_grad():
            seen = image.detach().clone() if torch.is_tensor(image) else image.copy()
            _, *flags = run_checker(seen, *args, **kwargs)
        return (image, *flags)

    return flag_only


def flagged_rows(out: Any) -> list[bool]:
    """Per sample of a pipeline's return value, whether its safety checker flagged it; empty where none did."""
    flags: Sequence[bool] = next((getattr(out, name) for name in FLAGS if getattr(out, name, None) is not None), [])
    return [bool(flag) for flag in flags] if any(flags) else []
