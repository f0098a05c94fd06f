"""The reward as a training sees it: counted, shared out among processes, and, in a control that must fail, turned round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from .types import Media, derive


class Judging:
    """`reward`, a compose.Weighted, whose rows are judged by the processes of `rows`, each its own; what compares the samples
    of a prompt sees all of them. `judged` counts this process's."""

    def __init__(self, reward, rows, config, prompts: Sequence[str]):
        self.reward, self.rows, self.spec, self.judged = reward, rows, reward.spec, 0
        self.sign = -1.0 if config.control == "negated" else 1.0
        self.weights = reward.weights
        self.single = all(r.spec.scope == "sample" for r in reward.rewards.values())
        self.other: dict[str, str] = {}
        if config.control == "shuffled":
            ring = sorted(set(prompts), key=lambda p: derive(config.seed, "shuffle", p))
            self.other = dict(zip(ring, ring[1:] + ring[:1], strict=True))  # no prompt keeps its own

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        return self.total(self.breakdown(media=media, prompts=prompts), prompts)

    def breakdown(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> dict[str, Tensor]:
        asked = [self.other.get(p, p) for p in prompts]

        def some(n: list[int]) -> dict[str, Tensor]:
            self.judged += len(n)
            return self.reward.breakdown(media=media[n], prompts=[asked[k] for k in n])

        return self.rows.judge(some, len(media)) if self.single else some([*range(len(media))])

    def total(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> Tensor:
        return self.sign * self.reward.total(scores, prompts)

    def shaped(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> dict[str, Tensor]:
        return {name: self.sign * values for name, values in self.reward.shaped(scores, prompts).items()}
