"""Reward conditioning: examples of every quality are learnt from, and the denoiser is told how good each one is.
Gu et al., ICLR 2025, arXiv:2411.04713: "Multi-Reward as Condition for Instruction-based Image Editing".

With the scores r_1 ... r_K of an example (x0, c), each from 0 to 5, and an embedding e_k of each axis (see
pipelines.dials),

    L = |v(x_s, c + e_1(r_1) + ... + e_K(r_K)) - u|^2,

the plain denoising loss. The LoRA and the embeddings are trained together. To sample, a person sets the levels: 5 on
every axis asks for the best. So nothing has to be thrown away, and what is bad about bad examples is learnt as such.

Scores come with the examples, or are the run's rewards, asked once: the 5 % quantile of a reward is 0 and the 95 %
quantile 5, what lies between them in proportion. The paper adds embeddings of written reasons; here are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.core.errors import BadInput
from workbench.core.inputs import prompt_inputs
from workbench.core.types import Batch, Count, Event, Media, NonNegative, Prompt, Reward, TrainablePolicy, derive_seed
from workbench.methods.common import losses
from workbench.methods.common.best_sample import seeded_normal
from workbench.methods.common.example_scores import Scores, score_examples, shuffle_scores
from workbench.methods.common.method import MethodDefaults
from workbench.methods.common.noised_batch import draw_levels
from workbench.methods.common.rollout import NEEDS, count_batches
from workbench.methods.common.starting_latents import check_media


@dataclass(frozen=True)
class RewardCondition(MethodDefaults):
    """Reward conditioning (arXiv:2411.04713): learn from examples of every quality, told their scores; set as dials."""

    examples: Any = ""  # a folder of media with their prompts and, on each axis, their scores from 0 to 5
    score_dropout: NonNegative = 0.1  # share of examples that are learnt without their scores; 1: plain fine-tuning
    text_dropout: NonNegative = 0.0  # share that are learnt without their text, for guidance (the paper: 0.1)
    shuffle: bool = False  # a control: examples get each other's scores, so that dials must do nothing
    levels_per_sample: Count = 1  # noise levels per example in an update
    lr: NonNegative = 3e-4  # step size of AdamW
    guidance: float | None = 1.0  # of the denoiser in training; 1: none

    needs = NEEDS
    paper = "arXiv:2411.04713"

    def __post_init__(self):
        if max(self.score_dropout, self.text_dropout) > 1:
            raise BadInput("method: score_dropout and text_dropout are shares; set them in [0, 1]")

    def calls(self, steps: int) -> int:
        return min(self.levels_per_sample, steps)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        check_media(self.examples, prompts, "method.examples")

    def dial_axes(self, reward: Any) -> tuple[str, ...]:
        return self.examples.axes or tuple(reward.weights)

    def __call__(self, policy: TrainablePolicy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]:
        policy.optimizer(lr=self.lr)
        scores = score_examples(self.examples, reward, policy.size)
        scores = shuffle_scores(scores) if self.shuffle else scores
        for k, batch in count_batches(batches):
            rows = [self.choose_example(p, s) for p, s in zip(batch.prompts, batch.seeds, strict=True)]
            media = Media.cat([self.examples.read(*row, policy.size) for row in rows])
            x0 = policy.encode(media).float()  # [B,*latent]
            prompts = [self.tell_scores(*row, s, scores) for row, s in zip(rows, batch.seeds, strict=True)]
            times, total = self.calls(policy.steps), 0.0
            for i, places in sorted(draw_levels(batch.seeds, policy.steps, times, 0).items()):
                eps = seeded_normal([batch.seeds[b] for b in places], x0.shape[1:], "eps", i)
                x = policy.noised(x0[places], i, eps.to(x0))
                live = policy.predict(x, i, [prompts[b] for b in places], self.guidance).x0
                error = losses.denoising_distance(live, x0[places], policy.output_scale(i))  # [b]
                policy.backward(loss := error.sum() / (len(batch) * times))
                total += loss.item()
            yield Event(k, {"loss": total, "grad_norm": policy.update()}, None, batch.prompts, batch.seeds)

    def choose_example(self, prompt: str, seed: int) -> tuple[str, int]:
        """(prompt, number of one of its examples), by the row's seed."""
        return prompt, derive_seed(seed, "example") % self.examples.count(prompt)

    def tell_scores(self, prompt: str, n: int, seed: int, scores: Scores) -> Prompt:
        """The prompt with the scores of its n-th example, without them or its text where these are dropped."""
        drops_scores, drops_text = (derive_seed(seed, what) / 2**31 for what in ("scores", "text"))
        levels: Mapping[str, float] = {} if drops_scores < self.score_dropout else scores[self.examples.name(prompt, n)]
        return Prompt("" if drops_text < self.text_dropout else str(prompt), prompt_inputs(prompt), levels)
