"""Dials of trained weights: their file in an export, and the checks of a config that sets them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from pipelines.components import find_pipeline_class
from pipelines.config import PipelineConfig
from pipelines.dials import ARGUMENT, GAIN, find_dials, install_dials, refuse_class
from pipelines.lora_layers import DENOISERS
from pipelines.lora_source import RECORD, find_lora, read_record
from workbench.core.errors import BadInput
from workbench.core.inputs import BEST_LEVEL
from workbench.core.schema import suggest_nearest
from workbench.core.text import quote_value
from workbench.core.weights.files import read_shapes

FILE = "dials.safetensors"  # of an export: "<denoiser>.<axis>" -> [6,width]


def exported_axes(config: PipelineConfig) -> tuple[str, ...]:
    """The axes of the weights that a config loads; () where they have no dials. Raises BadInput."""
    if not config.lora or not ((path := find_lora(config.lora)) / RECORD).is_file():
        return ()
    return tuple(read_record(path).get("dials", ()))


def check_dials(config: PipelineConfig) -> None:
    """Raises BadInput for dials of weights that have none, for an unknown axis, and for values outside 0 to 5."""
    where = f"dials of {config.name or config.repo}"
    if not (axes := exported_axes(config)) and config.dials:
        raise BadInput(f"{where}: these weights have no dials; name a run that was trained by reward_condition")
    for axis, value in config.dials.items():
        if axis not in axes:
            raise BadInput(f"{where}: unknown axis {quote_value(axis)}; {suggest_nearest(str(axis), axes)}")
        if value is not None and (type(value) not in (int, float) or not 0 <= value <= BEST_LEVEL):
            raise BadInput(f"{where}: {axis} is a number from 0 to {BEST_LEVEL}, or null, and not {quote_value(value)}")


def check_new_dials(config: PipelineConfig, shard: bool) -> None:
    """Raises BadInput for a pipeline that can't be given dials: its class takes no text states, its weights have some
    already, or they are to be sharded."""
    if exported_axes(config):
        raise BadInput(f"reward_condition: {config.name} has dials already; train new ones from its base")
    if shard:
        raise BadInput("train.shard: dials are not sharded; leave it out with reward_condition")
    kinds = find_pipeline_class(config.pipeline)._get_signature_types()
    classes: list[Any] = [kind for name in DENOISERS for kind in kinds.get(name, ()) if inspect.isclass(kind)]
    if classes and not any(ARGUMENT in inspect.signature(kind.forward).parameters for kind in classes):
        raise BadInput(refuse_class(config.pipeline))


def write_dials(pipe: Any, folder: Path) -> None:
    """Write the dials of a pipeline's denoisers into an export."""
    tensors = {
        f"{name}.{axis}": (GAIN * rows.detach().float()).cpu().contiguous()
        for name, dials in find_dials(pipe).items()
        for axis, rows in zip(dials.axes, dials.tabulate_levels(), strict=True)
    }
    safetensors.torch.save_file(tensors, folder / FILE, {"format": "pt"})


def load_dials(pipe: Any, folder: Path, axes: Sequence[str]) -> None:
    """Put the dials of an export on a pipeline's denoisers, frozen. Raises BadInput for a file that is not as the
    export's record says."""
    path = folder / FILE
    tensors = safetensors.torch.load_file(path) if path.is_file() else {}
    names = list(dict.fromkeys(key.partition(".")[0] for key in tensors))
    if not names or set(tensors) != {f"{name}.{axis}" for name in names for axis in axes}:
        raise BadInput(f"{path}: holds other dials than {RECORD} says; export again")
    for name in names:
        if not isinstance(getattr(pipe, name, None), nn.Module):
            raise BadInput(f"{path}: is for a {quote_value(name)}, which this pipeline has not")
        levels, width = BEST_LEVEL + 1, tensors[f"{name}.{axes[0]}"].shape[-1]
        dials = install_dials(getattr(pipe, name), axes, width, levels=levels)
        for rows, axis in zip(dials.table.data, axes, strict=True):
            if tensors[f"{name}.{axis}"].shape != rows.shape:
                raise BadInput(f"{path}: {name}.{axis} has another shape than {tuple(rows.shape)}; export again")
            rows.copy_(tensors[f"{name}.{axis}"] / GAIN)
        dials.requires_grad_(False)


def usage_lines(folder: Path) -> list[str]:
    """The Python that sets the dials of an export, in `{folder}`, in plain diffusers; none for one without dials."""
    if not (folder / FILE).is_file():
        return []
    keys = [key.partition(".") for key in read_shapes(folder / FILE)]
    axes, denoisers = (list(dict.fromkeys(key[place] for key in keys)) for place in (2, 0))
    levels = ", ".join(f"{axis!r}: {BEST_LEVEL}" for axis in axes)
    lines = [
        f"tables = safetensors.torch.load_file('{{folder}}/{FILE}')  # denoiser.axis -> a vector for each level 0 to 5",
        f"levels = {{{levels}}}",
    ]
    for name in denoisers:
        lines += [
            f"shift = sum(tables['{name}.' + axis][level] for axis, level in levels.items()).to(pipe.device)",
            f"pipe.{name}.register_forward_pre_hook(lambda net, args, kwargs, shift=shift: (args, {{**kwargs, "
            f"'{ARGUMENT}': kwargs['{ARGUMENT}'] + shift.to(kwargs['{ARGUMENT}'])}}), with_kwargs=True)",
        ]
    return lines
