"""A policy whose every law is known in closed form: a flow from noise to a mixture of Gaussians, one number a sample.

The denoiser is the analytic posterior mean E[x0 | x_i], the steps are the kernels of pipelines.transitions, the
schedule is flow matching's (x_i = (1 - s) x0 + s eps, s = 1 .. 0 in S equal steps). So what a method should sample can
be computed on a grid and compared with what it does sample. The number is the picture: decode repeats it over three
channels, unclamped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines import schedule
from pipelines.schedule import NoiseLevel
from pipelines.transitions import Ancestral, Kernel
from workbench.core.types import Media, Prediction, RewardSpec, Trajectory, Transition


class MixturePolicy:
    """Implements workbench.core.types.Policy. `means`, `stds` and `weights` are those of the components; a prompt that
    is a digit asks for that component alone, any other for the whole mixture. With kernel None, `sample` is the
    deterministic flow and `transition` Ancestral(eta=1), as in a real policy. `shape` (C,H,W) gives that many
    independent numbers."""

    modality, rate, provides = "image", 0.0, frozenset({"latents", "stochastic"})

    def __init__(
        self,
        means: Sequence[float] = (-1.0, 1.0),
        stds: Sequence[float] = (0.5, 0.3),
        weights: Sequence[float] = (0.6, 0.4),
        *,
        steps: int = 10,
        kernel: Kernel | None = None,
        shape: tuple[int, int, int] = (1, 1, 1),
        guidance: float = 1.0,
    ):
        self.means, self.stds, self.weights = torch.tensor(means), torch.tensor(stds), torch.tensor(weights)
        self.steps, self.kernel, self.shape, self.guidance, self.nfe = steps, kernel, shape, guidance, 0
        s = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
        self.levels = [NoiseLevel(1 - p, p, 1 - q, q, "flow_prediction") for p, q in zip(s, s[1:], strict=False)]

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=torch.Generator().manual_seed(s)) for s in seeds])

    def start(self, noise: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        return noise

    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], noise: Tensor | None = None, grad: int = 0
    ) -> Trajectory:
        prompts, seeds = tuple(prompts), tuple(seeds)
        x = self.start(self.noise(seeds) if noise is None else noise)
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        for g in generators:
            torch.randn(self.shape, generator=g)  # a pipeline draws the noise first, even where another is put in
        keep = grad > 0 and torch.is_grad_enabled()
        states, scores, marks = [x], torch.zeros(len(x), self.steps, dtype=torch.float64), []
        for i in range(self.steps):
            with torch.set_grad_enabled(keep and i >= self.steps - grad):
                law = (self.kernel or Ancestral(0.0))(self.levels[i], x, self._model_output(x, i, prompts, None))
                x = law.sample(generators)
            if law.std.any():
                scores[:, i] = law.log_prob(x.detach()).detach()
                marks.append(i)
            states.append(x)
        with torch.set_grad_enabled(keep):
            media = self.decode(x, prompts)
        return Trajectory(prompts, torch.stack(states, 1), scores, tuple(marks), media, seeds)

    def transition(self, x: Tensor, i: int, prompts: Sequence[str]) -> Transition:
        return (self.kernel or Ancestral())(self.levels[i], x, self._model_output(x, i, prompts, None))

    def predict(self, x: Tensor, i: int, prompts: Sequence[str], guidance: float | None = None) -> Prediction:
        return schedule.make_prediction(self.levels[i], x, self._model_output(x, i, prompts, guidance))

    def noised(self, x0: Tensor, i: int, eps: Tensor) -> Tensor:
        return schedule.add_noise(self.levels[i], x0, eps)

    def output_scale(self, i: int) -> float:
        return schedule.output_scale(self.levels[i])

    def decode(self, latents: Tensor, prompts: Sequence[str]) -> Media:
        return Media(latents.expand(-1, 3, -1, -1) if self.shape[0] == 1 else latents, self.modality)

    def _model_output(self, x: Tensor, i: int, prompts: Sequence[str], guidance: float | None) -> Tensor:
        """v = eps - x0 = (x - x0) / s of the posterior mean; guided, where guidance is not 1, away from the
        mixture's."""
        scale = self.guidance if guidance is None else guidance
        whole = self.weights.log().expand(len(x), -1)  # [B,components]
        known = {p: self._asked(p) for p in set(prompts)}
        asked = torch.stack([known[p] for p in prompts])
        self.nfe += len(x) * (1 if scale == 1 else 2)
        x0 = self._posterior_mean(x, i, asked)
        if scale != 1:
            plain = self._posterior_mean(x, i, whole)
            x0 = plain + scale * (x0 - plain)
        return (x - x0) / self.levels[i].s

    def _asked(self, prompt: str) -> Tensor:
        log_weights = self.weights.log()
        if not prompt.isdigit():
            return log_weights
        return torch.where(torch.arange(len(log_weights)) == int(prompt), 0.0, -torch.inf)

    def _posterior_mean(self, x: Tensor, i: int, log_weights: Tensor) -> Tensor:
        a, s = self.levels[i].a, self.levels[i].s
        gap, var = (
            x[..., None] - a * self.means,
            (a * self.stds).square() + s**2,
        )  # [B,*latent,components], [components]
        rows = log_weights.view(len(x), *[1] * (x.dim() - 1), -1)
        share = torch.softmax(rows - 0.5 * gap.square() / var - 0.5 * var.log(), -1)
        return (share * (self.means + a * self.stds.square() / var * gap)).sum(-1)

    @torch.no_grad()
    def marginal(self, points: int = 801, reach: float = 5.0, prompt: str = "") -> tuple[Tensor, Tensor]:
        """Where the chain of `transition` ends, without drawing: values [N] and their probabilities [N], float64.

        The law of x_i is carried over a grid from step to step, so the steps' own error is in it: what is left to a
        method that samples this chain is its own error alone. For shape (1,1,1).
        """
        calls, grid = self.nfe, torch.linspace(-reach, reach, points, dtype=torch.float64)
        values, mass = grid, torch.softmax(-0.5 * grid.square(), 0)
        for i in range(self.steps):
            law = self.transition(values.float().view(-1, 1, 1, 1), i, [prompt] * points)
            values, std = law.mean.double().flatten(), float(law.std)
            if std:
                step = torch.softmax(-0.5 * ((grid[None] - values[:, None]) / std).square(), 1)  # [from,to]
                values, mass = grid, mass @ step
        self.nfe = calls
        order = values.argsort()
        return values[order], (mass / mass.sum())[order]


class Value:
    """r(x) = slope x + bend x^2, read from the picture. Differentiable; what is above `blind` can't be judged."""

    def __init__(self, slope: float = 1.0, bend: float = 0.0, blind: float = torch.inf):
        self.slope, self.bend, self.blind = slope, bend, blind
        self.spec = RewardSpec("value", "1", frozenset({"image"}), differentiable=True)

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = media.data[:, 0].flatten(1).mean(1)
        return torch.where(x > self.blind, torch.nan, self.slope * x + self.bend * x.square())


def ks(samples: Tensor, values: Tensor, mass: Tensor) -> float:
    """Kolmogorov-Smirnov distance between draws [N] and a discrete law: the largest gap between their CDFs."""
    samples, cdf = samples.double().flatten().sort().values, mass.cumsum(0)
    exact = torch.cat([cdf.new_zeros(1), cdf])[torch.searchsorted(values, samples, right=True)]
    n = torch.arange(1, len(samples) + 1) / len(samples)
    return max((exact - n).abs().max().item(), (exact - n + 1 / len(samples)).abs().max().item())
