"""What the leaderboard shows: ratings with what can be trusted of them, and votes put to use."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from workbench.core.errors import BadInput
from workbench.feedback import learn as voting
from workbench.feedback import ratings, vote_export, votes
from workbench.report import charts, formatting
from workbench.ui.context import AppContext
from workbench.ui.widgets.html import INERT, template_environment

_templates = template_environment(num=formatting.format_number, share=formatting.format_share)


def draw_leaderboard(context: AppContext, run: int = 0, modality: str = "", rater: str = "") -> str:
    """The leaderboard as HTML; every word of a person's or a run's is escaped."""
    counted = votes.standing_votes(context.runs, modality, run, rater)
    board = votes.rate_contestants(counted)
    rated = [v for v in counted if v.choice != "bad"]
    ends = [x for r in board.rows for x in (r.low, r.high)]
    page = _templates.get_template("leaderboard.html").render(
        votes=len(counted),
        any=bool(run or modality or rater),
        prompts=len({v.prompt for v in counted}),
        raters=len({v.rater for v in counted}),
        ties=sum(v.choice == "tie" for v in counted),
        bad=len(counted) - len(rated),
        rows=board.rows,
        listed=ratings.MIN_LISTED_VOTES,
        axis=charts.Axis.over(ends) if ends else None,
        by=board.by,
        rates=board.rates.tolist(),
        met=board.met.tolist(),
        most=board.met.max(initial=1),
        bias=board.bias,
        warnings=list_warnings(board),
        agreement=vote_export.measure_agreement(context.runs, counted),
    )
    return page.translate(INERT)


def list_warnings(board: ratings.Leaderboard) -> list[str]:
    sentences = []
    if len(board.islands) > 1:
        groups = "; ".join(formatting.join_words(group) for group in board.islands)
        sentences.append(f"These groups never met, so ratings of different groups can't be compared: {groups}.")
    if board.one_sided:
        sentences.append(
            f"{formatting.join_words(board.one_sided)} won or lost every time so far: how far ahead or behind is "
            "a guess."
        )
    return sentences


def list_raters(context: AppContext) -> list[tuple[str, str]]:
    counts: dict[str, int] = {}
    for v in votes.standing_votes(context.runs):
        counts[v.rater] = counts.get(v.rater, 0) + 1
    busiest = sorted(counts.items(), key=lambda item: -item[1])[:50]
    return [("Everyone", "")] + [(f"{who[:8]} ({formatting.count_things(n, 'vote')})", who) for who, n in busiest]


def export_votes(context: AppContext, kind: str, run: int = 0, modality: str = "", rater: str = "") -> tuple[str, str]:
    """(a copy to download, a sentence). The file itself lies beside the runs, for its paths are relative to it."""
    write = {".jsonl": vote_export.write_jsonl, ".parquet": vote_export.write_parquet}[Path(kind).suffix]
    file, counted = context.runs / kind, votes.standing_votes(context.runs, modality, run, rater)
    count = write(vote_export.majority_votes(counted) if kind.startswith("pairs") else counted, context.runs, file)
    copy = context.temp / "exports" / secrets.token_urlsafe(8) / kind
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, copy)
    what = "pair" if kind.startswith("pairs") else "vote"
    return str(copy), f"{formatting.count_things(count, what)} in {file}; its paths lead from there to the media."


def learn_reward(context: AppContext, run: int = 0, rater: str = "") -> Iterator[dict]:
    """Views of learning a reward from the votes on pictures: {told: sentences, block: YAML for a run}. Raises
    BadInput."""
    folder = context.runs / "learned" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True)
    try:
        count = vote_export.write_jsonl(
            votes.standing_votes(context.runs, "image", run, rater), context.runs, folder / "votes.jsonl"
        )
        yield {"told": [f"Fitting a taste to {formatting.count_things(count, 'vote')} on pictures…"], "block": ""}
        result = voting.learn_from_votes(folder / "votes.jsonl", folder)
    except BadInput:
        shutil.rmtree(folder)
        raise
    yield {"told": result["told"], "block": yaml.safe_dump({"reward": result["reward"]}, sort_keys=False)}


def list_ranks(context: AppContext, run: int = 0, modality: str = "", rater: str = "") -> list[dict]:
    """The rows of the leaderboard as plain values; a share that nothing tells is None."""
    board = votes.rate_contestants(votes.standing_votes(context.runs, modality, run, rater))
    return [{**vars(r), "share": None if r.share != r.share else r.share} for r in board.rows]
