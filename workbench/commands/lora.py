"""`workbench lora`: what a LoRA file is, and what of it a pipeline would apply."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from workbench.commands.arguments import Commands, add_json_flag, add_parser
from workbench.core.errors import BadInput


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "lora",
        lora_command,
        "What a LoRA file is: its layout, the base it was made for and why that is thought, rank and alpha of its "
        "layers, and its trigger words. With a pipeline: which of its layers are applied, and which keys are dropped. "
        "Only the header is read, unless a pipeline is named; nothing in the file is executed.",
        "workbench lora style.safetensors --pipeline sdxl\n"
        "  workbench run my.yaml pipeline='{name: sdxl, lora: style.safetensors}'   # samples with it, or trains on it",
    )
    parser.add_argument("file", type=Path, help="a .safetensors file, or a folder of peft, diffusers or an export")
    parser.add_argument(
        "--pipeline", metavar="NAME", help="say what this pipeline would apply; its folder must be local"
    )
    add_json_flag(parser)


def lora_command(args: argparse.Namespace) -> int:
    import pipelines
    from pipelines.lora_description import describe_lora_file
    from pipelines.lora_file import read_lora_file
    from pipelines.lora_loading import place_on_pipeline
    from pipelines.lora_source import list_lora_files

    config = pipelines.read_config(args.pipeline) if args.pipeline else None
    rows = []
    for path in list_lora_files(str(args.file)):
        file = read_lora_file(path)
        row = describe_lora_file(file).to_dict()
        rows.append(row)
        if config is None:
            continue
        row |= {"pipeline": args.pipeline, "applies": None, "dropped": None}
        try:
            placement = place_on_pipeline(file, str(path), config)
        except BadInput as error:
            row |= {"applies": False, "on_pipeline": [str(error)]}
            continue
        if placement is None:
            row["on_pipeline"] = [f"the settings of {config.repo} are not on this machine yet, so it can't be said"]
        else:
            row |= {"applies": True, "on_pipeline": placement.describe(), "dropped": placement.dropped_keys}
    if args.json:
        print(json.dumps(rows if len(rows) > 1 else rows[0], ensure_ascii=False))
    else:
        print_descriptions(rows)
    return 1 if any(row.get("applies") is False for row in rows) else 0


def print_descriptions(rows: list[dict[str, Any]]) -> None:
    """Print what `describe_lora_file` found, a line for each thing."""
    from rich.markup import escape

    from workbench.commands.console import out

    for row in rows:
        lines = [row["file"] + (f": {row['title']}" if row["title"] else ""), f"layout: {row['layout']}"]
        lines.append(f"made for: {row['family']}; its base is {_quote_fingerprint(row['fingerprint'])}")
        lines += [f"  by {line}" for line in row["evidence"]]
        for group in row["groups"]:
            extras = [f"{group[key]} with {text}" for key, text in EXTRAS.items() if group[key]]
            lines.append(
                f"{group['network']}: {group['layers']} layers, rank {_join(group['ranks'])}, alpha "
                f"{_join(group['alphas'])}{''.join(f', {extra}' for extra in extras)}"
            )
        lines.append(f"{row['parameters']:,} parameters")
        lines += [f"trigger word: {word}" for word in row["trigger_words"]]
        if row["others"]:
            names = ", ".join(row["others"][:3])
            lines.append(f"{len(row['others'])} keys that belong to no LoRA: {names}")
        lines += [f"on {row['pipeline']}: {line}" for line in row.get("on_pipeline", ())]
        for line in lines:
            out.print(escape(line), soft_wrap=True)


EXTRAS = {"dora": "DoRA", "convolutions": "convolutions"}


def _quote_fingerprint(fingerprint: str) -> str:
    return f"recorded as {fingerprint}" if fingerprint else "not recorded"


def _join(counts: dict[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({count} layers)" for value, count in [*counts.items()][:4])
