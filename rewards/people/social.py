"""Social Reward: what a community takes up, learned from pairs (Isajanyan et al., ICLR 2024, arXiv:2402.09872).

A CLIP whose upper blocks were tuned on pairs (prompt, pos_path, neg_path); the score is the cosine of picture and
prompt. Or a small head of the same kind on embeddings of anything. curation.py makes the pairs from a log,
social_training.py trains on them.
"""

from __future__ import annotations

import csv
import functools
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewards.encoders import checkpoints, image_text
from rewards.encoders.frozen_reward import EncoderReward
from workbench.core.errors import BadInput
from workbench.core.io.parsing import read_json_lines, read_text
from workbench.core.text import quote_value
from workbench.core.types import RewardSpec

log = logging.getLogger(__name__)

# --- the reward ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Social(EncoderReward):
    """How popular a picture will be for its prompt: cosine of both in a CLIP tuned on a community's pairs.

    With `head`, trained on embeddings of `model`: the head's score of the untuned embeddings.
    """

    # field(): to be given, though OnEncoder's has a default
    model: str = field()  # a folder that `workbench social train` wrote, or with `head` the CLIP of its embeddings
    head: str = ""  # a head.safetensors that `workbench social train` wrote

    spec = RewardSpec(
        "social",
        "1",
        frozenset({"image"}),
        differentiable=True,
        needs=frozenset({"prompt"}),
        typical=(-1.0, 1.0),
        paper="arXiv:2402.09872",
    )

    def __post_init__(self):
        object.__setattr__(self, "spec", replace(self.spec, version=" ".join(filter(None, (self.model, self.head)))))

    def check(self) -> None:
        super().check()
        if self.head:
            checkpoints.check_source(self.head)

    def load(self, device: torch.device | str = "cpu") -> tuple[image_text.ImageTextEncoder, SocialHead | None]:
        encoder = super().load(device)
        head = _load_head(self.head, image_text.device_key(device)) if self.head else None
        if head is not None and head.anchor.shape[0] != encoder.width:
            raise BadInput(f"{self.head} reads {head.anchor.shape[0]} numbers, and {self.model} gives {encoder.width}")
        return encoder, head

    def score(
        self, loaded: tuple[image_text.ImageTextEncoder, SocialHead | None], x: Tensor, prompts: Sequence[str]
    ) -> Tensor:
        encoder, head = loaded
        image, text = encoder.embed_images(x, checkpoint=self.checkpoint), encoder.embed_texts(prompts)  # [B,D]
        return (image * text).sum(1) if head is None else head(image, text)


class SocialHead(nn.Module):
    """Score of embeddings [B,D]: the cosine of a linear map of them (the identity at first) with prompt + anchor.

    Not `prompted`, because prompts had no embedding, it leaves them out: popularity whatever was asked for.
    """

    def __init__(self, width: int, prompted: bool = True):
        super().__init__()
        self.map = nn.Linear(width, width)
        nn.init.eye_(self.map.weight), nn.init.zeros_(self.map.bias)
        self.anchor = nn.Parameter(torch.randn(width) / width)
        self.register_buffer("prompted", torch.tensor(prompted))  # saved with the weights

    def forward(self, items: Tensor, texts: Tensor) -> Tensor:
        return F.cosine_similarity(self.map(items), self.anchor + texts if self.prompted else self.anchor[None], dim=1)


def read_head(source: str) -> SocialHead:
    """The head in a file that `workbench social train` wrote, frozen. Raises BadInput."""
    state = checkpoints.read_weights(source)
    if "anchor" not in state:
        raise BadInput(f"{source} is no head of `workbench social train`: it lacks the tensor 'anchor'")
    return checkpoints.fill_weights(SocialHead(state["anchor"].shape[0]), state, source)


@functools.cache
@checkpoints.isolated_load()
def _load_head(source: str, device: str) -> SocialHead:
    return read_head(source).to(device)


# --- pairs and what they point to ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Someone's public preferred `pos` to `neg` for `prompt`. Paths are resolved; items name embeddings."""

    prompt: str
    pos_path: str
    neg_path: str
    topic: str = ""
    pos_item: str = ""
    neg_item: str = ""


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs in a .jsonl or .csv file (prompt, pos_path, neg_path, and what it may have of Pair's other fields), or
    in a file of votes (rewards/people/votes.py), without its ties.

    Paths are relative to the file's folder. Raises BadInput for a missing or empty file, a missing column or a broken
    row.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(
            f"{path}: no such file; give pairs as `workbench social curate` writes them, or exported votes, .jsonl or "
            ".csv"
        )
    try:
        if path.suffix == ".csv":
            rows = [*csv.DictReader(io.StringIO(read_text(path), newline=""))]
        else:
            rows = [row for _, row in read_json_lines(path)]
    except csv.Error as error:
        raise BadInput(f"{path}: not readable as pairs: {checkpoints.first_line(error)}") from None
    if not rows:
        raise BadInput(f"{path}: there is no pair in it")
    pairs = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise BadInput(f"{path}: pair {number} is {quote_value(row)}; a pair has prompt, pos_path and neg_path")
        if is_vote := "winner" in row and "pos_path" not in row:
            row = _pair_of_vote(row, f"{path}: pair {number}")
        if not row:
            continue
        for key in ("prompt", "pos_path", "neg_path"):
            if not isinstance(row.get(key) or "", str):
                raise BadInput(f"{path}: pair {number}: {key} must be a text, got {quote_value(row[key])}")
        fields = {k: str(row[k]) for k in Pair.__dataclass_fields__ if row.get(k)}
        if absent := [k for k in ("prompt", "pos_path", "neg_path") if k not in fields]:
            form = "a vote has prompt, a_path and b_path" if is_vote else "a pair has prompt, pos_path and neg_path"
            raise BadInput(f"{path}: pair {number} lacks {absent[0]!r}; {form}")
        resolved = {k: str(path.parent / fields[k]) for k in ("pos_path", "neg_path")}
        items = {
            "pos_item": fields.get("pos_item", fields["pos_path"]),
            "neg_item": fields.get("neg_item", fields["neg_path"]),
        }
        pairs.append(Pair(**(fields | resolved | items)))
    if ties := len(rows) - len(pairs):
        log.warning("%s: ties left out, which prefer nothing: %d", path, ties)
    if not pairs:
        raise BadInput(f"{path}: all of its votes are ties, which prefer nothing")
    return pairs


def _pair_of_vote(vote: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The pair that a vote's winner and loser are; empty for a tie. Raises BadInput."""
    if vote["winner"] not in ("a", "b", "tie"):
        raise BadInput(f"{where}: `winner` must be a, b or tie, got {quote_value(vote['winner'])}")
    if vote["winner"] == "tie":
        return {}
    winner, loser = ("a", "b") if vote["winner"] == "a" else ("b", "a")
    paths = {"pos_path": vote.get(f"{winner}_path"), "neg_path": vote.get(f"{loser}_path")}
    return {"prompt": vote.get("prompt"), **paths}


def check_files(pairs: Sequence[Pair]) -> None:
    """Raises BadInput for the first picture that isn't there."""
    for path in dict.fromkeys(p for pair in pairs for p in (pair.pos_path, pair.neg_path)):
        if not Path(path).is_file():
            raise BadInput(f"{path}: no such picture, though a pair names it")


def read_embeddings(path: str | Path) -> dict[str, Tensor]:
    """Key -> vector [D] of a .safetensors or .npz file: one vector a key, or the arrays `keys` [N] and `vectors` [N,D].

    Raises BadInput for a missing or broken file, or vectors of several lengths.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file; give embeddings as .safetensors or .npz, keyed by item")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = {k: file[k] for k in file.files}
            if set(arrays) == {"keys", "vectors"}:
                arrays = dict(zip(arrays["keys"].tolist(), arrays["vectors"], strict=True))
            embeddings = {k: torch.as_tensor(v).float() for k, v in arrays.items()}
        else:
            embeddings = {k: v.float() for k, v in safetensors.torch.load_file(path).items()}
    except (*checkpoints.UNREADABLE, OSError, TypeError) as error:
        raise BadInput(f"{path}: no readable embeddings: {checkpoints.first_line(error)}") from None
    if len(shapes := {tuple(v.shape) for v in embeddings.values()}) != 1 or len(next(iter(shapes))) != 1:
        raise BadInput(f"{path}: embeddings are vectors of one length, these have the shapes {sorted(shapes)[:3]}")
    return embeddings
