"""Votes as a table with all that is known of each: who against whom on what, when, how long it took, and why."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.core.paths import write_atomic
from workbench.evaluation.score_table import write_csv, write_json_lines
from workbench.feedback.votes import Vote

FORMATS = (".csv", ".jsonl", ".parquet")


def vote_rows(votes_to_write: Iterable[Vote], runs: Path, raters: Mapping[str, str] | None = None) -> list[dict]:
    """A row for each vote and criterion; paths are absolute. raters: pseudonym -> name, of those whose name the owner
    of a study knows."""
    return [
        {
            "time": v.created,
            "rater": (raters or {}).get(v.rater, v.rater),
            "criterion": v.axis,
            "choice": v.choice,
            "winner": {"left": v.left.label, "right": v.right.label}.get(v.choice, ""),
            "reason": v.reason,
            "prompt": str(v.prompt),
            "modality": v.modality,
            "run": v.folder,
            **{
                f"{side}_{key}": value
                for n, side in enumerate(("left", "right"))
                for key, value in _describe_side(v, side, n, runs).items()
            },
            "battle": v.battle,
        }
        for v in votes_to_write
    ]


def _describe_side(v: Vote, side: str, n: int, runs: Path) -> dict:
    sample = getattr(v, side)
    return {
        "contestant": sample.contestant,
        "settings": sample.settings,
        "pipeline": sample.pipeline,
        "seed": v.seeds[n],
        "seconds": v.dwell[n],
        "file": str((runs / sample.file).resolve()),
    }


def write_rows(rows: list[dict], file: Path) -> int:
    """Write a table by the file's suffix, one of FORMATS; returns the number of rows. Raises BadInput."""
    if file.suffix not in FORMATS:
        raise BadInput(f"--out {file}: name a file that ends in {', '.join(FORMATS)}")
    if not rows:
        raise BadInput("there is no vote to write yet; vote first")
    if file.suffix == ".parquet":
        _write_parquet(rows, file)
    elif file.suffix == ".csv":
        write_csv(rows, [*rows[0]], file)
    else:
        write_json_lines(rows, [*rows[0]], file)
    return len(rows)


def _write_parquet(rows: list[dict], file: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise BadInput("writing Parquet needs pyarrow; run: pip install pyarrow, or name a .csv or .jsonl") from None
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    write_atomic(file, out.getvalue())
