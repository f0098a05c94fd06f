"""Uses of votes: the agreement of rewards with people, and preference files for training rewards and for DPO."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rewards.people.votes import HeldOutReport, make_report
from workbench.core.errors import BadInput
from workbench.core.inputs import NAMES, FileInput, prompt_inputs
from workbench.core.paths import write_atomic
from workbench.feedback.blinding import strip_png
from workbench.feedback.votes import Vote
from workbench.runs import store

WINNER_OF_CHOICE = {"left": "a", "right": "b", "tie": "tie"}  # in the format of rewards/people/votes.py
ROWS_PER_WRITE = 100  # rows of a Parquet file that are in memory at once
LABELS = {"left": (1.0, 0.0), "right": (0.0, 1.0), "tie": (0.5, 0.5)}  # (label_0, label_1) of Pick-a-Pic


@dataclass(frozen=True)
class RewardAgreement:
    """How often a reward scores the preferred sample higher."""

    reward: str
    version: str
    report: HeldOutReport

    @property
    def verdict(self) -> str:
        """In words, whether the agreement differs from chance."""
        if self.report.low > 0.5:
            return "better than chance"
        if self.report.high < 0.5:
            return "worse than chance: it prefers what people do not"
        return "not told from chance by these votes"


def measure_agreement(runs: Path, votes: Sequence[Vote]) -> list[RewardAgreement]:
    """The agreement of every reward that scored both sides, over votes without a tie; equal scores count half. The best
    first.

    Intervals treat the votes on one prompt as a cluster (rewards.people.votes.make_report).
    """
    decided = [v for v in votes if v.choice in ("left", "right")]
    if not decided:
        return []
    number = {p: n for n, p in enumerate(dict.fromkeys(v.prompt for v in decided))}
    with store.open_index(runs) as db:
        scores = {(s["artefact"], s["reward"], s["version"]): s["value"] for s in db.execute("SELECT * FROM scores")}
    by_reward: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for _, reward, version in scores:
        by_reward.setdefault((reward, version), [])
    for v in decided:
        for (reward, version), answers in by_reward.items():
            a, b = (scores.get((side.artefact, reward, version)) for side in (v.left, v.right))
            if a is not None and b is not None:
                better = 0.5 if a == b else float((a > b) == (v.choice == "left"))
                answers.append((better, number[v.prompt]))
    agreements = [
        RewardAgreement(
            *name,
            make_report(
                torch.tensor([r for r, _ in rows], dtype=torch.float64), torch.tensor([c for _, c in rows]), "prompts"
            ),
        )
        for name, rows in by_reward.items()
        if rows
    ]  # fmt: skip
    return sorted(agreements, key=lambda a: -a.report.accuracy)


def majority_votes(votes: Iterable[Vote]) -> list[Vote]:
    """One vote for each pair of media, by majority and without a rater: the pairs that DPO trains on. A pair without a
    majority is left out; ties and "both bad" don't count.
    """
    lead: dict[frozenset, tuple[Vote, list[float]]] = {}
    for v in votes:
        first, margins = lead.setdefault(frozenset((v.left.artefact, v.right.artefact)), (v, []))
        margin = {"left": 1.0, "right": -1.0}.get(v.choice, 0.0)
        margins.append(margin if v.left == first.left else -margin)
    return [
        replace(v, choice="left" if sum(margins) > 0 else "right", rater="", reason="")
        for v, margins in lead.values()
        if sum(margins)
    ]


def write_jsonl(votes: Iterable[Vote], runs: Path, file: Path) -> int:
    """Write the votes to a JSONL file for `workbench learn` and a run's `pairs` (rewards/people/votes.py), with paths
    relative to it, also of what the prompts came with; returns the number of rows. "Both bad" is left out. Raises
    BadInput when nothing is left.
    """
    rows = []
    for v in _preferring_votes(votes):
        row = {
            "prompt": v.prompt,
            **_input_paths(v.prompt, file),
            "a_path": relative_path(runs, v.left.file, file),
            "b_path": relative_path(runs, v.right.file, file),
        }
        rows.append(row | {"winner": WINNER_OF_CHOICE[v.choice]} | ({"voter": v.rater} if v.rater else {}))
    write_atomic(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def write_parquet(votes: Iterable[Vote], runs: Path, file: Path) -> int:
    """Write the votes to a Parquet file in the columns of Pick-a-Pic (arXiv:2305.01569); returns the number of rows.

    `caption`, `jpg_0` and `jpg_1` (a picture's bytes, empty for other media), `label_0` and `label_1` (1 and 0, 1/2
    each for a tie), `has_label`, `user_id`; besides, `image_0` and `image_1` (paths relative to the file), `model_0`
    and `model_1` (contestants), `modality`, `created_at`, and a path for each input that a prompt came with. Raises
    BadInput when nothing is left, or without pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise BadInput("writing Parquet needs pyarrow; run: pip install pyarrow, or take JSONL") from None
    preferences, temp = _preferring_votes(votes), file.with_name(f".{uuid.uuid4().hex}.tmp")
    inputs = [name for name in NAMES if any(name in prompt_inputs(v.prompt) for v in preferences)]
    texts = ("caption", *inputs, "image_0", "image_1", "model_0", "model_1", "modality", "user_id", "created_at")
    schema = pa.schema([(n, pa.string()) for n in texts] + [(f"jpg_{k}", pa.binary()) for k in (0, 1)]
                       + [(f"label_{k}", pa.float64()) for k in (0, 1)] + [("has_label", pa.bool_())])  # fmt: skip
    try:
        with pq.ParquetWriter(temp, schema) as out:
            for low in range(0, len(preferences), ROWS_PER_WRITE):
                out.write_table(
                    pa.Table.from_pylist(
                        [_parquet_row(v, runs, file) for v in preferences[low : low + ROWS_PER_WRITE]], schema
                    )
                )
        with open(temp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temp, file)
    finally:
        temp.unlink(missing_ok=True)
    return len(preferences)


def _preferring_votes(votes: Iterable[Vote]) -> list[Vote]:
    preferences = [v for v in votes if v.choice in WINNER_OF_CHOICE]
    if not preferences:
        raise BadInput("there is no vote to write yet that prefers something; vote first")
    return preferences


def _parquet_row(v: Vote, runs: Path, file: Path) -> dict:
    first, second = LABELS[v.choice]
    row = {"caption": v.prompt, "label_0": first, "label_1": second, "has_label": True, "user_id": v.rater,
           "created_at": v.created, "modality": v.modality} | _input_paths(v.prompt, file)  # fmt: skip
    for k, side in enumerate((v.left, v.right)):
        data = (runs / side.file).read_bytes() if v.modality == "image" else None
        row |= {
            f"image_{k}": relative_path(runs, side.file, file),
            f"model_{k}": side.label,
            f"jpg_{k}": data and strip_png(data),
        }
    return row


def _input_paths(prompt: str, file: Path) -> dict[str, str]:
    """Name -> path, relative to `file`, of what a prompt came with."""
    files = {n: v.path for n, v in prompt_inputs(prompt).items() if isinstance(v, FileInput)}
    return {name: relative_path(Path(), path, file) for name, path in files.items()}


def relative_path(runs: Path, media: str, file: Path) -> str:
    return Path(os.path.relpath((runs / media).resolve(), file.parent.resolve())).as_posix()
