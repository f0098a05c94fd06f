"""Several rewards as one, and the form in which runs name them.

clip                                                  a reward's name,
reno                                                  a preset's,
{clip: 1.0, aesthetic: {weight: 0.2, model: ...}}     weights, or settings with a weight (1 unless given)
{big: {reward: clip, model: ...}, clip: 1.0}          one reward twice: `reward` names it, the key labels it
{clip: 1.0, aesthetic: 1.0, combine: worst}           not the sum: a name of ensemble.COMBINATIONS, or {how: NAME, ...}
{clip: 1.0, aesthetic: 1.0, shape: {how: par, base: runs/...}}     each reshaped first: a name of transforms.SHAPES
{clip: 1.0, aesthetic: {weight: 0.2, within: [4, 6.5]}}            counts inside that range only; null for an open end
{both: {reward: {clip: 1.0, aesthetic: 1.0, combine: worst}, weight: 2.0}, hps: 1.0}      a block as one component
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.core import schema
from workbench.core.types import BadInput, Media, Reward, RewardSpec

from . import REWARDS, configured, find
from .ensemble import COMBINATIONS, Sum
from .transforms import SHAPES, hold

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
        if len(names) == 1 and self.spec.typical:
            typical = tuple(sorted(self.weights[names[0]] * value for value in self.spec.typical))
            self.spec = replace(self.spec, typical=typical)
        self.last: dict[str, Tensor] = {}

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        return self.total(self.breakdown(media=media, prompts=prompts, references=references), prompts)

    def breakdown(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> dict[str, Tensor]:
        """Each component, unweighted: name -> [B], graph attached."""
        scores = {n: r(media=media, prompts=prompts, references=references) for n, r in self.rewards.items()}
        self.last = {name: values.detach() for name, values in scores.items()}
        return scores

    def shaped(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> Mapping[str, Tensor]:
        """A breakdown as the combination sees it, each component reshaped: what GDPO should normalise."""
        return scores

    def total(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> Tensor:
        """[B]: the weighted sum of a breakdown."""
        return sum(self.weights[name] * values for name, values in scores.items())

    def check(self, prompts: Sequence[str] = ()) -> None:
        """Raises BadInput for what can be known to be wrong before anything loads, in any component or in how they are
        put together."""
        for reward in self.rewards.values():
            if hasattr(reward, "check"):
                reward.check()
        self.check_own(prompts)

    def check_own(self, prompts: Sequence[str] = ()) -> None:
        """Raises BadInput for what is wrong in how components are put together, or lacks for one of the prompts to come;
        asks no component."""
        for reward in self.rewards.values():
            if isinstance(reward, Weighted):
                reward.check_own(prompts)

    def load(self, device: torch.device | str = "cpu") -> Weighted:
        """Every component's weights onto `device` now, instead of on first use."""
        for reward in self.rewards.values():
            if hasattr(reward, "load"):
                reward.load(device)
        return self

    def __repr__(self) -> str:
        return " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())


class Combined(Weighted):
    """Rewards held to their ranges, reshaped one by one, and combined by something else than a sum: [B].

    `breakdown` and `last` hold the raw components. The rewards must judge single samples.
    """

    def __init__(
        self,
        weights: Mapping[Reward, float],
        names: Sequence[str] | None = None,
        *,
        combine: Any = None,
        shape: Any = None,
        within: Mapping[str, tuple[float | None, float | None]] | None = None,
    ):
        """combine: one of ensemble's, the sum by default; shape: one of transforms', by default what `combine` takes;
        within: component -> (low, high). Raises BadInput."""
        super().__init__(weights, names)
        self.combine = combine or Sum()
        self.shape = shape or self.combine.shape()
        self.within = dict(within or {})
        joint = self.spec
        if joint.scope == "set":
            raise BadInput(
                "reward: what judges whole sets can only be weighed and added; leave `shape` and `combine` out"
            )
        self._check_weights()
        self.spec = replace(
            joint,
            name=repr(self),
            version="+".join(filter(None, [joint.version, self.shape.version])),
            differentiable=joint.differentiable and self.shape.differentiable and self.combine.differentiable,
            scope="group" if "group" in (joint.scope, self.shape.scope, self.combine.scope) else joint.scope,
            typical=None,
        )

    def _check_weights(self) -> None:
        how = _name(self.combine, COMBINATIONS)
        if odd := [n for n, w in self.weights.items() if w != 1] if not self.combine.weighted else []:
            raise BadInput(f"reward.{odd[0]}: `combine: {how}` has no use for weights; leave it at 1")
        less = [n for n, w in self.weights.items() if w < 0]
        if less and not (type(self.combine) is Sum and self.shape.signed):
            raise BadInput(f"reward.{less[0]}: only a sum that is not of log_sigmoid understands a negative weight")

    def shaped(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> dict[str, Tensor]:
        held = {n: hold(v, *self.within.get(n, (None, None))) for n, v in scores.items()}
        return {n: self.shape(v, name=n, spec=self.rewards[n].spec, prompts=prompts) for n, v in held.items()}

    def total(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> Tensor:
        """[B]: a breakdown, shaped and combined. Raises BadInput when samples of a prompt are to be compared and each
        prompt has one."""
        if "group" in (self.shape.scope, self.combine.scope) and len(set(prompts)) == len(prompts):
            raise BadInput(
                f"reward: {self!r} compares the samples of one prompt, and was given one of each; use a method that "
                "scores a whole group at once"
            )
        values = torch.stack([v.float() for v in self.shaped(scores, prompts).values()])  # [K,B]
        return self.combine(values, values.new_tensor([self.weights[n] for n in scores]), prompts)

    def check_own(self, prompts: Sequence[str] = ()) -> None:
        super().check_own(prompts)
        self.shape.check(self.rewards, prompts)

    def __repr__(self) -> str:
        shape, parts = _name(self.shape, SHAPES), []
        for name, weight in self.weights.items():
            ends = ["" if end is None else f"{end:g}" for end in self.within.get(name, ())]
            held = f"{name}[{','.join(ends)}]" if ends else name
            parts.append(("" if weight == 1 else f"{weight:g} ") + (held if shape == "raw" else f"{shape}({held})"))
        return f"{_name(self.combine, COMBINATIONS)}({', '.join(parts)})"


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
    if not isinstance(block, Mapping) or not set(block) - {"shape", "combine"}:
        raise BadInput(
            f"{where}: expected a reward's name, a preset ({', '.join(PRESETS)}) or a mapping, got {block!r}"
        )
    weights, names, within = {}, [], {}
    for name, value in block.items():
        if name in ("shape", "combine"):
            continue
        reward, weight, held = _part(str(name), value, registry, f"{where}.{name}")
        if reward in weights:
            raise BadInput(f"{where}: {name} is the same reward as {names[list(weights).index(reward)]}; name it once")
        weights[reward] = weight
        names.append(reward.spec.name if ":" in str(name) else str(name))
        within |= {names[-1]: held} if held else {}
    chosen = {
        key: _choice(block[key], known, f"{where}.{key}")
        for key, known in (("shape", SHAPES), ("combine", COMBINATIONS))
        if key in block
    }
    weighted = Combined(weights, names, within=within, **chosen) if chosen or within else Weighted(weights, names)
    weighted.check_own()
    return weighted


def _part(
    label: str, value: Any, registry: Mapping[str, type], where: str
) -> tuple[Reward, float, tuple[float | None, float | None] | None]:
    """A component, checked, its weight, and the range in which it counts."""
    settings = dict(value) if isinstance(value, Mapping) else {"weight": value}
    weight = settings.pop("weight", 1.0)
    name = settings.pop("reward", label)
    held = _range(settings.pop("within"), f"{where}.within") if "within" in settings else None
    try:
        number = math.nan if isinstance(weight, bool) else float(weight)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number == 0:
        raise BadInput(
            f"{where}: a weight is a finite number other than 0, got {weight!r}; what only watches goes to `watch`"
        )
    if isinstance(name, Mapping):
        if settings:
            raise BadInput(
                f"{where}: beside a block of rewards there is only `weight` and `within`, got {', '.join(settings)}"
            )
        return from_config(name, registry, f"{where}.reward"), number, held
    if not isinstance(name, str):
        raise BadInput(f"{where}.reward: expected a reward's name, got {name!r}")
    reward = configured(find(name, registry, where), settings, where)
    if hasattr(reward, "check"):
        reward.check()  # before its spec is read: a remote one's is known from here on
    return reward, number, held


def _range(value: Any, where: str) -> tuple[float | None, float | None]:
    ends = schema.convert(value, tuple[float | None], where)
    if len(ends) != 2 or ends == (None, None) or (None not in ends and not ends[0] < ends[1]):
        raise BadInput(f"{where}: expected [low, high] with null for an open end, got {value!r}")
    return ends


def _choice(value: Any, known: Mapping[str, type], where: str) -> Any:
    """`NAME` or `{how: NAME, its settings}`. Raises BadInput."""
    settings = dict(value) if isinstance(value, Mapping) else {"how": value}
    name = settings.pop("how", None)
    if not isinstance(name, str) or name not in known:
        raise BadInput(f"{where}: unknown {where.rpartition('.')[2]} {name!r}; {schema.nearest(str(name), known)}")
    return schema.build(known[name], settings, where)


def _name(choice: Any, known: Mapping[str, type]) -> str:
    """What a shape or combination is called in configs; a class of someone else's goes by its own name."""
    return next((name for name, cls in known.items() if type(choice) is cls), type(choice).__name__)


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
