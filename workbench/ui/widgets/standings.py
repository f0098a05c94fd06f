"""What the leaderboard shows: ratings with what can be trusted of them, and votes put to use."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from workbench.core.errors import BadInput
from workbench.feedback import learn as voting
from workbench.feedback import ratings, studies, study_export, study_results, vote_export, votes
from workbench.report import charts, formatting
from workbench.ui.context import AppContext
from workbench.ui.widgets import loop_work
from workbench.ui.widgets.html import INERT, template_environment
from workbench.ui.widgets.vote_filters import EVERY_STUDY

_templates = template_environment(num=formatting.format_number, share=formatting.format_share)


@dataclass(frozen=True)
class Selection:
    """Which votes are looked at; each field "" or 0 for all."""

    run: int = 0
    modality: str = ""
    rater: str = ""
    study: int = 0
    axis: str = votes.OVERALL
    word: str = ""  # in a reason

    def __str__(self) -> str:
        chosen = [f"{f.name} {value}" for f in fields(self) if (value := getattr(self, f.name)) != f.default]
        return f"the leaderboard's votes{', ' * bool(chosen)}{', '.join(chosen)}"

    def read_votes(self, context: AppContext) -> list[votes.Vote]:
        return votes.standing_votes(context.runs, self.modality, self.run, self.rater, study=self.study, axis=self.axis)


EVERYTHING = Selection()
TITLES = {"image": "Pictures", "video": "Clips", "audio": "Sounds"}
MAX_REASONS = 50  # shown at once, the newest


def draw_leaderboard(context: AppContext, selection: Selection = EVERYTHING) -> str:
    """The leaderboard as HTML, pictures, clips and sounds apart; every word of a person's or a run's is escaped."""
    counted = selection.read_votes(context)
    standings = study_results.rank_votes(counted, (selection.axis,))
    reasons = [v for v in counted if v.reason and selection.word.casefold() in v.reason.casefold()][::-1]
    several = len({v.rater for v in counted}) > 1
    page = _templates.get_template("leaderboard.html").render(
        votes=len(counted),
        any=selection != EVERYTHING,
        prompts=len({v.prompt for v in counted}),
        raters=len({v.rater for v in counted}),
        ties=sum(v.choice == "tie" for v in counted),
        bad=sum(v.choice == "bad" for v in counted),
        sections=[_describe_standing(s, len(standings) > 1) for s in standings],
        listed=ratings.MIN_LISTED_VOTES,
        agreement_of_raters=str(study_results.measure_agreement(counted)[1]) if several else "",
        agreement=vote_export.measure_agreement(context.runs, counted),
        reasons=[_describe_reason(v) for v in reasons[:MAX_REASONS]],
        more_reasons=max(0, len(reasons) - MAX_REASONS),
    )
    return page.translate(INERT)


def _describe_standing(standing: study_results.Standing, is_titled: bool) -> dict[str, Any]:
    board = standing.board
    ends = [x for r in board.rows for x in (r.low, r.high)]
    return {
        "title": TITLES[standing.modality] if is_titled else "",
        "board": board,
        "axis": charts.Axis.over(ends) if ends else None,
        "rates": board.rates.tolist(),
        "met": board.met.tolist(),
        "most": board.met.max(initial=1),
        "warnings": list_warnings(board),
        "transitivity": standing.transitivity,
    }


def _describe_reason(v: votes.Vote) -> dict[str, str]:
    winner, loser = (v.right, v.left) if v.choice == "right" else (v.left, v.right)
    word = {"tie": "a tie: ", "bad": "both bad: "}.get(v.choice, "")
    return {"reason": v.reason, "winner": word + winner.label, "loser": loser.label, "prompt": str(v.prompt),
            "time": v.created[:16].replace("T", " ")}  # fmt: skip


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


def export_votes(context: AppContext, kind: str, selection: Selection = EVERYTHING) -> tuple[str, str]:
    """(a copy to download, a sentence). The file itself lies beside the runs, for its paths are relative to it; only
    those of votes.csv, which has all that is known of each vote, are absolute."""
    file, counted = context.runs / kind, selection.read_votes(context)
    if kind.endswith(".csv"):
        count = study_export.write_rows(study_export.vote_rows(counted, context.runs), file)
    else:
        write = {".jsonl": vote_export.write_jsonl, ".parquet": vote_export.write_parquet}[Path(kind).suffix]
        count = write(vote_export.majority_votes(counted) if kind.startswith("pairs") else counted, context.runs, file)
    copy = context.temp / "exports" / secrets.token_urlsafe(8) / kind
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, copy)
    what = "pair" if kind.startswith("pairs") else "vote"
    paths = "the media of each by its full path" if kind.endswith(".csv") else "its paths lead from there to the media"
    return str(copy), f"{formatting.count_things(count, what)} in {file}; {paths}."


def learn_reward(context: AppContext, selection: Selection = EVERYTHING) -> Iterator[dict]:
    """Views of learning a reward from votes on one kind of media, which the Studio then offers by name: {told:
    sentences, block: YAML for a run}. Raises BadInput."""
    chosen = selection.read_votes(context)
    if not chosen:
        raise BadInput("there is no vote with these filters; vote first")
    yield {"told": [f"Fitting a taste to {formatting.count_things(len(chosen), 'vote')}…"], "block": ""}
    result = voting.learn_named(chosen, context.runs, loop_work.new_name(), source=str(selection))
    sentences = [*result["told"], f"In the Studio it is offered as taste:{result['name']}, beside the other rewards."]
    yield {"told": sentences, "block": yaml.safe_dump({"reward": result["reward"]}, sort_keys=False)}


def list_ranks(context: AppContext, selection: Selection = EVERYTHING) -> list[dict]:
    """The rows of the leaderboards as plain values, with their modality: pictures, clips and sounds are ranked apart.
    A share that nothing tells is None."""
    standings = study_results.rank_votes(selection.read_votes(context), (selection.axis,))
    return [
        {**vars(r), "share": None if r.share != r.share else r.share, "modality": s.modality}
        for s in standings
        for r in s.board.rows
    ]


def list_studies(context: AppContext) -> list[tuple[str, int]]:
    return [EVERY_STUDY] + [(s.name, s.number) for s in studies.list_studies(context.runs)]


def list_criteria(context: AppContext, study: int) -> list[str]:
    """What may be looked at of a study, its first criterion first; outside of studies one thing is asked."""
    return next((list(s.criteria) for s in studies.list_studies(context.runs) if s.number == study), [votes.OVERALL])
