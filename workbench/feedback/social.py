"""Social popularity end to end: a log becomes pairs, pairs a reward, and the reward is held against others."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit

from rewards import compose
from rewards.people import curation, social, social_training
from workbench.core import schema
from workbench.core.io import image
from workbench.core.paths import write_atomic
from workbench.core.types import BadInput, Media, derive
from workbench.evaluation import statistics
from workbench.runs import config
from workbench.runs.registry import judges

BINS = 10  # of confidence, equally full, for the calibration error
LEAST = 1e-3  # bounds of the calibrating scale, in units of one over the margins' root mean square
MOST = 1e3


def settings(cls: type, overrides: Sequence[str], where: str):
    """A Curation or Training from `key=value` overrides. Raises BadInput."""
    values: dict[str, Any] = {}
    for text in overrides:
        config.override(values, text)
    return schema.build(cls, values, where)


# --- simulate and curate ---------------------------------------------------------------------------------------------


def simulate(out: Path, overrides: Sequence[str] = ()) -> Path:
    """A simulated community's log, pictures and true taste in `out`; returns the log's path."""
    from pipelines.starter.image.community import Community, write

    c = settings(Community, overrides, "community")
    if (out / "log.csv").exists():
        raise BadInput(f"{out} holds a community already; give another folder")
    return write(c, out)


def curate(log: Path, out: Path, overrides: Sequence[str] = (), form: str = "jsonl") -> dict:
    """train, val and test pairs of the log as .jsonl or .csv in `out`, with card.json and card.md; returns the card.

    The pairs' paths are relative to `out`. Raises BadInput.
    """
    c = settings(curation.Curation, overrides, "curation")
    made = curation.curate(curation.read_log(log), log.parent, c)
    out.mkdir(parents=True, exist_ok=True)
    write_pairs(made, log.parent, out, form)
    card = {"made from": str(log)} | made.card
    write_atomic(out / "card.json", json.dumps(card, indent=1, ensure_ascii=False))
    write_atomic(out / "card.md", markdown(card))
    return card


def write_pairs(made: curation.Curated, folder: Path, out: Path, form: str = "jsonl") -> None:
    """One file a split. `folder` is what the log's paths are relative to."""
    out.mkdir(parents=True, exist_ok=True)
    if form not in ("jsonl", "csv"):
        raise BadInput(f"pairs are written as jsonl or csv, not {form!r}")
    for split, rows in made.splits.items():
        own = [row | {k: _moved(row[k], folder, out) for k in ("pos_path", "neg_path")} for row in rows]
        if form == "jsonl":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in own)
        else:
            file = io.StringIO()
            writer = csv.DictWriter(file, own[0] if own else ["prompt", "pos_path", "neg_path"])
            writer.writeheader(), writer.writerows(own)
            text = file.getvalue()
        write_atomic(out / f"{split}.{form}", text)


def _moved(path: str, folder: Path, out: Path) -> str:
    return path if Path(path).is_absolute() else Path(os.path.relpath(folder / path, out)).as_posix()


def markdown(card: Mapping[str, Any]) -> str:
    """The data card as a page."""
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
        *(f"| {name} | {s['prompts']:,} | {s['items']:,} | {s['pairs']:,} | {s['median viewers of a picture in a pair']} "
          f"| {' to '.join(t[:10] for t in s['posted'])} |" for name, s in card["splits"].items()),
        "", "## Topics", "", "| topic | pictures | viewers | engaged | pairs |", "| --- | ---: | ---: | ---: | ---: |",
        *(f"| {t} | {v['items']:,} | {v['viewers']:,} | {v['engaged']:.1%} | {v['pairs']:,} |"
          for t, v in card["topics"].items()),
        "", "## Settings", "", *(f"- {k}: {v}" for k, v in card["settings"].items()),
    ]  # fmt: skip
    if prior:
        lines += ["", f"Prior: mean {prior['mean']:.4f}, worth {prior['strength']:.1f} viewers."]
    return "\n".join(lines) + "\n"


# --- train -----------------------------------------------------------------------------------------------------------


def train(pairs: Path, out: Path, overrides: Sequence[str] = (), val: Path | None = None) -> Iterator[dict]:
    """Train on the pairs in a file, or on train.* of a folder that `curate` wrote (val.* is used where it has pairs)."""
    s = settings(social_training.Training, overrides, "training")
    if pairs.is_dir():
        val = val or next((f for f in _split(pairs, "val") if _pairs_in(f)), None)
        pairs = next(iter(_split(pairs, "train")), pairs / "train.jsonl")
    return social_training.train(social.read_pairs(pairs), out, s, social.read_pairs(val) if val else ())


def _split(folder: Path, name: str) -> list[Path]:
    return [f for f in (folder / f"{name}.jsonl", folder / f"{name}.csv") if f.is_file()]


def _pairs_in(file: Path) -> bool:
    return len(file.read_text(encoding="utf-8").splitlines()) > (file.suffix == ".csv")


# --- evaluate --------------------------------------------------------------------------------------------------------


def compare(
    pairs: Path,
    rewards: Mapping[str, Any] | Sequence[str],
    models: Sequence[Path] = (),
    embeddings: str = "",
    head: str = "",
) -> list[dict]:
    """How often each reward prefers what the community preferred: a row a reward (see `agreement`).

    `rewards`: names, or a reward block. `models`: folders that `train` wrote, each a row under the folder's name. With
    `head` and `embeddings`, the head's own scores are a row too. A folder of pairs stands for its test.*. Raises BadInput.
    """
    if pairs.is_dir():
        pairs = next(iter(_split(pairs, "test")), pairs / "test.jsonl")
    found, rows = social.read_pairs(pairs), []
    block = dict(rewards) if isinstance(rewards, Mapping) else dict.fromkeys(rewards, 1.0)
    for model in models:
        block[model.name] = {"reward": "rewards.people.social:Social", "model": str(model.absolute())}
    if head:
        rows.append(
            {"reward": Path(head).parent.name or "head"} | agreement(found, head_margins(found, embeddings, head))
        )
    if block:
        weighted = compose.from_config(block, judges())
        social.check_files(found)
        rows += [{"reward": name} | agreement(found, m) for name, m in margins(found, weighted).items()]
    if not rows:
        raise BadInput("nothing to compare: name a reward, a trained model, or a head with its embeddings")
    return rows


@torch.no_grad()
def margins(pairs: Sequence[social.Pair], rewards: compose.Weighted, batch: int = 32) -> dict[str, np.ndarray]:
    """Score of pos minus score of neg: reward name -> [N], NaN where it can't judge. Each picture is judged once."""
    asked = [*dict.fromkeys((path, p.prompt) for p in pairs for path in (p.pos_path, p.neg_path))]
    place = {key: n for n, key in enumerate(asked)}
    scores = {name: np.full(len(asked), np.nan) for name in rewards.rewards}
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        shown = [image.read(path) for path, _ in part]
        for size in {x.shape for x in shown}:
            rows = [n for n, x in enumerate(shown) if x.shape == size]
            made = Media(torch.stack([shown[n] for n in rows]), "image")
            for name, values in rewards.breakdown(media=made, prompts=[part[n][1] for n in rows]).items():
                scores[name][[start + n for n in rows]] = values.double().cpu().numpy()
    pos = [place[p.pos_path, p.prompt] for p in pairs]
    neg = [place[p.neg_path, p.prompt] for p in pairs]
    return {name: s[pos] - s[neg] for name, s in scores.items()}


@torch.no_grad()
def head_margins(pairs: Sequence[social.Pair], embeddings: str, head: str) -> np.ndarray:
    """[N] margins of a trained head on the embeddings in a file."""
    known, scorer = social.read_embeddings(embeddings), social.read_head(head)
    keys = {"pos": [p.pos_item for p in pairs], "neg": [p.neg_item for p in pairs], "text": [p.prompt for p in pairs]}
    if not scorer.prompted:
        keys["text"] = keys["pos"]  # not looked at
    for key in (k for part in keys.values() for k in part):
        if key not in known:
            raise BadInput(f"{embeddings}: no embedding has the key {key!r}, which a pair names")
    pos, neg, texts = (torch.stack([known[k] for k in part]) for part in keys.values())
    if pos.shape[1] != scorer.anchor.shape[0]:
        raise BadInput(f"{head} reads {scorer.anchor.shape[0]} numbers, {embeddings} gives {pos.shape[1]}")
    return (scorer(pos, texts) - scorer(neg, texts)).double().numpy()


def agreement(pairs: Sequence[social.Pair], margin: np.ndarray) -> dict:
    """`accuracy` (a tie is a half) with `ci95` from a bootstrap over prompts, `ece`, `pairs` judged, and `topics`."""
    prompts = [p.prompt for p in pairs]
    right = np.where(np.isnan(margin), np.nan, 0.5 + 0.5 * np.sign(margin))
    whole = statistics.interval(right, prompts)
    topics = {}
    for topic in sorted({p.topic for p in pairs}):
        rows = [n for n, p in enumerate(pairs) if p.topic == topic]
        topics[topic] = statistics.interval(right[rows], [prompts[n] for n in rows])
    ece = calibration(margin, prompts)
    return {"accuracy": whole["mean"], "ci95": whole["ci95"], "ece": ece, "pairs": whole["n"], "topics": topics}


def calibration(margin: np.ndarray, prompts: Sequence[str]) -> float | None:
    """Expected calibration error (Guo et al., arXiv:1706.04599) of sigmoid(scale * margin) as P(pos is preferred).

    The scale is the most likely one on half of the prompts and is tried on the other half, both ways. None where there
    are fewer than two prompts.
    """
    keep = np.isfinite(margin)
    margin, half = margin[keep], np.array([derive(0, "half", p) % 2 for p, k in zip(prompts, keep, strict=True) if k])
    if len(set(half.tolist())) < 2:
        return None
    chance = np.empty(len(margin))
    for side in (0, 1):
        chance[half == side] = expit(_scale(margin[half != side]) * margin[half == side])
    sure, right = np.maximum(chance, 1 - chance), 0.5 + 0.5 * np.sign(margin)
    bins = np.array_split(sure.argsort(kind="stable"), BINS)
    return float(sum(abs(sure[b].mean() - right[b].mean()) * len(b) for b in bins if len(b)) / len(margin))


def _scale(margin: np.ndarray) -> float:
    """The scale under which the preferences are most likely."""
    unit = np.sqrt(np.square(margin).mean()) or 1.0
    found = minimize_scalar(
        lambda log: np.logaddexp(0, -np.exp(log) * margin / unit).mean(),
        bounds=(np.log(LEAST), np.log(MOST)),
        method="bounded",
    )
    return float(np.exp(found.x)) / unit
