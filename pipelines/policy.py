"""A diffusers pipeline as a policy: noise in, media out, and every denoising step can be computed on its own.

Everything between denoiser and scheduler is done by the pipeline itself, behind the seam (seams.py). Time is an index i
into the schedule. States are in the layout that the scheduler sees (packed where the pipeline packs), noise in the
layout in which the pipeline draws it; `start` turns noise into the first state.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pipelines import encoding, guards, noise_hypernetwork, replay, schedule, seams
from pipelines.conditions import Conditions, Grouping, compute_in_groups, find_grouping
from pipelines.dials import set_dials
from pipelines.kernel_step import take_kernel_step
from pipelines.prompt_cache import PromptCache, PromptCaches
from pipelines.structure import PipelineStructure, find_structure, has_guidance_momentum
from pipelines.transitions import Ancestral, Kernel
from workbench.core.errors import BadInput, Stopped
from workbench.core.types import Media, Modality, Prediction, Trajectory, Transition


class Policy:
    """Implements workbench.core.types.Policy for any continuous-latent diffusers pipeline.

    `call` are keyword arguments of the pipeline (guidance_scale, height, ...), `text` those of them that are repeated
    for each prompt (negative_prompt, lyrics), `inputs` those that take what comes with each prompt beside its text
    ({"source": "image"}): prompts are then `Prompt`s with these inputs, which are brought to the size of the call, or
    to `input_size` where the call doesn't say it. With a `kernel`, `sample` takes that Gaussian
    step instead of the scheduler's own and scores it; without one, `sample` is the pipeline's loop and `transition`
    uses Ancestral(eta=1). `dials` are the levels of denoisers that have dials (dials.py), by axis.
    """

    config: Any = None  # the PipelineConfig that it was loaded by, if any
    notes: tuple[str, ...] = ()  # sentences on what loading a LoRA applied and what not

    def __init__(
        self,
        pipe: Any,
        *,
        modality: Modality = "image",
        rate: float = 0.0,
        steps: int | None = None,
        call: Mapping[str, Any] | None = None,
        text: Mapping[str, str] | None = None,
        inputs: Mapping[str, str] | None = None,
        input_size: Sequence[int] = (),
        dials: Mapping[str, float | None] | None = None,
        kernel: Kernel | None = None,
        guidance: str = "guidance_scale",
        attention: str = "sdpa",
        checkpoint: bool = True,
        cached_batches: int = 8,
        cache_bytes: int = 1 << 30,
    ):
        self.pipe, self.modality, self.rate, self.kernel = pipe, modality, rate, kernel
        self.call, self.text, self.dials = dict(call or {}), dict(text or {}), dict(dials or {})
        if steps is not None:
            self.call["num_inference_steps"] = steps
        if modality != "audio":  # audio pipelines have different names for "pt"
            self.call.setdefault("output_type", "pt")
        self.guidance = guidance  # the argument that scales guidance, such as true_cfg_scale; "": none
        self.decodes = 0  # rows decoded so far
        self.attention = attention  # which attention kernels the denoiser runs
        self.nfe = 0  # rows through the denoiser so far, without those of warmup_nfe
        self.warmup_nfe = 0  # rows that only find structure and stand-ins: once per batch size and process
        self.blank_reason = ""  # why rows of the latest media are NaN on purpose
        self.stop: threading.Event | None = None  # once it is set, the next call of the denoiser raises Stopped
        self.checkpoint = checkpoint  # recompute the denoiser's activations in the backward pass of several steps
        # more than `cached_batches` within so many bytes: a method repeats all batches of a round
        self.prompt_caches = PromptCaches(cached_batches, cache_bytes)
        self.conditions = Conditions(pipe, inputs or {}, self.call, modality, rate, input_size)

    @cached_property
    def structure(self) -> PipelineStructure:
        one, two = self.example_prompts("a"), self.example_prompts("a", "b")
        with torch.random.fork_rng(self._cuda_devices):
            arguments = self.call_arguments(one, [0])
            return find_structure(self.pipe, arguments, lambda: self.call_arguments(two, [0, 1], "each"))

    @cached_property
    def _has_momentum(self) -> bool:
        with torch.random.fork_rng(self._cuda_devices):
            arguments = self.call_arguments(self.example_prompts("a"), [0])
            return has_guidance_momentum(self.pipe, arguments, self.structure)

    @cached_property
    def grouping(self) -> Grouping:
        """Which rows one call can compute together."""
        return find_grouping(self)

    @cached_property
    def is_blending(self) -> bool:
        """Whether the pipeline lays its source under the mask again after every step: parts of a state are then not
        sampled."""
        return replay.is_blending(self)

    def example_prompts(self, *texts: str) -> tuple[str, ...]:
        """The texts as prompts that the pipeline can take, with inputs of noise where it needs some."""
        return self.conditions.example_prompts(texts)

    @cached_property
    def levels(self) -> list[schedule.NoiseLevel]:
        """[S]; raises TypeError for a scheduler that schedule.py does not know."""
        return schedule.noise_levels(self.structure.scheduler)[self.structure.skipped :]

    @property
    def steps(self) -> int:
        return self.structure.steps

    @property
    def provides(self) -> frozenset[str]:
        levels_known = all(schedule.is_known(s) for s in seams.find_schedulers(self.pipe))
        return frozenset({"latents", "stochastic"} if levels_known and not self.is_blending else {"latents"})

    @cached_property
    def device(self) -> torch.device:
        """Where the pipeline computes, also with offloading; cached, as diffusers walks through all modules."""
        return self.pipe._execution_device

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """[B,*draw] float32; row b is the first draw of a CPU generator seeded with seeds[b], on any device."""
        rows = [torch.randn(self.structure.noise_shape, generator=_make_generator(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device)

    def start(self, noise: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """The first state x_0 [B,*latent] of noise [B,*draw]: scaled, packed, and added to the prompts' sources where
        the pipeline does so. Raises ValueError for another number of prompts there."""
        if not self.structure.has_offset:
            return self.structure.start(noise)
        if len(prompts) != len(noise):
            raise ValueError(f"the first state has the prompts' sources in it: {len(prompts)} for {len(noise)} rows")
        return compute_in_groups(lambda p, z: (replay.first_state(self, z, p),), self.grouping, prompts, noise)[0]

    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], noise: Tensor | None = None, grad: int = 0
    ) -> Trajectory:
        """The pipeline's own loop, in one call: `pipe(prompts, generator=[Generator().manual_seed(s) for s in seeds])`.

        `noise` [B,*draw] replaces the first draw; the scheduler's later draws depend on the seeds alone, even where the
        pipeline passes its scheduler no generator (Wan with an SDE solver).
        With grad=K the last K steps and the decoder keep their graph; K = S reaches the noise. Raises ValueError for
        lengths that differ or a K outside 0..S, TypeError for a kernel where parts of a state are not sampled.
        """
        prompts, seeds = tuple(prompts), tuple(seeds)
        noise = self.noise(seeds) if noise is None else noise
        if not len(prompts) == len(seeds) == len(noise):
            raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds and {len(noise)} rows of noise")
        if not 0 <= grad <= self.steps:
            raise ValueError(f"grad={grad}: this policy has {self.steps} steps")
        if self.kernel is not None:
            self._refuse_blending()
        stochastic: list[tuple[int, ...]] = []

        def compute(prompts: tuple[str, ...], seeds: tuple[int, ...], noise: Tensor) -> tuple[Tensor, ...]:
            path = self._sample_together(prompts, seeds, noise, grad)
            stochastic.append(path.stochastic)
            return path.x, path.log_prob, path.media.data

        x, log_prob, data = compute_in_groups(compute, self.grouping, prompts, seeds, noise)
        return Trajectory(prompts, x, log_prob, stochastic[0], Media(data, self.modality, self.rate), seeds)

    def _sample_together(
        self, prompts: tuple[str, ...], seeds: tuple[int, ...], noise: Tensor, grad: int
    ) -> Trajectory:
        """`sample` for rows that one call can compute together."""
        graph = grad > 0 and torch.is_grad_enabled()
        first = self.steps - grad
        states: list[Tensor] = []
        scores: list[Tensor] = []
        stochastic: list[int] = []
        generators = [_make_generator(seed) for seed in seeds]

        def on_step(step: seams.SchedulerStep) -> Any:
            x = self.structure.group_rows(step.sample)
            states.append(x)
            ret = step.advance(**step.missing_generator(generators))
            if self.kernel is not None:
                level = self.levels[step.index]
                ret, score = take_kernel_step(self.kernel, level, self.structure, step, ret, generators)
                stochastic.extend([] if score is None else [step.index])
                scores.append(torch.zeros(len(seeds), dtype=torch.float64, device=x.device) if score is None else score)
            if step.index == self.steps - 1:
                states.append(self.structure.group_rows(seams.prev_sample(ret)))
            if graph and step.index + 1 == first:
                torch.set_grad_enabled(True)
            return ret

        media = self.to_media(
            self.run_pipeline(
                prompts,
                generators,
                live=lambda i: True,
                on_draw=replay.serve_noise(noise),
                on_step=on_step,
                grad=graph and first == 0,
                checkpoint=self.checkpoint and grad > 1,
            )
        )
        if len(states) != self.steps + 1:
            raise TypeError(f"{type(self.pipe).__name__} took {len(states) - 1} steps where {self.steps} were foreseen")
        flat = torch.zeros(len(prompts), self.steps, dtype=torch.float64, device=media.data.device)
        return Trajectory(
            prompts, torch.stack(states, 1), torch.stack(scores, 1) if scores else flat, tuple(stochastic), media, seeds
        )

    def transition(self, x: Tensor, i: int, prompts: Sequence[str]) -> Transition:
        """p(x_{i+1} | x_i = x) [B,*latent] by the kernel, from any x, in float32; keeps the graph in grad mode.

        Steps before i cost no denoiser call. Raises TypeError for a scheduler whose levels are not known, and for
        guidance that carries momentum from step to step (APG).
        """
        level = self._noise_level(i)
        self._refuse_blending()
        return (self.kernel or Ancestral())(level, x.float(), self._model_output(x, i, prompts).float())

    def predict(self, x: Tensor, i: int, prompts: Sequence[str], guidance: float | None = None) -> Prediction:
        """The guided denoiser's prediction at x_i = x [B,*latent] in its three forms, float32. `guidance` overrides the
        policy's own. Raises as `transition`."""
        level = self._noise_level(i)
        return schedule.make_prediction(level, x.float(), self._model_output(x, i, prompts, guidance).float())

    def noised(self, x0: Tensor, i: int, eps: Tensor) -> Tensor:
        """x_i [B,*latent] = a_i x0 + s_i eps."""
        return schedule.add_noise(self._noise_level(i), x0, eps)

    def output_scale(self, i: int) -> float:
        """|d x0 / d output|: how far x0 moves at step i where the denoiser's own output moves by one."""
        return schedule.output_scale(self._noise_level(i))

    def decode(self, latents: Tensor, prompts: Sequence[str]) -> Media:
        """Media of clean latents [B,*latent] by the pipeline's own decoding, differentiable, without running the
        denoiser."""

        def compute(prompts: tuple[str, ...], latents: Tensor) -> tuple[Tensor]:
            return (self.to_media(replay.run_decoder(self, latents, prompts)).data,)

        return Media(compute_in_groups(compute, self.grouping, prompts, latents)[0], self.modality, self.rate)

    def encode(self, media: Media) -> Tensor:
        """[B,*latent]: the clean latents that `decode` turns into these media, as far as the autoencoder can; no
        gradient.

        Raises BadInput for media of another size than the pipeline's own (`size`) or another sample rate, and for
        pipelines with a vocoder; TypeError for a pipeline whose step from the last state to its autoencoder can't be
        inverted.
        """
        return encoding.encode_media(self, self._decode_path, media)

    @cached_property
    def size(self) -> tuple[int, ...]:
        """Of one medium: (3,H,W), (T,3,H,W) or (C,L)."""
        return encoding.find_media_size(self)

    @cached_property
    def _decode_path(self) -> encoding.DecodePath:
        return encoding.find_decode_path(self)

    def reference(self) -> AbstractContextManager[None]:
        """Inside the block this is the pipeline without its LoRA and dials, if it has some."""
        return noise_hypernetwork.adapters_disabled(self)

    def noise_correction(self, noise: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B,*draw]: what HyperNoise adds to noise [B,*draw], by one denoiser call; with the graph to the LoRA.

        Raises BadInput where the denoiser's last layer has no LoRA.
        """
        return noise_hypernetwork.predict_correction(self, self._output_layer, noise, tuple(prompts))

    @cached_property
    def _output_layer(self) -> noise_hypernetwork.OutputLayer:
        return noise_hypernetwork.find_output_layer(self)

    def _noise_level(self, i: int) -> schedule.NoiseLevel:
        if not 0 <= i < self.steps:
            raise ValueError(f"step {i}: this policy has steps 0..{self.steps - 1}")
        return self.levels[i]

    def forget_prompts(self) -> None:
        """Drop the cached prompt encodings: needed after any network but the denoiser has changed."""
        self.prompt_caches.clear()

    def _model_output(self, x: Tensor, i: int, prompts: Sequence[str], guidance: float | None = None) -> Tensor:
        """The guided model output that the scheduler would get at step i if its state were x."""
        if i > 0 and self._has_momentum:
            raise TypeError(
                f"the guidance of {type(self.pipe).__name__} carries momentum from step to step, so a step from any "
                "state is not defined; switch guidance off"
            )

        def compute(prompts: tuple[str, ...], x: Tensor) -> tuple[Tensor]:
            return (replay.model_output(self, x, i, prompts, guidance),)

        x = x.contiguous()  # as in `sample`: rounding in half precision depends on the memory layout
        return compute_in_groups(compute, self.grouping, prompts, x)[0]

    def _refuse_blending(self) -> None:
        if self.is_blending:
            raise TypeError(
                f"{type(self.pipe).__name__} lays its source under the mask again after every step, so that parts of a "
                "state are not sampled and a step has no probability; use a method without stochastic steps"
            )

    def run_pipeline(
        self,
        prompts: tuple[str, ...],
        generators: Sequence[torch.Generator],
        *,
        live: Callable[[int], bool],
        on_step: seams.OnStep,
        on_draw: seams.OnDraw | None = None,
        on_add_noise: seams.OnAddNoise | None = None,
        grad: bool = False,
        checkpoint: bool = False,
        guidance: float | None = None,
    ) -> Any:
        """What the pipeline returns, or the value with which a hook left it. The denoiser runs only in steps i with
        live(i)."""
        structure, kwargs = self.structure, self.call_arguments(prompts, generators)
        if guidance is not None:
            if not self.guidance:
                raise BadInput(
                    f"the guidance of {type(self.pipe).__name__} is set in the pipeline and can't be changed for "
                    "one call; leave the method's own unset"
                )
            kwargs[self.guidance] = guidance
        same_kernels = self.kernel is not None and seams.any_requires_grad(self.pipe, structure.denoisers)
        hooks = self._prompt_cache(prompts, guidance).make_hooks(
            structure.denoisers, structure.helpers, live, self._count_rows, checkpoint, same_kernels
        )
        keep = seams.KeepGraph() if self.modality == "audio" else nullcontext()
        with torch.random.fork_rng(self._cuda_devices), keep, set_dials(self.pipe, prompts, self.dials):
            out = seams.run_pipeline(
                self.pipe, kwargs, on_step=on_step, on_draw=on_draw, on_add_noise=on_add_noise, grad=grad, **hooks
            )
        if isinstance(out, Tensor) or isinstance(out[0], Tensor):
            return out
        with_graph = getattr(keep, "last", None)  # the tensor from which the array was made has the graph
        return out if with_graph is None or with_graph.shape != out[0].shape else (with_graph,)

    def _prompt_cache(self, prompts: tuple, guidance: float | None) -> PromptCache:
        encoders_train = seams.any_requires_grad(self.pipe, but=self.structure.denoisers)
        return self.prompt_caches.recall(prompts, guidance, encoders_train=encoders_train)

    def _count_rows(self, rows: int, live: bool) -> None:
        if self.stop is not None and self.stop.is_set():
            raise Stopped
        if live:
            self.nfe += rows
        else:
            self.warmup_nfe += rows

    def call_arguments(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | Sequence[torch.Generator],
        grouping: Grouping | None = None,
    ) -> dict[str, Any]:
        """The keyword arguments of the pipeline's call for rows that it can take together, as `grouping` says. Raises
        BadInput for a prompt without an input that the pipeline takes."""
        grouping = grouping or ("each" if len(prompts) == 1 else self.grouping)
        generators = [g if isinstance(g, torch.Generator) else _make_generator(g) for g in seeds]
        rows = {name: [value] * len(prompts) for name, value in self.text.items()}
        generator = generators if len(generators) > 1 else generators[0]  # some pipelines refuse a list of one
        given = self.conditions.arguments(prompts, grouping)
        if self.modality == "audio":  # not all pipelines bring a sound to where, and as what, they encode it
            given = tree_map_only(Tensor, lambda sound: sound.to(self.device, self.pipe.vae.dtype), given)
        return {**self.call, **rows, **given, "prompt": [str(p) for p in prompts], "generator": generator}

    def to_media(self, out: Any) -> Media:
        """The pipeline's return value as Media: float32 unless it is float64, on the policy's device, where rewards are
        computed (some pipelines move sounds to the CPU). What the pipeline's safety checker flagged is NaN."""
        data = out[0]
        data = (data if isinstance(data, Tensor) else torch.from_numpy(data)).to(self.device)
        data = data if data.dtype == torch.float64 else data.float()
        if self.modality == "audio":
            data = (data[:, None] if data.dim() == 2 else data).clamp(-1, 1)
        flags = guards.flagged_rows(out)
        self.blank_reason = guards.FLAGGED if flags else ""
        if flags:
            data = data.index_fill(0, torch.tensor(flags, device=data.device).nonzero()[:, 0], torch.nan)
        self.decodes += len(data)
        return Media(data, self.modality, self.rate)

    @property
    def _cuda_devices(self) -> list[int]:
        return [self.device.index or 0] if self.device.type == "cuda" else []


def _make_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
