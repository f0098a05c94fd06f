"""Monitoring of a training: evaluation on held-out prompts, the reward-hacking alarm, and checks for finite numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipelines import sharding
from workbench.core.errors import BadInput
from workbench.core.finite import find_finite_rows
from workbench.core.io import media
from workbench.core.types import Batch, Event, Media, derive_seed
from workbench.evaluation import set_rewards, statistics
from workbench.evaluation.summary import alarm_margins, score_bounds
from workbench.runs.plan import Plan
from workbench.runs.progress import json_number, score_samples
from workbench.runs.run_inputs import record_inputs
from workbench.training.training_warnings import fall_sentences, has_lost_diversity, judge_limit, standard_deviation

SAMPLES_PER_PROMPT = 2  # of a held-out prompt; two, to measure diversity
MAX_WRITTEN = 8  # prompts with a sample on disk at each evaluation
ROUNDING = 1e-3  # tolerance of log-ratios, means over dimensions
PATIENCE = 20  # gradients in a row that may overflow while a loss scaler finds its scale


class TrainingHalted(RuntimeError):  # noqa: N818
    """Training can't go on; one sentence says why."""


def evaluate_held_out(plan: Plan, sampler: Any, method: Any, folder: Path | None) -> list[dict]:
    """Sample the held-out prompts with fixed seeds by `method`, and score them by every reward of the plan.

    One row per sample: {"index", "k", "prompt", "category", "reward", "diversity", "scores": {name: score}, "halves"},
    and "inputs", name -> digest, where the prompt has any.
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
    groups = [samples[low : low + SAMPLES_PER_PROMPT] for low in range(0, len(rows), SAMPLES_PER_PROMPT)]
    spread = [statistics.measure_diversity([g.data[find_finite_rows(g)].cpu().numpy()]) for g in groups]
    return [
        {
            "index": n,
            "k": k,
            "prompt": str(p),  # a checkpoint holds plain values
            **record_inputs(p),
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
        if k == 0 and n < MAX_WRITTEN and find_finite_rows(samples[b]).all():
            meta = {
                "prompt": prompt,
                **record_inputs(prompt),
                "scores": {name: json_number(values[b]) for name, values in scores.items()},
            }
            media.write_media(samples[b], folder / f"{n:04d}-{k}", meta=meta)


def compare_to_base(
    plan: Plan, name: str, base: Sequence[Mapping], current: Sequence[Mapping], was_trained: bool = True
) -> tuple[dict[str, float], str | None]:
    """(mean scores on the held-out prompts, the alarm's sentences or None): `current` rows against the same rows of the
    base model. The alarm is that of reward hacking, and, where the plan's reward has trained it, of a collapse, in
    which nothing rises."""
    optimised, sets = plan.reward.weights, {n: set_scores(plan, rows) for n, rows in (("base", base), (name, current))}
    parts = []
    for n, rows in (("base", base), (name, current)):
        part = statistics.summarise_contestant(rows, base if n != "base" else None, optimised, score_bounds(plan))
        parts.append({"name": n, **set_rewards.add_set_scores(part, sets[n], sets["base"], optimised)})
        parts[-1]["diversity"] = mean_of(rows, "diversity")
    metrics = {f"held {n}": r["mean"] for n, r in parts[1]["rewards"].items() if r["mean"] is not None}
    metrics |= {"held diversity": parts[1]["diversity"], "held reward": mean_of(current, "reward")}
    hacked = statistics.hacking_alarm(parts, "base", alarm_margins(plan))
    sentences = [hacked.removesuffix(".")] if hacked else []
    if was_trained and plan.config.control == "none":  # other controls are paid for what this alarm is about
        sentences += collapse_sentences(plan, *parts, base, current)
    has_collapsed = was_trained and has_lost_diversity(*parts, prompts=len(plan.held_out_prompts))
    if has_collapsed and statistics.DIVERSITY_LOST not in str(hacked):
        sentences.append(f"{name} {statistics.DIVERSITY_LOST}")
    return metrics, "; ".join(sentences) + "." if sentences else None


def collapse_sentences(
    plan: Plan, before: Mapping, now: Mapping, base: Sequence[Mapping], current: Sequence[Mapping]
) -> list[str]:
    """Sentences on what fell though nothing rose; before, now: the summaries of the rows `base` and `current`."""

    def finite_scores(rows: Sequence[Mapping], judge: str) -> list[float]:
        return [statistics.none_to_nan(r["scores"][judge]) for r in rows]

    rewards = [[statistics.none_to_nan(r["reward"]) for r in rows] for rows in (base, current)]
    if plan.reward.spec.scope == "set":  # one score of all rows
        change, spread = now["versus_base"][next(iter(plan.reward.rewards))], 0.0
    else:
        gaps, clusters = [a - b for b, a in zip(*rewards, strict=True)], [r["index"] for r in base]
        change, spread = statistics.mean_with_interval(gaps, clusters), standard_deviation(rewards[0])
    judges = {n: r for n, r in (plan.watch.rewards if plan.watch else {}).items() if r.spec.scope != "set"}
    limits = {n: judge_limit(finite_scores(base, n), r.spec.typical) for n, r in judges.items()}
    return fall_sentences(before, now, change, spread, limits)


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


def selection_metric(plan: Plan, method: Any) -> str:
    """What the best weights are selected by: `train.best`, else the first reward of `watch`, else the reward. A method
    that selects weights itself, by validations of its own, keeps what it has selected last; a control run, whose reward
    is spoilt on purpose, its last weights."""
    if plan.train_config.best:
        return plan.train_config.best
    if plan.config.control != "none" or method.selects_weights:
        return "last"
    return next(iter(plan.watch.rewards), "") if plan.watch else "reward"


def selection_score(metric: str, rows: Sequence[Mapping], base: Sequence[Mapping], update: int) -> float:
    """The score by which the best weights are selected: the mean of the metric, or of "last" the round. -inf where less
    than half as many samples could be scored as of the base. Raises BadInput where none of the base's could."""
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


def is_better(score: float, best: Mapping[str, Any]) -> bool:
    """Whether weights with this score are better than the best so far, {"update", "score"} or {}. Of equals the earlier
    stay, but never the untrained model's: nobody trains for those."""
    return not best or score > best["score"] or (score == best["score"] and best["update"] == 0)


def mean_of(rows: Sequence[Mapping], key: str) -> float:
    """The mean of row[key], without None; 0 where there is no value."""
    values = [r[key] for r in rows if r[key] is not None]
    return sum(values) / len(values) if values else 0.0


def mean_saturation(rows: Sequence[Mapping]) -> float:
    """The mean of the score saturated_pixels."""
    return sum(r["scores"]["saturated_pixels"] for r in rows) / len(rows)


# --- checks ----------------------------------------------------------------------------------------------------------


def check_first_log_ratio(event: Event, method: Any) -> None:
    """Raises TrainingHalted unless the log-ratios of the first round are 0."""
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
