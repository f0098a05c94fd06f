"""From names, settings and config blocks to rewards; nothing is loaded. The forms in which runs name them:

clip                                                  a reward's name,
reno                                                  a preset's,
{clip: 1.0, aesthetic: {weight: 0.2, model: ...}}     weights, or settings with a weight (1 unless given)
{big: {reward: clip, model: ...}, clip: 1.0}          one reward twice: `reward` names it, the key labels it
{clip: 1.0, aesthetic: 1.0, combine: worst}           not the sum: a name of ensemble.COMBINATIONS, or {how: NAME, ...}
{clip: 1.0, aesthetic: 1.0, shape: {how: par, base: runs/...}}     each reshaped first: a name of transforms.SHAPES
{clip: 1.0, aesthetic: {weight: 0.2, within: [4, 6.5]}}            counts inside that range only; null for an open end
{"taste:sharp": 1.0}                                  what was learned from votes, by its name in runs/learned
{both: {reward: {clip: 1.0, aesthetic: 1.0, combine: worst}, weight: 2.0}, hps: 1.0}      a block as one component
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.compose import CombinedReward, WeightedReward
from rewards.ensemble import COMBINATIONS
from rewards.people import tastes
from rewards.registry import REWARDS, find_reward
from rewards.transforms import SHAPES
from rewards.vlm.judge import TRANSPORT
from workbench.core import schema
from workbench.core.errors import BadInput
from workbench.core.types import Reward

# ReNO (arXiv:2406.04312, and its code) minimises
#     5 (1 - hps) + (2 - imagereward) + 0.01 (100 - clip) + 0.05 (30 - pickscore).
# The constants change neither gradient nor best iterate: maximising the weighted sum of rewards is the same.
RENO: dict[str, Any] = {
    "hps": 5.0,
    "imagereward": 1.0,
    "clip": {"weight": 0.01, "model": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "mode": "scaled"},
    "pickscore": 0.05,
}
PRESETS = {"reno": RENO}


def build(name: str, /, **settings: Any) -> Reward:
    """The reward `name`, of REWARDS or `package.module:Class`, with its settings. Nothing is loaded.

    Raises BadInput for an unknown reward or setting, naming the nearest one, and for a value that a setting can't take.
    """
    return configure_reward(find_reward(name), settings, name)


def configure_reward(cls: type, settings: Mapping[str, Any], where: str) -> Reward:
    """An instance of `cls`, whose version names the settings that are not the usual ones. Raises BadInput.

    The fields that `cls` lists in `nested` hold rewards: a name or a block there, as under `reward:`, is built first.
    """
    if dataclasses.is_dataclass(cls):
        inner = {
            field: build_reward(settings[field], where=f"{cls.spec.name}.{field}")
            for field in getattr(cls, "nested", ())
            if field in settings and not isinstance(settings[field], Reward)
        }
        return with_version(schema.build_dataclass(cls, {**settings, **inner}, where))
    if settings:
        raise BadInput(f"{where}: takes no settings, got {', '.join(settings)}")
    return cls()


def build_reward(
    block: str | Mapping[str, Any] | Sequence[str], registry: Mapping[str, type] = REWARDS, where: str = "reward"
) -> WeightedReward:
    """The rewards that a config block names; a list of names weighs each 1. Checked strictly, and nothing is loaded.

    Raises BadInput, naming the place and the nearest valid name.
    """
    if isinstance(block, str):
        block = PRESETS.get(block, {block: 1.0})
    elif isinstance(block, Sequence):
        if duplicates := {str(n) for n in block if list(block).count(n) > 1}:
            raise BadInput(f"{where}: {', '.join(sorted(duplicates))} is named twice")
        block = dict.fromkeys(block, 1.0)
    if not isinstance(block, Mapping) or not set(block) - {"shape", "combine"}:
        raise BadInput(
            f"{where}: expected a reward's name, a preset ({', '.join(PRESETS)}) or a mapping, got {block!r}"
        )
    weights, names, within = {}, [], {}
    for name, value in block.items():
        if name in ("shape", "combine"):
            continue
        reward, weight, bounds = _build_component(str(name), value, registry, f"{where}.{name}")
        if reward in weights:
            raise BadInput(f"{where}: {name} is the same reward as {names[list(weights).index(reward)]}; name it once")
        weights[reward] = weight
        names.append(_name_component(str(name), reward))
        within |= {names[-1]: bounds} if bounds else {}
    choices = {
        key: _build_choice(block[key], options, f"{where}.{key}")
        for key, options in (("shape", SHAPES), ("combine", COMBINATIONS))
        if key in block
    }
    weighted = (
        CombinedReward(weights, names, within=within, **choices)
        if choices or within
        else WeightedReward(weights, names)
    )
    weighted.check_combination()
    return weighted


def _build_component(
    label: str, value: Any, registry: Mapping[str, type], where: str
) -> tuple[Reward, float, tuple[float | None, float | None] | None]:
    """A component, checked, its weight, and the range in which it counts."""
    settings = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight = settings.pop("weight", 1.0)
    name = settings.pop("reward", label)
    bounds = _read_range(settings.pop("within"), f"{where}.within") if "within" in settings else None
    try:
        number = math.nan if isinstance(weight, bool) else float(weight)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number == 0:
        raise BadInput(
            f"{where}: a weight is a finite number other than 0, got {weight!r}; what only watches goes to `watch`"
        )
    if isinstance(name, str) and name.startswith(tastes.PREFIX):
        block = tastes.taste_block(tastes.find_taste(name, where))
        name, settings = block["reward"], {"path": block["path"], **settings}
    if isinstance(name, Mapping):
        if settings:
            raise BadInput(
                f"{where}: beside a block of rewards there is only `weight` and `within`, got {', '.join(settings)}"
            )
        return build_reward(name, registry, f"{where}.reward"), number, bounds
    if not isinstance(name, str):
        raise BadInput(f"{where}.reward: expected a reward's name, got {name!r}")
    reward = configure_reward(find_reward(name, registry, where), settings, where)
    if hasattr(reward, "check"):
        reward.check()  # before its spec is read: a remote one's is known from here on
    return reward, number, bounds


def _name_component(label: str, reward: Reward) -> str:
    if label.startswith(tastes.PREFIX):
        return tastes.taste_label(label)
    return reward.spec.name if ":" in label else label


def _read_range(value: Any, where: str) -> tuple[float | None, float | None]:
    ends = schema.convert_value(value, tuple[float | None], where)
    if len(ends) != 2 or ends == (None, None) or (None not in ends and not ends[0] < ends[1]):
        raise BadInput(f"{where}: expected [low, high] with null for an open end, got {value!r}")
    return ends


def _build_choice(value: Any, options: Mapping[str, type], where: str) -> Any:
    """`NAME` or `{how: NAME, its settings}`. Raises BadInput."""
    settings = dict(value) if isinstance(value, Mapping) else {"how": value}
    name = settings.pop("how", None)
    if not isinstance(name, str) or name not in options:
        raise BadInput(
            f"{where}: unknown {where.rpartition('.')[2]} {name!r}; {schema.suggest_nearest(str(name), options)}"
        )
    return schema.build_dataclass(options[name], settings, where)


# settings that say how a score is got, or what the version tells by content
UNVERSIONED = TRANSPORT | {
    "dtype",
    "checkpoint",
    "rows",
    "of",
    "captions",
    "path",
    "person",
    "unproven",
    "names",
    "token_env",
    "wire",
}


def with_version(reward: Reward) -> Reward:
    """The same, its version telling what was set: scores of other weights or another target are not its scores."""
    changed = [
        f"{f.name}={_short_hash(value) if f.name == 'reference' else value}"
        for f in dataclasses.fields(reward)
        if f.init and f.name not in UNVERSIONED and (value := getattr(reward, f.name)) != f.default
        if f.default is not dataclasses.MISSING and str(value) not in reward.spec.version
    ]  # a reference is a place: a hash tells one from another without naming it
    if changed:
        spec = dataclasses.replace(reward.spec, version=" ".join([reward.spec.version, *changed]))
        object.__setattr__(reward, "spec", spec)
    return reward


def _short_hash(value: Any) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()[:8]
