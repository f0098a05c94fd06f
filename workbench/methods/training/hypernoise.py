"""HyperNoise: ReNO amortised into a network that corrects the noise.
Eyring et al., NeurIPS 2025, arXiv:2508.09968, Eq. 9-10.

The generator G stays what it was; f, the same denoiser with a LoRA and only the LoRA branch
of its last layer kept, moves its noise:

    min_f  E[ kl mean(f^2) - r(G(z + f(z, c), c)) ],

where half the sum of f^2 is the KL divergence of the corrected noise from the Gaussian, as long as f changes slowly,
and so bounds that of the media. The published code takes its mean over dimensions, and kl 1/2: far weaker than the sum.
Made for one-step generators: the gradient goes through the whole chain. A sample then costs one denoiser call more than
without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from workbench.core.errors import BadInput
from workbench.core.types import Batch, Event, NonNegative, Policy, Reward, TrainablePolicy, Trajectory
from workbench.methods.common.method import MethodDefaults
from workbench.methods.common.reward_gradient import GradientMethod, update_event
from workbench.methods.common.rollout import count_batches


@dataclass(frozen=True)
class HyperNoise(GradientMethod):
    """Noise hypernetwork (arXiv:2508.09968): a LoRA that predicts what ReNO would do to the noise, in one call."""

    kl: NonNegative = 0.5  # weight of the correction's mean square
    lr: NonNegative = 2e-5

    paper = "arXiv:2508.09968"

    def calls(self, steps: int) -> int:
        return steps + 1

    def check(self, pipeline, reward, lora) -> None:
        if lora.targets == "attention":
            raise BadInput(
                "the correction of the noise is read behind the denoiser's last layer; set train.lora: {targets: all}"
            )
        if lora.targets == "weights":
            raise BadInput(
                "the correction of the noise is what a LoRA adds to the denoiser; set train.lora: {targets: all}"
            )

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        for k, batch in count_batches(batches):
            z = policy.noise(batch.seeds)
            f = policy.noise_correction(z, batch.prompts)  # [B,*draw]
            z_corrected = (z + f.detach()).requires_grad_()
            with policy.reference():  # G, differentiated before its adapters are back: activations are computed again
                media = policy.sample(batch.prompts, seeds=batch.seeds, noise=z_corrected, grad=policy.steps).media
                r = reward(media=media, prompts=batch.prompts)
                finite = r.detach().isfinite()
                if finite.any():
                    (r[finite].sum() / finite.sum()).backward()  # into `z_corrected` alone, of all that is live here
            uphill = torch.zeros_like(z) if z_corrected.grad is None else z_corrected.grad
            size = f.square().mean()
            policy.backward(self.kl * size - (f * uphill).sum())  # the chain rule, in two parts
            yield update_event(
                policy, k, batch, media, r.detach().where(finite, torch.nan), correction=size.item() ** 0.5
            )

    def sampler(self) -> Corrected:
        """The trained weights correct the noise; what they were trained beside makes the sample of it."""
        return Corrected()


@dataclass(frozen=True)
class Corrected(MethodDefaults):
    """Samples of noise that the pipeline's HyperNoise LoRA corrects (arXiv:2508.09968),
    made by the pipeline without it."""

    needs = frozenset({"latents"})
    paper = "arXiv:2508.09968"

    def calls(self, steps: int) -> int:
        return steps + 1

    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        for batch in batches:
            path = self.sample_corrected(policy, batch.prompts, batch.seeds)
            yield Event(0, {}, path.media, batch.prompts, batch.seeds, final=True)

    @torch.no_grad()
    def sample_corrected(self, policy: Policy, prompts: Sequence[str], seeds: Sequence[int]) -> Trajectory:
        z = policy.noise(seeds)
        z_corrected = z + policy.noise_correction(z, prompts)
        with policy.reference():
            return policy.sample(prompts, seeds=seeds, noise=z_corrected)
