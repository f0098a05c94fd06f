"""Scores of media files by any rewards, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor

from rewards import configure_reward, find_reward
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.types import EmbeddingReward, Media, Reward, embeds_media
from workbench.runs.registry import all_rewards

NO_MATCH = "judged by none of these rewards"


def parse_reward_blocks(texts: Sequence[str]) -> dict:
    """One reward block, as in a run's config, of several texts: each is a name, or a block in YAML such as
    `{clip: {dtype: bfloat16}}` or `{big: {reward: clip, model: ...}}`. Raises BadInput."""
    block: dict = {}
    for text in texts:
        try:
            rewards = yaml.safe_load(text) if text.lstrip().startswith("{") else {text: {}}
        except yaml.YAMLError:
            raise BadInput(f"--reward {text!r}: not valid YAML; write {{NAME: {{setting: value}}}}") from None
        if repeated := [label for label in rewards if label in block]:
            raise BadInput(f"--reward: {repeated[0]} is named twice")
        block |= rewards
    return block


def build_rewards(texts: Sequence[str], registry: Mapping[str, type]) -> dict[str, Reward]:
    """Label -> reward, checked and not loaded, of texts as in `parse_reward_blocks`. Raises BadInput."""
    rewards = {}
    for label, settings in parse_reward_blocks(texts).items():
        if not isinstance(settings, (Mapping, type(None))):
            raise BadInput(f"--reward {label}: expected its settings, {{setting: value}}, got {settings!r}")
        settings = dict(settings or {})
        where = f"--reward {label}"
        reward = configure_reward(find_reward(str(settings.pop("reward", label)), registry, where), settings, where)
        if hasattr(reward, "check"):
            reward.check()
        rewards[reward.spec.name if ":" in str(label) else str(label)] = reward
    return rewards


def score_files(files: Sequence[Path], names: Sequence[str], prompt: str | None) -> list[dict]:
    """One row per file: `file`, `prompt`, a score per reward (None where there is none), `note` on what is odd about
    the file or was converted, and `error`, one sentence, empty when no score is missing.

    With set rewards, a last row has the scores of all files together. A reward skips files of a modality that it can't
    score. Raises BadInput for an invalid reward, when none of the paths exists, and when no file can be scored because
    no reward fits its modality or a prompt is missing.
    """
    rewards = build_rewards(names, all_rewards())
    for name, reward in rewards.items():
        if reward.spec.scope == "group":
            raise BadInput(f"--reward {name}: compares the samples of one prompt, which files don't tell")
        if "source" in reward.spec.needs:
            raise BadInput(f"--reward {name}: needs what each picture was made from, which `score` doesn't take")
        if reward.spec.scope == "set" and not embeds_media(reward):
            raise BadInput(f"--reward {name}: judges whole sets, and has no features to take file by file")
        if "reference" in reward.spec.needs:
            raise BadInput(
                f"--reward {name}: compares with examples; write --reward '{{{name}: {{reference: FOLDER}}}}'"
            )
    set_rewards = {n: reward for n, reward in rewards.items() if reward.spec.scope == "set" and embeds_media(reward)}
    sets: dict[str, list[Tensor]] = {name: [] for name in set_rewards}  # name -> features of each file
    rows, refusals, paths = [], [], [*_expand_folders(files)]
    if all(problem for _, problem in paths):
        raise BadInput(paths[0][1])
    for path, problem in paths:
        row = {"file": str(path), "prompt": prompt, **dict.fromkeys(rewards), "note": "", "error": problem}
        rows.append(row)
        if problem:
            continue
        try:
            loaded = media.inspect_media(path)
        except BadInput as error:
            row["error"] = str(error)
            continue
        row["prompt"] = prompt if prompt is not None else _prompt_in_file(loaded.story)
        row["note"] = "; ".join(loaded.notes)
        missing_input = _missing_requirement(rewards, loaded.media, row["prompt"], path)
        refusals += [missing_input] if missing_input else []
        row["error"] = missing_input or _score_file(rewards, set_rewards, loaded.media, row, path, sets)
    if refusals and all(row["error"] for row in rows):
        raise BadInput(refusals[0])
    if sets:
        rows.append(_score_sets(rewards, set_rewards, sets))
    return rows


@torch.no_grad()
def _score_sets(
    rewards: Mapping[str, Reward], set_rewards: Mapping[str, EmbeddingReward], sets: Mapping[str, list[Tensor]]
) -> dict:
    """The row of all files together: the scores of set rewards by the features of the files."""
    row = {"file": "all together", "prompt": None, **dict.fromkeys(rewards), "note": "", "error": ""}
    problems = []
    for name, parts in sets.items():
        reward, count = set_rewards[name], len(parts)
        value = torch.nan
        if parts:
            x = torch.cat(parts)
            value = float(reward.score_rows(x, reward.target(None, x.device)))
        if value == value:
            row[name] = value
        else:
            problems.append(f"{name} can't judge a set of {count}")
    return row | {"error": "; ".join(problems)}


def _expand_folders(files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """(file, "") for each file, those in folders sorted; (path, error) for a path without files."""
    for path in files:
        if path.is_dir():
            readable = (p for p in path.rglob("*") if p.suffix.lower() in media.READABLE_SUFFIXES and p.is_file())
            inside = sorted(p for p in readable if not any(part.startswith(".") for part in p.relative_to(path).parts))
            yield from ((p, "") for p in inside)
            if not inside:
                yield (
                    path,
                    f"{path}: no media files in this folder; known kinds: {', '.join(sorted(media.READABLE_SUFFIXES))}",
                )
        else:
            yield path, "" if path.exists() else f"{path}: no such file or folder"


def _prompt_in_file(story: dict) -> str | None:
    """The prompt in the metadata that the workbench wrote into a file."""
    words = story.get("prompt")
    return words if isinstance(words, str) else None


def _missing_requirement(rewards: Mapping[str, Reward], item: Media, prompt: str | None, path: Path) -> str:
    """Why a file can't be scored: no reward fits its modality, or one needs a prompt and there is none; else ""."""
    fitting = {name: reward for name, reward in rewards.items() if item.modality in reward.spec.modalities}
    if not fitting:
        modalities = "; ".join(f"{name} judges {', '.join(sorted(r.spec.modalities))}" for name, r in rewards.items())
        return f"{path}: {item.modality}, which is {NO_MATCH}: {modalities}"
    for name, reward in fitting.items():
        if "prompt" in reward.spec.needs and prompt is None:
            return f"reward {name} needs the prompt of {path}, and the file carries none; give --prompt TEXT"
    return ""


@torch.no_grad()
def _score_file(
    rewards: Mapping[str, Reward],
    set_rewards: Mapping[str, EmbeddingReward],
    item: Media,
    row: dict,
    path: Path,
    sets: Mapping[str, list[Tensor]],
) -> str:
    """Add the file's scores to `row` and its features to `sets`; returns why a score is missing, else ""."""
    if not item.data.isfinite().all():
        return f"{path}: holds values that are not finite (NaN or infinite), so nothing can judge it"
    problems = []
    for name, reward in rewards.items():
        if item.modality not in reward.spec.modalities:
            continue
        try:
            if name in set_rewards:
                sets[name].append(set_rewards[name].features(item))
                continue
            value = float(reward(media=item, prompts=[row["prompt"] or ""])[0])
        except (ValueError, RuntimeError) as error:  # BadInput is a ValueError
            problems.append(f"{name} can't judge {path}: {str(error).splitlines()[0]}")
            continue
        if value == value and abs(value) != float("inf"):
            row[name] = value
        else:
            why = getattr(reward, "last_failures", {}).get(0, f"it gave {value}")  # VLM judges say why
            problems.append(f"{name} found no score for {path}: {why}")
    return "; ".join(problems)
