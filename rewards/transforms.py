"""One reward's scores reshaped, before several are combined:
`shape: NAME` or `shape: {how: NAME, ...}` in a reward block.

A shape is a frozen dataclass: `check` says what is known to be wrong before anything loads; the call takes scores [B]
of the reward `name` to scores [B]. NaN stays NaN, and is no other sample's business; the gradient passes where
`differentiable` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.baseline import BaselineScores
from workbench.core.errors import BadInput
from workbench.core.types import Reward, RewardSpec

Scope = Literal["sample", "group"]


def clamp_range(scores: Tensor, low: float | None, high: float | None) -> Tensor:
    """[B]: a score held to the range in which it has been seen to be useful (after Constrained RLHF, arXiv:2310.04373).

    Outside it the score is constant and its gradient 0, so it stops counting; None leaves that end open.
    """
    return scores if low is None and high is None else scores.clamp(low, high)


def same_prompt(prompts: Sequence[str]) -> Tensor:
    """bool [B,B]: which samples are of one prompt."""
    index = {p: n for n, p in enumerate(dict.fromkeys(prompts))}
    number = torch.tensor([index[p] for p in prompts])
    return number[:, None] == number


def win_rate(scores: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B] in [0,1]: the share of the other samples of its prompt that a sample beats, a tie counting half
    (Pref-GRPO, arXiv:2508.20751); 1/2 for a sample alone."""
    is_valid = ~scores.isnan()
    others = same_prompt(prompts).to(scores.device) & is_valid[:, None] & is_valid
    others = others & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    wins = (scores[:, None] > scores).double() + 0.5 * (scores[:, None] == scores).double()
    count = others.sum(1)
    rate = torch.where(count > 0, (wins * others).sum(1) / count.clamp(min=1), 0.5)
    return rate.masked_fill(~is_valid, torch.nan).to(scores.dtype)


@dataclass(frozen=True)
class Raw:
    """The score as it is."""

    differentiable: ClassVar[bool] = True
    scope: ClassVar[Scope] = "sample"
    signed: ClassVar[bool] = True  # a negative weight on it still means "less of this"
    version: ClassVar[str] = ""

    def check(self, rewards: Mapping[str, Reward], prompts: Sequence[str] = ()) -> None: ...

    def __call__(self, scores: Tensor, *, name: str, spec: RewardSpec, prompts: Sequence[str]) -> Tensor:
        return scores


@dataclass(frozen=True)
class Typical(Raw):
    """0 to 1 over the range of ordinary generated media that the reward declares (`typical`); needs no base scores."""

    def check(self, rewards: Mapping[str, Reward], prompts: Sequence[str] = ()) -> None:
        for name, reward in rewards.items():
            if reward.spec.typical is None:
                raise BadInput(
                    f"shape: {name} declares no typical range; use `z` with base scores, which brings rewards "
                    "to one scale too"
                )

    def __call__(self, scores: Tensor, *, name: str, spec: RewardSpec, prompts: Sequence[str]) -> Tensor:
        low, high = spec.typical
        return (scores - low) / (high - low)


@dataclass(frozen=True)
class Cosine(Raw):
    """A cosine from [-1,1] to [0,1], (r + 1)/2, as RPO does before its harmonic mean (arXiv:2407.12164)."""

    def check(self, rewards: Mapping[str, Reward], prompts: Sequence[str] = ()) -> None:
        for name, reward in rewards.items():
            low, high = reward.spec.typical or (-1.0, 1.0)
            if low < -1 or high > 1:
                raise BadInput(
                    f"shape: {name} is no cosine: it is typically {low:g} to {high:g}; use `par` or `typical`"
                )

    def __call__(self, scores: Tensor, *, name: str, spec: RewardSpec, prompts: Sequence[str]) -> Tensor:
        return (scores + 1) / 2


@dataclass(frozen=True)
class WinRate(Raw):
    """The share of its prompt's other samples that a sample beats, ties half (Pref-GRPO, arXiv:2508.20751)."""

    differentiable = False
    scope = "group"

    def __call__(self, scores: Tensor, *, name: str, spec: RewardSpec, prompts: Sequence[str]) -> Tensor:
        return win_rate(scores.detach(), prompts)


@dataclass(frozen=True)
class Z(Raw):
    """Standard deviations above the base model's mean, both over all its prompts (ensembles, arXiv:2310.02743)."""

    base: str  # a run's folder, or a file of base scores

    @property
    def version(self) -> str:
        return BaselineScores.read(self.base).version

    def check(self, rewards: Mapping[str, Reward], prompts: Sequence[str] = ()) -> None:
        base = BaselineScores.read(self.base)
        for name, reward in rewards.items():
            base.check(name, reward.spec.version, self.base)
            if len(base.pool[name]) < 2 or base.pool[name].std() == 0:
                raise BadInput(f"{self.base}: the base scores of {name} don't differ, so they give no scale")

    def __call__(self, scores: Tensor, *, name: str, spec: RewardSpec, prompts: Sequence[str]) -> Tensor:
        pool = BaselineScores.read(self.base).pool[name]
        return (scores - pool.mean().item()) / pool.std().item()


@dataclass(frozen=True)
class LogSigmoid(Raw):
    """log sigmoid((r - q) / s): what is worse than the base's quantile q of the same prompt weighs, what is better
    hardly counts. The sum over rewards is the log-probability that all are good at once (arXiv:2402.00742).

    s is the base's standard deviation within prompts times `temperature`: the paper's rewards are log-odds already.
    """

    base: str  # a run's folder, or a file of base scores
    quantile: float = 0.85  # of the base model's scores on the same prompt: what is good enough
    temperature: float = 1.0  # more of it is closer to linear
    pooled: bool = False  # a prompt without base scores: measured against those of all prompts, instead of an error

    signed = False

    @property
    def version(self) -> str:
        return BaselineScores.read(self.base).version

    def check(self, rewards: Mapping[str, Reward], prompts: Sequence[str] = ()) -> None:
        if not 0 <= self.quantile <= 1:
            raise BadInput(f"shape.quantile: must be between 0 and 1, got {self.quantile:g}")
        _check_scaled(self, rewards, prompts)

    def __call__(self, scores: Tensor, *, name: str, spec: RewardSpec, prompts: Sequence[str]) -> Tensor:
        base = BaselineScores.read(self.base)
        good = torch.stack([base.for_prompt(name, p, self.pooled).quantile(self.quantile) for p in prompts]).to(
            scores
        )  # [B]
        return F.logsigmoid((scores - good) / (base.spread[name] * self.temperature))


@dataclass(frozen=True)
class PAR(Raw):
    """Preference as reward: mean over the base's samples of the same prompt of sigmoid((r - r_base) / s), the
    probability to be preferred to the base (arXiv:2502.18770). Bounded; quick growth first, then slow.

    s is the base's standard deviation within prompts times `temperature`: the paper's rewards are log-odds already.
    """

    base: str  # a run's folder, or a file of base scores
    temperature: float = 1.0  # more of it is closer to linear
    pooled: bool = False  # a prompt without base scores: measured against those of all prompts, instead of an error

    @property
    def version(self) -> str:
        return BaselineScores.read(self.base).version

    def check(self, rewards: Mapping[str, Reward], prompts: Sequence[str] = ()) -> None:
        _check_scaled(self, rewards, prompts)

    def __call__(self, scores: Tensor, *, name: str, spec: RewardSpec, prompts: Sequence[str]) -> Tensor:
        base = BaselineScores.read(self.base)
        s = base.spread[name] * self.temperature
        rivals = [base.for_prompt(name, p, self.pooled).to(scores) for p in prompts]  # B of [M]
        return torch.stack([((r - theirs) / s).sigmoid().mean() for r, theirs in zip(scores, rivals, strict=True)])


def _check_scaled(shape: LogSigmoid | PAR, rewards: Mapping[str, Reward], prompts: Sequence[str]) -> None:
    if not shape.temperature > 0:
        raise BadInput(f"shape.temperature: must be more than 0, got {shape.temperature:g}")
    base = BaselineScores.read(shape.base)
    for name, reward in rewards.items():
        base.check(name, reward.spec.version, shape.base)
        if base.spread[name] == 0:
            raise BadInput(
                f"{shape.base}: the base scores of {name} don't differ within a prompt; measure "
                "at least 2 seeds a prompt"
            )
        for prompt in prompts:
            base.for_prompt(name, prompt, shape.pooled)


SHAPES: dict[str, type] = {
    "raw": Raw,
    "typical": Typical,
    "cosine": Cosine,
    "z": Z,
    "log_sigmoid": LogSigmoid,
    "par": PAR,
    "win_rate": WinRate,
}
