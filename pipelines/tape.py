"""A whole call of a pipeline on tape, and its replay: any of its steps comes alive again, the others cost no network.

The pipeline's own `__call__` runs again. Its modules' outputs come from the tape except in live steps; the real
`scheduler.step` is called with the taped prediction in the other steps, which rebuilds multistep buffers, step index and
random states. So guidance, momentum and packing are always the pipeline's own code, and a replayed step is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from . import seams


@dataclass
class Record:
    """One scheduler step as it was."""

    sample: Tensor  # [B,*latent]
    model_output: Tensor  # [B,*latent], guidance included
    returned: Any


@dataclass
class Tape:
    pipe: Any
    kwargs: dict[str, Any]
    denoisers: frozenset[str]
    random: list[Tensor]  # states of the global generator and of those in kwargs, at the start
    outputs: list[tuple[str, int, Any]] = field(default_factory=list)  # (module, step, what it returned), in order
    steps: list[Record] = field(default_factory=list)

    @property
    def result(self) -> Tensor:
        """The last state [B,*latent]."""
        return seams.prev_sample(self.steps[-1].returned)


def record(pipe: Any, kwargs: Mapping[str, Any], denoisers: Collection[str]) -> Tape:
    """Run the pipeline and keep what its modules and its scheduler said; ends after the last step it takes before decoding.

    Networks run in grad mode if a denoiser parameter requires grad, as they will in the replay: kernels differ else.
    """
    tape = Tape(pipe, dict(kwargs), frozenset(denoisers), _states(kwargs))
    trained = _trained(pipe, denoisers)

    def on_encode(encode: seams.Forward) -> Any:
        return _keep(tape, "encode_prompt", 0, encode())

    def on_call(call: seams.Call, forward: seams.Forward) -> Any:
        with torch.set_grad_enabled(trained and call.module in tape.denoisers):
            out = forward(*call.args, **call.kwargs)
        return _keep(tape, call.module, call.step, out)

    def on_step(step: seams.Step) -> Any:
        ret = step.advance()
        tape.steps.append(Record(*seams.clone((step.sample, step.model_output)), seams.clone(ret)))
        return ret

    seams.run(pipe, kwargs, on_encode=on_encode, on_call=on_call, on_step=on_step)
    return tape


def replay(
    tape: Tape,
    live: Collection[int],
    on_live: Callable[[seams.Step, Record], Tensor | None],
    before: Mapping[int, Tensor] | None = None,
) -> None:
    """Run the taped call again up to its last live step. `on_live(step, record)` sees each live step with a fresh
    `step.model_output`; a loss that it returns is backpropagated at once, into the parameters, and its graph is freed.

    `before[i]` [B,*latent] is forced on the pipeline as its state before step i >= 1. The graph is cut at the denoiser's
    outputs, so that nothing a pipeline carries from step to step (momentum) ties two live steps together.
    """
    live, answers, cuts = frozenset(live), iter(tape.outputs), []
    _restore(tape)

    def answer(name: str, step: int) -> Any:
        was = next(answers, ("nothing more", -1, None))
        if was[:2] != (name, step):
            raise RuntimeError(
                f"at step {step} the pipeline asked for {name}; on the tape it was {was[0]} at step {was[1]}"
            )
        return seams.clone(was[2])

    def on_call(call: seams.Call, forward: seams.Forward) -> Any:
        taped = answer(call.module, call.step)
        if call.step not in live or call.module not in tape.denoisers:
            return taped
        with torch.enable_grad():
            out = forward(*call.args, **call.kwargs)
        torch.set_grad_enabled(True)
        return tree_map_only(Tensor, lambda t: _cut(t, cuts), out)

    def on_step(step: seams.Step) -> Any:
        taped = tape.steps[step.index]
        torch.set_grad_enabled(False)
        step.advance(model_output=taped.model_output.clone())
        if step.index in live:
            with torch.enable_grad():
                _backward(on_live(step, taped), cuts)
            cuts.clear()
        if step.index == max(live):
            raise seams.Stop()
        forced = (before or {}).get(step.index + 1)
        returned = seams.clone(taped.returned)
        return returned if forced is None else seams.with_sample(returned, forced)

    seams.run(tape.pipe, tape.kwargs, on_encode=lambda _: answer("encode_prompt", 0), on_call=on_call, on_step=on_step)


def _cut(out: Tensor, cuts: list[tuple[Tensor, Tensor]]) -> Tensor:
    if not out.is_floating_point():
        return out
    leaf = out.detach().requires_grad_()
    cuts.append((out, leaf))
    return leaf


def _backward(loss: Tensor | None, cuts: list[tuple[Tensor, Tensor]]) -> None:
    if loss is None:
        return
    gradients = torch.autograd.grad(loss, [leaf for _, leaf in cuts], allow_unused=True)
    pairs = [(out, g) for (out, _), g in zip(cuts, gradients, strict=True) if g is not None and out.requires_grad]
    torch.autograd.backward([out for out, _ in pairs], [g for _, g in pairs])


def _keep(tape: Tape, name: str, step: int, out: Any) -> Any:
    tape.outputs.append((name, step, seams.clone(out)))
    return seams.clone(out)


def _trained(pipe: Any, denoisers: Collection[str]) -> bool:
    parts = seams.modules(pipe)
    return any(p.requires_grad for name in denoisers for p in parts[name].parameters())


def _generators(kwargs: Mapping[str, Any]) -> list[torch.Generator]:
    given = kwargs.get("generator")
    return given if isinstance(given, list) else [given] if given is not None else []


def _states(kwargs: Mapping[str, Any]) -> list[Tensor]:
    return [torch.get_rng_state(), *(g.get_state() for g in _generators(kwargs))]


def _restore(tape: Tape) -> None:
    torch.set_rng_state(tape.random[0])
    for generator, state in zip(_generators(tape.kwargs), tape.random[1:], strict=True):
        generator.set_state(state)
