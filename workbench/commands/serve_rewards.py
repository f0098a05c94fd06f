"""`workbench serve-rewards`: serves rewards over HTTP."""

from __future__ import annotations

import argparse

from workbench.commands.arguments import Commands, add_parser, add_reward_names


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "serve-rewards",
        serve_rewards_command,
        "Serve rewards over HTTP to runs elsewhere, for the reward `remote`.",
        "workbench serve-rewards --reward clip --reward '{pickscore: {dtype: bfloat16}}'",
    )
    add_reward_names(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [127.0.0.1: this machine only]")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--device", default="auto", help="device of the rewards: auto, cpu, cuda, cuda:1 [auto]")
    parser.add_argument("--max-mb", type=int, default=256, help="largest request in MB [256]")


def serve_rewards_command(args: argparse.Namespace) -> int:
    from workbench.evaluation import scoring
    from workbench.runs.registry import all_rewards
    from workbench.tools import reward_server

    rewards, whole = scoring.build_rewards(args.reward, all_rewards())
    if whole:
        rewards[scoring.WHOLE] = whole
    reward_server.serve_rewards(rewards, host=args.host, port=args.port, device=args.device, limit_mb=args.max_mb)
    return 0
