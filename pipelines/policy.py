"""A diffusers pipeline as a policy: noise in, media out, and every step in between can be asked for on its own.

Whatever the pipeline does between denoiser and scheduler is done by the pipeline itself, behind the seam (seams.py). Time is
an index i into the schedule, one per call. States are in the layout that the scheduler sees (packed where the pipeline
packs), noise in the layout in which the pipeline draws it; `start` turns the one into the other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pipelines import encoding, noise_hypernetwork, schedule, seams
from pipelines.prompt_cache import Prompted
from pipelines.structure import Anatomy, find, remembers
from workbench.core.types import BadInput, Media, Modality, Prediction, Stopped, Trajectory, Transition

from .transitions import Ancestral, Kernel

SHAPES = 16  # numbers of rows, each guided and not, whose stand-ins are kept


class Policy:
    """Implements workbench.core.types.Policy for any continuous-latent diffusers pipeline.

    `call` are keyword arguments of the pipeline (guidance_scale, height, ...), `text` those of them that are repeated for
    each prompt (negative_prompt, lyrics). With a `kernel`, `sample` takes that Gaussian step instead of the scheduler's own
    and scores it; without one, `sample` is the pipeline's own loop and `transition` uses Ancestral(eta=1).
    """

    def __init__(
        self,
        pipe: Any,
        *,
        modality: Modality = "image",
        rate: float = 0.0,
        steps: int | None = None,
        call: Mapping[str, Any] | None = None,
        text: Mapping[str, str] | None = None,
        kernel: Kernel | None = None,
        guidance: str = "guidance_scale",
        attention: str = "sdpa",
        checkpoint: bool = True,
        memory: int = 8,
        spare: int = 1 << 30,
    ):
        self.pipe, self.modality, self.rate, self.kernel = pipe, modality, rate, kernel
        self.call, self.text = dict(call or {}), dict(text or {})
        if steps is not None:
            self.call["num_inference_steps"] = steps
        if modality != "audio":  # audio pipelines disagree on its name, so theirs is left alone
            self.call.setdefault("output_type", "pt")
        self.guidance = (
            guidance  # the argument that scales guidance; Qwen-Image calls it true_cfg_scale; "": there is none
        )
        self.decodes = 0  # rows decoded so far
        self.attention = attention  # which attention kernels the denoiser runs
        self.nfe = 0  # rows through the denoiser so far, but for those by which the pipeline's anatomy and stand-ins were found
        self.aside = 0  # the latter: found once for a number of rows, and again by a training that goes on
        self.stop: threading.Event | None = None  # once it is set, the next call of the denoiser raises Stopped
        self.checkpoint = checkpoint  # recompute the denoiser's activations in the backward pass of several steps
        self.memory = memory  # how many prompt batches keep their encodings, however large they are
        self.spare = spare  # bytes within which more of them do: a method comes back to all parts of its round
        self._prompted: OrderedDict[tuple, Prompted] = OrderedDict()
        self._standins: OrderedDict[tuple, dict] = OrderedDict()

    @cached_property
    def anatomy(self) -> Anatomy:
        with torch.random.fork_rng(self._cuda):
            return find(self.pipe, self.arguments(("a",), [0]), self.arguments(("a", "b"), [0, 1]))

    @cached_property
    def _remembers(self) -> bool:
        with torch.random.fork_rng(self._cuda):
            return remembers(self.pipe, self.arguments(("a",), [0]), self.anatomy)

    @cached_property
    def levels(self) -> list[schedule.Level]:
        """[S]; raises TypeError for a scheduler that schedule.py does not know."""
        return schedule.levels(self.anatomy.scheduler)

    @property
    def steps(self) -> int:
        return self.anatomy.steps

    @property
    def provides(self) -> frozenset[str]:
        known = all(schedule.known(s) for s in seams.schedulers(self.pipe))
        return frozenset({"latents", "stochastic"} if known else {"latents"})

    @cached_property
    def device(self) -> torch.device:
        """Where the pipeline computes, offloading included; asking it takes a walk through all its modules."""
        return self.pipe._execution_device

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """[B,*draw] float32; row b is the first draw of a CPU generator seeded with seeds[b], on any device."""
        rows = [torch.randn(self.anatomy.noise_shape, generator=_generator(seed)) for seed in seeds]
        return torch.stack(rows).to(self.device)

    def start(self, noise: Tensor) -> Tensor:
        """The first state x_0 [B,*latent] that noise [B,*draw] becomes: scaled and packed as the pipeline does it."""
        return self.anatomy.start(noise)

    def sample(
        self, prompts: Sequence[str], *, seeds: Sequence[int], noise: Tensor | None = None, grad: int = 0
    ) -> Trajectory:
        """The pipeline's own loop, in one call: `pipe(prompts, generator=[Generator().manual_seed(s) for s in seeds])`.

        `noise` [B,*draw] replaces what is drawn first; the scheduler's later draws are the same for the same seeds, also where
        the pipeline leaves them to chance (Wan with an SDE solver: it hands its scheduler no generator). With
        grad=K the last K steps and the decoder keep their graph; K = S reaches the noise. Raises ValueError for lengths
        that differ or a K outside 0..S.
        """
        prompts, seeds = tuple(prompts), tuple(seeds)
        noise = self.noise(seeds) if noise is None else noise
        if not len(prompts) == len(seeds) == len(noise):
            raise ValueError(f"{len(prompts)} prompts, {len(seeds)} seeds and {len(noise)} rows of noise")
        if not 0 <= grad <= self.steps:
            raise ValueError(f"grad={grad}: this policy has {self.steps} steps")
        graph = grad > 0 and torch.is_grad_enabled()
        first, states, scores, marks = self.steps - grad, [], [], []
        generators = [_generator(seed) for seed in seeds]

        def on_step(step: seams.Step) -> Any:
            states.append(self.anatomy.rows(step.sample))
            ret = step.advance(**_seeded(step, generators))
            if self.kernel is not None:
                ret = self._take(step, ret, generators, scores, marks)
            if step.index == self.steps - 1:
                states.append(self.anatomy.rows(seams.prev_sample(ret)))
            if graph and step.index + 1 == first:
                torch.set_grad_enabled(True)
            return ret

        served = iter([noise])
        media = self.media(
            self._run(
                prompts,
                generators,
                live=lambda i: True,
                on_draw=lambda drawn: next(served, drawn).to(drawn) if drawn.shape == noise.shape else drawn,
                on_step=on_step,
                grad=graph and first == 0,
                checkpoint=self.checkpoint and grad > 1,
            )
        )
        if len(states) != self.steps + 1:
            raise TypeError(f"{type(self.pipe).__name__} took {len(states) - 1} steps where {self.steps} were foreseen")
        flat = torch.zeros(len(prompts), self.steps, dtype=torch.float64, device=media.data.device)
        return Trajectory(
            prompts, torch.stack(states, 1), torch.stack(scores, 1) if scores else flat, tuple(marks), media, seeds
        )

    def transition(self, x: Tensor, i: int, prompts: Sequence[str]) -> Transition:
        """p(x_{i+1} | x_i = x) [B,*latent] by the kernel, from any x, in float32; keeps the graph in grad mode.

        Steps before i cost no denoiser call. Raises TypeError for a scheduler whose levels are not known, and for guidance
        that carries momentum from step to step (APG).
        """
        level = self._level(i)
        return (self.kernel or Ancestral())(level, x.float(), self._output(x, i, prompts).float())

    def predict(self, x: Tensor, i: int, prompts: Sequence[str], guidance: float | None = None) -> Prediction:
        """What the guided denoiser says at x_i = x [B,*latent], in its three forms, float32. `guidance` overrides the
        policy's own."""
        level = self._level(i)
        return schedule.predicted(level, x.float(), self._output(x, i, prompts, guidance).float())

    def noised(self, x0: Tensor, i: int, eps: Tensor) -> Tensor:
        """x_i [B,*latent] = a_i x0 + s_i eps."""
        return schedule.noised(self._level(i), x0, eps)

    def unit(self, i: int) -> float:
        """How far x0 moves, seen from step i, where the denoiser's own output moves by one."""
        return schedule.unit(self._level(i))

    def decode(self, latents: Tensor, prompts: Sequence[str]) -> Media:
        """Media of clean latents [B,*latent] by the pipeline's own tail, differentiable; the denoiser is not run."""
        return self.media(self.tail(latents, prompts))

    def encode(self, media: Media) -> Tensor:
        """[B,*latent]: the clean latents that `decode` turns into these media, as far as the autoencoder can; no gradient.

        Raises BadInput for media of another size than the pipeline's own (`size`) or another sample rate, and for sounds that
        a vocoder makes; TypeError for a pipeline whose way from the last state to its autoencoder can't be walked backwards.
        """
        return encoding.encode(self, self._tail, media)

    @property
    def size(self) -> tuple[int, ...]:
        """Of one medium: (3,H,W), (T,3,H,W) or (C,L)."""
        return self._tail.size

    @cached_property
    def _tail(self) -> encoding.Tail:
        return encoding.find(self)

    def tail(self, latents: Tensor, prompts: Sequence[str]) -> Any:
        """What the pipeline returns when its last step ends in these latents."""

        def on_step(step: seams.Step) -> Any:
            last = step.index == self.steps - 1
            with torch.no_grad():
                ret = step.advance()
            torch.set_grad_enabled(last and graph)
            return seams.with_sample(ret, latents, everywhere=True) if last else ret

        graph = torch.is_grad_enabled()
        return self._run(tuple(prompts), self._spare(prompts), live=lambda i: False, on_step=on_step)

    def reference(self) -> AbstractContextManager[None]:
        """Inside the block this is the pipeline without the LoRA that it was given, if any."""
        return noise_hypernetwork.off(self)

    def correction(self, noise: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B,*draw]: what HyperNoise adds to noise [B,*draw], by one denoiser call; with the graph to the LoRA.

        Raises BadInput where the denoiser's last layer has no LoRA.
        """
        return noise_hypernetwork.correction(self, self._outlet, noise, tuple(prompts))

    @cached_property
    def _outlet(self) -> correction.Outlet:
        return noise_hypernetwork.outlet(self)

    def _level(self, i: int) -> schedule.Level:
        if not 0 <= i < self.steps:
            raise ValueError(f"step {i}: this policy has steps 0..{self.steps - 1}")
        return self.levels[i]

    def forget(self) -> None:
        """Drop the prompt encodings: needed after anything but the denoiser has changed."""
        self._prompted.clear()
        self._standins.clear()

    def _output(self, x: Tensor, i: int, prompts: Sequence[str], guidance: float | None = None) -> Tensor:
        """The model output that the scheduler would see at step i if its state were x, guidance included."""
        if i > 0 and self._remembers:
            raise TypeError(
                f"the guidance of {type(self.pipe).__name__} carries momentum from step to step, so a step from any state "
                "is not defined; switch guidance off"
            )
        graph = torch.is_grad_enabled()
        x = x.contiguous()  # as sampled: half-precision kernels round by the layout of what they get
        noise = self._served(x) if i == 0 else None

        def on_step(step: seams.Step) -> Any:
            if step.index == i:
                raise seams.Stop(self.anatomy.rows(step.model_output))
            with torch.no_grad():
                ret = step.advance()
            if step.index < i - 1:
                return ret
            torch.set_grad_enabled(graph)
            return seams.with_sample(ret, x)

        served = iter([] if noise is None else [noise])
        return self._run(
            tuple(prompts),
            self._spare(prompts),
            live=lambda k: k == i,
            on_draw=lambda drawn: next(served, drawn).to(drawn),
            on_step=on_step,
            grad=graph and i == 0,
            guidance=guidance,
        )

    def _served(self, x: Tensor) -> Tensor:
        """Noise [B,*draw] whose first state is x to the last bit, where there is one: c (x / c) is often its neighbour, and
        then a recorded first step would not be the step that is scored. With the graph to x."""
        noise = self.anatomy.unstart(x)
        with torch.no_grad():
            exact, found = noise.clone(), torch.zeros_like(noise, dtype=torch.bool)
            for k in (0, 1, -1, 2, -2, 3, -3, 4, -4):  # half units in the last place
                near = (noise.double() * (1 + k * torch.finfo(x.dtype).eps / 2)).to(x.dtype).to(noise)
                same = (self.anatomy.start(near) == x.to(self.anatomy.state)).to(self.anatomy.state)
                hit = (self.anatomy.unstart(same) != 0) & ~found  # in the places of the noise
                exact, found = torch.where(hit, near, exact), found | hit
                if found.all():
                    break
        return noise + (exact - noise).detach()

    def _take(self, step: seams.Step, ret: Any, generators: list, scores: list, marks: list) -> Any:
        """The kernel's step in place of the scheduler's, whose buffers and index have advanced. Noise row by row from the
        generators, so that a row depends on its own seed alone."""
        now, said = (self.anatomy.rows(x).float() for x in (step.sample, step.model_output))
        law = self.kernel(self.levels[step.index], now, said)
        if not law.std.any():
            scores.append(torch.zeros(len(law.mean), dtype=torch.float64, device=law.mean.device))
            return seams.with_sample(ret, law.mean, everywhere=step.index == self.steps - 1)
        eps = [torch.randn(law.mean.shape[1:], generator=g) for g in generators]
        x = (law.mean + law.std * torch.stack(eps).to(law.mean)).to(step.sample.dtype).contiguous()
        ret = seams.with_sample(ret, x, everywhere=step.index == self.steps - 1)
        scores.append(
            law.log_prob(self.anatomy.rows(seams.prev_sample(ret)).detach())
        )  # as rounded on its way to the next step
        marks.append(step.index)
        return ret

    def _run(self, prompts, generators, *, live, on_step, on_draw=None, grad=False, checkpoint=False, guidance=None):
        anatomy, kwargs = self.anatomy, self.arguments(prompts, generators)
        if guidance is not None:
            if not self.guidance:
                raise BadInput(
                    f"the guidance of {type(self.pipe).__name__} is set in the pipeline and can't be changed for one call; "
                    "leave the method's own unset"
                )
            kwargs[self.guidance] = guidance
        matched = self.kernel is not None and self._trained(anatomy.denoisers)
        hooks = self._recall(prompts, guidance).hooks(anatomy.denoisers, live, self._count, checkpoint, matched)
        keep = seams.Keep() if self.modality == "audio" else nullcontext()
        with torch.random.fork_rng(self._cuda), keep:
            out = seams.run(self.pipe, kwargs, on_step=on_step, on_draw=on_draw, grad=grad, **hooks)
        if isinstance(out, Tensor) or isinstance(out[0], Tensor):
            return out
        kept = getattr(keep, "last", None)  # the array has lost its graph; the tensor that it was made of has not
        return out if kept is None or kept.shape != out[0].shape else (kept,)

    def _recall(self, asked: tuple, guidance: float | None) -> Prompted:
        """What is remembered of these prompts: encodings by batch, for pipelines pad to the longest of one, and stand-ins by
        what their shape depends on. Where processes must run the denoiser equally often, `asked` are the prompts of all of
        them (rows.py): the rows that each has are the same in all, while bytes and so encodings are each one's own affair."""
        key, shape = (asked, guidance), (tree_map(type, asked), guidance)  # the words taken out
        if key in self._prompted and self._trained(set(seams.modules(self.pipe)) - self.anatomy.denoisers):
            self._prompted.clear()  # encodings change with the weights that make them
        if key not in self._prompted:
            held = sum(kept.bytes for kept in self._prompted.values())
            while len(self._prompted) >= max(self.memory, 1) and held > self.spare:
                held -= self._prompted.popitem(last=False)[1].bytes
            self._prompted[key] = Prompted()
        memo = self._prompted[key]
        memo.standins = self._standins.setdefault(shape, {})
        self._prompted.move_to_end(key)
        self._standins.move_to_end(shape)
        if len(self._standins) > SHAPES:
            self._standins.popitem(last=False)
        return memo

    def _trained(self, names: Collection[str]) -> bool:
        parts = seams.modules(self.pipe)
        return any(p.requires_grad for name in names for p in parts[name].parameters())

    def _count(self, rows: int, live: bool) -> None:
        if self.stop is not None and self.stop.is_set():
            raise Stopped
        if live:
            self.nfe += rows
        else:
            self.aside += rows

    def arguments(self, prompts: Sequence[str], seeds: Sequence[int] | Sequence[torch.Generator]) -> dict[str, Any]:
        """What the pipeline is called with."""
        generators = [g if isinstance(g, torch.Generator) else _generator(g) for g in seeds]
        rows = {name: [value] * len(prompts) for name, value in self.text.items()}
        generator = generators if len(generators) > 1 else generators[0]  # some pipelines refuse a list of one
        return {**self.call, **rows, "prompt": list(prompts), "generator": generator}

    _kwargs = arguments

    def _spare(self, prompts: Sequence[str]) -> list[torch.Generator]:
        return [_generator(0) for _ in prompts]

    def media(self, out: Any) -> Media:
        """What the pipeline returned, as Media: float32 unless it is float64, and on the policy's device, where judges follow:
        some pipelines bring sounds to the CPU."""
        data = out[0]
        data = (data if isinstance(data, Tensor) else torch.from_numpy(data)).to(self.device)
        data = data if data.dtype == torch.float64 else data.float()
        if self.modality == "audio":
            data = (data[:, None] if data.dim() == 2 else data).clamp(-1, 1)
        self.decodes += len(data)
        return Media(data, self.modality, self.rate)

    @property
    def _cuda(self) -> list[int]:
        return [self.device.index or 0] if self.device.type == "cuda" else []


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _seeded(step: seams.Step, generators: list[torch.Generator]) -> dict[str, Any]:
    """The generators, for a scheduler that could draw from them and was given none."""
    left_out = "generator" in step.accepts and step.arguments.get("generator") is None
    return {"generator": generators} if left_out else {}
