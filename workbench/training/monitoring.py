"""Monitoring of a training: evaluation on held-out prompts, the reward-hacking alarm, and checks for finite numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines import sharding
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.types import Batch, Event, Media, derive_seed
from workbench.evaluation import set_rewards, statistics
from workbench.evaluation.summary import alarm_margins
from workbench.runs.plan import Plan
from workbench.runs.progress import json_number, score_samples

SAMPLES_PER_PROMPT = 2  # of a held-out prompt; two, to measure diversity
MAX_WRITTEN = 8  # prompts with a sample on disk at each evaluation
ROUNDING = 1e-3  # tolerance of log-ratios, means over dimensions
PATIENCE = 20  # gradients in a row that may overflow while a loss scaler finds its scale


class TrainingHalted(RuntimeError):  # noqa: N818
    """Training can't go on; one sentence says why."""


def evaluate_held_out(plan: Plan, sampler: Any, method: Any, folder: Path | None) -> list[dict]:
    """Sample the held-out prompts with fixed seeds by `method`, and score them by every reward of the plan.

    One row per sample: {"index", "k", "prompt", "category", "reward", "diversity", "scores": {name: score}, "halves"}.
    The score of a set reward is the same in every row, and "halves" has its score of one random half per row. The first
    samples are written into `folder`, unless it is None."""
    rows = [(n, p, k) for n, p in enumerate(plan.held_out_prompts) for k in range(SAMPLES_PER_PROMPT)]
    oracle = (plan.watch.rewards if plan.watch else {}).get("oracle") or plan.reward.rewards.get("oracle")
    samples, scores, size = [], {}, max(1, plan.config.batch // SAMPLES_PER_PROMPT) * SAMPLES_PER_PROMPT
    for low in range(0, len(rows), size):
        chunk = rows[low : low + size]
        prompts, seeds = [p for _, p, _ in chunk], [derive_seed(plan.config.seed, "watch", p, k) for _, p, k in chunk]
        with torch.no_grad():
            (event,) = method(sampler, plan.reward, [Batch(tuple(prompts), tuple(seeds))])
            got = media.quantise_media(event.media)
        for name, values in score_samples(plan, got, prompts).items():
            scores.setdefault(name, []).append(values)
        samples.append(got)
    samples, prompts = Media.cat(samples), [p for _, p, _ in rows]
    scores = {name: torch.cat(parts) for name, parts in scores.items()}
    categories = oracle.categories(prompts) if oracle else [None] * len(rows)
    if folder is not None:
        write_samples(folder, rows, samples, scores)
    set_results = {
        name: set_rewards.score_set(reward, samples, prompts, len(rows))
        for name, reward in set_rewards.set_rewards_of(plan).items()
    }
    scores |= {name: torch.full((len(rows),), result.value) for name, result in set_results.items()}
    total = plan.reward.total({n: scores[n] for n in plan.reward.rewards}, prompts)
    spread = [
        statistics.measure_diversity(
            [samples.data[n * SAMPLES_PER_PROMPT : (n + 1) * SAMPLES_PER_PROMPT].cpu().numpy()]
        )
        for n in range(len(plan.held_out_prompts))
    ]
    return [
        {
            "index": n,
            "k": k,
            "prompt": p,
            "category": categories[b],
            "reward": json_number(total[b]),
            "diversity": spread[n],
        }
        | {"scores": {name: json_number(values[b]) for name, values in scores.items()}}
        | {"halves": {name: json_number(result.halves[b]) for name, result in set_results.items() if result.halves}}
        for b, (n, p, k) in enumerate(rows)
    ]


def write_samples(
    folder: Path, rows: Sequence[tuple[int, str, int]], samples: Media, scores: Mapping[str, torch.Tensor]
) -> None:
    """Write the first sample of each of the first MAX_WRITTEN prompts, with prompt and scores as metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    for b, (n, prompt, k) in enumerate(rows):
        if k == 0 and n < MAX_WRITTEN:
            meta = {"prompt": prompt, "scores": {name: json_number(values[b]) for name, values in scores.items()}}
            media.write_media(samples[b], folder / f"{n:04d}-{k}", meta=meta)


def compare_to_base(
    plan: Plan, name: str, base: Sequence[Mapping], current: Sequence[Mapping]
) -> tuple[dict[str, float], str | None]:
    """(mean scores on the held-out prompts, the hacking alarm's sentence or None): `current` rows against the same rows
    of the base model."""
    optimised, sets = plan.reward.weights, {n: set_scores(plan, rows) for n, rows in (("base", base), (name, current))}
    parts = []
    for n, rows in (("base", base), (name, current)):
        part = statistics.summarise_contestant(rows, base if n != "base" else None, optimised)
        parts.append({"name": n, **set_rewards.add_set_scores(part, sets[n], sets["base"], optimised)})
        parts[-1]["diversity"] = mean_of(rows, "diversity")
    metrics = {f"held {n}": r["mean"] for n, r in parts[1]["rewards"].items() if r["mean"] is not None}
    metrics |= {"held diversity": parts[1]["diversity"], "held reward": mean_of(current, "reward")}
    return metrics, statistics.hacking_alarm(parts, "base", alarm_margins(plan))


def set_scores(plan: Plan, rows: Sequence[Mapping]) -> dict[str, set_rewards.SetScore]:
    """Set reward -> its score of these rows, and of random halves of them."""
    halves = {
        n: [statistics.none_to_nan(r["halves"][n]) for r in rows if n in r.get("halves", {})]
        for n in set_rewards.set_rewards_of(plan)
    }
    return {
        n: set_rewards.SetScore(statistics.none_to_nan(rows[0]["scores"][n]), tuple(h), len(rows))
        for n, h in halves.items()
    }


def selection_score(plan: Plan, rows: Sequence[Mapping], base: Sequence[Mapping], update: int) -> float:
    """The score by which the best weights are selected: the mean of `train.best`, else of the first reward of `watch`,
    else of the reward. A control run, whose reward is spoilt on purpose, keeps the last weights. -inf where less than
    half as many samples could be scored as of the base. Raises BadInput where none of the base's could."""
    metric = plan.train_config.best or (
        "last" if plan.config.control != "none" else next(iter(plan.watch.rewards), "") if plan.watch else "reward"
    )
    if metric == "last":
        return float(update)

    def finite_scores(rows: Sequence[Mapping]) -> list[float]:
        scores = [statistics.none_to_nan(r["reward"] if metric == "reward" else r["scores"][metric]) for r in rows]
        return [value for value in scores if not math.isnan(value)]

    values = finite_scores(rows)
    if not values and not update:
        raise BadInput(
            f"train.best: {metric} could judge none of the watched prompts, so it can't pick the best weights; "
            "name another judge"
        )
    return sum(values) / len(values) if values and 2 * len(values) >= len(finite_scores(base)) else -math.inf


def mean_of(rows: Sequence[Mapping], key: str) -> float:
    """The mean of row[key], without None; 0 where there is no value."""
    values = [r[key] for r in rows if r[key] is not None]
    return sum(values) / len(values) if values else 0.0


def mean_saturation(rows: Sequence[Mapping]) -> float:
    """The mean of the score saturated_pixels."""
    return sum(r["scores"]["saturated_pixels"] for r in rows) / len(rows)


# --- checks ----------------------------------------------------------------------------------------------------------


def check_first_round(event: Event, method: Any) -> None:
    """Raises BadInput or TrainingHalted unless the rewards of the first round differ and its log-ratios are 0."""
    r = event.scores.get("reward", torch.zeros(0)).double()  # pairs have no rewards
    finite_scores = r[r.isfinite()]
    if len(r) and not len(finite_scores):
        raise BadInput("reward: none of the first samples could be judged, so there is nothing to learn from")
    if len(r) > 1 and float(finite_scores.max() - finite_scores.min()) == 0.0:
        raise BadInput(
            f"reward: all {len(finite_scores)} samples of the first round score {float(finite_scores[0]):g}, "
            "so there is nothing to learn from; check the reward with: workbench score"
        )
    if method.optimizer_steps == 1 and event.metrics.get("log_ratio", 0.0) != 0.0:
        raise TrainingHalted(
            f"the log-ratio before the first update is {event.metrics['log_ratio']:.2g} and must be 0: "
            "steps are not scored as they were drawn; report this pipeline"
        )


@torch.no_grad()
def check_replay(policy: Any, prompts: Sequence[str]) -> float:
    """The largest absolute log-ratio between stochastic steps as sampled and as scored again with the same weights: 0
    but for rounding. Raises TrainingHalted where it is larger: policy gradients would be of other steps than were
    taken."""
    path, largest = policy.sample(prompts, seeds=range(len(prompts))), 0.0
    for i in path.stochastic:
        log_prob = policy.transition(path.x[:, i], i, prompts).log_prob(path.x[:, i + 1])
        largest = max(largest, (log_prob - path.log_prob[:, i]).abs().max().item())
    if not largest < ROUNDING:
        raise TrainingHalted(
            "steps are not scored as they were drawn: the log-ratio before the first update is "
            f"{largest:.2g}, not 0; report this pipeline"
        )
    return largest


def check_finite(policy: Any, has_loss_scaler: bool) -> None:
    """Raises TrainingHalted where too many gradients in a row were not finite, and for weights that are not finite."""
    if policy.overflows > (PATIENCE if has_loss_scaler else 0):
        raise TrainingHalted("a gradient was not finite; lower the learning rate, or the gradient's `clip`")
    if not sharding.all_finite(policy.adapters.parameters):
        raise TrainingHalted("a weight is not finite; lower the learning rate")
