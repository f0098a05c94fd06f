"""RPO's pairs: a reference picture of a subject and a sample of the untrained model, with a label by rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.inputs import reword_prompt
from workbench.core.types import Batch, Media, Reward, TrainablePolicy, derive_seed, is_composed
from workbench.methods.common import losses
from workbench.methods.common.best_sample import seeded_normal


class ReferencePairs:
    """References and the untrained model's samples as latents, with rewards for their labels; computed once each.

    caption: the prompt with which references are denoised; token: the subject's name, removed from prompts for rewards;
    label_reward: the component of the reward that labels, "" for the total; samples_per_prompt: of the untrained model.
    """

    def __init__(
        self,
        policy: TrainablePolicy,
        reward: Reward,
        references: Media,
        *,
        caption: str,
        token: str,
        label_reward: str,
        samples_per_prompt: int,
    ):
        self.policy, self.reward, self.references = policy, reward, references
        self.caption, self.token, self.label_reward = caption, token, label_reward
        self.samples_per_prompt = samples_per_prompt
        self.x = policy.encode(references).float()  # [R,*latent]
        self.samples: dict[tuple[str, int], tuple[Tensor, float]] = {}
        self.reference_rewards: dict[tuple[str, int], float] = {}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, list[str]]:
        """x0 [2B,*latent] (references, then samples), labels [B] float64 (1: the reference wins), prompts [2B]."""
        references, samples, labels = [], [], []
        for prompt, seed in zip(batch.prompts, batch.seeds, strict=True):
            n, j = (
                derive_seed(seed, "which") % len(self.references),
                derive_seed(seed, "against") % self.samples_per_prompt,
            )
            x, r = self.sample(prompt, j)
            p = torch.tensor(self.reference_reward(prompt, n) - r, dtype=torch.float64).sigmoid()
            generator = torch.Generator().manual_seed(derive_seed(seed, "label"))
            labels.append((torch.rand((), generator=generator, dtype=torch.float64) < p).double())
            references.append(self.x[n])
            samples.append(x)
        x0 = torch.stack([*references, *samples])
        captions = [reword_prompt(prompt, self.caption) for prompt in batch.prompts]
        return x0, torch.stack(labels).to(x0.device), captions + list(batch.prompts)

    def sample(self, prompt: str, j: int) -> tuple[Tensor, float]:
        """The untrained model's j-th sample of a prompt, and its reward."""
        if (prompt, j) not in self.samples:
            with self.policy.reference():
                path = self.policy.sample([prompt], seeds=[derive_seed(j, "generated", prompt)])
            self.samples[prompt, j] = path.x[0, -1].float().clone(), self.score(path.media, prompt)
        return self.samples[prompt, j]

    def reference_reward(self, prompt: str, n: int) -> float:
        """The reward of reference n for a prompt."""
        if (prompt, n) not in self.reference_rewards:
            self.reference_rewards[prompt, n] = self.score(self.references[n], prompt)
        return self.reference_rewards[prompt, n]

    def score(self, media: Media, prompt: str) -> float:
        """The reward of one medium. Raises BadInput where there is none."""
        prompts, name = [remove_token(prompt, self.token)], self.label_reward
        if name:
            parts: Mapping[str, Tensor] = {}
            if is_composed(self.reward):
                parts = self.reward.shaped(self.reward.breakdown(media=media, prompts=prompts), prompts)
            if name not in parts:
                raise BadInput(f"method.label_reward: the reward has no part {name!r}; it has: {', '.join(parts)}")
            r = parts[name]
        else:
            r = self.reward(media=media, prompts=prompts)
        if not r.isfinite().all():
            raise BadInput(f"method.label_reward: a picture for {prompt!r} can't be judged, so its pair has no label")
        return r.item()


def denoising_errors(
    policy: TrainablePolicy, x0: Tensor, prompts: Sequence[str], seeds: Sequence[int], guidance: float | None
) -> tuple[Tensor, Tensor]:
    """[N] float64 each: denoising losses of the live and of the untrained weights, each row of x0 at a level drawn by
    its seed."""
    levels = torch.tensor([derive_seed(s, "level") % policy.steps for s in seeds])
    eps, errors = seeded_normal(seeds, x0.shape[1:], "eps").to(x0), dict[int, list[Tensor]]()
    for i in sorted(set(levels.tolist())):
        rows = (levels == i).nonzero().flatten()
        x, texts = policy.noised(x0[rows], i, eps[rows]), [prompts[n] for n in rows.tolist()]
        with torch.no_grad(), policy.reference():
            base = policy.predict(x, i, texts, guidance).x0
        live = policy.predict(x, i, texts, guidance).x0
        distances = (losses.denoising_distance(p, x0[rows], policy.output_scale(i)) for p in (live, base))
        errors |= {n: pair for n, *pair in zip(rows.tolist(), *distances, strict=True)}
    live, base = (torch.stack([errors[n][k] for n in range(len(x0))]) for k in (0, 1))
    return live, base


def remove_token(prompt: str, token: str) -> str:
    """The prompt without the subject's token; its inputs stay."""
    return reword_prompt(prompt, " ".join(prompt.replace(token, " ").split())) if token else prompt
