"""Whether a run's rewards can judge what its pipelines make, and score what its methods optimise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rewards.compose import WeightedReward
from workbench.core.errors import BadInput
from workbench.core.inputs import input_needs, prompt_inputs
from workbench.core.text import quote_value
from workbench.core.types import Reward
from workbench.engine.pairwise_watch import find_pair_judges
from workbench.methods import METHODS, trains_weights
from workbench.runs import config as configs
from workbench.runs.prompt_inputs import input_modality


def check_set_reward(config: configs.RunConfig, methods: Mapping[str, Any], reward: WeightedReward) -> None:
    """Raises BadInput for a set reward, unless every method that optimises it can, and a shuffled control changes
    it."""
    if reward.spec.scope != "set":
        return
    if config.control == "shuffled" and "prompt" not in reward.spec.needs:
        raise BadInput(
            f"control: shuffled prompts are all the same to {reward.spec.name}, which reads none; use: negated"
        )
    (name, *_), set_methods = reward.rewards, [n for n, cls in METHODS.items() if cls.optimises_sets]
    for contestant, method in methods.items():
        if "reward" in method.needs and not method.optimises_sets:
            raise BadInput(
                f"reward {name} judges whole sets, and contestant {contestant} needs a score of each sample; "
                f"{', '.join(set_methods)} learns from sets, and leave_one_out: {{of: {name}}} gives each sample its "
                "credit"
            )


def check_modality(part: WeightedReward, repo: str, modality: str) -> None:
    """Raises BadInput for a reward of another modality."""
    for name, judge in part.rewards.items():
        if modality not in judge.spec.modalities:
            raise BadInput(
                f"reward {name} judges {' and '.join(sorted(judge.spec.modalities))}, "
                f"but {repo} makes {modality}; see: workbench list rewards"
            )


def check_inputs(rewards: Mapping[str, Reward], modality: str, prompts: Iterable[str]) -> None:
    """Raises BadInput for a reward that can't read what comes with the prompts: an input of another modality than it
    compares with samples of this one, or a prompt that it knows nothing of."""
    prompts = list(dict.fromkeys(prompts))
    comparable = {"source": {modality}, "mask": {"image", modality}, "first": {"image"}, "last": {"image"}}
    for label, reward in rewards.items():
        for name in input_needs(reward.spec):
            for prompt in prompts:
                input_kind = input_modality(prompt_inputs(prompt)[name])
                if input_kind not in comparable.get(name, {input_kind}):
                    raise BadInput(
                        f"reward {label} can't compare {modality} with a {name} that is {input_kind}, as that of "
                        f"{quote_value(str(prompt))} is"
                    )
        if hasattr(reward, "check_prompts"):
            reward.check_prompts(prompts)


def check_group_reward(
    config: configs.RunConfig, reward: WeightedReward, watch: WeightedReward | None, methods: Mapping[str, Any]
) -> None:
    """Raises BadInput for a reward of scope "group", which compares the samples of one prompt, unless every method that
    optimises it scores a prompt's samples in one call (methods that train on groups), and for one that is held out,
    unless it can compare the samples of two contestants."""
    watched = watch.rewards if watch else {}
    comparing = [n for n, r in watched.items() if r.spec.scope == "group"]
    if watch and watch.spec.scope == "group" and not comparing:  # of how they are put together
        comparing = [watch.spec.name]
    for name in comparing:
        if name not in find_pair_judges(watched):
            raise BadInput(
                f"watch: {name} compares the samples of one prompt, which says nothing of how contestants differ"
            )
        if any(map(trains_weights, methods.values())):
            raise BadInput(
                f"watch: {name} compares contestants with the first one, which a training can't do while it goes on; "
                "watch it in a run that samples with the trained weights"
            )
        if len(methods) < 2:
            raise BadInput(f"watch: {name} compares contestants with the first one, and this run has no other")
    if reward.spec.scope != "group":
        return
    group_rewards = [n for n, r in reward.rewards.items() if r.spec.scope == "group"]
    if group_rewards and (config.samples_per_prompt < 2 or config.batch % config.samples_per_prompt):
        raise BadInput(
            f"reward {group_rewards[0]} compares the samples of one prompt: set samples_per_prompt to 2 or more, and "
            "batch to a multiple of it"
        )
    ungrouped = [n for n, m in methods.items() if "reward" in m.needs and not (trains_weights(m) and m.group > 1)]
    if ungrouped or not any("reward" in m.needs for m in methods.values()):
        raise BadInput(
            f"reward {reward.spec.name} compares the samples of one prompt in one call, and "
            + (f"contestant {ungrouped[0]}" if ungrouped else "no contestant of this run")
            + (" makes them one at a time" if ungrouped else " makes a prompt's samples together")
        )
