"""Several rewards as one: their weighted sum, or another combination of them, each reshaped first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rewards.ensemble import COMBINATIONS, Sum
from rewards.transforms import SHAPES, clamp_range
from workbench.core.errors import BadInput
from workbench.core.inputs import stack_sources
from workbench.core.schema import suggest_nearest
from workbench.core.types import Media, Reward, RewardSpec


class WeightedReward:
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
        self.spec = _joint_spec({name: reward.spec for name, reward in self.rewards.items()})
        if len(names) == 1 and self.spec.typical:
            typical = tuple(sorted(self.weights[names[0]] * value for value in self.spec.typical))
            self.spec = replace(self.spec, typical=typical)
        self.last: dict[str, Tensor] = {}

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        return self.total(self.breakdown(media=media, prompts=prompts, references=references), prompts)

    def breakdown(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> dict[str, Tensor]:
        """Each component, unweighted: name -> [B], graph attached. Without `references`, one that needs `source` gets
        what its prompts come with (workbench.core.inputs.stack_sources)."""
        scores = {
            name: part(
                media=media,
                prompts=prompts,
                references=stack_sources(part, media, prompts) if references is None else references,
            )
            for name, part in self.rewards.items()
        }
        self.last = {name: values.detach() for name, values in scores.items()}
        return scores

    def shaped(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> Mapping[str, Tensor]:
        """A breakdown as the combination sees it, each component reshaped: what GDPO should normalise."""
        return scores

    def total(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> Tensor:
        """[B]: the weighted sum of a breakdown."""
        return sum(self.weights[name] * values for name, values in scores.items())

    def change_weights(self, weights: Mapping[str, float], where: str = "reward") -> WeightedReward:
        """The same components with some weights changed; one of weight 0 is left out. Raises BadInput for a component
        that is not there, and where none is left."""
        for name, weight in weights.items():
            if name not in self.rewards:
                raise BadInput(
                    f"{where}: {name!r} is not among this run's rewards; {suggest_nearest(name, self.rewards)}"
                )
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise BadInput(f"{where}.{name}: a weight is a finite number, got {weight!r}")
        remaining = {name: float(weight) for name, weight in {**self.weights, **weights}.items() if weight}
        if not remaining:
            raise BadInput(f"{where}: every weight is 0, so nothing would be optimised; for that take method: sample")
        return self._with_components(
            {self.rewards[name]: weight for name, weight in remaining.items()}, list(remaining)
        )

    def _with_components(self, weights: Mapping[Reward, float], names: Sequence[str]) -> WeightedReward:
        return WeightedReward(weights, names)

    def check(self, prompts: Sequence[str] = ()) -> None:
        """Raises BadInput for what can be known to be wrong before anything loads, in any component or in how they are
        put together."""
        for reward in self.rewards.values():
            if hasattr(reward, "check"):
                reward.check()
        self.check_combination(prompts)

    def check_combination(self, prompts: Sequence[str] = ()) -> None:
        """Raises BadInput for what is wrong in how components are put together,
        or lacks for one of the prompts to come; asks no component."""
        for reward in self.rewards.values():
            if isinstance(reward, WeightedReward):
                reward.check_combination(prompts)

    def load(self, device: torch.device | str = "cpu") -> WeightedReward:
        """Every component's weights onto `device` now, instead of on first use."""
        for reward in self.rewards.values():
            if hasattr(reward, "load"):
                reward.load(device)
        return self

    def __repr__(self) -> str:
        return " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())


class NoReward(WeightedReward):
    """Nothing to optimise and nothing to score by: of media that only people judge."""

    def __init__(self):
        self.rewards, self.weights, self.last = {}, {}, {}
        self.spec = RewardSpec("nothing", "", frozenset({"image", "video", "audio"}), differentiable=False)


class CombinedReward(WeightedReward):
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

    def _with_components(self, weights: Mapping[Reward, float], names: Sequence[str]) -> WeightedReward:
        return CombinedReward(weights, names, combine=self.combine, shape=self.shape, within=self.within)

    def _check_weights(self) -> None:
        how = _registered_name(self.combine, COMBINATIONS)
        if unused := [n for n, w in self.weights.items() if w != 1] if not self.combine.weighted else []:
            raise BadInput(f"reward.{unused[0]}: `combine: {how}` has no use for weights; leave it at 1")
        negative = [n for n, w in self.weights.items() if w < 0]
        if negative and not (type(self.combine) is Sum and self.shape.signed):
            raise BadInput(f"reward.{negative[0]}: only a sum that is not of log_sigmoid understands a negative weight")

    def shaped(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> dict[str, Tensor]:
        clamped = {n: clamp_range(v, *self.within.get(n, (None, None))) for n, v in scores.items()}
        return {n: self.shape(v, name=n, spec=self.rewards[n].spec, prompts=prompts) for n, v in clamped.items()}

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

    def check_combination(self, prompts: Sequence[str] = ()) -> None:
        super().check_combination(prompts)
        self.shape.check(self.rewards, prompts)

    def __repr__(self) -> str:
        shape, parts = _registered_name(self.shape, SHAPES), []
        for name, weight in self.weights.items():
            ends = ["" if end is None else f"{end:g}" for end in self.within.get(name, ())]
            label = f"{name}[{','.join(ends)}]" if ends else name
            parts.append(("" if weight == 1 else f"{weight:g} ") + (label if shape == "raw" else f"{shape}({label})"))
        return f"{_registered_name(self.combine, COMBINATIONS)}({', '.join(parts)})"


def _registered_name(choice: Any, options: Mapping[str, type]) -> str:
    """What a shape or combination is called in configs; a class of someone else's goes by its own name."""
    return next((name for name, cls in options.items() if type(choice) is cls), type(choice).__name__)


def _joint_spec(specs: Mapping[str, RewardSpec]) -> RewardSpec:
    """What the sum says of itself: judges what all judge, has a gradient if all have, needs what any needs."""
    members = list(specs.values())
    if len(members) == 1:
        return members[0]
    modalities = frozenset.intersection(*(s.modalities for s in members))
    if not modalities:
        media_by_name = "; ".join(f"{name} judges {', '.join(sorted(s.modalities))}" for name, s in specs.items())
        raise BadInput(f"reward: no medium that all components judge: {media_by_name}")
    scopes = {s.scope for s in members}
    if "set" in scopes and len(scopes) > 1:
        sets = ", ".join(name for name, s in specs.items() if s.scope == "set")
        raise BadInput(f"reward: {sets} judges whole sets and can't be added to scores of single samples")
    return RewardSpec(
        name="+".join(specs),
        version="+".join(s.version for s in members),
        modalities=modalities,
        differentiable=all(s.differentiable for s in members),
        scope="group" if "group" in scopes else members[0].scope,
        needs=frozenset().union(*(s.needs for s in members)),
        licence=", ".join(dict.fromkeys(s.licence for s in members if s.licence)),
    )
