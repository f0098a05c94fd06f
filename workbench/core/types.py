"""The few types that pipelines, rewards and methods share. Imports torch and the standard library only.

Letters used in shapes, everywhere: B batch, G group, S steps, T frames, C channels, L audio samples, D features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

Modality = Literal["image", "video", "audio"]


@dataclass(frozen=True)
class AtLeast:
    """A lower bound on a setting, read by workbench.core.schema."""

    low: float


Natural = Annotated[int, AtLeast(0)]
Count = Annotated[int, AtLeast(1)]
NonNegative = Annotated[float, AtLeast(0.0)]


@dataclass(frozen=True)
class Media:
    """A batch of finished pictures, clips or sounds, graph attached where there is one."""

    data: Tensor  # image [B,3,H,W], video [B,T,3,H,W] in [0,1]; audio [B,C,L] in [-1,1]
    modality: Modality
    rate: float = 0.0  # video: frames per second; audio: samples per second; 0 for images

    def __len__(self) -> int:
        return self.data.shape[0]

    def __getitem__(self, rows) -> Media:
        """Rows by slice, list or mask; an int keeps the batch dimension."""
        return replace(self, data=self.data[[rows] if isinstance(rows, int) else rows])

    def detach(self) -> Media:
        return replace(self, data=self.data.detach())

    @staticmethod
    def cat(parts: Sequence[Media]) -> Media:
        """The rows of all parts, which have equal shapes, modality and rate."""
        return replace(parts[0], data=torch.cat([p.data for p in parts]))


class Input(Protocol):
    """One thing that a sample is made from besides its text: a picture to edit, a mask, a first frame, a sound."""

    @property
    def digest(self) -> str: ...  # SHA-256 of its content in hex: two inputs with the same digest are the same

    def read(self) -> Media: ...  # one row, in the size that it has; raises BadInput


class Prompt(str):
    """A prompt with the inputs that its sample is made from: a text in every way, but equal only to a prompt with the
    same text and inputs of the same content. So everything that is kept by prompt is kept by text and inputs.

    Without inputs it is an ordinary string. What makes a new string of it (`p.strip()`, `p + "."`) drops the inputs;
    `reworded` keeps them.

    A training by reward_condition gives it `dials` too: how good its example is, on each axis.
    """

    inputs: Mapping[str, Input]  # name, one of workbench.core.inputs.NAMES -> input
    dials: Mapping[str, float] | None  # axis -> level, 0 to 5; an axis that is missing is not said

    def __new__(
        cls, text: str, inputs: Mapping[str, Input] | None = None, dials: Mapping[str, float] | None = None
    ) -> Prompt:
        prompt = super().__new__(cls, text)
        prompt.inputs, prompt.dials = dict(sorted((inputs or {}).items())), dials
        return prompt

    @property
    def key(self) -> str:
        """Text and digests as one string, by which seeds and records know the prompt; without inputs, the text."""
        dials = [] if self.dials is None else [f"dials={dict(self.dials)}"]
        return "\0".join([str(self), *(f"{name}={value.digest}" for name, value in self.inputs.items()), *dials])

    def reworded(self, text: str) -> Prompt:
        """Another text with the same inputs."""
        return Prompt(text, self.inputs, self.dials)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.key == prompt_key(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.key)

    def __getnewargs__(self) -> tuple[str, Mapping[str, Input], Mapping[str, float] | None]:  # type: ignore[override]
        return str(self), self.inputs, self.dials


def prompt_key(prompt: str) -> str:
    """`Prompt.key`; of an ordinary string, itself."""
    return prompt.key if isinstance(prompt, Prompt) else prompt


@dataclass(frozen=True)
class Batch:
    """What a method samples or trains on: B prompts, each with the seed of its noise."""

    prompts: tuple[str, ...]  # B
    seeds: tuple[int, ...]  # B

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class PairBatch(Batch):
    """B preference pairs of existing media, from which a method learns in place of its own samples."""

    winners: Media  # B
    losers: Media  # B


def derive_seed(seed: int, *path: int | str) -> int:
    """A seed in [0, 2**31) for the part `path` of a seeded computation: a hash, the same on every machine. A prompt
    counts with its inputs: one instruction for two pictures has two seeds."""
    text = ":".join(prompt_key(part) if isinstance(part, str) else str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


@dataclass(frozen=True)
class Transition:
    """The Gaussian p(x_{i+1} | x_i, prompt) of one denoising step."""

    mean: Tensor  # [B,*latent]
    std: Tensor  # []; 0 on a deterministic step
    x0: Tensor  # [B,*latent], the clean latent that this step predicts

    def sample(self, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """[B,*latent]: a sample, each row drawn from its own CPU generator, so that it depends on its own seed
        alone."""
        if not self.std.any():
            return self.mean
        if generators is None:
            return self.mean + self.std * torch.randn_like(self.mean)
        eps = torch.stack([torch.randn(self.mean.shape[1:], generator=g) for g in generators])
        return self.mean + self.std * eps.to(self.mean)

    def log_prob(self, x_next: Tensor) -> Tensor:
        """[B]: log-density, MEAN over latent dimensions (Flow-GRPO's convention), in float64. Raises ValueError for
        std 0."""
        if not self.std.any():
            raise ValueError("a deterministic step (std 0) has no log-probability; ask only for trajectory.stochastic")
        std = self.std.double()
        z = (x_next.double() - self.mean.double()) / std
        return (-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)

    def kl(self, other: Transition) -> Tensor:
        """[B]: KL(self || other) for equal std, mean over latent dimensions."""
        diff = (self.mean.double() - other.mean.double()) / self.std.double()
        return 0.5 * diff.square().flatten(1).mean(1)


@dataclass(frozen=True)
class Prediction:
    """One denoiser prediction in its three equivalent forms, each [B,*latent]."""

    x0: Tensor
    eps: Tensor
    v: Tensor


@dataclass(frozen=True)
class Trajectory:
    """B denoising chains and the media decoded from their ends."""

    prompts: tuple[str, ...]  # B
    x: Tensor  # [B,S+1,*latent]; x[:,0] noise, x[:,-1] clean, in the pipeline's own layout
    log_prob: Tensor  # [B,S] under the policy that sampled it; 0 on deterministic steps
    stochastic: tuple[int, ...]  # the steps with std > 0: the only ones that a policy gradient may use
    media: Media  # B
    seeds: tuple[int, ...]  # B


class Policy(Protocol):
    """A diffusers pipeline seen as a policy. Implemented once, by pipelines.policy.Policy."""

    modality: Modality
    rate: float
    nfe: int  # rows through the denoiser so far (a CFG pair counts as 2)
    decodes: int  # rows decoded so far

    @property
    def steps(self) -> int: ...  # S

    @property
    def provides(self) -> frozenset[str]: ...  # a subset of {"latents", "stochastic", "trainable"}

    def noise(self, seeds: Sequence[int]) -> Tensor: ...  # [B,*latent] float32; row b depends on seeds[b] alone

    # [B,*latent]: the first state, scaled, packed and added to a source by the pipeline
    def start(self, noise: Tensor, prompts: Sequence[str] = ()) -> Tensor: ...

    # noise None: self.noise(seeds). grad=K: the last K steps and the decoder keep the graph
    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], noise: Tensor | None = None, grad: int = 0
    ) -> Trajectory: ...

    def transition(self, x: Tensor, i: int, prompts: Sequence[str]) -> Transition: ...  # one step from ANY x_i

    # what the denoiser predicts at x_i = x; `guidance` replaces the policy's own scale
    def predict(self, x: Tensor, i: int, prompts: Sequence[str], guidance: float | None = None) -> Prediction: ...

    def noised(self, x0: Tensor, i: int, eps: Tensor) -> Tensor: ...  # x_i [B,*latent] = a_i x0 + s_i eps

    def output_scale(self, i: int) -> float: ...  # |d x0 / d output| of the denoiser at step i

    def decode(self, latents: Tensor, prompts: Sequence[str]) -> Media: ...  # differentiable

    def encode(self, media: Media) -> Tensor: ...  # [B,*latent], which `decode` turns into these media; no gradient

    # inside the context, the policy computes with the weights without LoRA, or before training
    def reference(self) -> AbstractContextManager: ...

    # [B,*draw]: what a HyperNoise LoRA (arXiv:2508.09968) adds to the noise
    def noise_correction(self, noise: Tensor, prompts: Sequence[str]) -> Tensor: ...


class TrainablePolicy(Policy, Protocol):
    """A policy whose weights can be trained; it provides "trainable". Copies of the weights have names; "train" are
    the live ones."""

    @property  # of one medium: (3,H,W), (T,3,H,W) or (C,L)
    def size(self) -> tuple[int, ...]: ...

    def optimizer(self, lr: float, **settings: Any) -> torch.optim.Optimizer: ...

    def backward(self, loss: Tensor) -> None: ...  # gradients add up until `update`

    # clip the gradient, step, zero it; its norm before clipping, 0 without a gradient
    def update(self) -> float: ...

    def use(self, name: str) -> AbstractContextManager: ...  # inside the context, it computes with that copy

    # inside the context, adapters are merged: faster sampling, the same but for rounding; no gradient
    def merged(self) -> AbstractContextManager: ...

    # copy <- decay copy + (1 - decay) live; the first call takes the copy
    def follow(self, name: str, decay: float) -> None: ...


@dataclass(frozen=True)
class RewardSpec:
    """The metadata of a reward, known before any of its weights load."""

    name: str
    version: str
    modalities: frozenset[Modality]
    differentiable: bool
    scope: Literal["sample", "group", "set"] = "sample"  # group: all samples of one prompt; set: a whole batch
    needs: frozenset[str] = frozenset()  # "prompt", "reference", "source" (see Reward), or another name of an input
    typical: tuple[float, float] | None = None  # the usual range of its scores
    paper: str = ""
    weights: str = ""
    licence: str = ""
    bounds: tuple[float, float] | None = None  # finite ends that no score can leave; intervals of means don't either


@runtime_checkable
class Reward(Protocol):
    """Scores media. The keyword-only call returns float32 [B] (scope sample or group) or [] (scope set).

    HIGHER IS BETTER: a distance is negated. What can't be scored is NaN, never 0 or -1. Media are in the ranges of
    Media; a differentiable reward keeps the graph to `media.data`; its own weights are frozen. `references` are any
    number of examples for a reward that needs `reference`; for one that needs `source`, what each sample was made from,
    in the size of `media`. What else it needs of its prompts' inputs it reads by `inputs.stack_inputs(prompts, name)`.
    A reward may also have `categories(prompts) -> list[str]`, by which tables break its mean down.
    """

    @property
    def spec(self) -> RewardSpec: ...

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor: ...


class ComposedReward(Reward, Protocol):
    """Several rewards combined into one, with the scores of each component (rewards.compose). Training optimises
    one."""

    @property
    def weights(self) -> Mapping[str, float]: ...  # by component

    # component -> [B], unweighted, graph attached
    def breakdown(
        self, *, media: Media, prompts: Sequence[str], references: Media | None = None
    ) -> Mapping[str, Tensor]: ...

    # a breakdown after the combination's shaping (log-sigmoid, ...)
    def shaped(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> Mapping[str, Tensor]: ...

    def total(self, scores: Mapping[str, Tensor], prompts: Sequence[str] = ()) -> Tensor: ...  # [B], of a breakdown


class EmbeddingReward(Reward, Protocol):
    """A set reward whose embedding and scoring are separate: media are embedded once for any number of subsets."""

    def features(self, media: Media) -> Tensor: ...  # [N,D]

    def target(self, references: Media | None, device: torch.device) -> Any: ...  # what sets are compared with

    def score_rows(self, x: Tensor, target: Any) -> Tensor: ...  # []: the score of the set whose features are x [N,D]


def is_composed(reward: Reward) -> TypeGuard[ComposedReward]:
    """Whether a reward has components."""
    return hasattr(reward, "breakdown")


def embeds_media(reward: Reward) -> TypeGuard[EmbeddingReward]:
    """Whether a set reward embeds media separately from scoring sets."""
    return hasattr(reward, "features") and hasattr(reward, "score_rows")


@dataclass(frozen=True)
class Event:
    """A report of a running method. With `final`, `media` are its result for these prompts and seeds."""

    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    media: Media | None = None
    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    scores: Mapping[str, Tensor] = field(default_factory=dict)  # reward name -> [B]
    latents: Tensor | None = None  # [B,*latent], noise from which the pipeline makes these media; None if there is none
    final: bool = False


class Method(Protocol):
    """An alignment method: a frozen dataclass whose fields are its settings and whose docstring is its help.

    `needs` is a subset of {"latents", "stochastic", "trainable", "reward", "differentiable"}; a run whose policy and
    reward don't provide them is refused before weights load. A method yields events; it never logs, saves, evaluates or
    plots.

    A method from outside this repository must have `needs`, `calls` and `__call__`; for other members that it lacks,
    the defaults below are set when its name is looked up (workbench.methods.find_method).
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # it is a dataclass, so `dataclasses.replace` works on it

    needs: frozenset[str]
    scales: str = ""  # the setting that grows with the budget; "" where there is none
    paper: str = ""
    measured: str = ""  # what our comparisons found, where that is no gain over best of n; for lists
    yields_predictions: bool = False  # media before the final event are x0 predictions of unfinished chains
    # more of `scales` means more iterations, between which a time limit can stop it, not larger batches
    scales_in_turns: bool = False
    learns_from_pairs: bool = False  # can learn from pairs of existing media (PairBatch)
    optimises_sets: bool = False  # can optimise a reward of whole sets
    delivered_copy: str = ""  # the copy of the weights that a training delivers, if it exists; "": "ema", else "train"
    selects_weights: bool = False  # training: its delivered copy is what its own validations found best
    group: int = 1  # training: samples per prompt that are scored together
    optimizer_steps: int = 1  # training: per batch
    advantage: str = "whole"  # training: how rewards become advantages; "whole": without groups

    def calls(self, steps: int) -> int: ...  # denoiser calls per sample, a guided call counted once

    def __call__(self, policy: Policy, reward: Reward, batches: Iterable[Batch]) -> Iterator[Event]: ...

    def check(self, pipeline: Any, reward: Reward, lora: Any) -> None:
        """For training methods: raises BadInput, before anything loads, if it can't work with these."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """For training methods: raises BadInput, before anything loads, if it can't be trained on these prompts."""

    def sampler(self) -> Method | None:
        """For training methods: the method that samples with the trained weights; None: plain sampling."""
        return None

    def dial_axes(self, reward: Any) -> tuple[str, ...]:
        """For training methods: the axes of the dials that the denoiser gets; none for most."""
        return ()
