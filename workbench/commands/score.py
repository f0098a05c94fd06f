"""`workbench score`: scores media files by rewards, and folders of them against each other."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.commands.arguments import Commands, add_json_flag, add_parser, add_reward_names
from workbench.core.errors import BadInput
from workbench.core.io import budget

if TYPE_CHECKING:
    from workbench.evaluation.score_pairs import PairedTask
    from workbench.evaluation.scoring import ScoringTask

Rows = Iterator[tuple[int, dict]]  # numbered as the media


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "score",
        score_command,
        "Score media files or folders, and two folders against each other. The prompt of a file is in the folder's "
        "metadata.jsonl (.csv, .json, .parquet), in the text beside it, NAME.txt, in what the program that made it "
        "wrote into it (AUTOMATIC1111, ComfyUI, Fooocus, InvokeAI, NovelAI, SwarmUI, the workbench), or it is the "
        "name, where that is PROMPT-NUMBER.",
        'workbench score picture.png --reward starter_clip --reward brightness --prompt "a red circle"\n'
        "  workbench score results/ --reward clip --out scores.csv\n"
        "  workbench score results/ours --against results/theirs --reward clip --pair prompt",
    )
    most = (
        f"a picture of {budget.PICTURE_PIXELS // 10**6} megapixels, a clip of {budget.CLIP_PIXELS // 10**6} over all "
        f"frames, a sound of {budget.SOUND_VALUES // 10**6} million values"
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        help=f"media files, known by their content, or folders of them; at most {most}: up to 2.2 GB of memory beside "
        "the rewards, however many there are",
    )
    add_reward_names(parser)
    parser.add_argument("--prompt", help="one prompt for all files")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="a file of prompts, with what each was made from in columns (source, mask, …); its column file_name names "
        "the scored files, without one its rows go with them in order",
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="FILE",
        help="what the files were made from, for rewards of edits: one for all, or a folder of as many, by name or in "
        "order",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FOLDER",
        help="another folder: differences and win rates over the files that belong together",
    )
    parser.add_argument(
        "--pair",
        choices=("prompt", "name", "order"),
        default="",
        help="with --against: which files belong together [by prompt or by name, where that is clear]",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the scores to a .csv, .jsonl, .json or .parquet, and print a summary; a stopped command goes on "
        "when it is given again",
    )
    parser.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    add_json_flag(parser)


def score_command(args: argparse.Namespace) -> int:
    import transformers

    from workbench.evaluation import score_table

    transformers.utils.logging.disable_progress_bar()
    if args.csv and (args.out or args.against):
        raise BadInput(f"--csv: prints the scores of files; leave it out with {'--out' if args.out else '--against'}")
    if args.pair and not args.against:
        raise BadInput("--pair: says which files of two folders belong together; give the other with --against")
    if args.against and len(args.files) > 1:
        raise BadInput(f"--against: compares two folders, and {len(args.files)} are named before it")
    if args.out:
        score_table.check_file(args.out)
    return score_against(args) if args.against else score_all(args)


def score_all(args: argparse.Namespace) -> int:
    """Score the files; prints their rows, or with --out a summary."""
    from workbench.commands.console import build_table, out, print_csv, print_json
    from workbench.evaluation import scoring

    task = scoring.plan_scoring(args.files, args.reward, args.prompt, prompts=args.prompts, source=args.source)
    scored = score_tasks([task], args)
    if args.out:
        summary, faults = summarise(row for _, row in scored)
        print_json(summary) if args.json else out.print(build_table(summary))
        out.print(f"{len(task.files):,} rows in {args.out}", markup=False, soft_wrap=True) if not args.json else None
        print_faults(faults)
        return 1 if faults else 0
    rows = [row for _, row in scored]
    if args.json:
        print_json(rows)
    elif args.csv:
        print_csv(rows)
    else:
        out.print(build_table(rows))
    return 1 if any(row.get("error") for row in rows) else 0


def score_tasks(tasks: Sequence[ScoringTask], args: argparse.Namespace) -> Rows:
    """The rows of all tasks, one after the other, in order, with a progress bar; with --out they are in the file at the
    end, and those that a stopped command had finished are not made again."""
    from workbench.engine.progress_bar import delayed_bar
    from workbench.evaluation.score_table import ScoreTable

    media = [path for task in tasks for path in task.media]
    table = ScoreTable(args.out, tasks[0].columns, media, describe_request(args)) if args.out else None
    finished = table.finished if table else frozenset()
    with delayed_bar() as bar:

        def score_each() -> Rows:
            first, count = 0, len(finished)
            for task in tasks:
                numbers = frozenset(n - first for n in finished) if not task.set_rewards else frozenset()
                for n, row in task.score(numbers):
                    count += 1
                    bar.update("score", count, len(media))
                    yield first + n, row
                first += len(task.media)

        yield from table.write(score_each()) if table else score_each()


def describe_request(args: argparse.Namespace) -> dict[str, Any]:
    """All that scores depend on beside the media."""
    files = {key: value and [str(value), Path(value).stat().st_mtime_ns if Path(value).exists() else 0]
             for key, value in (("prompts", args.prompts), ("source", args.source))}  # fmt: skip
    folders = [str(path) for path in args.files if path.is_dir()]
    metadata = sorted((str(p), p.stat().st_mtime_ns) for f in folders for p in Path(f).rglob("metadata.*"))
    return {"rewards": args.reward, "prompt": args.prompt, "metadata": metadata, **files}


def summarise(rows: Iterator[dict]) -> tuple[list[dict], list[str]]:
    """(a row for each reward with the mean and the ends of its scores, the first faults and how many there are)."""
    sums: dict[str, list[float]] = {}  # reward -> count, total, lowest, highest
    faults: list[str] = []
    count = 0
    for row in rows:
        if row["error"]:
            count += 1
            faults += [row["error"]] if len(faults) < MAX_FAULTS else []
        for name, value in row.items():
            if name not in ("file", "prompt", "note", "error"):
                n, total, low, high = sums.setdefault(name, [0, 0.0, float("inf"), float("-inf")])
                if value is not None:
                    sums[name] = [n + 1, total + value, min(low, value), max(high, value)]
    summary = [
        {"reward": name, "files": int(n), "mean": total / n, "lowest": low, "highest": high}
        if n
        else {"reward": name, "files": 0, "mean": None, "lowest": None, "highest": None}
        for name, (n, total, low, high) in sums.items()
    ]
    return summary, [*faults, *([f"and {count - MAX_FAULTS:,} more"] if count > MAX_FAULTS else [])]


MAX_FAULTS = 5  # that are printed


def print_faults(faults: Sequence[str]) -> None:
    from workbench.commands.console import err

    for fault in faults:
        err.print(fault, markup=False, soft_wrap=True)


def score_against(args: argparse.Namespace) -> int:
    """Score two folders; prints differences and win rates."""
    from workbench.commands.console import build_table, err, out, print_json
    from workbench.evaluation import score_pairs, scoring

    paired = score_pairs.plan_paired_scoring(
        args.files[0],
        args.against,
        *scoring.build_file_rewards(args.reward),
        args.pair,
        args.prompt,
        prompts=args.prompts,
        source=args.source,
    )
    if not args.json:
        for note in paired.notes:
            err.print(note, markup=False, soft_wrap=True)
    length = len(paired.tasks[0].media)
    rows: tuple[dict[int, dict], dict[int, dict]] = ({}, {})
    summary, faults = summarise(collect_rows(score_tasks(paired.tasks, args), rows, length))
    compared = paired.compare(rows)
    if args.json:
        print_json(describe_pairs(paired, compared, faults, args))
    else:
        out.print(build_table([describe_difference(row) for row in compared]))
        out.print(
            f"first: {args.files[0]}, second: {args.against}; {score_pairs.READING}", markup=False, soft_wrap=True
        )
    print_faults(faults)
    return 1 if faults else 0


def collect_rows(rows: Rows, into: tuple[dict[int, dict], dict[int, dict]], length: int) -> Iterator[dict]:
    """The rows, and into those of each folder by their pair."""
    for n, row in rows:
        into[n // length][n % length] = {k: v for k, v in row.items() if k not in ("prompt", "note", "error")}
        yield row


def describe_pairs(
    paired: PairedTask, compared: list[dict], faults: Sequence[str], args: argparse.Namespace
) -> dict[str, Any]:
    return {
        "first": str(args.files[0]),
        "second": str(args.against),
        "pair": paired.pairing.way,
        "pairs": len(paired.pairing.rows),
        "unpaired": paired.unpaired,
        "rewards": compared,
        "faults": [*faults],
    }


def describe_difference(row: Mapping[str, Any]) -> dict[str, Any]:
    """A comparison by one reward as texts."""
    from workbench.report.formatting import decimals_for, format_interval, format_number, format_signed

    places = decimals_for([row[key] for key in ("first", "second", "difference") if key in row])
    difference, wins = row.get("difference"), row.get("wins")
    cells = {key: format_number(row[key]["mean"], places) + format_interval(row[key], places=places)
             for key in ("first", "second")}  # fmt: skip
    cells["difference"] = cells["first wins"] = "–"
    if difference and difference["mean"] is not None:
        cells["difference"] = format_signed(difference["mean"], places)
        cells["difference"] += format_interval(difference, format_signed, places)
        cells["first wins"] = format_number(wins["mean"], 2) + format_interval(wins, places=2)
    return {"reward": row["reward"], **cells, "pairs": row["pairs"]}
