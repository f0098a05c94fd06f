"""`workbench export`: writes the trained weights of a run again, and may push them to a hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands.arguments import Commands, add_json_flag, add_parser
from workbench.core.errors import BadInput


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "export",
        export_command,
        "Write the trained weights of a run again: as a LoRA for diffusers, for ComfyUI, merged, or to a hub.",
        "workbench export runs/20260101-120000-nft --out my-lora --merged",
    )
    parser.add_argument("run", type=Path, help="the folder of a run that trained")
    parser.add_argument("--contestant", metavar="NAME", help="which contestant, if several were trained")
    parser.add_argument(
        "--round", type=int, metavar="N", help="the weights after round N, of which a checkpoint is kept [the best]"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write; it must not exist yet [RUN/export-NAME]"
    )
    parser.add_argument(
        "--comfy", action="store_true", help="also write a LoRA file for ComfyUI, if ComfyUI knows the model"
    )
    parser.add_argument(
        "--merged", action="store_true", help="also write the whole denoiser with the LoRA merged into its weights"
    )
    parser.add_argument(
        "--push",
        metavar="REPO",
        help="upload the export to this hub repository; repeat the command if an upload failed",
    )
    parser.add_argument("--private", action="store_true", help="with --push: the repository is private")
    add_json_flag(parser)


def export_command(args: argparse.Namespace) -> int:
    from rich.markup import escape

    from workbench.commands.console import Failed, out, print_json
    from workbench.engine import export
    from workbench.tools import hub
    from workbench.training.monitoring import TrainingHalted

    if args.push is not None:
        hub.check_repo(args.push)
    elif args.private:
        raise BadInput("--private: says how a new hub repository is made; name one with --push")
    formats = {"comfy": args.comfy, "merged": args.merged, "reuse": args.push is not None}
    if args.round is not None and args.push is not None:
        raise BadInput("--push: takes the best weights of a finished training, with their card; leave --round out")
    try:
        result = export.export_again(args.run, args.contestant, args.out, number=args.round, **formats)
    except TrainingHalted as error:  # its checkpoint is damaged
        raise Failed(f"{args.run}: {error}") from error
    if args.push:
        try:
            hub.push_export(result.folder, args.push, args.private)
        except hub.HubUnreachable as error:
            raise Failed(str(error)) from error
    if args.json:
        print_json(result.to_dict())
        return 0
    for line in result.describe():
        out.print(escape(line), soft_wrap=True)
    if args.push:
        out.print(f"pushed to {args.push}", soft_wrap=True, markup=False)
    return 0
