"""Weights from one file: found, read without executing anything, and fitted name by name."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.core import text
from workbench.core.errors import BadInput
from workbench.core.weights import tensors
from workbench.core.weights.files import list_variants, select_weights
from workbench.core.weights.libraries import find_snapshot, quiet_libraries

UNREADABLE = (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError)


def check_source(source: str) -> None:
    """Raises BadInput when `source` can be neither `owner/repo/file` of the Hugging Face hub nor a local file of
    weights, whose names are read and whose tensors are not."""
    if (path := _local_path(source)) is None:
        return
    try:
        if path.suffix == ".safetensors":
            safetensors.safe_open(path, "pt").keys()
        else:
            torch.load(path, map_location="meta", mmap=zipfile.is_zipfile(path), weights_only=True)
    except UNREADABLE as error:
        raise BadInput(f"{path} is no readable weights file: {first_line(error)}") from None


def _local_path(source: str) -> Path | None:
    """The local file that `source` names, None for one of the hub. Raises BadInput when it can be neither."""
    if (path := Path(source).expanduser()).is_file():
        return path
    if source.startswith((".", "/", "~")) or source.count("/") < 2:
        raise BadInput(f"no weights file {source!r}; give a path, or owner/repo/file of the hub")
    return None


def locate_file(source: str) -> Path:
    """The local file, downloaded once when it is the hub's. Raises BadInput. What is in it, `read` finds out."""
    if path := _local_path(source):
        return path
    from huggingface_hub import hf_hub_download

    owner, repo, file = source.split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{repo}", file))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"can't get {source!r} from the hub ({first_line(error)}); give the path of a local copy"
        ) from None


def read_weights(source: str) -> dict[str, Tensor]:
    """The state dict in a safetensors file or a weights-only torch checkpoint, its usual wrappings removed.

    Raises BadInput for a missing or broken file, or a pickle that holds more than tensors.
    """
    path = locate_file(source)
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise BadInput(f"{path} is no readable weights file: {first_line(error)}") from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise BadInput(f"{path} holds no state dict of tensors")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_pretrained(cls: Any, folder: str, model: str) -> nn.Module:
    """A transformers network in float32, from a folder or the hub, with the tensors of its files: no more and no less.

    Raises BadInput, naming `model` and the first tensors, where one is missing, unexpected, of another shape, or has
    another value than in its file; and what transformers raises for a folder that it can't read.
    """
    with quiet_libraries():
        net, info = cls.from_pretrained(
            folder,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    if faults := tensors.read_loading_info(net, info).describe():
        raise BadInput(f"{model}: the weights of this {type(net).__name__} {faults}; take its own weights")
    tensors.check_no_meta(net, model)
    part = Path(folder) if Path(folder).is_dir() else find_snapshot(folder)
    if part is not None and list_variants(part) >= {""}:  # some models of the hub have no safetensors
        tensors.check_loaded_values(net, select_weights(part), model)
    return net


class BlankInit(TorchDispatchMode):
    """While it is entered, random initialisation is a constant, which saves most of the time of building: `fill`
    overwrites it all. Not left undone: what lies in fresh memory can keep a rejection sampler in its loop for ever."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.uniform_.default, torch.ops.aten.normal_.default):
            return args[0].fill_(args[1] if len(args) > 1 else 0.0)  # the mean, or the lower end
        return func(*args, **(kwargs or {}))


def fill_weights(net: nn.Module, state: Mapping[str, Tensor], source: str) -> nn.Module:
    """`net` with every one of its tensors taken from `state`, frozen, in eval mode.

    Raises BadInput at the first name that one of them lacks, or shape that differs.
    """
    expected = net.state_dict()
    for name, value in expected.items():
        if name not in state:
            raise BadInput(f"{source} lacks {name}: these are not the weights of this model")
        if state[name].shape != value.shape:
            raise BadInput(f"{source}: {name} is {list(state[name].shape)}, this model has {list(value.shape)}")
    for name in state:
        if name not in expected:
            raise BadInput(f"{source} holds {name}, which this model does not have")
    net.load_state_dict({name: state[name] for name in expected})
    return freeze_module(net)


@contextmanager
def isolated_load() -> Iterator[None]:
    """Loads in the middle of a run: parameters that a gradient can pass, and the global random state as it was."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        yield


def freeze_module(net: nn.Module) -> nn.Module:
    return net.eval().requires_grad_(False)


def first_line(error: Exception) -> str:
    """What an error says in a clause of at most 200 letters."""
    return text.first_line(error)[:200].rstrip(".")
