"""Every reward that applies to what somebody handed in, without anything being fetched; and why the others do not."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from rewards import configure_reward
from rewards.sets import exemplar
from workbench.core.errors import BadInput
from workbench.core.inputs import input_needs
from workbench.core.io.media import MediaFile
from workbench.core.paths import resolve_repo
from workbench.core.setting_help import summarise_class
from workbench.core.text import one_line
from workbench.core.types import Input, Prompt, Reward, RewardSpec
from workbench.evaluation.score_batches import score_row
from workbench.report.sample_inputs import input_title
from workbench.runs.registry import all_rewards
from workbench.ui.limits import EMBEDDING_MODELS

NO_SCORE = "found no score: what it reads in the prompt or in the file is not there"
WEIGHTS = ("model", "weights", "backbone", "tokenizer")  # the fields that say what a reward loads
FILES = ("config.json", "tokenizer_config.json", "open_clip_config.json", "model_index.json")


@dataclass
class RewardRow:
    """One reward and what it said."""

    name: str
    spec: RewardSpec
    about: str
    values: list[float | None] = field(default_factory=list)  # one a file
    licence: str = ""  # of its weights
    set_score: float | None = None  # of a reward of sets
    reason: str = ""  # there is no value


def missing_weights(reward: object) -> str:
    """The weights that this reward needs and this machine lacks; "" when all are here."""
    sources = [getattr(reward, f) for f in WEIGHTS if isinstance(getattr(reward, f, None), str)]
    return next((source for source in sources if source and not is_local(source)), "")


def is_local(source: str) -> bool:
    """Whether the weights that a string names can be had without a network. The forms are those of
    rewards/encoders/image_text.py."""
    if source.startswith("starter:"):
        try:
            return bool(resolve_repo(source))
        except FileNotFoundError:
            return False
    kind, colon, name = source.partition(":")
    name = name if colon else source
    if kind == "open_clip" and colon:
        name = name.partition("/")[2]
    if Path(name).expanduser().exists() or name == "logmel":
        return True
    parts = name.split("/", 2)
    if len(parts) == 3:
        return _is_cached("/".join(parts[:2]), parts[2])
    if kind == "open_clip" and colon:
        return False  # a pretrained tag: where open_clip keeps it, only loading tells
    return any(_is_cached(name, file) for file in FILES)


def _is_cached(repo: str, file: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(repo, file), (str, os.PathLike))
    except ValueError:  # no name that the hub could have
        return False


def list_embedding_models() -> list[str]:
    return [s for s in EMBEDDING_MODELS if is_local(s)]


def list_candidates(
    modalities: set[str], examples: str = "", space: str = EMBEDDING_MODELS[0], given: Collection[str] = ()
) -> Iterator[tuple[str, Reward | None, RewardRow]]:
    """(name, the reward or None where it is not tried, its row with the reason) for every reward of these modalities.

    `examples` is a folder of the exemplar set, "" without one; `space` the model through which sets are seen; `given`
    the names of what the media are known to be made from."""
    for name, cls in all_rewards().items():
        about = summarise_class(cls)
        reward, reason = _build_reward(name, cls, examples, space, given)
        row = RewardRow(name, (reward or cls).spec, about, reason=reason)
        loads = any(getattr(reward or cls, f, "") for f in WEIGHTS)
        row.licence = row.spec.licence or ("that of the model it looks through" if loads else "no weights of its own")
        if not modalities or modalities & row.spec.modalities:
            yield name, reward if not reason else None, row


def _build_reward(name: str, cls: type, examples: str, space: str, given: Collection[str]) -> tuple[Reward | None, str]:
    settings: dict = {}
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    if "url" in fields:
        return None, "asks a server, which a page does not; use it in a run or with workbench score"
    if issubclass(cls, exemplar.SetReward) and "audio" not in cls.spec.modalities:
        settings = {"model": space} | ({"reference": examples} if examples and "reference" in fields else {})
    try:
        reward = configure_reward(cls, settings, name)
    except BadInput as error:
        return None, f"needs settings of yours: {str(error).partition(': ')[2]}"
    if "reference" in reward.spec.needs:
        return None, "compares with examples: give some below"
    if reward.spec.scope == "group":
        return None, "judges the samples of one prompt together, which single files are not"
    if lacking := [need for need in input_needs(reward.spec) if need not in given]:
        titles = " and the ".join(map(input_title, lacking))
        return (
            None,
            f"compares a file with the {titles} that it was made from: give it under “What they were made from”",
        )
    if lacking_source := missing_weights(reward):
        return None, f"its weights are not on this machine: {lacking_source}"
    return reward, ""


def score_uploads(
    contents: Sequence[MediaFile],
    prompts: Sequence[str],
    examples: str,
    space: str,
    stop: threading.Event,
    inputs: Mapping[str, Input] | None = None,
) -> Iterator[list[RewardRow]]:
    """The rows, again and again as they fill. A reward that fails says why, and the others go on. inputs: what all
    files were made from."""
    rows: list[RewardRow] = []
    rewards = [*list_candidates({f.modality for f in contents}, examples, space, inputs or ())]
    prompts = [Prompt(prompt, inputs) for prompt in prompts]
    for _, reward, row in rewards:
        rows.append(row)
        if reward is not None:
            row.reason = "waits"
    for _, reward, row in rewards:
        if stop.is_set():
            row.reason = row.reason.replace("waits", "stopped before its turn")
            continue
        if reward is None:
            continue
        row.reason = ""
        try:
            _fill_row(reward, row, contents, prompts)
        except Exception as error:  # whatever a reward makes of an odd file
            message = one_line(error) or type(error).__name__
            row.values, row.reason = [], message.replace(examples, "the examples") if examples else message
        yield rows
    yield rows


@torch.no_grad()
def _fill_row(reward: Reward, row: RewardRow, contents: Sequence[MediaFile], prompts: Sequence[str]) -> None:
    is_suitable = [f.modality in reward.spec.modalities for f in contents]
    if reward.spec.scope == "set":
        features = [reward.features(f.media) for f, ok in zip(contents, is_suitable, strict=True) if ok]
        x = torch.cat(features)
        row.set_score = _finite_or_none(reward.score_rows(x, reward.target(None, x.device)))
        row.reason = "" if row.set_score is not None else f"can't judge a set of {len(x)}"
        return
    if "prompt" in reward.spec.needs and not any(prompts):
        row.reason = "needs a prompt: type one"
        return
    refusals = []
    for f, prompt, ok in zip(contents, prompts, is_suitable, strict=True):
        row.values.append(None)
        if ok and (prompt or "prompt" not in reward.spec.needs):
            try:
                row.values[-1] = _finite_or_none(score_row(reward, f, prompt))
            except BadInput as error:  # it costs this file's score
                refusals.append(one_line(error))
    if all(v is None for v in row.values):
        row.reason = refusals[0] if refusals else NO_SCORE


def _finite_or_none(value: torch.Tensor | float) -> float | None:
    number = float(value)
    return number if abs(number) < float("inf") else None
