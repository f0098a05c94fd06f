"""Many people, few votes each: a mixture of prototype tastes (PAL, arXiv:2406.08469).

Person u scores a picture by r_u = sum_k w_uk (p_k . f), f the encoder's unit image vector, p_k one of K shared
prototypes, w_u on the simplex. (PAL's -|f - a_u|^2 with a_u = sum_k w_uk p_k ranks unit vectors the same way, up to a
scale.) Prototypes and people are fitted together by Bradley-Terry likelihood; a person's weights carry a Dirichlet prior
around the mixture of everybody, worth `strength` votes: who has not voted is judged as everybody, who votes moves away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.people.learned import Learned, direction, minimise, nll, read_head, solve, write_head
from rewards.people.votes import Report, Votes, held_out, voters
from workbench.core.schema import nearest
from workbench.core.types import BadInput, RewardSpec


@dataclass(frozen=True, eq=False)
class Mixture:
    """K prototype tastes, and how much of each is in whom."""

    prototypes: Tensor  # float64 [K,D]
    people: Mapping[str, Tensor]  # person -> float64 [K] on the simplex
    prior: Tensor  # float64 [K] on the simplex: everybody's mixture
    strength: float  # how many votes the prior is worth
    model: str  # the encoder whose features it weighs
    report: Report  # of the mixture on held-out votes
    shared: Report  # of one taste for all, on the same votes

    def weights(self, person: str = "") -> Tensor:
        """float64 [K]; everybody's for a person unknown here."""
        return self.people.get(person, self.prior)

    def direction(self, person: str = "") -> Tensor:
        """float64 [D]."""
        return self.weights(person) @ self.prototypes

    def adapt(self, votes: Votes) -> Tensor:
        """float64 [K]: the weights of one person with these votes, the prototypes as they are; the prior without any."""
        margins = (votes.a - votes.b) @ self.prototypes.T  # [N,K]
        logits = self.prior.log().requires_grad_()

        def closure() -> Tensor:
            loss = nll(margins @ logits.softmax(0), votes.target).sum() / (len(votes) + self.strength)
            loss = loss + self._pull(logits) / (len(votes) + self.strength)
            (logits.grad,) = torch.autograd.grad(loss, logits)
            return loss

        minimise([logits], torch.enable_grad()(closure))
        return logits.detach().softmax(0)

    def with_person(self, name: str, votes: Votes) -> Mixture:
        """The same with one person more, or anew."""
        return replace(self, people=dict(self.people) | {name: self.adapt(votes)})

    def _pull(self, logits: Tensor) -> Tensor:
        return self.strength * -(self.prior * logits.log_softmax(-1)).sum()

    def save(self, folder: str | Path) -> None:
        names = sorted(self.people)
        people = torch.stack([self.people[n] for n in names]) if names else self.prior.new_zeros(0, len(self.prior))
        info = {"model": self.model, "people": names, "strength": self.strength}
        reports = {"report": asdict(self.report), "shared": asdict(self.shared)}
        write_head(folder, {"prototypes": self.prototypes, "people": people, "prior": self.prior}, info | reports)


def read(folder: str | Path) -> Mixture:
    """Raises BadInput for a folder that holds no mixture."""
    tensors, info = read_head(folder)
    if "prototypes" not in tensors:
        raise BadInput(f"{folder} holds one taste for all, no mixture; name it as `learned`")
    people = dict(zip(info["people"], tensors["people"], strict=True))
    given = (info["strength"], info["model"], info["report"], Report(**info["shared"]))
    return Mixture(tensors["prototypes"], people, tensors["prior"], *given)


def fit(votes: Votes, model: str = "starter:image/clip", prototypes: int = 3, strength: float = 4.0) -> Mixture:
    """The mixture of these votes. Deterministic. Compare `report` with `shared`: more prototypes are no use unless the
    first is better.

    Raises BadInput for fewer voters than prototypes, or too few votes to hold any out.
    """
    names = voters(votes.voters)
    if not 1 <= prototypes <= len(names):
        raise BadInput(f"prototypes: from 1 to the number of voters, {len(names)}, got {prototypes}")

    def mixed(some: Votes) -> Callable[[Votes], Tensor]:
        p, w, prior = _together(some, prototypes, strength)

        def margins(others: Votes) -> Tensor:
            mix = torch.stack([w.get(v, prior) for v in others.voters])
            return ((others.a - others.b) * (mix @ p)).sum(1)

        return margins

    def alike(some: Votes) -> Callable[[Votes], Tensor]:
        w, _ = direction(some)
        return lambda others: (others.a - others.b) @ w

    report, shared = held_out(votes, mixed), held_out(votes, alike)
    p, w, prior = _together(votes, prototypes, strength)
    return Mixture(p, w, prior, strength, model, report, shared)


def _together(votes: Votes, k: int, strength: float) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Prototypes [K,D], each voter's weights [K], and their mean [K]; a local optimum from a start that depends on the
    votes alone: the tastes of the people who differ most."""
    names = voters(votes.voters)
    row = {name: n for n, name in enumerate(names)}
    who = torch.tensor([row[v] for v in votes.voters])
    x, n = votes.a - votes.b, len(votes)
    _, l2 = direction(votes)
    own = torch.stack([solve(x[who == u], votes.target[who == u], l2) for u in range(len(names))])  # [V,D]
    p = own[_apart(own, k)].clone().requires_grad_()
    like = F.normalize(own, dim=1) @ F.normalize(p.detach(), dim=1).T
    logits = (4 * like).requires_grad_()  # [V,K]

    def closure() -> Tensor:
        w = logits.softmax(1)
        loss = nll((x * (w @ p)[who]).sum(1), votes.target).sum()
        loss = loss - strength * logits.log_softmax(1).mean(1).sum()  # a flat Dirichlet while everybody is being found
        loss = loss / n + 0.5 * l2 * p.square().sum() / k
        p.grad, logits.grad = torch.autograd.grad(loss, (p, logits))
        return loss

    minimise([p, logits], torch.enable_grad()(closure), tolerance=1e-4)
    w = logits.detach().softmax(1)
    return p.detach(), dict(zip(names, w, strict=True)), w.mean(0)


def _apart(points: Tensor, k: int) -> list[int]:
    """Rows far from each other: the longest first, then each time the farthest from those taken."""
    taken = [int(points.norm(dim=1).argmax())]
    while len(taken) < k:
        distance = torch.cdist(points, points[taken]).amin(1)
        distance[taken] = -1.0
        taken.append(int(distance.argmax()))
    return taken


@dataclass(frozen=True, kw_only=True)
class Personal(Learned):
    """What one of several people likes, or all of them on average: a mixture of prototype tastes, in log-odds (PAL).

    A mixture that held-out votes do not show to be better than chance is refused unless `unproven` is set.
    """

    person: str = ""  # whose taste; everybody's when empty

    spec: ClassVar[RewardSpec] = RewardSpec(
        "personal", "unfitted", frozenset({"image"}), differentiable=True, paper="arXiv:2406.08469"
    )

    def __post_init__(self):
        mixture = read(self.path)
        if self.person and self.person not in mixture.people:
            raise BadInput(f"{self.path}: no votes of {self.person!r}; {nearest(self.person, mixture.people)}")
        self._take(mixture.direction(self.person), read_head(self.path)[1], self.person)
