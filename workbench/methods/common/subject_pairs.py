"""What RPO compares: pictures of a subject with what the untrained model makes of a prompt, and how a reward labels the two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.core.types import BadInput, Batch, Media, Reward, TrainablePolicy, derive

if TYPE_CHECKING:
    from workbench.methods.training.rpo import RPO


class Compared:
    """References and the untrained model's samples as latents, with the rewards that label them; each made once."""

    def __init__(self, method: RPO, policy: TrainablePolicy, reward: Reward, shown: Media):
        self.method, self.policy, self.reward, self.shown = method, policy, reward, shown
        self.x = policy.encode(shown).float()  # [R,*latent]
        self.made: dict[tuple, tuple[Tensor, float]] = {}
        self.worth: dict[tuple, float] = {}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, list[str]]:
        """x0 [2B,*latent], labels [B] float64, prompts [2B]."""
        m, shown, made, labels = self.method, [], [], []
        for prompt, seed in zip(batch.prompts, batch.seeds, strict=True):
            n, j = derive(seed, "which") % len(self.shown), derive(seed, "against") % m.images
            x, r = self.sample(prompt, j)
            p = torch.tensor(self.judged(prompt, n) - r, dtype=torch.float64).sigmoid()
            drawn = torch.rand((), generator=torch.Generator().manual_seed(derive(seed, "label")), dtype=torch.float64)
            labels.append((drawn < p).double())
            shown.append(self.x[n])
            made.append(x)
        x0 = torch.stack([*shown, *made])
        return x0, torch.stack(labels).to(x0.device), [m.caption] * len(batch) + list(batch.prompts)

    def sample(self, prompt: str, j: int) -> tuple[Tensor, float]:
        if (prompt, j) not in self.made:
            with self.policy.reference():
                path = self.policy.sample([prompt], seeds=[derive(j, "generated", prompt)])
            self.made[prompt, j] = path.x[0, -1].float().clone(), self.score(path.media, prompt)
        return self.made[prompt, j]

    def judged(self, prompt: str, n: int) -> float:
        if (prompt, n) not in self.worth:
            self.worth[prompt, n] = self.score(self.shown[n], prompt)
        return self.worth[prompt, n]

    def score(self, media: Media, prompt: str) -> float:
        """Raises BadInput for a label that can't be had."""
        asked, name = [plain(prompt, self.method.token)], self.method.labels
        if name:
            parts = self.reward.shaped(self.reward.breakdown(media=media, prompts=asked), asked)
            if name not in parts:
                raise BadInput(f"method.labels: the reward has no part {name!r}; it has: {', '.join(parts)}")
            r = parts[name]
        else:
            r = self.reward(media=media, prompts=asked)
        if not r.isfinite().all():
            raise BadInput(f"method.labels: a picture for {prompt!r} can't be judged, so its pair has no label")
        return r.item()


def plain(prompt: str, token: str) -> str:
    """The prompt without the subject's token."""
    return " ".join(prompt.replace(token, " ").split()) if token else prompt
