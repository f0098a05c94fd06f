"""Beam search over denoising: a few states a prompt are kept at every step, by the reward of what they are about to become.

Each of W states draws M candidates of its next one from the policy's kernel; of these W M the W with the best reward of their
x0-prediction stay, whoever their parents were. W = 1 is the argmax of SVDD (Li et al. 2024, arXiv:2408.08252). Greedy on
purpose: it looks for the best sample and keeps to no distribution, which FK steering and SVDD with a temperature do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from workbench.core.types import Batch, Count, Event, Policy, Reward
from workbench.methods.common.particles import best, event, must_part, pick, slots, take


@dataclass(frozen=True)
class Beam:
    """Beam search over denoising steps: the best states stay, by the reward of their predicted clean sample."""

    width: Count = 2  # W, states that stay, a prompt
    branches: Count = 2  # M, candidates drawn from each

    needs = frozenset({"latents", "stochastic", "reward"})
    scales = "width"
    predicts = True  # its media on the way are what a chain under way is going to be, not samples
    paper = ""

    def calls(self, steps: int) -> int:
        return self.width * self.branches * steps

    @torch.no_grad()
    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            yield from self._search(policy, reward, batch)

    def _search(self, policy: Policy, reward: Reward, batch: Batch) -> Iterator[Event]:
        size, shown = (len(batch), self.width * self.branches), None
        prompts = [p for p in batch.prompts for _ in range(size[1])]
        x, generators = slots(policy, batch, size[1])
        for i in range(policy.steps):
            law = policy.transition(x, i, prompts)
            media = policy.decode(law.x0, prompts)
            v = reward(media=media, prompts=prompts).double().cpu().view(size)
            shown = best(shown, media, v)
            yield event(i, batch, *shown, spread=v.std(1, correction=0))
            if i < policy.steps - 1:  # the last step adds no noise: all go on to their end
                if self.branches > 1:
                    must_part(law, i)
                order = v.nan_to_num(nan=-torch.inf).argsort(dim=1, descending=True, stable=True)[
                    :, : self.width
                ]  # [B,W]
                kept = (order + size[1] * torch.arange(len(batch))[:, None]).flatten()
                law = take(law, kept.repeat_interleave(self.branches))
            x = law.sample(generators)  # [B*W*M,*latent]
        media = policy.decode(x, prompts)
        r = reward(media=media, prompts=prompts).double().cpu().view(size)
        row = pick(r, r, "best", batch.seeds)
        yield event(policy.steps, batch, media[row], r.flatten()[row], final=True)
