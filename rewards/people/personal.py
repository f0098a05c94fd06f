"""Many people, few votes each: a mixture of prototype tastes (PAL, arXiv:2406.08469).

Person u scores a medium by r_u = sum_k w_uk (p_k . f), f its place in the encoder's space (taste_features.py), p_k one
of K shared prototypes, w_u on the simplex. (PAL's -|f - a_u|^2 with a_u = sum_k w_uk p_k ranks unit vectors the same
way, up to a scale.) Prototypes and people are fitted together by Bradley-Terry likelihood; a person's weights carry a
Dirichlet prior around the mixture of everybody, worth `strength` votes: who has not voted is judged as everybody, who
votes moves away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.people.learned import (
    Learned,
    bradley_terry_nll,
    fit_direction,
    minimise_lbfgs,
    read_head,
    solve_logistic,
    write_head,
)
from rewards.people.taste_features import SPEC
from rewards.people.votes import HeldOutReport, Votes, cross_validate, distinct_voters
from workbench.core.errors import BadInput
from workbench.core.schema import suggest_nearest
from workbench.core.types import RewardSpec


@dataclass(frozen=True, eq=False)
class TasteMixture:
    """K prototype tastes, and how much of each is in whom."""

    prototypes: Tensor  # float64 [K,D]
    people: Mapping[str, Tensor]  # person -> float64 [K] on the simplex
    prior: Tensor  # float64 [K] on the simplex: everybody's mixture
    strength: float  # how many votes the prior is worth
    model: str  # the encoder whose features it weighs
    report: HeldOutReport  # of the mixture on held-out votes
    shared: HeldOutReport  # of one taste for all, on the same votes
    modality: str = "image"  # of the media that were voted on
    reads_prompts: bool = False  # whether the last feature is the cosine of medium and prompt

    def weights_of(self, person: str = "") -> Tensor:
        """float64 [K]; everybody's for a person unknown here."""
        return self.people.get(person, self.prior)

    def direction_of(self, person: str = "") -> Tensor:
        """float64 [D]."""
        return self.weights_of(person) @ self.prototypes

    def fit_weights(self, votes: Votes) -> Tensor:
        """float64 [K]: weights of one person with these votes, the prototypes as they are; without any, the prior."""
        margins = (votes.a - votes.b) @ self.prototypes.T  # [N,K]
        logits = self.prior.log().requires_grad_()

        def closure() -> Tensor:
            loss = bradley_terry_nll(margins @ logits.softmax(0), votes.target).sum() / (len(votes) + self.strength)
            loss = loss + self._prior_loss(logits) / (len(votes) + self.strength)
            (logits.grad,) = torch.autograd.grad(loss, logits)
            return loss

        minimise_lbfgs([logits], torch.enable_grad()(closure))
        return logits.detach().softmax(0)

    def _prior_loss(self, logits: Tensor) -> Tensor:
        return self.strength * -(self.prior * logits.log_softmax(-1)).sum()

    def save(self, folder: str | Path) -> None:
        names = sorted(self.people)
        people = torch.stack([self.people[n] for n in names]) if names else self.prior.new_zeros(0, len(self.prior))
        info = {"model": self.model, "modality": self.modality, "reads_prompts": self.reads_prompts}
        info |= {"people": names, "strength": self.strength}
        reports = {"report": asdict(self.report), "shared": asdict(self.shared)}
        write_head(folder, {"prototypes": self.prototypes, "people": people, "prior": self.prior}, info | reports)


def read_mixture(folder: str | Path) -> TasteMixture:
    """Raises BadInput for a folder that holds no mixture."""
    tensors, info = read_head(folder)
    if "prototypes" not in tensors:
        raise BadInput(f"{folder} holds one taste for all, no mixture; name it as `learned`")
    people = dict(zip(info["people"], tensors["people"], strict=True))
    details = (info["strength"], info["model"], info["report"], HeldOutReport(**info["shared"]))
    details += (info.get("modality", "image"), info.get("reads_prompts") is True)
    return TasteMixture(tensors["prototypes"], people, tensors["prior"], *details)


def fit_mixture(votes: Votes, model: str = "", prototypes: int = 3, strength: float = 4.0) -> TasteMixture:
    """The mixture of these votes. Deterministic. Compare `report` with `shared`: more prototypes are no use unless the
    first is better.

    Raises BadInput for fewer voters than prototypes, or too few votes to hold any out.
    """
    names = distinct_voters(votes.voters)
    if not 1 <= prototypes <= len(names):
        raise BadInput(f"prototypes: from 1 to the number of voters, {len(names)}, got {prototypes}")

    def fit_mixed(train_votes: Votes) -> Callable[[Votes], Tensor]:
        p, w, prior = _fit_jointly(train_votes, prototypes, strength)

        def mixed_margins(others: Votes) -> Tensor:
            mix = torch.stack([w.get(v, prior) for v in others.voters])
            return ((others.a - others.b) * (mix @ p)).sum(1)

        return mixed_margins

    def fit_shared(train_votes: Votes) -> Callable[[Votes], Tensor]:
        w, _ = fit_direction(train_votes)
        return lambda others: (others.a - others.b) @ w

    report, shared = cross_validate(votes, fit_mixed), cross_validate(votes, fit_shared)
    p, w, prior = _fit_jointly(votes, prototypes, strength)
    encoder = votes.encoder
    return TasteMixture(
        p, w, prior, strength, model or encoder.model, report, shared, encoder.modality, encoder.reads_prompts
    )


def _fit_jointly(votes: Votes, k: int, strength: float) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Prototypes [K,D], each voter's weights [K], and their mean [K]; a local optimum from a start that depends on the
    votes alone: the tastes of the people who differ most."""
    names = distinct_voters(votes.voters)
    row = {name: n for n, name in enumerate(names)}
    who = torch.tensor([row[v] for v in votes.voters])
    x, n = votes.a - votes.b, len(votes)
    _, l2 = fit_direction(votes)
    tastes = torch.stack([solve_logistic(x[who == u], votes.target[who == u], l2) for u in range(len(names))])  # [V,D]
    p = tastes[_farthest_rows(tastes, k)].clone().requires_grad_()
    like = F.normalize(tastes, dim=1) @ F.normalize(p.detach(), dim=1).T
    logits = (4 * like).requires_grad_()  # [V,K]

    def closure() -> Tensor:
        w = logits.softmax(1)
        loss = bradley_terry_nll((x * (w @ p)[who]).sum(1), votes.target).sum()
        loss = loss - strength * logits.log_softmax(1).mean(1).sum()  # a flat Dirichlet while everybody is being found
        loss = loss / n + 0.5 * l2 * p.square().sum() / k
        p.grad, logits.grad = torch.autograd.grad(loss, (p, logits))
        return loss

    minimise_lbfgs([p, logits], torch.enable_grad()(closure), tolerance=1e-4)
    w = logits.detach().softmax(1)
    return p.detach(), dict(zip(names, w, strict=True)), w.mean(0)


def _farthest_rows(points: Tensor, k: int) -> list[int]:
    """Rows far from each other: the longest first, then each time the farthest from those taken."""
    rows = [int(points.norm(dim=1).argmax())]
    while len(rows) < k:
        distance = torch.cdist(points, points[rows]).amin(1)
        distance[rows] = -1.0
        rows.append(int(distance.argmax()))
    return rows


@dataclass(frozen=True, kw_only=True)
class Personal(Learned):
    """What one of several people likes, or all of them on average: a mixture of prototype tastes, in log-odds (PAL).

    A mixture that held-out votes do not show to be better than chance is refused unless `unproven` is set.
    """

    person: str = ""  # whose taste; everybody's when empty

    spec: ClassVar[RewardSpec] = replace(SPEC, name="personal", version="unfitted", paper="arXiv:2406.08469")

    def __post_init__(self):
        mixture = read_mixture(self.path)
        if self.person and self.person not in mixture.people:
            raise BadInput(f"{self.path}: no votes of {self.person!r}; {suggest_nearest(self.person, mixture.people)}")
        self._set_weights(mixture.direction_of(self.person), read_head(self.path)[1], self.person)
