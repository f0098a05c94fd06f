"""`workbench demo`: runs one of the starter pack's configs."""

from __future__ import annotations

import argparse

from workbench.commands.arguments import Commands, add_json_flag, add_new_flag, add_parser, add_runs_folder
from workbench.commands.run_config import RunRequest, run_config


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "demo",
        run_config,
        "Align a starter model by best-of-n, by its noise and (all but the editor) by a short fine-tuning, and let an "
        "oracle judge. "
        "No GPU, no network, minutes.",
        "workbench demo --fast\n  workbench demo --modality edit",
    )
    parser.set_defaults(read_request=read_demo_request, dry_run=False)
    parser.add_argument(
        "--modality", choices=["image", "music", "video", "edit"], default="image", help="which starter pack [image]"
    )
    parser.add_argument("--fast", action="store_true", help="few prompts, one seed, little training: a first look")
    add_new_flag(parser)
    add_runs_folder(parser)
    add_json_flag(parser)


def read_demo_request(args: argparse.Namespace) -> RunRequest:
    """The run of configs/runs/demo.yaml, or of demo-music, demo-video or demo-edit; smaller with --fast."""
    from workbench.core.paths import CONFIGS
    from workbench.runs import config

    command = f"workbench demo --modality {args.modality}" + " --fast" * args.fast
    overrides = ["limit=14", "samples_per_prompt=1"] if args.fast else []
    if args.fast and args.modality != "edit":  # where nothing is trained
        overrides.append("train.rounds=4")
    name = "demo" if args.modality == "image" else f"demo-{args.modality}"
    return RunRequest(config.read_run_config(CONFIGS / "runs" / f"{name}.yaml", overrides), command)
