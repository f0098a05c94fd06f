"""From one number for a set to a score for each of its samples, so that any method can optimise a set reward.

Leave-one-out gives sample i the credit n (F(all) - F(all but i)). The factor n makes it independent of the size of the
batch, and turns F = mean of r_i into r_i - mean of the others, which is RLOO's advantage; without it credit vanishes as
1/n. Positive: the set is the better for the sample. What a small set biases is nearly common to all i, and cancels.
DRAGON (arXiv:2504.15217) optimises the same distribution-level rewards through two contrasted sets; credit serves
methods that want a score a sample. The witness is its closed form for kernel distances in the limit of a large batch.

The gradient of credit i leads to sample i alone and is n dF/dx_i: every sample moves while the others stand still. A
sum over credits therefore has n times the gradient of F, where that of the plain differences would all but cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rewards.compose import WeightedReward
from rewards.sets.exemplar import IMAGE_AND_VIDEO, SetReward
from rewards.sets.mmd import KernelReward
from rewards.sets.moments import finite_rows
from workbench.core.errors import BadInput
from workbench.core.inputs import stack_sources
from workbench.core.types import Media, Reward, RewardSpec


def leave_one_out(score: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
    """[n]: n (F(all) - F(all but i)) for the rows of x [n,...], with the gradient n dF/dx_i in row i.

    `score(x, subset)` is F of the rows with the indices `subset`; it is called n + 1 times. Raises ValueError for
    n < 2.
    """
    n = len(x)
    if n < 2:
        raise ValueError("leaving one out of a set takes two")
    leaf, everyone = x.detach(), torch.arange(n, device=x.device)
    leaf.requires_grad_(x.requires_grad and torch.is_grad_enabled())
    total = score(leaf, everyone)
    with torch.no_grad():
        credit = torch.stack([n * (total - score(leaf, everyone[everyone != i])) for i in range(n)])
    if not total.requires_grad:
        return credit
    (slope,) = torch.autograd.grad(total, leaf)
    return credit + n * ((x - leaf.detach()) * slope).flatten(1).sum(1)  # adds 0, and the gradient


def credit_per_set(credit: Callable[[Tensor], Tensor], x: Tensor, sets: Sequence[Tensor]) -> Tensor:
    """float32 [B]: `credit` (indices [n] -> [n]) of the finite rows of x in each set; NaN for the others and for a set
    that has fewer than two."""
    is_finite = x.detach().flatten(1).isfinite().all(1)
    out = torch.full((len(x),), torch.nan, device=x.device)
    for rows in (group[is_finite[group]] for group in sets):
        if len(rows) > 1:
            out = out.index_put((rows,), credit(rows).to(out))
    return out


@dataclass(frozen=True)
class SetCredit:
    """Credit for each sample of a set reward, or of a weighted sum of them."""

    of: Reward  # a set reward or a weighted sum of them; in a config a name, or a block as under `reward:`
    per: Literal["batch", "prompt"] = "batch"  # the set: all samples of a call, or those of each prompt with its inputs

    nested = ("of",)

    def __post_init__(self):
        name = self.spec.name
        of = self.of if isinstance(self.of, WeightedReward) else WeightedReward({self.of: 1.0})
        for label, part in of.rewards.items():
            if part.spec.scope != "set":
                raise BadInput(f"{name}.of: {label} scores single samples already; add it beside {name}")
            self.check_part(part)
        object.__setattr__(self, "of", of)
        inherited = {"modalities": of.spec.modalities, "differentiable": of.spec.differentiable, "needs": of.spec.needs}
        object.__setattr__(self, "spec", replace(self.spec, **inherited, version=f"{of!r} {of.spec.version}"))

    def check_part(self, part: Reward) -> None:
        """Raises BadInput for a set reward that this credit can't be taken of."""

    def check(self) -> None:
        self.of.check()

    def load(self, device: torch.device | str = "cpu") -> None:
        self.of.load(device)

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        if len(prompts) != len(media):
            raise ValueError(f"{self.spec.name} needs one prompt a sample: {len(prompts)} for {len(media)} samples")
        groups: dict[str, list[int]] = {}
        for b, prompt in enumerate(prompts):
            groups.setdefault(prompt if self.per == "prompt" else "", []).append(b)
        sets = [torch.tensor(rows, device=media.data.device) for rows in groups.values()]
        total = 0.0
        for name, part in self.of.rewards.items():
            total = total + self.of.weights[name] * self.credit(part, sets, media, prompts, references)
        return total

    def credit(
        self, part: Reward, sets: Sequence[Tensor], media: Media, prompts: Sequence[str], references: Media | None
    ) -> Tensor:
        """float32 [B] of one set reward, over the rows of each of `sets`."""
        raise NotImplementedError


@dataclass(frozen=True)
class LeaveOneOut(SetCredit):
    """What each sample adds to a set reward, n (F(all) - F(all but i)); of {frechet: {reference: art/}}, vendi, ...

    A batch of n costs one embedding and n + 1 evaluations of the set; a set reward from elsewhere is called
    n + 1 times.
    """

    spec = RewardSpec(
        "leave_one_out", "1", IMAGE_AND_VIDEO, differentiable=True, scope="group", paper="arXiv:2504.15217"
    )

    def credit(
        self, part: Reward, sets: Sequence[Tensor], media: Media, prompts: Sequence[str], references: Media | None
    ) -> Tensor:
        if not isinstance(part, SetReward):

            def credit_called(rows: Tensor) -> Tensor:
                def score_subset(data: Tensor, subset: Tensor) -> Tensor:
                    subset_prompts = [prompts[b] for b in rows[subset].tolist()]
                    chosen = replace(media, data=data[subset])
                    sources = stack_sources(part, chosen, subset_prompts) if references is None else references
                    return part(media=chosen, prompts=subset_prompts, references=sources)

                return leave_one_out(score_subset, media.data[rows])

            return credit_per_set(credit_called, media.data, sets)
        x = part.features(media)
        target = part.target(references, x.device)
        return credit_per_set(
            lambda rows: leave_one_out(lambda y, subset: part.score_rows(finite_rows(y[subset]), target), x[rows]),
            x,
            sets,
        )


@dataclass(frozen=True)
class Witness(SetCredit):
    """How much each sample lowers a kernel distance (kid, kad, cmmd): drawn to the reference, repelled by the batch.

    The witness function of the MMD (Gretton et al. 2012, section 2.3), times two and the distance's scale. Costs one
    evaluation where leave_one_out takes n + 1, and agrees with it, but for a constant, in large batches.
    """

    spec = RewardSpec("witness", "1", IMAGE_AND_VIDEO, differentiable=True, scope="group", paper="jmlr:v13/gretton12a")

    def check_part(self, part: Reward) -> None:
        if not isinstance(part, KernelReward):
            raise BadInput(f"witness.of: {part.spec.name} has no kernel (kid, kad and cmmd have); take leave_one_out")

    def credit(
        self, part: Reward, sets: Sequence[Tensor], media: Media, prompts: Sequence[str], references: Media | None
    ) -> Tensor:
        x = part.features(media)
        target = part.target(references, x.device)
        return credit_per_set(lambda rows: part.witness(finite_rows(x[rows]), target), x, sets)
