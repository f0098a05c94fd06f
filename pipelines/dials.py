"""Dials: a denoiser that is told how good its result is to be, on several axes (arXiv:2411.04713).

For each axis there are two vectors, one of the level 0 and one of 5; a value between lies between them, so that each
example teaches the whole of the dial. The sum over axes is added to every token of `encoder_hidden_states`, the
argument by which nearly every denoiser of diffusers reads the prompt. They begin at zero, so the denoiser is at first
what it was, bit for bit.

All rows of a sample get its dials, those of its unconditional prediction too: a guidance scale goes on to strengthen
the prompt alone, and dials mean the same at any scale.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipelines import seams
from workbench.core.errors import BadInput
from workbench.core.inputs import BEST_LEVEL, prompt_dials

ARGUMENT = "encoder_hidden_states"
GAIN = 32.0  # by which a table is multiplied, so that it moves as fast as it should at the step size of a LoRA


class Dials(nn.Module):
    """The vectors of one denoiser, whose attribute `dials` it is. Within `set_dials` a hook adds them.

    repeats: rows of the text for one row of the denoiser; levels: how many vectors an axis has, evenly from 0 to 5.
    """

    def __init__(self, axes: Sequence[str], width: int, repeats: int = 1, levels: int = 2):
        super().__init__()
        self.axes, self.repeats = tuple(axes), repeats
        self.table = nn.Parameter(torch.zeros(len(axes), levels, width))
        self.levels: Tensor | None = None  # [B,axes], NaN where nothing is said
        self.enabled = True

    def compute_vectors(self) -> Tensor:
        """[B,width]: the sums over axes, of the levels that are set."""
        assert self.levels is not None
        levels = self.levels.to(self.table.device)
        vectors = self._read_table(levels.nan_to_num(0.0))
        return GAIN * (vectors * levels.isfinite()[..., None].to(vectors)).sum(1)

    def tabulate_levels(self) -> Tensor:
        """[axes,6,width]: the vectors of the whole levels, 0 to 5."""
        whole = torch.arange(BEST_LEVEL + 1.0, device=self.table.device)
        return self._read_table(whole[:, None].expand(-1, len(self.axes))).transpose(0, 1)

    def _read_table(self, level: Tensor) -> Tensor:
        """[B,axes,width] at levels [B,axes]."""
        place, axis = level * (self.table.shape[1] - 1) / BEST_LEVEL, torch.arange(len(self.axes), device=level.device)
        low = place.floor().clamp(0, self.table.shape[1] - 2).long()
        return torch.lerp(self.table[axis, low], self.table[axis, low + 1], (place - low)[..., None].to(self.table))


def add_vectors(denoiser: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """A forward pre-hook: adds the vectors of a denoiser's dials to the text that it is about to read."""
    dials = denoiser.dials if has_dials(denoiser) else None
    if dials is None or dials.levels is None or not dials.enabled:
        return None
    bound = inspect.signature(type(denoiser).forward).bind(denoiser, *args, **kwargs)
    text, vectors = bound.arguments[ARGUMENT], dials.compute_vectors()
    sample = torch.arange(len(text), device=text.device) // dials.repeats % len(vectors)  # of each row
    bound.arguments[ARGUMENT] = text + vectors.to(text)[sample][:, None]
    return bound.args[1:], bound.kwargs


def install_dials(denoiser: Any, axes: Sequence[str], width: int, repeats: int = 1, levels: int = 2) -> Dials:
    """Dials on a denoiser, all zero, in float32 on its device, in place of those that it may have."""
    if add_vectors not in denoiser._forward_pre_hooks.values():
        denoiser.register_forward_pre_hook(add_vectors, with_kwargs=True)
    denoiser.dials = Dials(axes, width, repeats, levels).to(next(denoiser.parameters()).device)
    return denoiser.dials


def remove_dials(denoiser: Any) -> None:
    """Take a denoiser's dials off, if it has some."""
    if has_dials(denoiser):
        del denoiser.dials


def has_dials(denoiser: Any) -> bool:
    """Whether a network has dials."""
    return isinstance(getattr(denoiser, "dials", None), Dials)


def find_dials(pipe: Any) -> dict[str, Dials]:
    """Name of a network -> its dials."""
    networks: dict[str, Any] = seams.named_networks(pipe)
    return {name: part.dials for name, part in networks.items() if has_dials(part)}


@contextmanager
def set_dials(pipe: Any, prompts: Sequence[str], asked: Mapping[str, float | None]) -> Iterator[None]:
    """Inside the block the pipeline's dials are those of each prompt; where it has none, those that are `asked`, and 5
    on every axis that `asked` doesn't name. A level of None is not said."""
    parts = list(find_dials(pipe).values())
    own = [prompt_dials(prompt) for prompt in prompts]
    for dials in parts:
        rows = [{**dict.fromkeys(dials.axes, float(BEST_LEVEL)), **asked} if row is None else row for row in own]
        values = [[torch.nan if (v := row.get(axis)) is None else float(v) for axis in dials.axes] for row in rows]
        dials.levels = torch.tensor(values)
    try:
        yield
    finally:
        for dials in parts:
            dials.levels = None


@contextmanager
def dials_disabled(parts: Collection[Dials]) -> Iterator[None]:
    """Inside the block these dials add nothing; afterwards they are as before."""
    were = [dials.enabled for dials in parts]
    try:
        for dials in parts:
            dials.enabled = False
        yield
    finally:
        for dials, was in zip(parts, were, strict=True):
            dials.enabled = was


def find_text_layout(policy: Any) -> tuple[int, int]:
    """(width of the text's tokens, rows of the text for one of the denoiser), found by running the pipeline up to its
    denoiser. Some classes repeat the text for each frame, so that the rows of one sample lie side by side. Raises
    BadInput for a pipeline that gives its denoiser no such text."""
    name = type(policy.pipe).__name__

    def read_text(*texts: str) -> Tensor:
        prompts = policy.example_prompts(*texts)

        def on_call(call: seams.ModuleCall, forward: seams.Forward) -> Any:
            if call.module not in policy.structure.denoisers:
                return forward(*call.args, **call.kwargs)
            denoiser = seams.named_networks(policy.pipe)[call.module]
            bound = inspect.signature(type(denoiser).forward).bind(denoiser, *call.args, **call.kwargs)
            raise seams.LeavePipeline(bound.arguments.get(ARGUMENT))

        with torch.no_grad(), torch.random.fork_rng(policy._cuda_devices):
            arguments = policy.call_arguments(prompts, range(len(prompts)))
            text = seams.run_pipeline(policy.pipe, arguments, on_call=on_call)
        if not isinstance(text, Tensor) or text.dim() != 3 or not text.is_floating_point():
            raise BadInput(refuse_class(name))
        return text

    if policy.grouping != "each":  # one prompt at a time, or several with dials in common
        return read_text("a").shape[-1], 1
    before, after = read_text("a", "b"), read_text("a", "c")  # equally long, so that what is padded stays as it is
    rows, changed = len(before), (before != after).flatten(1).any(1).nonzero()[:, 0]  # those of the second prompt
    for repeats in range(1, rows // 2 + 1):
        if rows % (2 * repeats) == 0 and bool((changed // repeats % 2 == 1).all()):
            return before.shape[-1], repeats
    raise BadInput(f"reward_condition: which rows of the text of {name} belong to which prompt can't be told")


def refuse_class(name: str) -> str:
    """The sentence by which a pipeline class is refused."""
    return f"reward_condition: {name} gives its denoiser no `{ARGUMENT}`, to which levels are added; take another class"
