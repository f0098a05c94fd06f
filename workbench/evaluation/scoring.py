"""Scores of media files by any rewards, as a table."""

from __future__ import annotations

import logging
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards import build_reward
from rewards.compose import WeightedReward
from rewards.factory import PRESETS
from workbench.core.errors import BadInput
from workbench.core.inputs import input_needs, prompt_inputs
from workbench.core.io import folders, media
from workbench.core.io.parsing import parse_yaml, read_yaml
from workbench.core.text import one_line, quote_value
from workbench.core.types import EmbeddingReward, Modality, Prompt, Reward, embeds_media
from workbench.evaluation.file_prompts import FilePrompt, pair_files, restore_inputs
from workbench.evaluation.score_batches import WINDOW, BatchScorer, Question
from workbench.runs.media_folders import FolderMetadata, prompt_in_name
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


@dataclass(frozen=True)
class ScoredFile:
    """A file that is to be scored."""

    path: Path
    problem: str = ""  # why it can't be
    metadata: FolderMetadata | None = None  # of the folder in which it was found


@dataclass(frozen=True)
class ScoringTask:
    """Files and the rewards that are to score them; nothing has been read or loaded yet."""

    rewards: Mapping[str, Reward]
    whole: WeightedReward | None  # that the rewards make together
    files: tuple[ScoredFile, ...]
    origins: tuple[FilePrompt, ...]  # of each file

    @property
    def labels(self) -> list[str]:
        """The columns of scores."""
        return [*self.rewards, *([WHOLE] if self.whole else [])]

    @property
    def columns(self) -> list[str]:
        return ["file", "prompt", *self.labels, "note", "error"]

    @property
    def media(self) -> list[Path | None]:
        """What each row is of; None: of all files together."""
        return [file.path for file in self.files] + [None] * bool(self.set_rewards)

    @property
    def set_rewards(self) -> dict[str, EmbeddingReward]:
        return {n: r for n, r in self.rewards.items() if r.spec.scope == "set" and embeds_media(r)}

    def score(self, finished: Container[int] = ()) -> Iterator[tuple[int, dict]]:
        """(number of the file, its row) as they come, in order; files whose numbers are in `finished` are passed over.
        With set rewards, a last row, numbered by the number of files, has the scores of all together.

        No more is held than WINDOW files or VALUES values wait, and the features of set rewards. Raises BadInput, at
        the end, where no file could be scored because no reward fits its modality, or a prompt or an input is missing.
        """
        scorer = BatchScorer(self.rewards, self.set_rewards)
        sets: dict[str, list[Tensor]] = {name: [] for name in self.set_rewards}  # name -> features of each file
        pending: list[tuple[int, dict, Question | None]] = []
        refusals: list[str] = []
        has_row = False
        for n in range(len(self.files)):
            if n in finished:
                has_row = True
                continue
            row, question = self._ask(n, scorer, refusals)
            pending.append((n, row, question))
            if scorer.is_full or not scorer.waiting or len(pending) >= WINDOW:
                has_row |= any(not row["error"] for _, row, _ in pending)
                yield from self._answer(scorer, pending, sets)
                pending = []
        has_row |= any(not row["error"] for _, row, _ in pending)
        yield from self._answer(scorer, pending, sets)
        if refusals and not has_row:
            raise BadInput(refusals[0])
        if sets:
            yield (
                len(self.files),
                _score_sets(self.rewards, self.set_rewards, sets) | dict.fromkeys(self.labels[len(self.rewards) :]),
            )

    def _ask(self, n: int, scorer: BatchScorer, refusals: list[str]) -> tuple[dict, Question | None]:
        """(the row of a file without scores, the question that will have them; None for a file that can't be asked
        about)."""
        file, origin = self.files[n], self.origins[n]
        path = file.path
        row = {"file": str(path), "prompt": None, **dict.fromkeys(self.labels), "note": "", "error": file.problem}
        if file.problem:
            return row, None
        row |= {"prompt": origin.text, "error": origin.problem}
        if origin.problem:
            refusals.append(origin.problem)
            return row, None
        try:
            loaded = media.inspect_media(path)
            text, note, inputs = _find_origin(file, origin, loaded.story)
        except BadInput as error:
            row["error"] = str(error)
            return row, None
        row["prompt"], row["note"] = text, "; ".join(filter(None, (*loaded.notes, note)))
        if refusal := _missing_requirement(self.rewards, loaded.modality, text, inputs, path):
            refusals.append(refusal)
            row["error"] = refusal
            return row, None
        if not loaded.is_finite():
            row["error"] = f"{path}: holds values that are not finite (NaN or infinite), so nothing can judge it"
            return row, None
        return row, scorer.add(path, loaded, Prompt(text or "", inputs))

    def _answer(
        self, scorer: BatchScorer, pending: Sequence[tuple[int, dict, Question | None]], sets: Mapping[str, list]
    ) -> Iterator[tuple[int, dict]]:
        scorer.score_waiting()
        for n, row, question in pending:
            if question is not None:
                row |= question.scores
                row["error"] = "; ".join(question.problems[name] for name in self.rewards if name in question.problems)
                for name, features in question.features.items():
                    sets[name].append(features)
                if self.whole and all(row[name] is not None for name in self.rewards):
                    parts = {name: torch.tensor([row[name]]) for name in self.rewards}
                    row[WHOLE] = float(self.whole.total(parts, [row["prompt"] or ""])[0])
            yield n, row


def plan_scoring(
    files: Sequence[Path],
    names: Sequence[str],
    prompt: str | None = None,
    *,
    prompts: str | None = None,
    source: Path | None = None,
) -> ScoringTask:
    """The files, those in folders too, and the rewards that score them, with what each file was made from.

    prompt, prompts, source: as `file_prompts.pair_files` takes them; without a prompt, the metadata of the folder
    (metadata.jsonl and others), a text beside a file, NAME.txt, what the program that made it wrote into it, or its
    name, where that is PROMPT-NUMBER; of a run's samples also what its folder keeps. Raises BadInput for an invalid
    reward, and when none of the paths exists.
    """
    rewards, whole = build_file_rewards(names)
    expanded = tuple(_expand_folders(files, prompts))
    if all(file.problem for file in expanded):
        raise BadInput(expanded[0].problem)
    needed = {name for reward in rewards.values() for name in input_needs(reward.spec)}
    readable = [file.path for file in expanded if not file.problem]
    origins = iter(pair_files(readable, needed, prompt=prompt, prompts=prompts, source=source))
    return ScoringTask(
        rewards, whole, expanded, tuple(FilePrompt(prompt) if file.problem else next(origins) for file in expanded)
    )


def build_file_rewards(names: Sequence[str]) -> tuple[dict[str, Reward], WeightedReward | None]:
    """`build_rewards` of those that can score files. Raises BadInput."""
    rewards, whole = build_rewards(names, all_rewards())
    check_file_rewards(rewards, whole)
    return rewards, whole


def check_file_rewards(rewards: Mapping[str, Reward], whole: WeightedReward | None = None) -> None:
    """Raises BadInput for a reward that can't score files one by one."""
    for name, reward in {**rewards, **({WHOLE: whole} if whole else {})}.items():
        if reward.spec.scope == "group":
            raise BadInput(f"--reward {name}: compares the samples of one prompt, which files don't tell")
        if reward.spec.scope == "set" and reward is not whole and not embeds_media(reward):
            raise BadInput(f"--reward {name}: judges whole sets, and has no features to take file by file")
        if "reference" in reward.spec.needs:
            raise BadInput(
                f"--reward {name}: compares with examples; write --reward '{{{name}: {{reference: FOLDER}}}}'"
            )


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
    when no score is missing. The arguments are those of `plan_scoring`. With set rewards, a last row has the scores of
    all files together. A reward skips files of a modality that it can't score.

    Raises BadInput as `plan_scoring` and `ScoringTask.score` do.
    """
    return [row for _, row in plan_scoring(files, names, prompt, prompts=prompts, source=source).score()]


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


def _expand_folders(files: Sequence[Path], prompts: str | None) -> Iterator[ScoredFile]:
    """Each file, those in folders sorted and without what others were made from; a path without files with the problem.
    Raises BadInput for a folder whose metadata can't be read."""
    for path in files:
        if path.is_dir():
            samples, metadata = list_samples(path, Path(prompts) if prompts else None)
            yield from (ScoredFile(p, metadata=metadata) for p in samples)
            if not samples:
                yield ScoredFile(path, f"{path}: no media files in this folder")
        else:
            yield ScoredFile(path, "" if path.exists() else f"{path}: no such file or folder")


def list_samples(folder: Path, prompts: Path | None = None) -> tuple[list[Path], FolderMetadata]:
    """(the media of a folder and its subfolders, sorted and without what others were made from, its metadata). A
    warning names files that are neither. prompts: the list of prompts that was given. Raises BadInput for metadata that
    can't be read."""
    listing, metadata = folders.list_media(folder), FolderMetadata(folder, prompts)
    samples = [path for path in listing.files if path not in metadata.inputs]
    texts = {path.with_suffix(".txt") for path in samples}
    if others := tuple(path for path in listing.left_out if path not in metadata.files and path not in texts):
        log.warning("%s: %s", one_line(folder), folders.Listing((), others).left_out_sentence())
    return samples, metadata


def _find_origin(
    file: ScoredFile, origin: FilePrompt, story: Mapping[str, Any]
) -> tuple[str | None, str, dict[str, Any]]:
    """(the prompt of a file, a note on where it stands or why it can't be told, what the file was made from). Raises
    BadInput for an input in a folder's metadata that can't be read."""
    inputs = restore_inputs(file.path, story)
    named = file.metadata.find_prompt(file.path) if file.metadata else None
    inputs |= {**prompt_inputs(named[0] if named else ""), **origin.inputs}
    if origin.text is not None:
        return origin.text, "", inputs
    if named and named[0]:
        return str(named[0]), f"prompt from {named[1]}", inputs
    try:
        text, where = find_prompt(file.path, story)
    except BadInput as error:
        return None, f"no prompt: {error}", inputs
    if not text and (text := prompt_in_name(file.path)):
        where = "its name"
    return text or None, f"prompt from {where}" if where else "", inputs


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
