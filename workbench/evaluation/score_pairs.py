"""Scores of two folders whose files belong together: paired differences and win rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards.compose import WeightedReward
from workbench.core.errors import BadInput
from workbench.core.inputs import input_needs, prompt_inputs
from workbench.core.text import shorten_path
from workbench.core.types import Reward
from workbench.evaluation import statistics
from workbench.evaluation.file_prompts import FilePrompt, pair_files
from workbench.evaluation.scoring import WHOLE, ScoredFile, ScoringTask
from workbench.runs.media_folders import MediaFolder, list_media_rows
from workbench.runs.media_pairing import Pairing, Way, pair_media
from workbench.runs.prompts import find_prompt_file

READING = (
    "difference: first minus second, pair by pair; wins: pairs in which the first scores higher, a tie counting half; "
    "brackets: 95 % intervals over prompts"
)


@dataclass(frozen=True)
class PairedTask:
    """Two folders, paired, and the rewards that are to score them. Only what is paired is scored."""

    pairing: Pairing
    tasks: tuple[ScoringTask, ScoringTask]
    notes: tuple[str, ...]  # sentences on the files, for the person

    @property
    def unpaired(self) -> dict[str, list[str]]:
        """Folder -> the files without a counterpart."""
        return {label: [str(row.path) for row in rows] for label, rows in self.pairing.unpaired.items()}

    def compare(self, rows: tuple[Mapping[int, Mapping], Mapping[int, Mapping]]) -> list[dict[str, Any]]:
        """A row for each reward: {"reward", "first", "second": estimates of the folders' means, "difference": of the
        first's score minus the second's, pair by pair, "wins": of the share of pairs in which the first scores higher,
        a tie counting half, "pairs": how many have both scores}. An estimate is as `statistics.mean_with_interval`
        gives it, over prompts.

        rows: of each folder, by the number of the pair. Of a reward of whole sets, the two scores alone.
        """
        prompts = [row.index for row in self.pairing.rows]
        task = self.tasks[0]
        compared = []
        for label in task.labels:
            reward = task.whole if label == WHOLE and task.whole else task.rewards[label]
            if label in task.set_rewards:
                first, second = (
                    {"mean": part[len(prompts)][label], "ci95": None, "n": len(prompts), "set": True} for part in rows
                )
                compared.append({"reward": label, "first": first, "second": second, "pairs": len(prompts)})
                continue
            bounds = reward.spec.bounds
            reach = (bounds[0] - bounds[1], bounds[1] - bounds[0]) if bounds else None
            a, b = (
                np.array([statistics.none_to_nan(part[n][label]) for n in range(len(prompts))], float) for part in rows
            )
            missing = np.isnan(a) | np.isnan(b)
            a[missing] = b[missing] = np.nan
            wins = np.where(missing, np.nan, np.heaviside(a - b, 0.5))
            compared.append(
                {
                    "reward": label,
                    "first": statistics.mean_with_interval(a.tolist(), prompts, bounds=bounds),
                    "second": statistics.mean_with_interval(b.tolist(), prompts, bounds=bounds),
                    "difference": statistics.mean_with_interval((a - b).tolist(), prompts, bounds=reach),
                    "wins": statistics.mean_with_interval(wins.tolist(), prompts, bounds=statistics.SHARE),
                    "pairs": int((~missing).sum()),
                }
            )
        return compared


def plan_paired_scoring(
    first: Path,
    second: Path,
    rewards: Mapping[str, Reward],
    whole: WeightedReward | None = None,
    way: Way = "",
    prompt: str | None = None,
    *,
    prompts: str | None = None,
    source: Path | None = None,
) -> PairedTask:
    """Two folders whose files are paired by `way`, or where that is empty by prompt or by name, where that is clear.
    rewards, whole: as `scoring.build_file_rewards` gives them; the other arguments as `plan_scoring` takes them. Raises
    BadInput as `plan_scoring`, `list_media_rows` and `pair_media` do."""
    if prompt is not None and prompts is not None:
        raise BadInput("--prompt and --prompts: both say the prompts; give one of them")
    if prompt is not None and way == "prompt":
        raise BadInput("--prompt: all files have one prompt then, which pairs none; take --pair name or --pair order")
    prompt_file = find_prompt_file(prompts, "--prompts") if prompts is not None else None
    labels = shorten_path(first), shorten_path(second)
    if labels[0] == labels[1]:
        raise BadInput(f"--against {second}: is the folder itself; name another")
    listed = [list_media_rows(path, prompt_file) for path in (first, second)]
    if prompt is not None:
        way = way or "name"
    pairing = pair_media(dict(zip(labels, listed, strict=True)), way)
    needed = {name for reward in rewards.values() for name in input_needs(reward.spec)}
    tasks = []
    for side in (0, 1):
        paths = [pair.files[side].path for pair in pairing.rows]
        texts = [pair.files[side].prompt or pair.files[1 - side].prompt for pair in pairing.rows]
        given = pair_files(paths, needed, source=source)
        origins = tuple(
            FilePrompt(
                prompt if prompt is not None else str(text) or None,
                {**prompt_inputs(text), **origin.inputs},
                origin.problem,
            )
            for text, origin in zip(texts, given, strict=True)
        )
        tasks.append(ScoringTask(rewards, whole, tuple(map(ScoredFile, paths)), origins))
    return PairedTask(pairing, (tasks[0], tasks[1]), _collect_notes(labels, listed, pairing))


def _collect_notes(labels: Sequence[str], listed: Sequence[MediaFolder], pairing: Pairing) -> tuple[str, ...]:
    notes = [f"{label}: {note}" for label, folder in zip(labels, listed, strict=True) for note in folder.notes]
    return (*notes, *pairing.notes)
