"""Sentences that warn of a training: it taught nothing, it collapsed, or what it exports is the untrained model.

They are computed from what was counted and evaluated. In training they are the alarm (`train.on_alarm`). At its end
they are in its record, `alarm` and `warnings` of done.json, and from there in summary, console, report, model card and
app (workbench.report.findings.training_sentences).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.core.errors import BadInput
from workbench.core.types import Event
from workbench.evaluation import statistics

# Samples that may all score alike, or have no score, before a training is refused: a reward of one hit in 20 has one by
# then but for twice in a million, and a judge that fails three times in four has answered but for once in 10^8.
SAMPLES_ALIKE, SAMPLES_UNJUDGED = 256, 64
SILENT_ROUNDS = 10  # without a sample that taught; half of a training's rounds where that is less
UNJUDGED = 0.5  # share of the samples without a score
# |W - W0| / |W0|. Where the change is as large as the weights themselves, little of what they knew is left; trainings
# that bring something end between 0.005 and 0.1.
FARTHEST = 1.0
STILL = 1e-4  # below it, and with all scores as they were, the weights stand still
SAME = 0.01  # standard deviations of the base's scores within which a score is as it was
FALLEN = 0.1  # standard deviations of the base's rewards that an interval must lie below zero
JUDGE_FALLEN = 2.0  # standard deviations, of a judge without a typical range
FEWER, FEWEST = 0.5, 0.1  # shares of the base's diversity; the second where prompts are too few for intervals


@dataclass
class TeachingRecord:
    """What the batches of a training taught, counted; plain numbers, saved in checkpoints."""

    planned: int  # rounds
    accumulate: int = 1  # batches of a round
    batches: int = 0
    last_taught: int = 0  # the number, from 1, of the last batch of which a sample taught something
    scored: int = 0  # batches whose samples were scored
    samples: int = 0  # for which a score was asked
    unjudged: int = 0  # that got none
    lowest: float = math.inf  # of their scores
    highest: float = -math.inf

    def with_counts(self, saved: Mapping[str, float]) -> TeachingRecord:
        """This training's record with the counts that a checkpoint has saved."""
        return TeachingRecord(**{**saved, "planned": self.planned, "accumulate": self.accumulate})

    def count(self, event: Event, is_update: bool = True) -> None:
        """Count a batch. is_update: it made an optimiser step, so its gradient says whether it taught; for methods that
        don't say it themselves."""
        self.batches += 1
        taught = event.metrics.get("taught", event.metrics.get("grad_norm", 1.0) if is_update else 1.0)
        if taught != 0.0:
            self.last_taught = self.batches
        rewards = event.scores.get("reward")
        if rewards is None or not len(rewards):
            return
        self.scored += 1
        finite = rewards.detach().cpu()
        finite = finite[finite.isfinite()]
        self.samples, self.unjudged = self.samples + len(rewards), self.unjudged + len(rewards) - len(finite)
        if len(finite):
            self.lowest = min(self.lowest, float(finite.min()))
            self.highest = max(self.highest, float(finite.max()))

    @property
    def is_scored(self) -> bool:
        """Whether every batch was scored; some methods only validate by the reward."""
        return 0 < self.scored == self.batches

    @property
    def all_alike(self) -> bool:
        """Whether two samples or more were scored, and all alike."""
        return self.is_scored and self.samples - self.unjudged > 1 and self.lowest == self.highest

    @property
    def none_judged(self) -> bool:
        """Whether scores were asked for, and there is none."""
        return self.is_scored and self.samples == self.unjudged

    @property
    def first_round_note(self) -> str:
        """What is said after a first batch of which nothing can be learnt; else ""."""
        if self.batches != 1 or not (self.all_alike or self.none_judged):
            return ""
        what, bound = f"score {self.lowest:g}", SAMPLES_ALIKE
        if self.none_judged:
            what, bound = "could not be judged", SAMPLES_UNJUDGED
        return (
            f"all {self.samples} samples of the first round {what}; up to {bound} are drawn before this counts as "
            "nothing to learn from"
        )

    @property
    def silent_rounds(self) -> int:
        """How many rounds in a row may teach nothing."""
        return min(SILENT_ROUNDS, max(2, self.planned // 2))

    def check_differences(self, at_end: bool = False) -> None:
        """Raises BadInput where none of SAMPLES_UNJUDGED samples could be judged, or all of SAMPLES_ALIKE score alike;
        at the end of a training, of as many as there were. Fewer may: a reward that is rarely given needs more."""
        if self.none_judged and (at_end or self.samples >= SAMPLES_UNJUDGED):
            raise BadInput(
                f"reward: none of the first {self.samples} samples could be judged, so there is nothing to learn from; "
                "check the reward with: workbench score"
            )
        if self.all_alike and (at_end or self.samples >= SAMPLES_ALIKE):
            raise BadInput(
                f"reward: all {self.samples - self.unjudged} samples of the first {_count_rounds(self.batches)} score "
                f"{self.lowest:g}, so there is nothing to learn from; check the reward with: workbench score"
            )


def silence_sentences(record: TeachingRecord, at_end: bool = False) -> list[str]:
    """A sentence where round after round taught nothing."""
    rounds, last = record.batches // record.accumulate, -(-record.last_taught // record.accumulate)
    why = "within each prompt all samples scored alike, or could not be judged"
    if not last and rounds and (at_end or rounds >= record.silent_rounds):
        return [f"no sample taught anything in {_count_rounds(rounds)}: {why}."]
    if last and rounds - last >= record.silent_rounds:
        return [f"no sample taught anything after round {last} of {rounds}: {why}."]
    return []


def teaching_sentences(record: TeachingRecord) -> list[str]:
    """Sentences, at the end of a training, on rounds and samples that taught nothing."""
    sentences = silence_sentences(record, at_end=True)
    if record.unjudged > UNJUDGED * record.samples:
        share = record.unjudged / record.samples
        sentences.append(f"{share:.0%} of the {record.samples:,} samples could not be judged, so they taught nothing.")
    return sentences


def movement_sentences(
    distance: float, base: Sequence[Mapping], rows: Sequence[Mapping], rounds: int, patience: int = 0
) -> list[str]:
    """A sentence where the weights went too far, or stand still after `patience` of so many rounds. base, rows: of an
    evaluation (monitoring.evaluate_held_out), before training and now."""
    if distance > FARTHEST:
        return [
            f"the weights have moved by {distance:.2g} of their norm, more than there was of them, so little of the "
            "base is left."
        ]
    if rounds < patience:
        return []
    if distance == 0.0:
        return [f"the weights are still those of the base after {_count_rounds(rounds)}."]
    if distance < STILL and not _scores_changed(base, rows):
        return [
            f"the weights have moved by {distance:.1g} of their norm in {_count_rounds(rounds)}, and no watched score "
            "has changed; the learning rate may be too small."
        ]
    return []


def _scores_changed(base: Sequence[Mapping], rows: Sequence[Mapping]) -> bool:
    for name in base[0]["scores"]:
        before, after = ([statistics.none_to_nan(r["scores"][name]) for r in part] for part in (base, rows))
        limit = SAME * standard_deviation(before)
        if any(abs(a - b) > limit or math.isnan(a) != math.isnan(b) for a, b in zip(after, before, strict=True)):
            return True
    return False


def fall_sentences(
    base: Mapping, part: Mapping, change: Mapping, spread: float, limits: Mapping[str, float]
) -> list[str]:
    """Sentences on what fell without anything having risen. base, part: of a summary (statistics.summarise_contestant),
    of the base and of the contestant; change: the estimate of the difference in the optimised reward; spread: the
    standard deviation of the base's; limits: held-out judge -> the fall that is a collapse (`judge_limit`)."""
    sentences, name = [], part["name"]
    if change["ci95"] and change["ci95"][1] < -FALLEN * spread:
        sentences.append(f"{name} lowered the reward that it optimises, by {-change['mean']:.3g}")
    for judge, limit in limits.items():
        versus = part["versus_base"][judge]
        if versus["ci95"] and versus["ci95"][1] < 0 and versus["mean"] < -limit:
            before, now = base["rewards"][judge]["mean"], part["rewards"][judge]["mean"]
            sentences.append(f"{judge}, held out, fell from {before:.3g} to {now:.3g}")
    return sentences


def judge_limit(scores: Sequence[float], typical: tuple[float, float] | None) -> float:
    """The fall of a judge's mean that is a collapse, by its scores of the base's samples: half way to the bottom of its
    typical range, and an eighth of the range at least; without one, two standard deviations."""
    if not typical:
        return JUDGE_FALLEN * standard_deviation(scores)
    low, high = typical
    return max(_mean(scores) - low, (high - low) / 4) / 2


def has_lost_diversity(base: Mapping, part: Mapping, prompts: int) -> bool:
    """Whether the samples of a prompt differ by less than half of what the base's do; by a tenth where the prompts are
    too few to show more."""
    limit = FEWER if prompts >= statistics.FEWEST_PROMPTS else FEWEST
    return bool(base["diversity"]) and part["diversity"] < limit * base["diversity"]


def export_sentence(metric: str, was_stopped: bool = False) -> str:
    """The sentence where the exported weights are those of round 0. metric: what selects; was_stopped: by the alarm, at
    whose evaluation nothing is selected."""
    why = f"{metric} was highest there"
    if was_stopped:
        why = (
            "the alarm rang at the first evaluation" if metric == "last" else f"{metric} rose at none before the alarm"
        )
    return f"the exported weights are those of round 0, the untrained model: {why}."


def _count_rounds(rounds: int) -> str:
    return f"{rounds} round" + "s" * (rounds != 1)


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def standard_deviation(values: Sequence[float]) -> float:
    """Of the values that are not NaN; 0 without one."""
    known, mean = [v for v in values if not math.isnan(v)], _mean(values)
    return math.sqrt(sum((v - mean) ** 2 for v in known) / len(known)) if known else 0.0
