"""Every reward that applies to what somebody handed in, without anything being fetched; and why the others do not."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache

from rewards import configure_reward
from rewards.sets import exemplar
from workbench.core.errors import BadInput
from workbench.core.io.media import MediaFile
from workbench.core.paths import resolve_repo
from workbench.core.setting_help import summarise_class
from workbench.core.text import one_line
from workbench.core.types import Reward, RewardSpec
from workbench.evaluation.scoring import score_row
from workbench.runs.registry import all_rewards
from workbench.ui.limits import EMBEDDING_MODELS

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
    modalities: set[str], examples: str = "", space: str = EMBEDDING_MODELS[0]
) -> Iterator[tuple[str, Reward | None, RewardRow]]:
    """(name, the reward or None where it is not tried, its row with the reason) for every reward of these modalities.

    `examples` is a folder of the exemplar set, "" without one; `space` the model through which sets are seen."""
    for name, cls in all_rewards().items():
        about = summarise_class(cls)
        reward, reason = _build_reward(name, cls, examples, space)
        row = RewardRow(name, (reward or cls).spec, about, reason=reason)
        loads = any(getattr(reward or cls, f, "") for f in WEIGHTS)
        row.licence = row.spec.licence or ("that of the model it looks through" if loads else "no weights of its own")
        if not modalities or modalities & row.spec.modalities:
            yield name, reward if not reason else None, row


def _build_reward(name: str, cls: type, examples: str, space: str) -> tuple[Reward | None, str]:
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
    if "source" in reward.spec.needs or reward.spec.scope == "group":
        return None, "judges an edit or the samples of one prompt together, which single files are not"
    if lacking_source := missing_weights(reward):
        return None, f"its weights are not on this machine: {lacking_source}"
    return reward, ""


def score_uploads(
    contents: Sequence[MediaFile], prompts: Sequence[str], examples: str, space: str, stop: threading.Event
) -> Iterator[list[RewardRow]]:
    """The rows, again and again as they fill. A reward that fails says why, and the others go on."""
    rows: list[RewardRow] = []
    rewards = [*list_candidates({f.modality for f in contents}, examples, space)]
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
    row.values = [
        _finite_or_none(score_row(reward, f, p)) if ok and (p or "prompt" not in reward.spec.needs) else None
        for f, p, ok in zip(contents, prompts, is_suitable, strict=True)
    ]
    if all(v is None for v in row.values):
        row.reason = "found no score: what it reads in the prompt or in the file is not there"


def _finite_or_none(value: torch.Tensor | float) -> float | None:
    number = float(value)
    return number if abs(number) < float("inf") else None
