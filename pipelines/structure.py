"""The structure of a pipeline, found by hooking one short call: its denoisers, noise, first state and steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pipelines import schedule, seams


@dataclass(frozen=True)
class PipelineStructure:
    """A pipeline's structure. The first state is x_0 = c P n + o, the noise n rearranged by P (packing) and scaled by c
    (init_noise_sigma); o is what a source adds to it, 0 in most pipelines."""

    denoisers: frozenset[str]  # component names; a second expert of the same class is one of them
    steps: int  # S
    noise: Tensor  # [1,*draw], a leaf
    state: Tensor  # [1,*latent], the first state of this noise, with the graph to it
    scheduler: Any  # a copy, its timesteps set
    rows_per_sample: int = 1  # rows per sample in the scheduler's states: more where frames are folded into the batch
    helpers: frozenset[str] = frozenset()  # networks that the noise reaches on its way to the denoiser: ControlNets
    skipped: int = 0  # steps of the schedule that are not taken, as the first state has a source in it
    has_offset: bool = False  # whether o is not 0: it depends on the inputs
    is_noised_by_scheduler: bool = False  # the first state is what its `add_noise` or `scale_noise` returns

    def group_rows(self, x: Tensor) -> Tensor:
        """[B,*latent] of a tensor that the scheduler sees: itself, or [B * rows_per_sample,...] unfolded."""
        return x if self.rows_per_sample == 1 else x.unflatten(0, (-1, self.rows_per_sample))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return tuple(self.noise.shape[1:])

    def start(self, noise: Tensor) -> Tensor:
        """c P n [B,*latent] of noise n [B,*draw], as the transpose of the transpose c P'. Differentiable."""
        u = torch.zeros_like(self.state).requires_grad_()
        (transposed,) = torch.autograd.grad(self.state, self.noise, u, create_graph=True, retain_graph=True)
        rows = [
            torch.autograd.grad(transposed, u, n[None].to(transposed), create_graph=n.requires_grad, retain_graph=True)[
                0
            ]
            for n in noise
        ]
        return torch.cat(rows)

    def invert_start(self, x: Tensor) -> Tensor:
        """Noise n [B,*draw] with c P n = x [B,*latent]; exact where c = 1, else to rounding."""
        rows = [self._apply_transpose(row[None].to(self.state)) for row in x]
        return torch.cat(rows) / self.state_scale**2

    def exact_noise(self, x: Tensor, offset: Tensor | float = 0.0) -> Tensor:
        """Noise [B,*draw] whose first state is exactly x, if there is one, with the graph to x. c (x / c) often differs
        from x in the last bit, and then a recorded first step would not be the step that is scored. offset: o
        [B,*latent]."""
        noise = self.invert_start(x - offset)
        with torch.no_grad():
            exact, is_exact = noise.clone(), torch.zeros_like(noise, dtype=torch.bool)
            for k in (0, 1, -1, 2, -2, 3, -3, 4, -4):  # half units in the last place
                neighbour = (noise.double() * (1 + k * torch.finfo(x.dtype).eps / 2)).to(x.dtype).to(noise)
                same = (self.start(neighbour) + offset == x.to(self.state)).to(self.state)
                hit = (self.invert_start(same) != 0) & ~is_exact  # in the noise's layout
                exact, is_exact = torch.where(hit, neighbour, exact), is_exact | hit
                if is_exact.all():
                    break
        return noise + (exact - noise).detach()

    @cached_property
    def state_scale(self) -> float:
        """c, the factor between the noise and the first state."""
        noise, state = self.noise.detach().double(), self.state.detach()
        if self.has_offset:
            state = self.start(noise.to(self.noise.dtype))
        reaches = self._apply_transpose(torch.ones_like(self.state)) != 0  # not where a first frame is laid over it
        return float(state.double().norm() / (noise * reaches).norm())

    def to_draw_layout(self, x: Tensor) -> Tensor:
        """P' x [B,*draw] of states x [B,*latent]: their values, bit for bit, where the pipeline draws noise. Raises
        ValueError where P is no rearrangement of all entries."""
        count, places = self.state.numel(), torch.zeros(1, *self.noise_shape, dtype=torch.long)
        order = torch.arange(1, count + 1).view_as(self.state)
        for digit in range(0, count.bit_length(), 6):  # half precision holds six bits of a place
            part = self._apply_transpose((order >> digit & 63).to(self.state)).float() / self.state_scale
            places = places.to(part.device) + (part.round().long() << digit)
        if not torch.equal(places.flatten().sort().values, order.flatten().to(places)):
            raise ValueError("states that are no rearrangement of the noise can't be brought into its layout")
        return x.flatten(1)[:, places.flatten() - 1].view(len(x), *self.noise_shape)

    def _apply_transpose(self, x: Tensor) -> Tensor:
        needs_graph = torch.is_grad_enabled() and x.requires_grad
        return torch.autograd.grad(self.state, self.noise, x, create_graph=needs_graph, retain_graph=True)[0]


@torch.inference_mode(False)
@torch.enable_grad()
def find_structure(pipe: Any, kwargs: Mapping[str, Any], two: Callable[[], Mapping[str, Any]]) -> PipelineStructure:
    """The structure of a pipeline, found by a call with arguments `kwargs` (one prompt) up to the first scheduler step:
    prompt encoding and one denoiser evaluation. `two()`: those for two prompts, asked for if a prompt has several rows.

    Of the modules that the noise reaches before that step, a denoiser is one whose output the scheduler gets, without
    another module in between; others are helpers. Raises TypeError, by name, for a pipeline that has no scheduler step,
    draws no noise through randn_tensor, or whose first state isn't a scaled rearrangement of its noise beside what a
    source adds.
    """
    name, draws, noised_states = type(pipe).__name__, [], []
    outputs: dict[str, list[Tensor]] = {}  # module that the noise reaches -> its outputs, cut off from its inputs

    def on_draw(noise: Tensor) -> Tensor:
        draws.append(noise.float().requires_grad_())
        return draws[-1].to(noise.dtype).clone()  # some pipelines write into their noise

    def on_call(call: seams.ModuleCall, forward: seams.Forward) -> Any:
        with torch.no_grad():
            out = forward(*call.args, **call.kwargs)
        if not any(t.requires_grad for t in seams.list_tensors((call.args, call.kwargs))):
            return out
        leaves = outputs.setdefault(call.module, [])

        def cut(t: Tensor) -> Tensor:
            if not t.is_floating_point():
                return t
            leaves.append(t.detach().requires_grad_())
            return leaves[-1].clone()

        return tree_map_only(Tensor, cut, out)

    def on_encode(encode: seams.Forward) -> Any:
        with torch.no_grad():
            return encode()

    def on_add_noise(_: int, noised: Tensor) -> Tensor:
        noised_states.append(noised)
        return noised

    def on_step(step: seams.SchedulerStep) -> None:
        raise seams.LeavePipeline(step)

    frozen = [p for module in seams.named_networks(pipe).values() for p in module.parameters() if p.requires_grad]
    try:
        for p in frozen:  # so that only what depends on the noise requires grad
            p.requires_grad_(False)
        step = seams.run_pipeline(
            pipe,
            kwargs,
            on_draw=on_draw,
            on_call=on_call,
            on_encode=on_encode,
            on_step=on_step,
            on_latents=lambda _, compute: compute_without_graph(compute),
            on_add_noise=on_add_noise,
            grad=True,
        )
    finally:
        for p in frozen:
            p.requires_grad_(True)
    if not isinstance(step, seams.SchedulerStep):
        raise TypeError(f"{name} takes no scheduler step, so it can't be a policy")
    if not step.sample.requires_grad or not outputs:
        raise TypeError(
            f"{name} draws no noise through randn_tensor that reaches its denoiser, so it can't be a policy"
        )
    producers = {n for n, leaves in outputs.items() if any(_reaches(leaf, step.model_output) for leaf in leaves)}
    networks = seams.named_networks(pipe)
    kinds = {type(networks[n]) for n in producers or outputs}
    denoisers = frozenset(n for n, module in networks.items() if type(module) in kinds)
    noise_leaf = next(d for d in draws if _reaches(d, step.sample))
    folded = len(step.sample)
    state = step.sample if folded == 1 else step.sample[None]
    skipped = _count_skipped(step)
    structure = PipelineStructure(
        denoisers,
        _count_steps(step.scheduler) - skipped,
        noise_leaf,
        state,
        copy.deepcopy(step.scheduler),
        folded,
        frozenset(outputs) - denoisers,
        skipped,
    )
    structure = replace(structure, has_offset=_has_offset(structure), is_noised_by_scheduler=bool(noised_states))
    _check_first_state(structure, name)
    if folded > 1:
        _check_rows(structure, pipe, two())
    return structure


def has_guidance_momentum(pipe: Any, kwargs: Mapping[str, Any], structure: PipelineStructure) -> bool:
    """Whether the model output at step 1 depends on the denoiser's output at step 0 for a fixed state: then guidance
    has momentum, and a step from an arbitrary state is not defined. Costs one denoiser evaluation."""
    if structure.steps == 1:
        return False
    outputs: list[Any] = []

    def second_output(factor: float) -> Tensor:
        calls = iter(range(1 << 30))

        def on_call(call: seams.ModuleCall, forward: seams.Forward) -> Any:
            if call.module not in structure.denoisers:
                return forward(*call.args, **call.kwargs)
            if call.step == 0 and factor == 1:
                outputs.append(forward(*call.args, **call.kwargs))
            n = next(calls) % len(outputs)
            return tree_map_only(Tensor, lambda t: t * factor if call.step == 0 else t.clone(), outputs[n])

        def on_step(step: seams.SchedulerStep) -> Any:
            if step.index == 1:
                raise seams.LeavePipeline(step.model_output)
            return seams.with_sample(step.advance(), structure.state.detach())

        return seams.run_pipeline(pipe, kwargs, on_call=on_call, on_step=on_step)

    return not torch.equal(second_output(1.0), second_output(2.0))


def _count_steps(scheduler: Any) -> int:
    return len(schedule.noise_levels(scheduler)) if schedule.is_known(scheduler) else len(scheduler.timesteps)


def compute_without_graph(compute: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return compute()


def _reaches(leaf: Tensor, x: Tensor) -> bool:
    if not x.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(x.sum(), leaf, allow_unused=True, retain_graph=True)
    return gradient is not None


def _count_skipped(step: seams.SchedulerStep) -> int:
    """The place in the schedule of the first step that the pipeline takes."""
    first, times = step.arguments.get("timestep"), step.scheduler.timesteps
    if not isinstance(first, (Tensor, float, int)) or torch.as_tensor(first).numel() != 1:
        return 0
    places = (times.double().cpu() == float(first)).nonzero()
    return int(places[0, 0]) if len(places) else 0


def _has_offset(structure: PipelineStructure) -> bool:
    """Whether the first state is something else than its linear part, c P n."""
    linear, state = structure.start(structure.noise.detach()).detach(), structure.state.detach()
    tolerance = 1e-6 if state.dtype == torch.float32 else 2e-2  # HunyuanVideo adds a thousandth of its source
    return bool((linear - state).double().norm() > tolerance * state.double().norm())


def _check_first_state(structure: PipelineStructure, name: str) -> None:
    """Raises TypeError unless c P keeps what it can reach: P P' = 1."""
    linear = structure.start(structure.noise.detach()).detach()
    rebuilt = structure.start(structure.invert_start(linear)).detach()
    tolerance = 1e-5 if structure.state.dtype == torch.float32 else 1e-2
    if not torch.allclose(rebuilt, linear, rtol=tolerance, atol=tolerance * structure.state_scale):
        raise TypeError(f"the first state of {name} is not a scaled rearrangement of its noise")


def _check_rows(structure: PipelineStructure, pipe: Any, kwargs: Mapping[str, Any]) -> None:
    """Raises TypeError unless the rows of one sample lie side by side in the states of several."""
    noise = torch.stack(
        [torch.randn(structure.noise_shape, generator=torch.Generator().manual_seed(k)) for k in (0, 1)]
    )

    def on_step(step: seams.SchedulerStep) -> None:
        raise seams.LeavePipeline(step.sample)

    noises = iter([noise])
    with torch.no_grad():
        state = seams.run_pipeline(pipe, kwargs, on_draw=lambda eps: next(noises, eps).to(eps), on_step=on_step)
    expected = structure.start(noise.to(structure.noise.device)).detach()
    if state.shape != expected.flatten(0, 1).shape or not torch.equal(structure.group_rows(state), expected):
        raise TypeError(
            f"{type(pipe).__name__} folds other dimensions into the batch of its states {tuple(state.shape)}, and not "
            "sample by sample"
        )
