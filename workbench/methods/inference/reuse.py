"""Noise that another run has found, given to this pipeline: what was optimised on a one-step student carries over to its
many-step teacher as far as the two share their noise ("multi apply" in the code of ReNO, arXiv:2406.04312)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from workbench.core.types import BadInput, Batch, Event, Policy, Reward


@dataclass(frozen=True)
class Reuse:
    """Plain sampling from the noise that a contestant of an earlier run ended with, for the same prompts and seeds."""

    noise: str = ""  # RUN_FOLDER/CONTESTANT; empty for the pipeline's own noise, which is plain sampling

    needs = frozenset({"latents"})
    scales = ""
    paper = "arXiv:2406.04312"

    def __post_init__(self):
        if self.noise and not self.places:
            raise BadInput(f"noise: {self.noise} holds no finished noise; give RUN_FOLDER/CONTESTANT of an earlier run")

    def calls(self, steps: int) -> int:
        return steps

    @cached_property
    def places(self) -> dict[tuple[str, int], tuple[Path, int]]:
        """(prompt, seed) -> the file in which its noise lies, and the row."""
        folder, contestant = Path(self.noise).parent, Path(self.noise).name
        try:
            lines = (folder / "events.jsonl").read_text(encoding="utf-8").split("\n")[:-1]  # the last may be torn
            events = [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return {}
        finals = [e for e in events if e["contestant"] == contestant and e.get("final")]
        return {
            (sample["prompt"], sample["seed"]): (folder / sample["latents"], row)
            for final in finals
            for row, sample in enumerate(final["samples"])
            if sample["latents"]
        }

    def found(self, batch: Batch) -> Tensor:
        """[B,*latent]. Raises BadInput for a prompt and seed that the run did not make."""
        if missing := [key for key in zip(batch.prompts, batch.seeds, strict=True) if key not in self.places]:
            prompt, seed = missing[0]
            raise BadInput(
                f"noise: {self.noise} has none for {prompt!r} and seed {seed}; give that run's prompts and seed"
            )
        where = [self.places[key] for key in zip(batch.prompts, batch.seeds, strict=True)]
        files = {file: safetensors.torch.load_file(file)["noise"] for file, _ in where}
        return torch.stack([files[file][row] for file, row in where])

    @torch.no_grad()
    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            own = policy.noise(batch.seeds)  # [B,*latent]
            z = self.found(batch).to(own) if self.noise else own
            if z.shape != own.shape:
                raise BadInput(
                    f"noise: {self.noise} holds noise of {tuple(z.shape[1:])}, but this pipeline draws {tuple(own.shape[1:])}"
                )
            media = policy.sample(batch.prompts, seeds=batch.seeds, noise=z).media
            yield Event(0, media=media, prompts=batch.prompts, seeds=batch.seeds, latents=z, final=True)
