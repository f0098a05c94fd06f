"""Clean latents that a training begins from, each made once: of given media, or samples of the untrained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Batch, Media, TrainablePolicy, derive_seed


class CaptionedMedia(Protocol):
    """Media with their prompts (workbench.runs.captioned_media reads them from a folder)."""

    def count(self, prompt: str) -> int: ...  # media of a prompt

    def read(self, prompt: str, n: int, size: tuple[int, ...]) -> Media: ...  # the n-th of a prompt, fitted; one row


def check_media(media: CaptionedMedia, prompts: Sequence[str], where: str) -> None:
    """Raises BadInput for prompts that there is no medium of."""
    if missing := [prompt for prompt in prompts if not media.count(prompt)]:
        raise BadInput(
            f"{where}: no medium for {len(missing)} of {len(prompts)} prompts, such as {missing[0]!r:.80}; give "
            "`prompts` that the folder has media of"
        )


class StartingLatents:
    """For each row of a batch one of its prompt's latents, which the row's seed selects.

    given: media to encode, or None for `samples_per_prompt` samples of the untrained model. They are made one by one,
    so that a training that was stopped makes them again to the bit, and kept on the CPU.
    """

    def __init__(self, policy: TrainablePolicy, given: CaptionedMedia | None, samples_per_prompt: int):
        self.policy, self.given, self.samples_per_prompt = policy, given, samples_per_prompt
        self.made: dict[tuple[str, int], Tensor] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """[B,*latent] float32, without gradient."""
        rows = []
        for prompt, seed in zip(batch.prompts, batch.seeds, strict=True):
            count = self.given.count(prompt) if self.given is not None else self.samples_per_prompt
            key = prompt, derive_seed(seed, "start") % count
            if key not in self.made:
                self.made[key] = self.make(*key).float().cpu()
            rows.append(self.made[key])
        return torch.cat(rows).to(self.policy.noise(batch.seeds[:1]).device)

    @torch.no_grad()
    def make(self, prompt: str, n: int) -> Tensor:
        """[1,*latent]"""
        if self.given is not None:
            return self.policy.encode(self.given.read(prompt, n, self.policy.size))
        with self.policy.reference():
            return self.policy.sample([prompt], seeds=[derive_seed(n, "start", prompt)]).x[:, -1]
