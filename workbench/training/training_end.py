"""The end of a training: its best weights are exported, and its record is written. `trainer` is a Trainer
(workbench.training.trainer, which imports this file)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pipelines
from workbench.runs.progress import Progress
from workbench.training import monitoring, training_warnings
from workbench.training.training_runs import export_folder, load_best_weights


def finish_training(trainer: Any) -> Iterator[Progress]:
    """Evaluate, save, export the best weights, mark the training as finished, and say what it did not teach. Processes
    other than the first return early, unless they hold shards. Raises BadInput where all samples scored alike."""
    trainer.check_differences(at_end=True)
    if trainer.evaluated_at != trainer.rounds_done:  # the training ended early
        yield from trainer.evaluate()
    trainer.save_checkpoint()
    folder = export_folder(trainer.plan, trainer.folder, trainer.name)
    (is_exported, *_) = trainer.gather_values(folder.exists())  # also waits until the checkpoint is on disk
    if not trainer.is_leader and not trainer.policy.adapters.sharded:
        return
    trainer.reset_optimizer()  # exporting needs memory
    weights, best = load_best_weights(trainer.policy, trainer.checkpoints, trainer.method)
    trainer.policy.adapters.drop_copies({weights})
    if trainer.is_leader:
        for leftover in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(leftover)  # of a writer that was killed
    if not is_exported:
        base = trainer.plan.pipelines[trainer.name]
        metadata = {"method": trainer.name, "run": trainer.folder.path.name, "update": str(best)}
        result = pipelines.export_policy(trainer.policy, folder, name=weights, about=metadata, pipeline=base)
        for note in result.notes:
            yield trainer.make_progress("message", note=note)
    with trainer.policy.use(weights):
        distance = trainer.policy.adapters.distance_from_base()
    if not trainer.is_leader:
        return
    warnings = find_warnings(trainer, best, distance)
    trainer.checkpoints.mark_finished(
        trainer.summarise_training() | {"distance": distance, "best": best, "warnings": warnings}
    )
    yield trainer.make_progress("message", note=f"exported the weights of update {best} to {folder}")
    for warning in warnings:
        trainer.folder.append_event({"contestant": trainer.name, "step": trainer.rounds_done, "warning": warning})
        yield trainer.make_progress("message", note=f"warning: {warning}")


def find_warnings(trainer: Any, best: int, distance: float) -> list[str]:
    """Sentences on what a training did not teach, besides what the alarm says. best: the round of the exported weights;
    distance: theirs from the base."""
    sentences = trainer.teaching_warnings()
    if not best:
        metric = monitoring.selection_metric(trainer.plan, trainer.method)
        was_stopped = bool(trainer.alarm) and trainer.train_config.on_alarm == "stop"
        sentences.append(training_warnings.export_sentence(metric, was_stopped))
    elif distance == 0.0 and not sentences:
        sentences += training_warnings.movement_sentences(distance, (), (), trainer.rounds_done)
    return [sentence for sentence in sentences if sentence.removesuffix(".") not in trainer.alarm]
