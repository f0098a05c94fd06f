"""Several rewards as one, and the form in which runs name them.

clip                                                  a reward's name,
reno                                                  a preset's,
{clip: 1.0, aesthetic: {weight: 0.2, model: ...}}     weights, or settings with a weight (1 unless given)
{big: {reward: clip, model: ...}, clip: 1.0}          one reward twice: `reward` names it, the key labels it
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.types import BadInput, Media, Reward, RewardSpec

from . import REWARDS, configured, find

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


class Weighted:
    """The raw weighted sum of rewards, [B] = sum_i w_i r_i, from one pass through each.

    `breakdown` gives every component; after a call, `last` holds them detached. A sample that one reward can't judge is
    NaN in the sum, and only that sample.
    """

    def __init__(self, weights: Mapping[Reward, float], names: Sequence[str] | None = None):
        """`names` label the components; without them, each bears its spec's name. Raises BadInput."""
        names = list(names or [reward.spec.name for reward in weights])
        if not names:
            raise BadInput("reward: nothing is named to score by")
        if len(set(names)) < len(names):
            raise BadInput(f"reward: two components share a name among {', '.join(names)}; label them")
        self.rewards: dict[str, Reward] = dict(zip(names, weights, strict=True))
        self.weights: dict[str, float] = dict(zip(names, weights.values(), strict=True))
        self.spec = _joint({name: reward.spec for name, reward in self.rewards.items()})
        self.last: dict[str, Tensor] = {}

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        return self.total(self.breakdown(media=media, prompts=prompts, references=references))

    def breakdown(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> dict[str, Tensor]:
        """Each component, unweighted: name -> [B], graph attached."""
        scores = {n: r(media=media, prompts=prompts, references=references) for n, r in self.rewards.items()}
        self.last = {name: values.detach() for name, values in scores.items()}
        return scores

    def total(self, scores: Mapping[str, Tensor]) -> Tensor:
        """[B]: the weighted sum of a breakdown."""
        return sum(self.weights[name] * values for name, values in scores.items())

    def check(self) -> None:
        """Raises BadInput for what a component can know to be wrong before it loads."""
        for reward in self.rewards.values():
            if hasattr(reward, "check"):
                reward.check()

    def load(self, device: torch.device | str = "cpu") -> Weighted:
        """Every component's weights onto `device` now, instead of on first use."""
        for reward in self.rewards.values():
            if hasattr(reward, "load"):
                reward.load(device)
        return self

    def __repr__(self) -> str:
        return " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())


def from_config(
    block: str | Mapping[str, Any] | Sequence[str], registry: Mapping[str, type] = REWARDS, where: str = "reward"
) -> Weighted:
    """The rewards that a config block names; a list of names weighs each 1. Checked strictly, and nothing is loaded.

    Raises BadInput, naming the place and the nearest valid name.
    """
    if isinstance(block, str):
        block = PRESETS.get(block, {block: 1.0})
    elif isinstance(block, Sequence):
        if twice := {str(n) for n in block if list(block).count(n) > 1}:
            raise BadInput(f"{where}: {', '.join(sorted(twice))} is named twice")
        block = dict.fromkeys(block, 1.0)
    if not isinstance(block, Mapping) or not block:
        raise BadInput(
            f"{where}: expected a reward's name, a preset ({', '.join(PRESETS)}) or a mapping, got {block!r}"
        )
    weights, names = {}, []
    for name, value in block.items():
        reward, weight = _part(str(name), value, registry, f"{where}.{name}")
        if reward in weights:
            raise BadInput(f"{where}: {name} is the same reward as {names[list(weights).index(reward)]}; name it once")
        weights[reward] = weight
        names.append(reward.spec.name if ":" in str(name) else str(name))
    weighted = Weighted(weights, names)
    weighted.check()
    return weighted


def _part(label: str, value: Any, registry: Mapping[str, type], where: str) -> tuple[Reward, float]:
    settings = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight = settings.pop("weight", 1.0)
    name = settings.pop("reward", label)
    try:
        number = math.nan if isinstance(weight, bool) else float(weight)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number == 0:
        raise BadInput(
            f"{where}: a weight is a finite number other than 0, got {weight!r}; what only watches goes to `watch`"
        )
    if not isinstance(name, str):
        raise BadInput(f"{where}.reward: expected a reward's name, got {name!r}")
    return configured(find(name, registry, where), settings, where), number


def _joint(specs: Mapping[str, RewardSpec]) -> RewardSpec:
    """What the sum says of itself: judges what all judge, has a gradient if all have, needs what any needs."""
    parts = list(specs.values())
    if len(parts) == 1:
        return parts[0]
    modalities = frozenset.intersection(*(s.modalities for s in parts))
    if not modalities:
        told = "; ".join(f"{name} judges {', '.join(sorted(s.modalities))}" for name, s in specs.items())
        raise BadInput(f"reward: no medium that all components judge: {told}")
    scopes = {s.scope for s in parts}
    if "set" in scopes and len(scopes) > 1:
        sets = ", ".join(name for name, s in specs.items() if s.scope == "set")
        raise BadInput(f"reward: {sets} judges whole sets and can't be added to scores of single samples")
    return RewardSpec(
        name="+".join(specs),
        version="+".join(s.version for s in parts),
        modalities=modalities,
        differentiable=all(s.differentiable for s in parts),
        scope="group" if "group" in scopes else parts[0].scope,
        needs=frozenset().union(*(s.needs for s in parts)),
        licence=", ".join(dict.fromkeys(s.licence for s in parts if s.licence)),
    )


def zscore(scores: Tensor, group: int) -> Tensor:
    """[B] scores, each row of `group` neighbours to mean 0 and standard deviation 1; equal scores become 0.

    NaN takes no part and stays NaN. Raises ValueError unless B is a multiple of `group`.
    """
    if scores.dim() != 1 or scores.shape[0] % group:
        raise ValueError(f"{list(scores.shape)} scores are not whole groups of {group}")
    x = scores.double().view(-1, group)
    there = ~x.isnan()
    count = there.sum(1, keepdim=True)
    centred = x - x.nanmean(1, keepdim=True)
    spread = (centred.nan_to_num(0).square().sum(1, keepdim=True) / count.clamp(min=1)).sqrt()
    # Below float32's own resolution a spread is rounding, and dividing by it would make noise into an advantage.
    level = x.nan_to_num(0).abs().amax(1, keepdim=True) * torch.finfo(torch.float32).eps
    flat = spread <= level
    return (centred / spread).masked_fill(flat & there, 0.0).flatten().to(scores.dtype)


def gdpo(scores: Mapping[str, Tensor], weights: Mapping[str, float], group: int) -> Tensor:
    """[B]: each reward z-scored in its prompt's group, weighted, summed, and the batch z-scored (GDPO).

    arXiv:2601.05242. Samples of one prompt are neighbours, `group` of them. A large-scaled reward no longer drowns
    the others.
    """
    total = sum(weights[name] * zscore(values, group) for name, values in scores.items())
    return zscore(total, len(total))
