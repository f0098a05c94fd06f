"""`workbench grid`: one run whose contestants are the cells of a table."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.commands.arguments import (
    Commands,
    add_dry_run_flag,
    add_json_flag,
    add_new_flag,
    add_parser,
    add_runs_folder,
)
from workbench.commands.run_config import RunRequest, run_config
from workbench.core.errors import BadInput

PRESETS = "grids"  # folder of saved grids: in configs, and in the folder of runs


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "grid",
        run_config,
        "A table of settings as one run: x across, y down, z from table to table, on the same prompts and noises. Its "
        "page is grid.html in the run's folder. An axis is steps, guidance_scale, pipeline, pipeline.SETTING, method, "
        "method.SETTING, lora, lora_weight, reward.NAME, or seed.",
        "workbench grid --pipeline starter-image-teacher --prompts starter-image-test --limit 4 --watch oracle \\\n"
        "      --x steps=2,4,8 --y guidance_scale=1,3,6 --save guidance\n"
        "  workbench grid reno-sd-turbo --x method.lr=1,5 --y reward.hps=0,5 --z seed=0,1\n"
        "  workbench grid guidance limit=8",
    )
    parser.set_defaults(read_request=read_grid_request)
    parser.add_argument(
        "config", nargs="?", default="", help="a saved grid, a name in configs/grids or configs/runs, or a YAML file"
    )
    parser.add_argument("override", nargs="*", help="key=value, dotted, for all cells: method.lr=2")
    for side, where in (("x", "across"), ("y", "down"), ("z", "from table to table")):
        parser.add_argument(f"--{side}", metavar="SETTING=A,B,…", help=f"what varies {where}")
    parser.add_argument("--pipeline", metavar="NAME", help="the pipeline of cells that name no other")
    parser.add_argument("--method", metavar="NAME", help="a method, or '{name: reno, iterations: 20}' [sample]")
    parser.add_argument(
        "--contestant", metavar="NAME", help="of a config with several contestants, the one that is varied"
    )
    parser.add_argument("--prompts", metavar="FILE", help="a file, or a name in configs/prompts")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a prompt; may be given again")
    parser.add_argument(
        "--reward", action="append", default=[], metavar="NAME", help="reward to optimise; written as in `score`"
    )
    parser.add_argument(
        "--watch", action="append", default=[], metavar="NAME", help="reward to measure; written as in `score`"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts; 0: all")
    parser.add_argument("--samples-per-prompt", type=int, metavar="N", help="noises of each prompt [1]")
    parser.add_argument("--batch", type=int, metavar="N", help="samples made at once [16]")
    parser.add_argument("--seed", type=int, metavar="N", help="from which all random numbers follow [0]")
    parser.add_argument("--name", help="name of the run folder [the config's, or grid]")
    parser.add_argument(
        "--save", metavar="NAME", help="save the grid as RUNS/grids/NAME.yaml, for: workbench grid NAME"
    )
    add_dry_run_flag(parser)
    add_new_flag(parser)
    add_runs_folder(parser)
    add_json_flag(parser)


def read_grid_request(args: argparse.Namespace) -> RunRequest:
    """The run of the grid that the arguments name. Raises BadInput."""
    from workbench.runs import config

    if "=" in args.config:
        args.config, args.override = "", [args.config, *args.override]
    values = read_grid_values(args)
    for override in args.override:
        config.apply_override(values, override)
    run = config.make_config(values, where=args.config or "grid")
    if args.save:
        save_grid(args.runs / PRESETS, args.save, values)
    return RunRequest(run, shlex.join(["workbench", *sys.argv[1:]]), announce_cost=True)


def read_grid_values(args: argparse.Namespace) -> dict[str, Any]:
    """The config of a grid before its cells are made: of the file that is named, changed by the options. Raises
    BadInput."""
    from workbench.core.io.parsing import parse_yaml
    from workbench.evaluation import scoring
    from workbench.runs import config, grids

    values: dict[str, Any] = read_grid_file(args.config, args.runs) if args.config else {"name": "grid"}
    values = grids.take_contestant(config.current_config(values), args.contestant)
    if args.method:
        values["method"] = parse_yaml(args.method, "--method")
    if args.prompt:
        values["prompts"] = args.prompt
    if args.reward:
        values["reward"] = scoring.parse_reward_blocks(args.reward)
    if args.watch:
        values["watch"] = scoring.parse_reward_blocks(args.watch)
    for key in ("pipeline", "prompts", "limit", "samples_per_prompt", "batch", "seed", "name"):
        if (value := getattr(args, key)) is not None and not (key == "prompts" and args.prompt):
            values[key] = value
    values.setdefault("reward", {})  # of plain samples nothing is optimised
    for key, option in (("pipeline", "--pipeline NAME"), ("prompts", "--prompts FILE or --prompt TEXT")):
        if not values.get(key):
            raise BadInput(f"grid: the {key} is missing; give a config, or {option}")
    axes = {side: grids.read_axis(getattr(args, side)) for side in grids.AXES if getattr(args, side)}
    grid = values.get("grid") or {}
    values["grid"] = {**grid, **{side: {setting: choices} for side, (setting, choices) in axes.items()}}
    return values


def read_grid_file(name: str, runs: Path) -> dict[str, Any]:
    """The values in a config: a saved grid, or whatever `workbench run` takes. Raises BadInput."""
    from workbench.core.io.parsing import read_yaml
    from workbench.core.paths import CONFIGS
    from workbench.runs import config

    saved = [folder / f"{name}.yaml" for folder in (runs / PRESETS, CONFIGS / PRESETS)]
    file = next((path for path in saved if config.is_file(path, "grid")), None) or config.find_config(name)
    values = read_yaml(file)
    if not isinstance(values, Mapping):
        raise BadInput(f"{file}: a grid is a mapping of settings; see configs/grids for examples")
    return {"name": file.stem, **values}


def save_grid(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Save a grid under a name. Raises BadInput for a name that is no file's, or that another grid has."""
    import yaml

    from workbench.core.paths import write_atomic
    from workbench.runs.stages import NAME

    if not NAME.fullmatch(name):
        raise BadInput(f"--save {name!r}: can't name a file; use letters, digits, '.', '_' and '-'")
    path = folder / f"{name}.yaml"
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise BadInput(f"--save {name}: {path} is another grid; remove it, or give another name")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
