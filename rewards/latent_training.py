"""Training of a reward on noisy latents (latent.py) from a policy's own samples.

rewards = {"starter_clip": build("starter_clip")}
collect_samples(policy, rewards, prompts, "data/", seeds=8)       # the policy's own samples and their scores
train_latent_reward("data/", "judge.safetensors", steps=6000)     # reads x_i = a x0 + s eps at random noise levels
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewards.latent import KEY, LatentScorer
from workbench.core.errors import BadInput
from workbench.core.inputs import input_needs
from workbench.core.io.parsing import parse_json
from workbench.core.paths import write_atomic
from workbench.core.types import Policy, Reward, derive_seed


@torch.no_grad()
def collect_samples(
    policy: Policy,
    rewards: Mapping[str, Reward],
    prompts: Sequence[str],
    folder: str | Path,
    *,
    seeds: int = 4,
    others: int = 1,
    seed: int = 0,
    batch: int = 16,
) -> None:
    """The policy's samples of `prompts`, `seeds` each, with their scores, one file a batch; goes on where it was left.

    Each sample is also scored against `others` other prompts, so that the network has to read: most samples fit their
    own. Raises BadInput for a reward that compares samples with what they were made from, which the network can't see.
    """
    for name, reward in rewards.items():
        if inputs := input_needs(reward.spec):
            raise BadInput(
                f"latent reward: {name} compares with the {inputs[0]} of a sample, and a latent reward reads only its "
                "prompt"
            )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(p, derive_seed(seed, "latent reward", p, k)) for k in range(seeds) for p in prompts]
    for number, at in enumerate(range(0, len(rows), batch)):
        path = folder / f"{number:05d}.safetensors"
        if path.exists():
            continue
        own_prompts, noises = zip(*rows[at : at + batch], strict=True)
        trajectory = policy.sample(own_prompts, seeds=noises)
        questions = [
            own_prompts,
            *([prompts[derive_seed(n, "other", o) % len(prompts)] for n in noises] for o in range(others)),
        ]
        scores = [
            torch.stack([r(media=trajectory.media, prompts=p).float().cpu() for r in rewards.values()], 1)
            for p in questions
        ]
        state = {"latents": trajectory.x[:, -1].float().cpu().contiguous(), "scores": torch.stack(scores, 1)}
        header = {"prompts": json.dumps(list(zip(*questions, strict=True))), "objectives": json.dumps(list(rewards))}
        write_atomic(path, safetensors.torch.save(state, header))


@dataclass(frozen=True)
class LatentSamples:
    """What `collect` left: M questions about N latents; the first question of each latent is its own prompt."""

    latents: Tensor  # [N,*latent]
    latent_index: Tensor  # [M], the latent that each question is about
    is_own_prompt: Tensor  # [M], whether it asks for the latent's own prompt
    prompts: list[str]  # M
    scores: Tensor  # [M,K]
    objectives: list[str]  # K

    @staticmethod
    def read(folder: str | Path) -> LatentSamples:
        """Raises BadInput for a folder without samples."""
        latents, latent_index, is_own_prompt, prompts, scores, objectives, n = [], [], [], [], [], [], 0
        for path in sorted(Path(folder).glob("*.safetensors")):
            with safetensors.safe_open(path, "pt") as file:
                latents.append(file.get_tensor("latents"))
                batch_scores = file.get_tensor("scores")  # [b,questions,K]
                questions, objectives = (
                    parse_json(file.metadata()[key], str(path)) for key in ("prompts", "objectives")
                )
            prompts += [p for row in questions for p in row]
            latent_index += [n + b for b in range(len(batch_scores)) for _ in range(batch_scores.shape[1])]
            is_own_prompt += [q == 0 for _ in range(len(batch_scores)) for q in range(batch_scores.shape[1])]
            scores.append(batch_scores.flatten(0, 1))
            n += len(batch_scores)
        if not latents:
            raise BadInput(
                f"latent reward: {folder} has no samples; make them with rewards.latent_training.collect_samples"
            )
        return LatentSamples(
            torch.cat(latents),
            torch.tensor(latent_index),
            torch.tensor(is_own_prompt),
            prompts,
            torch.cat(scores),
            objectives,
        )

    def split_by_prompt(self) -> tuple[Tensor, Tensor]:
        """Questions to train on, and to test on: a tenth of the prompts, with the latents made for them."""
        own_prompts = [p for p, is_own in zip(self.prompts, self.is_own_prompt.tolist(), strict=True) if is_own]  # N
        order = sorted(set(own_prompts), key=lambda p: derive_seed(0, "held out", p))
        held_out = set(order[: max(1, len(order) // 10)])
        asks = torch.tensor([p in held_out for p in self.prompts])
        about = torch.tensor([p in held_out for p in own_prompts])[self.latent_index]
        return (~asks & ~about).nonzero().flatten(), (about & self.is_own_prompt).nonzero().flatten()


def train_latent_reward(
    folder: str | Path,
    path: str | Path,
    *,
    steps: int = 6000,
    seconds: float = math.inf,
    loss: Literal["regression", "pairs"] = "regression",
    batch: int = 64,
    lr: float = 2e-3,
    width: int = 96,
    blocks: int = 4,
    axis: int = 0,
    seed: int = 0,
) -> dict:
    """Trains a latent reward on what `collect` left in `folder` and writes it to `path`; returns its header.

    regression: to the clean scores, whose conditional mean given x_i it learns. pairs: Bradley-Terry on two samples of
    one question with the same noise. `axis` is that of the channels in a latent. Step k draws from a generator of its
    own, and the state is kept beside `path`: the same call goes on where an interrupted one was, or where `seconds`
    ended it. Raises BadInput when there is nothing to learn from, or when what was begun there had other settings.
    """
    data, path, settings = LatentSamples.read(folder), Path(path), [loss, batch, lr, width, blocks, axis, seed, steps]
    train_rows, test_rows = data.split_by_prompt()
    scorer = _new_scorer(data, train_rows, loss, width, blocks, axis, seed)
    optimizer = torch.optim.AdamW(scorer.network.parameters(), lr=lr, weight_decay=0.05)
    resume_path, k, end = path.with_suffix(".resume.pt"), 0, time.monotonic() + seconds
    if resume_path.exists():
        saved = torch.load(resume_path, weights_only=True)
        if saved["settings"] != settings:
            raise BadInput(
                f"latent reward: {resume_path} was begun with other settings; remove it, or call with the same"
            )
        scorer.load_state_dict(saved["judge"]), optimizer.load_state_dict(saved["optimizer"])
        k = saved["step"]
    loss_of_batch = {"regression": _regression_loss, "pairs": _pairs_loss(data, train_rows)}[loss]
    out_of_time = False
    while k < steps and not out_of_time:
        g = torch.Generator().manual_seed(derive_seed(seed, "latent reward", k))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (k + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * k / steps)))
        optimizer.zero_grad()
        loss_of_batch(scorer, data, train_rows, batch, g).backward()
        nn.utils.clip_grad_norm_(scorer.network.parameters(), 1.0)
        optimizer.step()
        k += 1
        out_of_time = time.monotonic() >= end
        if k % 200 == 0 or out_of_time:
            saved_state = {"judge": scorer.state_dict(), "optimizer": optimizer.state_dict()}
            _save_state(resume_path, saved_state | {"settings": settings, "step": k})
    scorer.eval()
    header = {"latent": list(data.latents.shape[1:]), "axis": axis, "levels": [0.0, math.pi / 2], "loss": loss}
    header |= {"objectives": data.objectives, "width": width, "blocks": blocks, "steps": k, "seed": seed}
    header |= {"samples": len(data.latents), "correlation": score_correlation(scorer, data, test_rows)}
    state = {name: value.contiguous() for name, value in scorer.state_dict().items()}
    write_atomic(path, safetensors.torch.save(state, {KEY: json.dumps(header)}))
    if k == steps:
        resume_path.unlink(missing_ok=True)
    return header


@torch.no_grad()
def score_correlation(
    scorer: LatentScorer, data: LatentSamples, rows: Tensor, bands: int = 5
) -> dict[str, list[float | None]]:
    """Of each objective with the clean reward, Pearson's, from the cleanest band of angles to the noisiest."""
    by_objective: dict[str, list[float | None]] = {name: [] for name in data.objectives}
    for band in range(bands):
        angle = torch.full((len(rows),), (band + 0.5) / bands * math.pi / 2)
        g = torch.Generator().manual_seed(derive_seed(0, "correlation", band))
        scores = _score_noised(scorer, data, rows, angle, g).double()
        for k, name in enumerate(data.objectives):
            pair = torch.stack([scores[:, k], data.scores[rows, k].double()])
            r = torch.corrcoef(pair[:, pair.isfinite().all(0)])[0, 1].item() if len(rows) > 2 else math.nan
            by_objective[name].append(round(r, 3) if math.isfinite(r) else None)
    return by_objective


def _new_scorer(
    data: LatentSamples, rows: Tensor, loss: str, width: int, blocks: int, axis: int, seed: int
) -> LatentScorer:
    is_finite = data.scores[rows].isfinite()
    if not len(rows) or not is_finite.any(0).all():
        raise BadInput(
            "latent reward: nothing to learn from; collect samples of more prompts, that the rewards can judge"
        )
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed(seed, "latent reward"))
        scorer = LatentScorer(data.latents.shape[1:], len(data.objectives), axis, width, blocks)
    x = data.latents.movedim(1 + axis, 0).flatten(1)  # [C,...]
    scorer.mean.copy_(x.mean(1)), scorer.std.copy_(x.std(1).clamp_min(1e-6))
    if loss == "regression":  # of pairs no scale is learnt
        clean = [data.scores[rows, k][is_finite[:, k]] for k in range(len(data.objectives))]
        scorer.centre.copy_(torch.stack([c.mean() for c in clean]))
        scorer.spread.copy_(torch.stack([c.std(correction=0).clamp_min(1e-6) for c in clean]))
    return scorer


def _score_noised(
    scorer: LatentScorer, data: LatentSamples, rows: Tensor, angle: Tensor, g: torch.Generator, pair: int = 1
) -> Tensor:
    """[n,K]: the network's scores of questions `rows` [n] at noise `angle` [n];
    each `pair` of neighbours shares its noise."""
    x0 = data.latents[data.latent_index[rows]]
    eps = torch.randn(len(rows) // pair, *x0.shape[1:], generator=g).repeat_interleave(pair, 0)
    a, s = angle.cos(), angle.sin()
    shape = (-1, *[1] * (x0.dim() - 1))
    return scorer(a.view(shape) * x0 + s.view(shape) * eps, a, s, [data.prompts[n] for n in rows.tolist()])


def _regression_loss(
    scorer: LatentScorer, data: LatentSamples, train_rows: Tensor, batch: int, g: torch.Generator
) -> Tensor:
    rows = train_rows[torch.randint(len(train_rows), (batch,), generator=g)]
    angle = torch.rand(batch, generator=g) * math.pi / 2
    error = (_score_noised(scorer, data, rows, angle, g) - data.scores[rows]) / scorer.spread
    return torch.where(error.isfinite(), error, 0).square().mean()


def _pairs_loss(data: LatentSamples, train_rows: Tensor) -> Callable[..., Tensor]:
    """Bradley-Terry on pairs of one question: -log sigmoid(r of the better - r of the worse)."""
    rows_by_prompt: dict[str, list[int]] = {}
    for n in train_rows.tolist():
        rows_by_prompt.setdefault(data.prompts[n], []).append(n)
    groups = [torch.tensor(rows) for rows in rows_by_prompt.values() if len(rows) > 1]

    def batch_loss(
        scorer: LatentScorer, data: LatentSamples, train_rows: Tensor, batch: int, g: torch.Generator
    ) -> Tensor:
        if not groups:
            raise BadInput("latent reward: `pairs` needs prompts with two samples; collect with seeds above 1")
        chosen = [groups[n] for n in torch.randint(len(groups), (batch // 2,), generator=g).tolist()]
        rows = torch.cat([rows[torch.randperm(len(rows), generator=g)[:2]] for rows in chosen])
        angle = (torch.rand(len(chosen), generator=g) * math.pi / 2).repeat_interleave(2)
        margin = _score_noised(scorer, data, rows, angle, g, pair=2).unflatten(0, (-1, 2)).diff(dim=1)[:, 0]  # [n,K]
        gap = data.scores[rows].unflatten(0, (-1, 2)).diff(dim=1)[:, 0]
        is_usable = gap.isfinite() & (gap != 0)
        return torch.where(is_usable, F.softplus(-gap.sign() * margin), 0).sum() / is_usable.sum().clamp_min(1)

    return batch_loss


def _save_state(path: Path, state: dict) -> None:
    file = io.BytesIO()
    torch.save(state, file)
    write_atomic(path, file.getvalue())
