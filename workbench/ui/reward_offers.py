"""What a comparison on the page may be judged by: rewards that suit a pipeline, those that do not with the reason, and
tastes that were learned from votes here. What is typed or chosen never becomes a path."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pipelines
from pipelines.starter import ORACLES
from rewards import configure_reward
from rewards.people import tastes
from rewards.people.learned import Learned
from rewards.people.personal import Personal
from rewards.vlm.judge import Judge
from workbench.core.errors import BadInput
from workbench.core.inputs import input_needs
from workbench.core.schema import suggest_nearest
from workbench.runs.registry import all_rewards, is_starter_reward
from workbench.tools import doctor
from workbench.ui.limits import SLOTS

TASTE = tastes.PREFIX  # begins the name of a taste that was learned from votes: a folder in RUNS/learned
WORDS = {"image": "pictures", "video": "clips", "audio": "sounds"}
OWN_SETTINGS = {  # rewards that need what a page doesn't take: why, in one sentence
    "social": "needs a head that `workbench social train` wrote: name its folder in a config",
    "learned": "is offered by the name of what was learned: learn one from votes, under Leaderboard",
    "personal": "is offered by the name of what was learned: learn one from votes, under Leaderboard",
    "remote": "asks a server, whose address a page does not take: name it in a config",
}
_answers: dict[tuple[str, int], tuple[float, bool]] = {}  # address -> when it was tried, and whether it answered


def list_tastes(runs: Path) -> dict[str, Path]:
    """Name -> folder of the tastes that were learned from votes in this folder of runs, the newest first."""
    return {f"{TASTE}{name}": folder for name, folder in [*tastes.list_tastes(runs).items()][::-1]}


def taste_modality(name: str, runs: Path) -> str:
    """The kind of media on which a taste was learned."""
    record = json.loads((list_tastes(runs)[name] / "head.json").read_text(encoding="utf-8"))
    return record.get("modality", "image")


def reward_class(name: str) -> type:
    """The class behind a name that `check_reward_name` let through."""
    return Learned if name.startswith(TASTE) else all_rewards()[name]


def is_oracle(name: str) -> bool:
    return not name.startswith(TASTE) and issubclass(all_rewards()[name], ORACLES)


def explain_misfit(name: str, config: pipelines.PipelineConfig, runs: Path) -> str:
    """Why a comparison of this pipeline can't be judged by a reward, in a few words; "" where it can."""
    cls = reward_class(name)
    spec, is_starter = cls.spec, config.repo.startswith("starter:")
    if name.startswith(TASTE) and (kind := taste_modality(name, runs)) != config.modality:
        return f"was learned from votes on {WORDS[kind]}, and {config.name} makes {WORDS[config.modality]}"
    if config.modality not in spec.modalities:
        kinds = " and ".join(WORDS[kind] for kind in sorted(spec.modalities))
        return f"judges {kinds}, and {config.name} makes {WORDS[config.modality]}"
    if name.startswith(TASTE):
        return ""
    if lacking_inputs := [need for need in input_needs(spec) if need not in config.inputs]:
        return f"compares with the {lacking_inputs[0]} of a sample, and {config.name} takes none"
    if is_starter_reward(cls) and not is_starter:
        return f"knows the starter pack's world only, and {config.name} makes others"
    if is_starter_reward(cls) and bool(input_needs(spec)) != bool(config.inputs):
        return f"reads a scene by its description, and the prompts of {config.name} are instructions"
    if name in OWN_SETTINGS:
        return OWN_SETTINGS[name]
    if "reference" in spec.needs:
        return "compares with examples: name their folder in a config"
    if spec.scope != "sample":
        return f"judges {'a whole set' if spec.scope == 'set' else 'the samples of one prompt'} together: use a config"
    try:
        reward = configure_reward(cls, {}, name)
    except (BadInput, TypeError) as error:
        return f"needs settings of yours, so name it in a config ({str(error).partition(': ')[2]})"
    if isinstance(reward, Judge) and not _is_answered(reward.url):
        return f"asks a judge at {reward.url}, and nothing answers there: start one (docs/judges.md)"
    return ""


def _is_answered(url: str) -> bool:
    """Whether something listens at the address that a judge has by default, on this machine; tried every ten
    seconds."""
    parts = urlsplit(url)
    address = parts.hostname or "", parts.port or 80
    tried, answered = _answers.get(address, (-math.inf, False))
    if time.monotonic() - tried > 10:
        try:
            socket.create_connection(address, timeout=0.2).close()
            answered = True
        except OSError:
            answered = False
        _answers[address] = time.monotonic(), answered
    return answered


def list_rewards(config: pipelines.PipelineConfig, runs: Path) -> list[tuple[str, str]]:
    """(label, name) of the rewards that can judge single samples of this pipeline; those whose weights are here come
    first, the starter pack's before others, and tastes learned from votes."""
    choices = []
    for name in [*all_rewards(), *list_tastes(runs)]:
        if not explain_misfit(name, config, runs):
            is_local = name.startswith(TASTE) or has_weights(all_rewards()[name])
            is_starter = name.startswith(TASTE) or is_starter_reward(all_rewards()[name])
            label = _label(name, runs) if is_local else f"{name} (weights to be fetched)"
            choices.append((not is_local, not is_starter, label, name))
    return [(label, name) for _, _, label, name in sorted(choices, key=lambda row: row[:2])]


def offer_rewards(
    config: pipelines.PipelineConfig, chosen: Sequence[str], runs: Path, optimise: bool
) -> list[tuple[str, str]]:
    """(label, name) of what a page offers: what suits, then what is chosen and does not, then the others of the
    modality, each with its reason. Oracles are never offered to be optimised."""
    suitable = list_rewards(config, runs)
    if optimise:
        suitable = [(label, name) for label, name in suitable if not is_oracle(name)]
    names = {name for _, name in suitable}
    known_names = [name for name in chosen if name and name not in names and is_known(name, runs)]
    unfit = [
        name
        for name, cls in all_rewards().items()
        if name not in names | {*known_names}
        and config.modality in cls.spec.modalities
        and not issubclass(cls, ORACLES)
    ]
    marked = [
        (f"{_label(name, runs)} — {_reason(name, config, runs, optimise)}", name) for name in (*known_names, *unfit)
    ]
    return [*suitable, *marked]


def _reason(name: str, config: pipelines.PipelineConfig, runs: Path, optimise: bool) -> str:
    return explain_misfit(name, config, runs) or ("an oracle: it looks on" if optimise and is_oracle(name) else "")


def _label(name: str, runs: Path) -> str:
    if not name.startswith(TASTE):
        return name
    record = json.loads((list_tastes(runs)[name] / "head.json").read_text(encoding="utf-8"))
    who = "tastes of each voter" if "people" in record else "taste of the voters"
    return f"{name} ({who})"


def has_weights(cls: type) -> bool:
    """Whether a reward's weights, if it has any, are on this machine."""
    return all(map(doctor.is_cached, doctor.hub_repositories(cls.spec, str(getattr(cls, "model", "")))))


def default_watch(config: pipelines.PipelineConfig, optimised: Sequence[str], runs: Path) -> list[str]:
    """Who looks on unless told otherwise: the oracle where there is one, the watchdog of clipped values, how much of a
    source is left as it was, and every published scorer whose weights are here."""
    offered = [n for label, n in list_rewards(config, runs) if label == n and n not in optimised and n in all_rewards()]
    scorers = [n for n in offered if not is_starter_reward(all_rewards()[n]) and all_rewards()[n].spec.weights]
    watchdogs = ("saturated_pixels", "unchanged")
    return [n for n in offered if n.endswith("oracle") or n in watchdogs or n in scorers]


# What was chosen, as a run's config names it


def is_known(name: str, runs: Path) -> bool:
    return name in all_rewards() or name in list_tastes(runs)


def check_reward_name(name: str, runs: Path) -> str:
    """Raises BadInput for what is not a reward's name, or one that needs what a page doesn't take: from here no module
    is imported."""
    if not is_known(name, runs):
        known_names = [*all_rewards(), *list_tastes(runs)]
        tail = suggest_nearest(str(name)[:60], known_names)
        tail = tail if tail.startswith("did you") else "choose one of the list"
        raise BadInput(f"rewards: unknown reward {str(name)[:60]!r}; {tail}")
    if name in OWN_SETTINGS:
        raise BadInput(f"rewards: {name} {OWN_SETTINGS[name]}")
    return name


def check_weights(weights: Mapping[str, float], runs: Path) -> dict[str, float]:
    """The rewards to optimise, each with its weight. Raises BadInput."""
    if not weights:
        raise BadInput("rewards: name at least one to optimise")
    if len(weights) > SLOTS:
        raise BadInput(f"rewards: at most {SLOTS} in one mix")
    for name, weight in weights.items():
        check_reward_name(name, runs)
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not is_number or not 0 < abs(weight) <= 1e4 or math.isnan(weight):
            raise BadInput(
                f"rewards: the weight of {name} is a number between -10,000 and 10,000 other than 0, "
                f"not {str(weight)[:40]}"
            )
    return {name: float(weight) for name, weight in weights.items()}


def reward_blocks(weights: Mapping[str, float], runs: Path) -> dict[str, Any]:
    """Checked weights as a run's config names them: a taste by the folder that holds it."""
    return {
        _config_key(name): {**_taste_block(name, runs), "weight": weight} if name.startswith(TASTE) else weight
        for name, weight in weights.items()
    }


def watch_blocks(names: Sequence[str], runs: Path) -> list[str] | dict[str, Any] | None:
    """The same of what looks on."""
    if not any(name.startswith(TASTE) for name in names):
        return list(names) or None
    return {_config_key(name): _taste_block(name, runs) if name.startswith(TASTE) else {} for name in names}


def _config_key(name: str) -> str:
    """How a run's config labels a reward of the page."""
    return tastes.taste_label(name) if name.startswith(TASTE) else name


def _taste_block(name: str, runs: Path) -> dict[str, str]:
    return tastes.taste_block(list_tastes(runs)[name])


def restore_name(label: str, block: Any, runs: Path) -> tuple[str, Any]:
    """(name, block) of a stored reward as a page names it: a taste that is still here by its own name."""
    if isinstance(block, Mapping) and block.get("reward") in (Learned.spec.name, Personal.spec.name):
        names = {str(folder): name for name, folder in list_tastes(runs).items()}
        if (name := names.get(str(block.get("path")))) is not None:
            return name, {k: v for k, v in block.items() if k not in ("reward", "path")}
    return label, block
