"""`workbench score`: scores media files by rewards."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

from workbench.commands.arguments import Commands, add_json_flag, add_parser, add_reward_names


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "score",
        score_command,
        "Score media files or folders. A prompt that the workbench wrote into a PNG is read from it.",
        'workbench score picture.png --reward starter_clip --reward brightness --prompt "a red circle"',
    )
    parser.add_argument("files", nargs="+", type=Path, help="media files or folders of them")
    add_reward_names(parser)
    parser.add_argument("--prompt", help="one prompt for all files")
    parser.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    add_json_flag(parser)


def score_command(args: argparse.Namespace) -> int:
    import transformers

    from workbench.commands.console import build_table, out
    from workbench.evaluation import scoring

    transformers.utils.logging.disable_progress_bar()
    rows = scoring.score_files(args.files, args.reward, args.prompt)
    if args.json:
        print(json.dumps(rows, ensure_ascii=False))
    elif args.csv:
        writer = csv.DictWriter(sys.stdout, rows[0])
        writer.writeheader(), writer.writerows(rows)
    else:
        out.print(build_table(rows))
    return 1 if any(row.get("error") for row in rows) else 0
