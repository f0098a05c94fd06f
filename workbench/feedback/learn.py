"""Rewards fitted to people's votes: the work of `workbench learn`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from rewards.encoders import image_text
from rewards.people import learned, personal, votes
from workbench.core.errors import BadInput


def learn_from_votes(
    file: Path, out: Path, encoder: str = "starter:image/clip", mixture: bool = False, prototypes: int = 3
) -> dict:
    """Fit a reward to the votes in `file`, JSONL as rewards/people/votes.py reads it, and save it in the folder `out`.

    mixture: for each person a mixture of `prototypes` shared tastes (rewards/people/personal.py), instead of one reward
    for all. Returns {"reward": its block in a run's config, "better": whether held-out votes show that it beats chance,
    "told": sentences on the result, "report": the accuracy on held-out votes}; with `mixture` also {"people": their
    names, "shared": the report of one reward for all on the same votes}. Raises BadInput, also for too few votes to
    hold any out.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    image_text.check_encoder(encoder)
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out: {out} is a file; name a folder")
    pairs = votes.read_votes(file, encoder, device)
    if pairs.a.shape[1] != (width := image_text.load_encoder(encoder, device).width):
        wrong = f"{file}: features of {pairs.a.shape[1]} numbers, where {encoder} gives {width}"
        raise BadInput(f"{wrong}; name the encoder that made them with --encoder")
    taste = personal.fit_mixture(pairs, encoder, prototypes) if mixture else learned.fit_taste(pairs, encoder)
    taste.save(out)
    report, sentences = taste.report, [str(taste.report)]
    if report.ties or report.dropped:
        sentences.append(f"besides, {report.ties} ties, and {report.dropped} votes whose features are not finite")
    if mixture:
        sentences.append(f"one taste for all, on the same votes: {taste.shared}")
    if not report.is_better:
        sentences.append("a run refuses it as it is, unless its block says `unproven: true`")
    block = {"personal" if mixture else "learned": {"path": str(out)}}
    mixture_fields = {"people": sorted(taste.people), "shared": asdict(taste.shared)} if mixture else {}
    return {"reward": block, "better": report.is_better, "told": sentences, "report": asdict(report)} | mixture_fields
