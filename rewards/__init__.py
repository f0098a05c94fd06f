"""How media is judged: small classes whose fields are their settings and whose docstring is their help.

Their `spec` can be read without loading anything; weights load on first use, onto the device of the media.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from workbench import strict
from workbench.types import BadInput, Reward, RewardSpec

from . import aesthetic, encoders, imagereward
from .aesthetic import Aesthetic
from .clip import CLIPScore, StarterCLIP
from .hps import HPS
from .imagereward import ImageReward
from .pickscore import PickScore
from .simple import Brightness, Colourfulness, Compressibility, Contrast, SaturatedPixels, Sharpness

REWARDS: dict[str, type] = {
    "brightness": Brightness,
    "contrast": Contrast,
    "colourfulness": Colourfulness,
    "sharpness": Sharpness,
    "saturated_pixels": SaturatedPixels,
    "compressibility": Compressibility,
    "starter_clip": StarterCLIP,
    "clip": CLIPScore,
    "aesthetic": Aesthetic,
    "pickscore": PickScore,
    "hps": HPS,
    "imagereward": ImageReward,
}


def build(name: str, /, **settings: Any) -> Reward:
    """The reward `name`, of REWARDS or `package.module:Class`, with its settings. Nothing is loaded.

    Raises BadInput for an unknown reward or setting, naming the nearest one, and for a value that a setting can't take.
    """
    return configured(find(name), settings, name)


def find(name: str, registry: Mapping[str, type] = REWARDS, where: str = "reward") -> type:
    """The class that `name` stands for. Raises BadInput."""
    if name in registry:
        return registry[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise BadInput(f"{where}: unknown reward {name!r}; {strict.nearest(name, registry)}")
    try:
        cls = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"{where}: can't import {name!r}: {error}") from None
    if not isinstance(cls, type) or not isinstance(getattr(cls, "spec", None), RewardSpec):
        raise BadInput(f"{where}: {name!r} is no reward: it must be a class with a `spec`, a RewardSpec")
    return cls


def configured(cls: type, settings: Mapping[str, Any], where: str) -> Reward:
    """An instance of `cls`. Raises BadInput."""
    if dataclasses.is_dataclass(cls):
        return strict.build(cls, settings, where)
    if settings:
        raise BadInput(f"{where}: takes no settings, got {', '.join(settings)}")
    return cls()


def release() -> None:
    """Forget every loaded backbone and head."""
    for cache in (encoders._load, aesthetic._head, imagereward._load):
        cache.cache_clear()
