"""Longer trainings: a run whose config grows in `train.rounds`, and in nothing else, goes on in its own folder.

Its trainings go on from their last checkpoints, as if they had been asked for so many rounds at first; what was sampled
with the earlier weights is made again, and their exports are kept beside the new ones. The record of a run follows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from workbench.core.errors import BadInput
from workbench.engine import resume
from workbench.engine.run_record import describe_run
from workbench.runs import store
from workbench.runs.checkpoints import FINISHED
from workbench.runs.config import complete_config
from workbench.runs.plan import Plan
from workbench.runs.train_config import TrainConfig, learning_rate_factor
from workbench.training.training_runs import checkpoint_store, export_folder


def open_run(plan: Plan, runs: Path, fresh: bool = False, folder: Path | None = None) -> Path:
    """The folder in which a plan is executed: the newest unfinished run of its config, or, of a config that differs in
    fewer `train.rounds`, the newest run, which is prepared to go on; else a new one. folder: of a run that is named.

    Raises BadInput where nothing can be written there, and where a training can't be made longer.
    """
    config = dataclasses.asdict(plan.config)
    shorter = None if fresh or plan.train_config is None or plan.stages else _find_shorter(plan, config, runs, folder)
    if shorter is not None:
        extend_run(plan, shorter)
        return shorter.path
    return folder if folder and not fresh else store.RunFolder.open(runs, plan.config.name, config, fresh).path


def extend_run(plan: Plan, folder: store.RunFolder) -> None:
    """Prepare a run of fewer rounds to go on. Raises BadInput, in one sentence, where more rounds would not be the
    training that it has begun, or are not what it ended for; then the run stays as it was."""
    with folder.exclusive_lock():
        started = folder.read()
        resume.check_same_run(folder, started, describe_run(plan))
        earlier = replace(plan.train_config, rounds=_split_rounds(started["config"])[0])
        for name in plan.trained_contestants:
            _check_extension(plan, folder, name, earlier)
        for name in plan.trained_contestants:
            exported, kept = export_folder(plan, folder, name), f"export-{earlier.rounds}-rounds"
            if exported.is_dir():
                target = exported.with_name(f"{name}-{earlier.rounds}-rounds") if exported.name == name else None
                exported.rename(target or folder.path / kept)
            (checkpoint_store(plan, folder, name).folder / FINISHED).unlink(missing_ok=True)
        folder.keep_events(lambda e: not (e.get("final") and e["contestant"] in plan.trained_contestants))
        # last, so that a run that is killed before is found again
        record = started | {"config": dataclasses.asdict(plan.config), "command": plan.command or started["command"]}
        folder.write("run.json", record | {"status": "stopped"})


def _find_shorter(plan: Plan, config: Mapping, runs: Path, folder: Path | None) -> store.RunFolder | None:
    """The newest run of the same name and config but for fewer rounds; None where the newest has as many."""
    rounds, others = _split_rounds(config)
    for run in [store.RunFolder(folder)] if folder else store.list_run_folders(runs):
        if folder is None and not run.path.name.endswith(f"-{plan.config.name}"):
            continue  # whose record may be damaged
        record = run.read()
        if record.get("name") != plan.config.name or not isinstance(record.get("config"), dict):
            continue
        earlier_rounds, earlier_others = _split_rounds(record["config"])
        if earlier_others == others and earlier_rounds <= rounds:
            return run if earlier_rounds < rounds else None
    return None


def _split_rounds(config: Mapping) -> tuple[int, dict]:
    """(rounds of the training, all other settings) of a run's config."""
    values = complete_config(json.loads(store.dump_json(config)))
    train = dict(values.get("train") or {})
    return train.pop("rounds", TrainConfig.rounds), values | {"train": train}


def _check_extension(plan: Plan, folder: store.RunFolder, name: str, earlier: TrainConfig) -> None:
    """Raises BadInput unless the training of a contestant can be made longer."""
    checkpoints = checkpoint_store(plan, folder, name)
    trained, again = checkpoints.newest_round(), "start anew with --new"
    if ended := checkpoints.finished_record.get("ended"):
        raise BadInput(f"{folder.path}: {name} did not end for want of rounds: {ended.rstrip('.')}; {again}")
    batches = range(max(trained, 0) * earlier.accumulate)
    if any(learning_rate_factor(earlier, n) != learning_rate_factor(plan.train_config, n) for n in batches):
        raise BadInput(
            f"{folder.path}: train.decay: the learning rate of {name} has fallen towards the end of {earlier.rounds} "
            f"rounds, so {plan.train_config.rounds} rounds would not be that training going on; {again}"
        )
