"""Scores of media files by any rewards, as a table."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards import build_reward
from rewards.compose import WeightedReward
from rewards.factory import PRESETS
from workbench.core.errors import BadInput
from workbench.core.inputs import input_needs, stack_sources
from workbench.core.io import folders, media
from workbench.core.io.clips import StoredClip
from workbench.core.io.parsing import parse_yaml, read_yaml
from workbench.core.text import one_line, quote_value
from workbench.core.types import EmbeddingReward, Modality, Prompt, Reward, embeds_media
from workbench.evaluation.file_prompts import pair_files, restore_inputs
from workbench.runs.media_prompts import find_prompt
from workbench.runs.registry import all_rewards

log = logging.getLogger(__name__)
NO_MATCH = "judged by none of these rewards"
WHOLE = "reward"  # the column of what the rewards make together


def parse_reward_blocks(texts: Sequence[str]) -> dict:
    """One reward block, as in a run's config, of several texts: each is a name, a preset, a block in YAML such as
    `{clip: {dtype: bfloat16}}` or `{clip: 1.0, aesthetic: 1.0, combine: worst}`, or a YAML file of such a block, or of
    a run, whose `reward` it is. Raises BadInput."""
    block: dict = {}
    for text in texts:
        rewards = _read_reward_block(text)
        if repeated := [label for label in rewards if label in block]:
            raise BadInput(f"--reward: {repeated[0]} is named twice")
        block |= rewards
    return block


def _read_reward_block(text: str) -> dict:
    is_file = text.lower().endswith((".yaml", ".yml"))
    if not is_file and not text.lstrip().startswith("{"):
        return dict(PRESETS.get(text, {text: {}}))
    block = read_yaml(text) if is_file else parse_yaml(text, "--reward")
    if is_file and isinstance(block, Mapping) and "reward" in block:
        block = block["reward"]
    if isinstance(block, str):
        return dict(PRESETS.get(block, {block: {}}))
    if not isinstance(block, Mapping) or not all(isinstance(name, str) for name in block):
        raise BadInput(f"--reward {quote_value(text)}: write NAME or {{NAME: {{setting: value}}}}")
    return {name: {} if settings is None else settings for name, settings in block.items()}


def build_rewards(
    texts: Sequence[str], registry: Mapping[str, type]
) -> tuple[dict[str, Reward], WeightedReward | None]:
    """(label -> reward, the whole that they make), checked and not loaded, of texts as in `parse_reward_blocks`. There
    is a whole where the block says how: by `combine`, `shape`, `within`, or a weight other than 1. Raises BadInput."""
    block = parse_reward_blocks(texts)
    choices = {key: block[key] for key in ("combine", "shape") if key in block}
    rewards: dict[str, Reward] = {}
    parts = {label: settings for label, settings in block.items() if label not in choices}
    for label, settings in parts.items():
        part = build_reward({label: settings}, registry, "--reward")
        ((name, reward),) = part.rewards.items()
        rewards[name] = reward
    if not choices and not any(_says_how(settings) for settings in parts.values()):
        return rewards, None
    if WHOLE in rewards:
        raise BadInput(f"--reward: the whole is called {WHOLE!r} in the table; give the component another label")
    return rewards, build_reward(block, registry, "--reward")


def _says_how(settings: Any) -> bool:
    """Whether the settings of a component change what it counts in the whole."""
    if isinstance(settings, Mapping):
        return "within" in settings or settings.get("weight", 1) != 1
    return settings != 1


def score_files(
    files: Sequence[Path],
    names: Sequence[str],
    prompt: str | None = None,
    *,
    prompts: str | None = None,
    source: Path | None = None,
) -> list[dict]:
    """One row per file: `file`, `prompt`, a score per reward (None where there is none), that of the whole where
    `build_rewards` makes one, `note` on what is odd about the file or was converted, and `error`, one sentence, empty
    when no score is missing.

    prompt, prompts, source: what the files were made from, as `file_prompts.pair_files` takes them; without a prompt,
    a text beside a file, NAME.txt, or what the program that made it wrote into it, and of a run's samples what its
    folder keeps. With set rewards, a last row has the scores
    of all files together. A reward skips files of a modality that it can't score. Raises BadInput for an invalid
    reward, when none of the paths exists, and when no file can be scored because no reward fits its modality, or a
    prompt or an input is missing.
    """
    rewards, whole = build_rewards(names, all_rewards())
    for name, reward in {**rewards, **({WHOLE: whole} if whole else {})}.items():
        if reward.spec.scope == "group":
            raise BadInput(f"--reward {name}: compares the samples of one prompt, which files don't tell")
        if reward.spec.scope == "set" and reward is not whole and not embeds_media(reward):
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
    needed = {name for reward in rewards.values() for name in input_needs(reward.spec)}
    origins = iter(
        pair_files([p for p, problem in paths if not problem], needed, prompt=prompt, prompts=prompts, source=source)
    )
    for path, problem in paths:
        labels = [*rewards, *([WHOLE] if whole else [])]
        row = {"file": str(path), "prompt": prompt, **dict.fromkeys(labels), "note": "", "error": problem}
        rows.append(row)
        if problem:
            continue
        origin = next(origins)
        row |= {"prompt": origin.text, "error": origin.problem}
        if origin.problem:
            refusals.append(origin.problem)
            continue
        try:
            loaded = media.inspect_media(path)
        except BadInput as error:
            row["error"] = str(error)
            continue
        text, note = (origin.text, "") if origin.text is not None else _find_prompt(path, loaded.story)
        row["prompt"], row["note"] = text, "; ".join(filter(None, (*loaded.notes, note)))
        inputs = {**restore_inputs(path, loaded.story), **origin.inputs}
        refusal = _missing_requirement(rewards, loaded.modality, text, inputs, path)
        refusals += [refusal] if refusal else []
        origin_prompt = Prompt(text or "", inputs)
        row["error"] = refusal or _score_file(rewards, set_rewards, loaded, origin_prompt, row, path, sets)
        if whole and all(row[name] is not None for name in rewards):
            row[WHOLE] = float(whole.total({n: torch.tensor([row[n]]) for n in rewards}, [row["prompt"] or ""])[0])
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


def score_row(reward: Reward, item: media.MediaFile, prompt: str) -> float:
    """The score of one file, made from the inputs of the prompt. A reward with `score_clip(clip, prompts)` takes a clip
    in 8 bits, and makes numbers only of the frames that it looks at."""
    if isinstance(item.content, StoredClip) and hasattr(reward, "score_clip"):
        return float(reward.score_clip(item.content, [prompt])[0])
    sources = stack_sources(reward, item.media, [prompt])
    return float(reward(media=item.media, prompts=[prompt], references=sources)[0])


def _expand_folders(files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """(file, "") for each file, those in folders sorted; (path, error) for a path without files."""
    for path in files:
        if path.is_dir():
            listing = folders.list_media(path)
            if listing.left_out:
                log.warning("%s: %s", one_line(path), listing.left_out_sentence())
            yield from ((p, "") for p in listing.files)
            if not listing.files:
                yield path, f"{path}: no media files in this folder"
        else:
            yield path, "" if path.exists() else f"{path}: no such file or folder"


def _find_prompt(path: Path, story: Mapping[str, Any]) -> tuple[str | None, str]:
    """(the prompt of a file that nothing else names, a note on where it stands or why it can't be told)."""
    try:
        text, where = find_prompt(path, story)
    except BadInput as error:
        return None, f"no prompt: {error}"
    return text or None, f"prompt from {where}" if where else ""


def _missing_requirement(
    rewards: Mapping[str, Reward], modality: Modality, prompt: str | None, inputs: Collection[str], path: Path
) -> str:
    """Why a file can't be scored: no reward fits its modality, or one needs a prompt or an input and there is none;
    else ""."""
    fitting = {name: reward for name, reward in rewards.items() if modality in reward.spec.modalities}
    if not fitting:
        modalities = "; ".join(f"{name} judges {', '.join(sorted(r.spec.modalities))}" for name, r in rewards.items())
        return f"{path}: {modality}, which is {NO_MATCH}: {modalities}"
    for name, reward in fitting.items():
        if "prompt" in reward.spec.needs and prompt is None:
            beside = path.with_suffix(".txt").name
            return (
                f"reward {name} needs the prompt of {path}, and the file carries none; give --prompt TEXT, --prompts "
                f"FILE, or {beside} beside it"
            )
        if unmet := [need for need in input_needs(reward.spec) if need not in inputs]:
            way_out = "--source FILE, or " if unmet[0] == "source" else ""
            return (
                f"reward {name} needs the {unmet[0]} of {path}; give {way_out}--prompts FILE.jsonl with a key "
                f"`{unmet[0]}` in each line"
            )
    return ""


@torch.no_grad()
def _score_file(
    rewards: Mapping[str, Reward],
    set_rewards: Mapping[str, EmbeddingReward],
    item: media.MediaFile,
    prompt: Prompt,
    row: dict,
    path: Path,
    sets: Mapping[str, list[Tensor]],
) -> str:
    """Add the file's scores to `row` and its features to `sets`; returns why a score is missing, else ""."""
    if not item.is_finite():
        return f"{path}: holds values that are not finite (NaN or infinite), so nothing can judge it"
    problems = []
    for name, reward in rewards.items():
        if item.modality not in reward.spec.modalities:
            continue
        try:
            if name in set_rewards:
                sets[name].append(set_rewards[name].features(item.media))
                continue
            value = score_row(reward, item, prompt)
        except Exception as error:  # whatever a reward makes of an odd file: it costs this score, and the row says so
            why = one_line(error, 200) or type(error).__name__
            problems.append(f"{name} can't judge {path}: {why}")
            continue
        if value == value and abs(value) != float("inf"):
            row[name] = value
        else:
            why = getattr(reward, "last_failures", {}).get(0, f"it gave {value}")  # VLM judges say why
            problems.append(f"{name} found no score for {path}: {why}")
    return "; ".join(problems)
