"""`workbench score`: scores media files by rewards."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands.arguments import Commands, add_json_flag, add_parser, add_reward_names
from workbench.core.io import budget


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "score",
        score_command,
        "Score media files or folders. The prompt of a file is the text beside it, NAME.txt, or what the program that "
        "made it wrote into it: AUTOMATIC1111, ComfyUI, Fooocus, InvokeAI, NovelAI, SwarmUI, the workbench.",
        'workbench score picture.png --reward starter_clip --reward brightness --prompt "a red circle"',
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
        "the rewards, as files are read one by one",
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
    parser.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    add_json_flag(parser)


def score_command(args: argparse.Namespace) -> int:
    import transformers

    from workbench.commands.console import build_table, out, print_csv, print_json
    from workbench.evaluation import scoring

    transformers.utils.logging.disable_progress_bar()
    rows = scoring.score_files(args.files, args.reward, args.prompt, prompts=args.prompts, source=args.source)
    if args.json:
        print_json(rows)
    elif args.csv:
        print_csv(rows)
    else:
        out.print(build_table(rows))
    return 1 if any(row.get("error") for row in rows) else 0
