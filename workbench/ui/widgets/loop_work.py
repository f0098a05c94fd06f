"""What the buttons of votes do: train on them, say what came of a training, and ask people whether it helped."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Iterator, Sequence

from rewards.people import tastes
from workbench.core.errors import BadInput
from workbench.core.text import quote_value
from workbench.engine.plan import check_disk, plan_run
from workbench.feedback import learn, loop, loop_votes, vote_training
from workbench.feedback.vote_training import VoteTraining
from workbench.feedback.votes import Vote
from workbench.report import formatting
from workbench.runs import store
from workbench.ui import run_processes, run_queue
from workbench.ui.context import AppContext
from workbench.ui.prompt_choices import list_prompt_lists

MADE_WITH = "the prompts that come with the pipeline"


def new_name() -> str:
    """A name of its own for what is learnt or trained now."""
    return f"votes-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def list_tests() -> list[tuple[str, str]]:
    """Lists of prompts to be judged on."""
    return [(MADE_WITH, ""), *((name, name) for name in list_prompt_lists())]


def train_on_votes(
    context: AppContext, vote_list: Sequence[Vote], method: str, test: str, source: str
) -> Iterator[list[str]]:
    """Learn a taste from the votes, and put a training on them into the queue: sentences on what has been done so far.
    Raises BadInput."""
    if test and test not in list_prompt_lists():
        raise BadInput("test: choose one of the lists of prompts")
    if method not in vote_training.METHODS:
        raise BadInput(f"train on: {', '.join(vote_training.METHODS)}, not {quote_value(method)}")
    if not vote_list:
        raise BadInput("there is no vote with these filters; vote first")
    name = new_name()
    pipeline = loop_votes.find_pipeline(vote_list)
    sentences = [f"Fitting a taste to {formatting.count_things(len(vote_list), 'vote')}…"]
    yield sentences
    learnt = learn.learn_named(vote_list, context.runs, name, source=source)
    sentences = [f"taste:{name} is {learnt['told'][0]}"]
    yield sentences
    if method == "reward" and not learnt["better"]:
        raise BadInput(
            f"{sentences[0]}; nothing is trained by such a taste, so vote more, or learn from the pairs (DPO)"
        )
    folder = context.runs / tastes.FOLDER / name
    block = tastes.taste_block(folder) | ({} if learnt["better"] else {"unproven": True})
    training = VoteTraining(
        f"{name}-tuned",
        method,  # type: ignore[arg-type]  # checked by the form's choices, and by what is planned
        pipeline,
        {tastes.taste_label(name): block},
        test or vote_training.suggest_test(pipeline),
    )
    loop_folder = context.runs / loop.FOLDER / name
    plan = plan_run(
        vote_training.write_training(vote_list, context.runs, loop_folder / "1", training),
        f"workbench run {loop_folder}/1/config.yaml",
    )
    check_disk(plan, context.runs)
    run = run_processes.open_queued(plan, context.runs)
    taste = {key: learnt[key] for key in ("name", "better", "told", "report", "control")}
    settings = loop.LoopSettings(name, method=training.method, test=str(training.test))
    state = {"settings": dataclasses.asdict(settings), "rounds": [{"taste": taste, "run": run.path.name}]}
    store.RunFolder(loop_folder).write(loop.FILE, state)
    run_queue.submit_run(context, run)
    yield [*sentences, f"{run.path.name} is in the queue, under Runs. When it is done, ask below whether it helped."]


def list_trainings(context: AppContext) -> list[str]:
    """The runs that were trained on votes, the newest first."""
    states = [
        store.RunFolder(file.parent).read(loop.FILE) for file in context.runs.glob(f"{loop.FOLDER}/*/{loop.FILE}")
    ]
    trained = {record["run"] for state in states for record in state.get("rounds", ()) if "run" in record}
    return sorted((run for run in trained if (context.runs / run / "run.json").is_file()), reverse=True)


def describe_training(context: AppContext, run: str) -> list[str]:
    """How a training on votes is doing; once it is done, what held-out judges say and what people said. Raises
    BadInput."""
    if run not in list_trainings(context):
        raise BadInput("choose a training of the list")
    state = run_processes.run_state(run_processes.find_run(context.runs, run))
    if state.name != "done":
        return [f"{run} is {state.name}{': ' * bool(state.reason)}{state.reason}"]
    sentences = [f"{name}: {gain} against the base" for name, gain in loop.read_judges(context.runs / run).items()]
    try:
        result = loop.judge_follow_up(context.runs, follow_up_name(run))
        return [loop_votes.describe_win_rate(result), *sentences]
    except BadInput:
        return [*sentences, "nobody was asked yet whether it helped"]


def ask_follow_up(context: AppContext, run: str) -> str:
    """The name of the study that asks, blind, whether a training helped; made unless it is there. Raises BadInput for
    one that is not done."""
    if run not in list_trainings(context):
        raise BadInput("choose a training of the list")
    if run_processes.run_state(run_processes.find_run(context.runs, run)).name != "done":
        raise BadInput("this training is not done yet")
    return loop.follow_up(context.runs, run, follow_up_name(run)).name


def follow_up_name(run: str) -> str:
    """The name of a training's follow-up study."""
    _, _, name = run.partition("-")
    return f"{name.partition('-')[2].removesuffix('-tuned')}-after"[:60].strip("-")
