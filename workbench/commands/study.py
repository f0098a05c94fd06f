"""`workbench study`: people vote on runs by a link, with a target and checks of their care, and what came of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands.arguments import Commands, add_json_flag, add_parser, add_runs_folder
from workbench.core.errors import BadInput

FILE_LETTERS = 200  # up to which a text may be the name of a file


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "study",
        study_command,
        "People vote on runs by a link, with instructions, criteria and a target; then ratings, how far raters agree, "
        "and who votes with care.",
        "workbench study new sharpness --runs runs/20260101-120000-demo --target 50 --gold 5 --open\n"
        "  workbench app --host 0.0.0.0 --auth admins.txt --raters raters.txt    # raters vote at /vote/sharpness\n"
        "  workbench study show sharpness",
    )
    steps = parser.add_subparsers(dest="step", required=True, metavar="STEP")
    new = steps.add_parser("new", help="make a study; its pairs are fixed from then on")
    new.add_argument("name", help="small letters, digits and '-': it stands in the link")
    new.add_argument("--runs", nargs="+", required=True, metavar="RUN", help="run folders, imports too")
    new.add_argument("--contestants", default="", metavar="A,B", help="only these contestants [all]")
    new.add_argument(
        "--criteria", default="overall", metavar="A,B", help='asked on one page: overall,quality,"prompt following"'
    )
    new.add_argument("--votes-per-pair", type=int, default=3, metavar="N", help="raters for each pair of samples [3]")
    new.add_argument(
        "--pairs",
        choices=("adaptive", "round-robin"),
        default="adaptive",
        help="contestants meet where most is to be learnt, or equally often [adaptive]",
    )
    new.add_argument(
        "--gold",
        default="0",
        metavar="N|FILE",
        help='pairs whose answer is known: N samples beside damaged copies, or JSON lines {"better", "worse"} [0]',
    )
    new.add_argument(
        "--reveal",
        choices=("never", "end", "each"),
        default="never",
        help="raters are told who was who never, at their end, or after each vote [never]",
    )
    new.add_argument("--target", type=int, default=0, metavar="N", help="votes of each rater; 0: all pairs [0]")
    new.add_argument("--instructions", default="", metavar="TEXT|FILE", help="what raters read before they begin")
    new.add_argument("--open", action="store_true", help="whoever has the link may vote, under a name of their choice")
    add_json_flag(new)
    for name, summary in STEPS.items():
        step = steps.add_parser(name, help=summary, description=summary)
        if name != "list":
            step.add_argument("name")
        if name in ("show", "export"):
            step.add_argument(
                "--min-gold",
                type=float,
                default=0.0,
                metavar="SHARE",
                help="leave out raters who were right on less than this share of their gold pairs [0]",
            )
        if name == "show":
            step.add_argument("--reasons", nargs="?", const="", metavar="WORD", help="list reasons, those with WORD")
        if name == "export":
            step.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .csv, .jsonl or .parquet")
        else:
            add_json_flag(step)
        add_runs_folder(step)


STEPS = {
    "list": "all studies",
    "show": "progress, ratings on each criterion, agreement of raters, and their care",
    "export": "every vote with contestants, time, seconds, reason and absolute paths",
    "close": "take no more votes",
}


def study_command(args: argparse.Namespace) -> int:
    {"new": make_new, "list": show_list, "show": show_study, "export": export_study, "close": close_study}[args.step](
        args
    )
    return 0


def make_new(args: argparse.Namespace) -> None:
    from workbench.commands.console import out, print_json
    from workbench.feedback import studies

    paths = [Path(run) if len(Path(run).parts) > 1 else Path("runs") / run for run in args.runs]
    folders = {path.resolve().parent for path in paths}
    if len(folders) > 1:
        raise BadInput(
            f"--runs: these lie in different folders ({', '.join(map(str, sorted(folders)))}); a study has one"
        )
    settings = {
        "name": args.name,
        "runs": tuple(path.resolve().name for path in paths),
        "contestants": split_names(args.contestants),
        "criteria": split_names(args.criteria),
        "votes_per_pair": args.votes_per_pair,
        "pairs": args.pairs,
        "reveal": args.reveal,
        "target": args.target,
        "instructions": read_instructions(args.instructions),
        "is_open": args.open,
    }
    study, notes = studies.create_study(folders.pop(), settings, args.gold)
    if args.json:
        print_json({"name": study.name, "notes": notes})
        return
    for note in notes:
        out.print(note, markup=False, soft_wrap=True)
    who = "anybody who has it" if study.is_open else "raters who log in"
    out.print(f"link for {who}: /vote/{study.name} of `workbench app`", markup=False, soft_wrap=True)


def split_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def read_instructions(text: str) -> str:
    """The text itself, or what the file of this name holds. Raises BadInput."""
    from workbench.core.io.parsing import read_text

    if (
        0 < len(text) <= FILE_LETTERS
        and "\n" not in text
        and (Path(text).suffix in (".txt", ".md") or Path(text).is_file())
    ):
        return read_text(Path(text)).strip()
    return text.strip()


def show_list(args: argparse.Namespace) -> None:
    from workbench.commands.console import build_table, out, print_json
    from workbench.feedback import studies, votes

    rows = [
        {
            "study": s.name,
            "created": s.created[:16].replace("T", " "),
            "state": "closed" if s.closed else "open to anybody" if s.is_open else "for logins",
            "votes": len(votes.standing_votes(args.runs, study=s.number, axis=s.criteria[0])),
            "runs": ", ".join(s.runs),
        }
        for s in studies.list_studies(args.runs)
    ]
    if args.json:
        print_json(rows)
    elif rows:
        out.print(build_table(rows))
    else:
        out.print(f"no study in {args.runs} yet; make one: workbench study new --help", markup=False)


def show_study(args: argparse.Namespace) -> None:
    from workbench.commands.console import build_table, out, print_json
    from workbench.feedback import study_results

    results = study_results.read_results(args.runs, args.name, args.min_gold)
    view = study_results.describe_results(results)
    if args.reasons is not None:
        view["reasons"] = [
            {
                "reason": v.reason,
                "choice": v.choice,
                "left": v.left.label,
                "right": v.right.label,
                "prompt": str(v.prompt),
            }
            for v in results.reasons
            if args.reasons.casefold() in v.reason.casefold()
        ]
    if args.json:
        print_json(view)
        return
    for line in view["progress"]:
        out.print(line, markup=False, soft_wrap=True)
    for standing in view["standings"]:
        out.print(build_table(standing["rows"], f"{standing['criterion']}, {standing['modality']}"))
        for line in standing["notes"]:
            out.print(line, markup=False, soft_wrap=True)
    for title, rows in (("agreement", view["agreement"]), ("raters", view["raters"]), ("reasons", view.get("reasons"))):
        if rows:
            out.print(build_table(rows, title))


def export_study(args: argparse.Namespace) -> None:
    from workbench.commands.console import out
    from workbench.feedback import study_export, study_results

    results = study_results.read_results(args.runs, args.name, args.min_gold)
    names = {r.id: r.name for r in results.raters}
    count = study_export.write_rows(study_export.vote_rows(results.votes, args.runs, names), args.out)
    out.print(f"{count:,} rows in {args.out}", markup=False, soft_wrap=True)


def close_study(args: argparse.Namespace) -> None:
    from workbench.commands.console import out, print_json
    from workbench.feedback import studies

    study = studies.close_study(args.runs, args.name)
    if args.json:
        print_json({"name": study.name, "closed": study.closed})
    else:
        out.print(f"{study.name} takes no more votes since {study.closed[:16].replace('T', ' ')}", markup=False)
