"""`workbench agree`: which rewards agree with people's votes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.commands.arguments import Commands, add_json_flag, add_parser, add_reward_names, add_runs_folder
from workbench.core.errors import BadInput

if TYPE_CHECKING:
    from workbench.feedback.reward_agreement import AgreementStudy

MAX_PROBLEMS = 5  # that are printed


def add_command(commands: Commands) -> None:
    parser = add_parser(
        commands,
        "agree",
        agree_command,
        "How often rewards prefer what people preferred, on the media that they voted on, beside chance and beside how "
        "often raters agree with each other. Any reward can be asked, also one that the runs did not score.",
        "workbench agree runs/20260101-120000-demo --reward clip --reward aesthetic\n"
        "  workbench agree sharpness --reward '{judge: {url: http://localhost:8000/v1, model: qwen}}'",
    )
    parser.add_argument("votes_on", nargs="*", metavar="STUDY_OR_RUN", help="a study, or run folders [all votes]")
    add_reward_names(parser)
    add_runs_folder(parser)
    add_json_flag(parser)


def agree_command(args: argparse.Namespace) -> int:
    import transformers

    from workbench.commands.console import build_table, err, out, print_json
    from workbench.engine.progress_bar import delayed_bar
    from workbench.evaluation import scoring
    from workbench.feedback import reward_agreement

    transformers.utils.logging.disable_progress_bar()
    rewards, whole = scoring.build_file_rewards(args.reward)
    rewards |= {scoring.WHOLE: whole} if whole else {}
    runs, folders, study = find_votes_on(args.votes_on, args.runs)
    some = reward_agreement.read_votes_on(runs, folders, study)
    with delayed_bar() as bar:
        result = reward_agreement.measure_rewards(
            runs, some, rewards, lambda done, total: bar.update("score", done, total)
        )
    if args.json:
        print_json(describe_agreement(result))
    else:
        print_agreement(result, out, build_table)
    for problem in result.problems[:MAX_PROBLEMS]:
        err.print(problem, markup=False, soft_wrap=True)
    if len(result.problems) > MAX_PROBLEMS:
        err.print(f"and {len(result.problems) - MAX_PROBLEMS:,} more", markup=False)
    return 1 if result.problems else 0


def find_votes_on(names: list[str], runs: Path) -> tuple[Path, list[str], int]:
    """(folder of runs, names of runs in it, number of the study or 0) of what is named. Raises BadInput."""
    from workbench.feedback.studies import find_study
    from workbench.runs.store import RunFolder

    paths = [next((p for p in (Path(name), runs / name) if (p / "run.json").is_file()), None) for name in names]
    if names and not any(paths):
        if len(names) > 1:
            raise BadInput(f"name one study, or run folders; {names[0]!r} is no run")
        return runs, [], find_study(runs, names[0]).number
    for name, path in zip(names, paths, strict=True):
        if path is None:
            raise BadInput(f"{name}: is no run folder; name runs, or one study alone")
        RunFolder(path).read()
    parents = {path.resolve().parent for path in paths if path}
    if len(parents) > 1:
        raise BadInput(f"the runs lie in different folders ({', '.join(map(str, sorted(parents)))}); name those of one")
    return (parents.pop() if parents else runs), [path.resolve().name for path in paths if path], 0


def describe_agreement(result: AgreementStudy) -> dict[str, Any]:
    """The agreement as plain values."""
    return {
        "rewards": [
            {"criterion": a.axis, "modality": a.modality, "reward": a.against_people.reward,
             **describe_report(a.against_people.report), "verdict": a.against_people.verdict, "unscored": a.unscored,
             "by_margin": [vars(group) for group in a.margins]}
            for a in result.agreements
        ],
        "raters": [
            {"criterion": r.axis, "modality": r.modality, "votes": r.votes, "ties": r.ties,
             "with_each_other": r.report and describe_report(r.report)}
            for r in result.raters
        ],
        "chance": 0.5,
        "problems": [*result.problems],
    }  # fmt: skip


def describe_report(report: Any) -> dict[str, Any]:
    return {"share": report.accuracy, "ci95": [report.low, report.high], "votes": report.votes,
            "prompts": report.clusters}  # fmt: skip


def print_agreement(result: AgreementStudy, out: Any, build_table: Any) -> None:
    for raters in result.raters:
        title = f"{raters.axis}, {raters.modality}"
        rows = [
            {"agrees with people": a.against_people.reward, **share_cells(a.against_people.report),
             "by margin, alike to apart": "  ".join(f"{g.share:.2f}" for g in a.margins),
             "verdict": a.against_people.verdict}
            for a in result.agreements
            if (a.axis, a.modality) == (raters.axis, raters.modality)
        ]  # fmt: skip
        blank = {"by margin, alike to apart": "", "verdict": ""}
        if raters.report:
            rows.append({"agrees with people": "another rater", **share_cells(raters.report), **blank})
        rows.append({"agrees with people": "chance", "share": "0.50", "95 %": "", "votes": None, **blank})
        out.print(build_table(rows, title))
        unscored = max((a.unscored for a in result.agreements if a.axis == raters.axis), default=0)
        notes = [f"{raters.votes:,} votes that prefer something; {raters.ties:,} that don't are left out"]
        notes += [] if raters.report else ["no two raters preferred something on the same two media"]
        notes += [f"{unscored:,} votes are on media without a score"] if unscored else []
        out.print("; ".join(notes), markup=False, soft_wrap=True)


def share_cells(report: Any) -> dict[str, Any]:
    return {"share": f"{report.accuracy:.2f}", "95 %": f"[{report.low:.2f}, {report.high:.2f}]", "votes": report.votes}
