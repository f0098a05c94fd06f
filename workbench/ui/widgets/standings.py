"""What the leaderboard shows: ratings with what can be trusted of them, and votes put to use."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import jinja2
import yaml

from workbench.core.types import BadInput
from workbench.feedback import learn as voting
from workbench.feedback import ratings, vote_export, votes
from workbench.report import charts, findings
from workbench.ui.context import Place
from workbench.ui.widgets.html import INERT

HERE = Path(__file__).parents[1] / "templates"
ENV = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined,
                         trim_blocks=True, lstrip_blocks=True)  # fmt: skip
ENV.filters |= {"num": findings.number, "share": findings.share}


def draw(place: Place, run: int = 0, modality: str = "", rater: str = "") -> str:
    """The leaderboard as HTML; every word of a person's or a run's is escaped."""
    found = votes.effective(place.runs, modality, run, rater)
    board = votes.board(found)
    rated = [v for v in found if v.choice != "bad"]
    ends = [x for r in board.rows for x in (r.low, r.high)]
    page = ENV.get_template("leaderboard.html").render(
        votes=len(found),
        any=bool(run or modality or rater),
        prompts=len({v.prompt for v in found}),
        raters=len({v.rater for v in found}),
        ties=sum(v.choice == "tie" for v in found),
        bad=len(found) - len(rated),
        rows=board.rows,
        listed=ratings.LISTED,
        axis=charts.Axis.over(ends) if ends else None,
        by=board.by,
        rates=board.rates.tolist(),
        met=board.met.tolist(),
        most=board.met.max(initial=1),
        bias=board.bias,
        warnings=warnings(board),
        agreement=vote_export.agreement(place.runs, found),
    )
    return page.translate(INERT)


def warnings(board: ratings.Board) -> list[str]:
    said = []
    if len(board.islands) > 1:
        groups = "; ".join(findings.listing(group) for group in board.islands)
        said.append(f"These groups never met, so ratings of different groups can't be compared: {groups}.")
    if board.one_sided:
        said.append(
            f"{findings.listing(board.one_sided)} won or lost every time so far: how far ahead or behind is a guess."
        )
    return said


def raters(place: Place) -> list[tuple[str, str]]:
    counts: dict[str, int] = {}
    for v in votes.effective(place.runs):
        counts[v.rater] = counts.get(v.rater, 0) + 1
    most = sorted(counts.items(), key=lambda item: -item[1])[:50]
    return [("Everyone", "")] + [(f"{who[:8]} ({findings.count(n, 'vote')})", who) for who, n in most]


def export(place: Place, kind: str, run: int = 0, modality: str = "", rater: str = "") -> tuple[str, str]:
    """(a copy to download, a sentence). The file itself lies beside the runs, for its paths are relative to it."""
    write = {".jsonl": vote_export.write_jsonl, ".parquet": vote_export.write_parquet}[Path(kind).suffix]
    file, found = place.runs / kind, votes.effective(place.runs, modality, run, rater)
    count = write(vote_export.majority(found) if kind.startswith("pairs") else found, place.runs, file)
    copy = place.temp / "exports" / secrets.token_urlsafe(8) / kind
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, copy)
    what = "pair" if kind.startswith("pairs") else "vote"
    return str(copy), f"{findings.count(count, what)} in {file}; its paths lead from there to the media."


def learn(place: Place, run: int = 0, rater: str = "") -> Iterator[dict]:
    """Views of learning a reward from the votes on pictures: {told: sentences, block: YAML for a run}. Raises BadInput."""
    folder = place.runs / "learned" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True)
    try:
        count = vote_export.write_jsonl(
            votes.effective(place.runs, "image", run, rater), place.runs, folder / "votes.jsonl"
        )
        yield {"told": [f"Fitting a taste to {findings.count(count, 'vote')} on pictures…"], "block": ""}
        found = voting.learn(folder / "votes.jsonl", folder)
    except BadInput:
        shutil.rmtree(folder)
        raise
    yield {"told": found["told"], "block": yaml.safe_dump({"reward": found["reward"]}, sort_keys=False)}


def ranked(place: Place, run: int = 0, modality: str = "", rater: str = "") -> list[dict]:
    """The rows of the leaderboard as plain values; a share that nothing tells is None."""
    board = votes.board(votes.effective(place.runs, modality, run, rater))
    return [{**vars(r), "share": None if r.share != r.share else r.share} for r in board.rows]
