"""Rewards by social popularity, end to end: curate pairs from an interaction log, train a reward, compare it with
others."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit

from rewards import build_reward
from rewards.compose import WeightedReward
from rewards.people import curation, social, social_training
from workbench.core import schema
from workbench.core.errors import BadInput
from workbench.core.io import image
from workbench.core.io.parsing import read_text, split_lines
from workbench.core.paths import write_atomic
from workbench.core.types import Media, derive_seed
from workbench.evaluation import statistics
from workbench.runs import config
from workbench.runs.preference_votes import translate_to_votes
from workbench.runs.registry import all_rewards

CALIBRATION_BINS = 10  # of confidence, equally full, for the calibration error
MIN_SCALE = 1e-3  # bounds of the calibrating scale, in units of one over the margins' root mean square
MAX_SCALE = 1e3


def parse_settings(cls: type, overrides: Sequence[str], where: str) -> Any:
    """An instance of the settings dataclass `cls` from `key=value` overrides. Raises BadInput."""
    values: dict[str, Any] = {}
    for text in overrides:
        config.apply_override(values, text)
    return schema.build_dataclass(cls, values, where)


# --- simulate and curate ---------------------------------------------------------------------------------------------


def simulate_community(out: Path, overrides: Sequence[str] = ()) -> Path:
    """Write a simulated community's log, pictures and true taste into `out`; returns the log's path. Raises
    BadInput."""
    from pipelines.starter.image.community import Community, write_community

    c = parse_settings(Community, overrides, "community")
    if (out / "log.csv").exists():
        raise BadInput(f"{out} holds a community already; give another folder")
    return write_community(c, out)


def curate_log(log: Path, out: Path, overrides: Sequence[str] = (), form: str = "jsonl") -> dict:
    """Write train, val and test pairs of the log to `out` as .jsonl or .csv, with card.json and card.md; returns the
    card.

    The pairs' paths are relative to `out`. Raises BadInput.
    """
    c = parse_settings(curation.Curation, overrides, "curation")
    curated = curation.curate_log(curation.read_log(log), log.parent, c)
    out.mkdir(parents=True, exist_ok=True)
    write_pairs(curated, log.parent, out, form)
    card = {"made from": str(log)} | curated.card
    write_atomic(out / "card.json", json.dumps(card, indent=1, ensure_ascii=False))
    write_atomic(out / "card.md", card_as_markdown(card))
    return card


def write_pairs(curated: curation.Curated, folder: Path, out: Path, form: str = "jsonl") -> None:
    """Write one file per split. The log's paths are relative to `folder`. Raises BadInput for an unknown form."""
    out.mkdir(parents=True, exist_ok=True)
    if form not in ("jsonl", "csv"):
        raise BadInput(f"pairs are written as jsonl or csv, not {form!r}")
    for split, rows in curated.splits.items():
        moved_rows = [row | {k: _relative_path(row[k], folder, out) for k in ("pos_path", "neg_path")} for row in rows]
        if form == "jsonl":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in moved_rows)
        else:
            file = io.StringIO()
            writer = csv.DictWriter(file, moved_rows[0] if moved_rows else ["prompt", "pos_path", "neg_path"])
            writer.writeheader(), writer.writerows(moved_rows)
            text = file.getvalue()
        write_atomic(out / f"{split}.{form}", text)


def _relative_path(path: str, folder: Path, out: Path) -> str:
    return path if Path(path).is_absolute() else Path(os.path.relpath(folder / path, out)).as_posix()


def card_as_markdown(card: Mapping[str, Any]) -> str:
    """The data card as Markdown."""
    log, prior = card["log"], card["prior"]
    events = ", ".join(f"{n:,} {e}" for e, n in log["events"].items())
    lines = [
        "# Data card", "",
        f"{log['rows']:,} events ({events}) of {log['users']:,} users on {log['items']:,} pictures for "
        f"{log['prompts']:,} prompts over {log['days']:g} days. Fingerprint of the log: `{log['sha256'][:16]}`.", "",
        "## Users left out", "", "| why | users | events |", "| --- | ---: | ---: |",
        *(f"| {why} | {n['users']:,} | {n['rows']:,} |" for why, n in card["users left out"].items()),
        "", f"{card['users damped']:,} more were heavy users and weigh less than one.", "",
        "## Pictures left out", "", "| why, in this order | left out | left |", "| --- | ---: | ---: |",
        *(f"| {s['left out']} | {s['items']:,} | {s['left']:,} |" for s in card["items left out"]),
        "", "## Pairs", "", "| split | prompts | pictures | pairs | viewers (median) | first shown |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
        *(f"| {name} | {s['prompts']:,} | {s['items']:,} | {s['pairs']:,} "
          f"| {s['median viewers of a picture in a pair']} | {' to '.join(t[:10] for t in s['posted'])} |"
          for name, s in card["splits"].items()),
        "", "## Topics", "", "| topic | pictures | viewers | engaged | pairs |", "| --- | ---: | ---: | ---: | ---: |",
        *(f"| {t} | {v['items']:,} | {v['viewers']:,} | {v['engaged']:.1%} | {v['pairs']:,} |"
          for t, v in card["topics"].items()),
        "", "## Settings", "", *(f"- {k}: {v}" for k, v in card["settings"].items()),
    ]  # fmt: skip
    if prior:
        lines += ["", f"Prior: mean {prior['mean']:.4f}, worth {prior['strength']:.1f} viewers."]
    return "\n".join(lines) + "\n"


# --- train -----------------------------------------------------------------------------------------------------------


def train_reward(pairs: Path, out: Path, overrides: Sequence[str] = (), val: Path | None = None) -> Iterator[dict]:
    """Train a reward on the pairs in a file, or on train.* of a folder that `curate_log` wrote (with val.*, if it has
    pairs), and save it in `out`; yields a record per epoch. Raises BadInput."""
    s = parse_settings(social_training.SocialTraining, overrides, "training")
    if pairs.is_dir():
        val = val or next((f for f in _split_files(pairs, "val") if _has_pairs(f)), None)
        pairs = next(iter(_split_files(pairs, "train")), pairs / "train.jsonl")
    temp = TemporaryDirectory()  # of pictures that the file holds in itself
    pair_list = read_pairs(pairs, Path(temp.name))
    return _hold(temp, social_training.train_social(pair_list, out, s, social.read_pairs(val) if val else ()))


def _hold(temp: TemporaryDirectory, epochs: Iterator[dict]) -> Iterator[dict]:
    with temp:
        yield from epochs


def read_pairs(file: Path, temp: Path) -> list[social.Pair]:
    """The pairs in a file of any kind that workbench/runs/preference_files.py reads. temp: a folder for pictures that
    the file holds in itself. Raises BadInput."""
    known = ("pos_path", "neg_path", "a_path", "b_path")
    return social.read_pairs(translate_to_votes(file, temp, known, (".jsonl", ".csv")))


def _split_files(folder: Path, name: str) -> list[Path]:
    return [f for f in (folder / f"{name}.jsonl", folder / f"{name}.csv") if f.is_file()]


def _has_pairs(file: Path) -> bool:
    return sum(bool(line.strip()) for line in split_lines(read_text(file))) > (file.suffix == ".csv")


# --- evaluate --------------------------------------------------------------------------------------------------------


def compare_rewards(
    pairs: Path,
    rewards: Mapping[str, Any] | Sequence[str],
    models: Sequence[Path] = (),
    embeddings: str = "",
    head: str = "",
) -> list[dict]:
    """How often each reward prefers what the community preferred: one row per reward (see `measure_agreement`).

    rewards: names, or a reward block. models: folders that `train_reward` wrote, each compared under its name. head,
    embeddings: files of a trained head and of embeddings, which add a row with the head's scores. pairs: a file, or a
    folder with test.*. Raises BadInput.
    """
    if pairs.is_dir():
        pairs = next(iter(_split_files(pairs, "test")), pairs / "test.jsonl")
    with TemporaryDirectory() as temp:
        return _compare_rewards(read_pairs(pairs, Path(temp)), rewards, models, embeddings, head)


def _compare_rewards(
    pair_list: Sequence[social.Pair],
    rewards: Mapping[str, Any] | Sequence[str],
    models: Sequence[Path],
    embeddings: str,
    head: str,
) -> list[dict]:
    rows = []
    block = dict(rewards) if isinstance(rewards, Mapping) else dict.fromkeys(rewards, 1.0)
    for model in models:
        block[model.name] = {"reward": "rewards.people.social:Social", "model": str(model.absolute())}
    if head:
        rows.append(
            {"reward": Path(head).parent.name or "head"}
            | measure_agreement(pair_list, head_margins(pair_list, embeddings, head))
        )
    if block:
        weighted = build_reward(block, all_rewards())
        social.check_files(pair_list)
        rows += [
            {"reward": name} | measure_agreement(pair_list, m) for name, m in score_margins(pair_list, weighted).items()
        ]
    if not rows:
        raise BadInput("nothing to compare: name a reward, a trained model, or a head with its embeddings")
    return rows


@torch.no_grad()
def score_margins(pairs: Sequence[social.Pair], rewards: WeightedReward, batch: int = 32) -> dict[str, np.ndarray]:
    """Reward name -> [N]: score of pos minus score of neg, NaN where it can't score. Each picture is scored once."""
    questions = [*dict.fromkeys((path, p.prompt) for p in pairs for path in (p.pos_path, p.neg_path))]
    position = {key: n for n, key in enumerate(questions)}
    scores = {name: np.full(len(questions), np.nan) for name in rewards.rewards}
    for start in range(0, len(questions), batch):
        part = questions[start : start + batch]
        pictures = [image.read_image(path) for path, _ in part]
        for size in {x.shape for x in pictures}:
            rows = [n for n, x in enumerate(pictures) if x.shape == size]
            media = Media(torch.stack([pictures[n] for n in rows]), "image")
            for name, values in rewards.breakdown(media=media, prompts=[part[n][1] for n in rows]).items():
                scores[name][[start + n for n in rows]] = values.double().cpu().numpy()
    pos = [position[p.pos_path, p.prompt] for p in pairs]
    neg = [position[p.neg_path, p.prompt] for p in pairs]
    return {name: s[pos] - s[neg] for name, s in scores.items()}


@torch.no_grad()
def head_margins(pairs: Sequence[social.Pair], embeddings: str, head: str) -> np.ndarray:
    """[N]: score of pos minus score of neg, by a trained head on the embeddings in a file. Raises BadInput."""
    features, scorer = social.read_embeddings(embeddings), social.read_head(head)
    keys = {"pos": [p.pos_item for p in pairs], "neg": [p.neg_item for p in pairs], "text": [p.prompt for p in pairs]}
    if not scorer.prompted:
        keys["text"] = keys["pos"]  # not used
    for key in (k for part in keys.values() for k in part):
        if key not in features:
            raise BadInput(f"{embeddings}: no embedding has the key {key!r}, which a pair names")
    pos, neg, texts = (torch.stack([features[k] for k in part]) for part in keys.values())
    if pos.shape[1] != scorer.anchor.shape[0]:
        raise BadInput(f"{head} reads {scorer.anchor.shape[0]} numbers, {embeddings} gives {pos.shape[1]}")
    return (scorer(pos, texts) - scorer(neg, texts)).double().numpy()


def measure_agreement(pairs: Sequence[social.Pair], margin: np.ndarray) -> dict:
    """{"accuracy" (a tie counts half), "ci95" over prompts, "ece" (calibration_error), "pairs" that were
    scored, "topics": topic -> mean_with_interval}; margin: [N], as from `score_margins`."""
    prompts = [p.prompt for p in pairs]
    is_correct = np.where(np.isnan(margin), np.nan, 0.5 + 0.5 * np.sign(margin))
    accuracy = statistics.mean_with_interval(is_correct, prompts, bounds=statistics.SHARE)
    topics = {}
    for topic in sorted({p.topic for p in pairs}):
        rows = [n for n, p in enumerate(pairs) if p.topic == topic]
        topic_prompts = [prompts[n] for n in rows]
        topics[topic] = statistics.mean_with_interval(is_correct[rows], topic_prompts, bounds=statistics.SHARE)
    ece = calibration_error(margin, prompts)
    return {
        "accuracy": accuracy["mean"],
        "ci95": accuracy["ci95"],
        "ece": ece,
        "pairs": accuracy["n"],
        "topics": topics,
    }


def calibration_error(margin: np.ndarray, prompts: Sequence[str]) -> float | None:
    """Expected calibration error (Guo et al., arXiv:1706.04599) of sigmoid(scale * margin) as P(pos is preferred).

    The scale is fitted on half of the prompts by maximum likelihood and applied to the other half, and vice versa. None
    where one half is empty.
    """
    keep = np.isfinite(margin)
    margin, half = (
        margin[keep],
        np.array([derive_seed(0, "half", p) % 2 for p, k in zip(prompts, keep, strict=True) if k]),
    )
    if len(set(half.tolist())) < 2:
        return None
    chance = np.empty(len(margin))
    for side in (0, 1):
        chance[half == side] = expit(_fit_scale(margin[half != side]) * margin[half == side])
    confidence, is_correct = np.maximum(chance, 1 - chance), 0.5 + 0.5 * np.sign(margin)
    bins = np.array_split(confidence.argsort(kind="stable"), CALIBRATION_BINS)
    return float(sum(abs(confidence[b].mean() - is_correct[b].mean()) * len(b) for b in bins if len(b)) / len(margin))


def _fit_scale(margin: np.ndarray) -> float:
    """The scale that maximises the likelihood of the preferences."""
    unit = np.sqrt(np.square(margin).mean()) or 1.0
    solution = minimize_scalar(
        lambda log: np.logaddexp(0, -np.exp(log) * margin / unit).mean(),
        bounds=(np.log(MIN_SCALE), np.log(MAX_SCALE)),
        method="bounded",
    )
    return float(np.exp(solution.x)) / unit
