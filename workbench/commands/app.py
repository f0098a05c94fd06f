"""`workbench app`: the workbench in the browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands.arguments import Commands, add_parser, add_runs_folder
from workbench.core.errors import BadInput
from workbench.core.paths import ROOT


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "app",
        app_command,
        "Compare, vote, train and score in the browser; on this machine only, unless people log in.",
        "workbench app --port 7860\n  workbench app --host 0.0.0.0 --auth users.txt --allowed-hosts lab.example.org",
    )
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on [127.0.0.1: this machine only]; any other needs --auth",
    )
    parser.add_argument(
        "--auth", type=Path, metavar="FILE", help="who may log in and do everything: one name:password per line"
    )
    parser.add_argument(
        "--raters",
        type=Path,
        metavar="FILE",
        help="who may log in to vote in studies and see nothing else, as in --auth; see docs/studies.md",
    )
    parser.add_argument("--share", action="store_true", help="open a public gradio address; needs --auth")
    parser.add_argument(
        "--allowed-hosts",
        nargs="+",
        default=(),
        metavar="HOST",
        help="names by which a proxy or a browser may call the app, besides its address; any other is refused",
    )
    add_runs_folder(parser)


def app_command(args: argparse.Namespace) -> int:
    import app

    if Path(app.__file__).resolve() != ROOT / "app.py":
        raise BadInput(f"another module called app comes first ({app.__file__}); start the app from another folder")
    if not 0 < args.port < 65536:
        raise BadInput(f"--port: {args.port} is no port; give one from 1 to 65535")
    page, _ = app.serve(args.runs, args.port, args.host, args.auth, args.share, args.allowed_hosts, args.raters)
    page.block_thread()
    return 0
