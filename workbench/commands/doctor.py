"""`workbench doctor`: what works on this machine."""

from __future__ import annotations

import argparse

from workbench.commands.arguments import Commands, add_json_flag, add_parser, add_runs_folder


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "doctor",
        doctor_command,
        "What works on this machine, and what does not and why.",
        "workbench doctor",
    )
    add_runs_folder(parser)
    add_json_flag(parser)


def doctor_command(args: argparse.Namespace) -> int:
    from rich.markup import escape

    from workbench.commands.console import out, print_json
    from workbench.tools import doctor

    rows = doctor.examine_machine(args.runs)
    if args.json:
        print_json(rows)
    else:
        marks = {"ok": "[green]✓[/]", "missing": "[yellow]–[/]", "broken": "[red]✗[/]"}
        for row in rows:
            out.print(f"{marks[row['state']]} [bold]{row['what']}[/]  {escape(row['detail'])}", soft_wrap=True)
    return 1 if any(row["state"] == "broken" for row in rows) else 0
