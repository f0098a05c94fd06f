"""Rewards fitted to people's votes: the work of `workbench learn`."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import pipelines
from rewards.people import learned, personal, tastes, votes
from rewards.people.taste_features import default_encoder
from workbench.core.errors import BadInput
from workbench.core.paths import write_atomic
from workbench.core.text import quote_value
from workbench.feedback import vote_export
from workbench.feedback.votes import Vote
from workbench.runs.preference_votes import translate_to_votes

CARD = "card.md"


def learn_from_votes(
    file: Path, out: Path, encoder: str = "", mixture: bool = False, prototypes: int = 3, source: str = ""
) -> dict:
    """Fit a reward to the votes in `file`, of any kind that workbench/runs/preference_files.py reads, and save it in
    the folder `out`, with a card.

    encoder: "" for the starter pack's for the kind of media. mixture: for each person a mixture of `prototypes` shared
    tastes (rewards/people/personal.py), instead of one reward for all. source: where the votes are from, for the card.
    Returns {"reward": its block in a run's config, "better": whether held-out votes show that it beats chance, "told":
    sentences on the result, "report": the accuracy on held-out votes, "control": that of votes dealt out to other
    pairs, "modality"}; with `mixture` also {"people": their names, "shared": the report of one reward for all on the
    same votes} and no control. Raises BadInput, also for too few votes to hold any out.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out: {out} is a file; name a folder")
    with TemporaryDirectory() as folder:
        rows = translate_to_votes(file, Path(folder), ("a_path", "b_path", "a_features", "b_features"))
        pairs = votes.read_votes(rows, encoder, device)
    if pairs.a.shape[1] != (width := pairs.encoder.count_features(device)):
        wrong = f"{file}: features of {pairs.a.shape[1]} numbers, where {pairs.encoder.model} gives {width}"
        raise BadInput(f"{wrong}; name the encoder that made them with --encoder")
    taste = personal.fit_mixture(pairs, prototypes=prototypes) if mixture else learned.fit_taste(pairs)
    taste.save(out)
    report, sentences = taste.report, [str(taste.report)]
    if report.ties or report.dropped:
        sentences.append(f"besides, {report.ties} ties, and {report.dropped} votes whose features are not finite")
    control = {} if mixture else {"control": asdict(taste.control)}
    if mixture:
        sentences.append(f"one taste for all, on the same votes: {taste.shared}")
    else:
        sentences.append(f"control, the same votes dealt out to other pairs: {taste.control}")
    if not report.is_better:
        sentences.append("a run refuses it as it is, unless its block says `unproven: true`")
    block = {"personal" if mixture else "learned": {"path": str(out)}}
    mixture_fields = {"people": sorted(taste.people), "shared": asdict(taste.shared)} if mixture else {}
    write_atomic(out / CARD, draw_card(out.name, pairs, sentences, source or file.name, digest_file(file)))
    result = {"reward": block, "better": report.is_better, "told": sentences, "report": asdict(report)}
    return result | control | {"modality": pairs.encoder.modality} | mixture_fields


def learn_named(
    vote_list: Sequence[Vote], runs: Path, name: str, encoder: str = "", source: str = "", **more: Any
) -> dict:
    """Fit a reward to votes on one kind of media and save it as RUNS/learned/NAME, which a run names `taste:NAME`.
    Returns what `learn_from_votes` does, and {"name"}. Raises BadInput, also for a name that is taken; then nothing is
    left behind."""
    if not tastes.NAME.fullmatch(name):
        raise BadInput(f"{quote_value(name)} can't name a taste; use up to 80 letters, digits, '.', '_' and '-'")
    folder = runs / tastes.FOLDER / name
    if folder.exists():
        raise BadInput(f"a taste {quote_value(name)} is there already ({folder}); choose another name")
    kinds = sorted({v.modality for v in vote_list})
    if len(kinds) > 1:
        raise BadInput(f"these votes are on {' and '.join(kinds)}; a taste is learned from one kind, so choose one")
    if not encoder and kinds:
        encoder = default_encoder(kinds[0], all(is_starter_pipeline(v.left.pipeline) for v in vote_list))
    folder.mkdir(parents=True)
    try:
        vote_export.write_jsonl(vote_list, runs, folder / "votes.jsonl")
        return learn_from_votes(folder / "votes.jsonl", folder, encoder, source=source, **more) | {"name": name}
    except BaseException:
        shutil.rmtree(folder)
        raise


def is_starter_pipeline(label: str) -> bool:
    """Whether a pipeline, by its label in a run, is one of the starter pack's or was trained from one; media that were
    made elsewhere are not."""
    try:
        return pipelines.read_config(label).repo.startswith("starter:")
    except BadInput:
        return False


def digest_file(file: Path) -> str:
    """SHA-256 of a file of votes."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def draw_card(name: str, pairs: votes.Votes, sentences: Sequence[str], source: str, digest: str) -> str:
    """The card of a taste, Markdown: what it was learned from, and what is shown of it."""
    raters = len(set(filter(None, pairs.voters)))
    rows: Mapping[str, Any] = {
        "votes": f"{len(pairs):,} on {pairs.encoder.modality}, of {raters or 'unnamed'} raters, "
        f"{len(set(pairs.prompts)):,} prompts",
        "from": f"{source} (SHA-256 of the votes: {digest})",
        "seen through": pairs.encoder.model + (", and how well it fits its prompt" * pairs.encoder.reads_prompts),
    }
    lines = [f"# {name}: a taste learned from votes", "", *(f"- {key}: {value}" for key, value in rows.items())]
    lines += [f"- {sentence}" for sentence in sentences]
    use = f"Use it as `{tastes.PREFIX}{name}`, wherever a reward is named."
    limit = "It knows what these raters saw: media of other pipelines, and what a method makes of it, may fool it."
    return "\n".join([*lines, "", use, "", limit, ""])
