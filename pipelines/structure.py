"""What a pipeline is made of, found by watching one short call: its denoisers, its noise, its first state, its steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pipelines import schedule, seams


@dataclass(frozen=True)
class Anatomy:
    """The first state is x_0 = c P n: a scaled rearrangement of the noise n (packing, init_noise_sigma)."""

    denoisers: frozenset[str]  # component names; a second expert of the same class is one of them
    steps: int  # S
    noise: Tensor  # [1,*draw] as served, a leaf
    state: Tensor  # [1,*latent], the first state made of it, with the graph between them
    scheduler: Any  # a copy, its timesteps set
    folded: int = 1  # rows that the scheduler sees for one sample, where a pipeline lays its frames into the batch

    def rows(self, x: Tensor) -> Tensor:
        """[B,*latent] of what the scheduler sees: the same, or [B folded,...]."""
        return x if self.folded == 1 else x.unflatten(0, (-1, self.folded))

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return tuple(self.noise.shape[1:])

    def start(self, noise: Tensor) -> Tensor:
        """x_0 [B,*latent] of noise [B,*draw]: the transpose of the transpose."""
        u = torch.zeros_like(self.state).requires_grad_()
        (back,) = torch.autograd.grad(self.state, self.noise, u, create_graph=True, retain_graph=True)
        rows = [
            torch.autograd.grad(back, u, n[None].to(back), create_graph=n.requires_grad, retain_graph=True)[0]
            for n in noise
        ]
        return torch.cat(rows)

    def unstart(self, x: Tensor) -> Tensor:
        """Noise [B,*draw] that makes the first state x [B,*latent]; exact where c = 1, else to rounding."""
        rows = [self._transpose(row[None].to(self.state)) for row in x]
        return torch.cat(rows) / self.scale**2

    @property
    def scale(self) -> float:
        """c, the factor between the noise and the first state."""
        return float(self.state.detach().double().norm() / self.noise.detach().double().norm())

    def _transpose(self, x: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled() and x.requires_grad
        return torch.autograd.grad(self.state, self.noise, x, create_graph=wanted, retain_graph=True)[0]


@torch.inference_mode(False)
@torch.enable_grad()
def find(pipe: Any, kwargs: Mapping[str, Any], two: Mapping[str, Any]) -> Anatomy:
    """Run `kwargs` (one prompt) up to the first scheduler step: prompt encoding and one denoiser evaluation. Where one
    prompt is several rows to the scheduler, `two` (two prompts) tells whether each prompt's rows lie side by side.

    A module that the noise reaches before that step is a denoiser. Raises TypeError, by name, for a pipeline that has no
    scheduler step, draws no noise through randn_tensor, or whose first state isn't a scaled rearrangement of its noise.
    """
    name, reached, draws = type(pipe).__name__, set(), []

    def on_draw(noise: Tensor) -> Tensor:
        draws.append(noise.float().requires_grad_())
        return draws[-1].to(noise.dtype)

    def on_call(call: seams.Call, forward: seams.Forward) -> Any:
        with torch.no_grad():
            out = forward(*call.args, **call.kwargs)
        if any(t.requires_grad for t in seams.tensors((call.args, call.kwargs))):
            reached.add(call.module)
        return out

    def on_encode(encode: seams.Forward) -> Any:
        with torch.no_grad():
            return encode()

    def on_step(step: seams.Step) -> None:
        raise seams.Stop(step)

    frozen = [p for module in seams.modules(pipe).values() for p in module.parameters() if p.requires_grad]
    try:
        for p in frozen:  # so that only the noise has a gradient to pass on
            p.requires_grad_(False)
        step = seams.run(
            pipe, kwargs, on_draw=on_draw, on_call=on_call, on_encode=on_encode, on_step=on_step, grad=True
        )
    finally:
        for p in frozen:
            p.requires_grad_(True)
    if not isinstance(step, seams.Step):
        raise TypeError(f"{name} takes no scheduler step, so it can't be a policy")
    if not step.sample.requires_grad or not reached:
        raise TypeError(
            f"{name} draws no noise through randn_tensor that reaches its denoiser, so it can't be a policy"
        )
    kinds = {type(seams.modules(pipe)[n]) for n in reached}
    denoisers = frozenset(n for n, module in seams.modules(pipe).items() if type(module) in kinds)
    drawn = next(
        d
        for d in draws
        if torch.autograd.grad(step.sample.sum(), d, allow_unused=True, retain_graph=True)[0] is not None
    )
    folded = len(step.sample)
    state = step.sample if folded == 1 else step.sample[None]
    found = Anatomy(denoisers, _count(step.scheduler), drawn, state, copy.deepcopy(step.scheduler), folded)
    _check(found, name)
    if folded > 1:
        _check_rows(found, pipe, two)
    return found


def remembers(pipe: Any, kwargs: Mapping[str, Any], anatomy: Anatomy) -> bool:
    """Whether what the scheduler sees at step 1 depends on what the denoiser said at step 0, the state being the same: then
    guidance carries momentum, and a step from an arbitrary state is not defined. One denoiser evaluation."""
    if anatomy.steps == 1:
        return False
    said: list[Any] = []

    def second_output(factor: float) -> Tensor:
        calls = iter(range(1 << 30))

        def on_call(call: seams.Call, forward: seams.Forward) -> Any:
            if call.module not in anatomy.denoisers:
                return forward(*call.args, **call.kwargs)
            if call.step == 0 and factor == 1:
                said.append(forward(*call.args, **call.kwargs))
            n = next(calls) % len(said)
            return tree_map_only(Tensor, lambda t: t * factor if call.step == 0 else t.clone(), said[n])

        def on_step(step: seams.Step) -> Any:
            if step.index == 1:
                raise seams.Stop(step.model_output)
            return seams.with_sample(step.advance(), anatomy.state.detach())

        return seams.run(pipe, kwargs, on_call=on_call, on_step=on_step)

    return not torch.equal(second_output(1.0), second_output(2.0))


def _count(scheduler: Any) -> int:
    return len(schedule.levels(scheduler)) if schedule.known(scheduler) else len(scheduler.timesteps)


def _check(found: Anatomy, name: str) -> None:
    again = found.start(found.unstart(found.state.detach())).detach()
    tolerance = 1e-5 if found.state.dtype == torch.float32 else 1e-2
    if not torch.allclose(again, found.state.detach(), rtol=tolerance, atol=tolerance * found.scale):
        raise TypeError(f"the first state of {name} is not a scaled rearrangement of its noise")


def _check_rows(found: Anatomy, pipe: Any, kwargs: Mapping[str, Any]) -> None:
    """Raises TypeError unless the rows of one sample lie side by side in the states of several."""
    noise = torch.stack([torch.randn(found.noise_shape, generator=torch.Generator().manual_seed(k)) for k in (0, 1)])

    def on_step(step: seams.Step) -> None:
        raise seams.Stop(step.sample)

    served = iter([noise])
    with torch.no_grad():
        state = seams.run(pipe, kwargs, on_draw=lambda drawn: next(served, drawn).to(drawn), on_step=on_step)
    wanted = found.start(noise.to(found.noise.device)).detach()
    if state.shape != wanted.flatten(0, 1).shape or not torch.equal(found.rows(state), wanted):
        raise TypeError(
            f"{type(pipe).__name__} folds other dimensions into the batch of its states {tuple(state.shape)}, and not "
            "sample by sample"
        )
