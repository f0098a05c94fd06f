"""Checks that the tensors of a network are those of its files: by name and shape before it loads, by value afterwards.

The libraries load a network with whatever tensors they find, and leave the others random or empty, with a warning. Both
checks refuse that in one sentence.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.core.errors import BadInput
from workbench.core.text import first_line
from workbench.core.weights import files as weight_files
from workbench.core.weights.libraries import find_component_class, quiet_libraries

# Parts that a checkpoint of a larger model has beside the network that a pipeline uses, such as CLIP's vision tower
# beside its text encoder; and buffers that earlier versions of the libraries saved.
UNUSED_PARTS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|relative_position_index|inv_freq|logit_scale|logit_bias|lm_head|"
    r"(visual|text)_projection|vision_model|vision_tower|visual|vision_embed_tokens|audio_model|audio_projection|"
    r"multi_modal_projector|decoder|pooler|classifier|model_ema)(\.|$)"
)
RUNNING = ("running_mean", "running_var")  # buffers whose values no constructor can know
FRACTION_SEEN = 0.5  # of a network's tensors that must be found in its files; libraries split and join some of them
VERSION_KEYS = {"transformers": "transformers_version", "diffusers": "_diffusers_version"}  # in config.json
SHORT = 60  # letters of two names that a sentence can hold
FEW = 64  # values of a vector that are compared


@dataclass(frozen=True)
class NameFaults:
    """How the tensors in a network's files differ from those that it has. Names as the library gives them."""

    total: int  # tensors of the network
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]  # "name: [in the file] where the network has [...]"

    def describe(self) -> str:
        """The faults in words; empty where there are none."""
        lists = {
            f"lack {len(self.missing)} of its {self.total} tensors": self.missing,
            f"hold {len(self.unexpected)} that it does not have": self.unexpected,
            f"hold {len(self.misshaped)} of another shape": self.misshaped,
        }
        return ", ".join(f"{what} ({_first_names(names)})" for what, names in lists.items() if names)


def check_tensor_names(part: Path, entry: tuple[str, ...], variant: str = "") -> None:
    """Raises BadInput unless the network of class `entry` (as in model_index.json) in folder `part` finds all of its
    tensors in its files, and no others."""
    files = tuple(weight_files.select_weights(part, variant))
    stats = [file.stat() for file in (*files, part / "config.json")]
    if faults := _describe_faults(part, entry, files, tuple((s.st_size, s.st_mtime_ns) for s in stats)):
        raise BadInput(f"{part}: the weights of this {entry[1]} {faults}; {_suggest_remedy(part, entry[0])}")


@cache
def _describe_faults(part: Path, entry: tuple[str, ...], files: tuple[Path, ...], stamps: tuple) -> str:
    """What NameFaults.describe says, remembered until the size or time of a file changes (`stamps`)."""
    shapes: dict[str, Sequence[int]] = {}
    for file in files:
        shapes |= weight_files.read_shapes(file)
    faults = find_name_faults(find_component_class(entry), part, shapes)
    return faults.describe() if faults else ""


def find_name_faults(cls: Any, part: Path, shapes: Mapping[str, Sequence[int]]) -> NameFaults | None:
    """The faults of files that hold these names and shapes, for a network of that class with the config in `part`; None
    for a kind of network that can't be told without loading it (quantised ones, and classes of other libraries). Raises
    BadInput for a config that can't describe such a network."""
    import diffusers
    import transformers

    state = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    try:
        with quiet_libraries(), torch.random.fork_rng([]):
            if issubclass(cls, transformers.PreTrainedModel):
                return _find_transformers_faults(cls, part, state)
            return _find_diffusers_faults(cls, part, state) if issubclass(cls, diffusers.ModelMixin) else None
    except Exception as error:  # a constructor may fail in any way on the values of a config
        reason = first_line(error)[:150]
        raise BadInput(f"{part / 'config.json'} can't describe a {cls.__name__}: {reason}") from error


def _find_transformers_faults(cls: Any, part: Path, state: dict[str, Tensor]) -> NameFaults | None:
    """By transformers' own loading, of empty tensors: it renames those of earlier versions, and knows what is tied."""
    config = cls.config_class.from_pretrained(part)
    if getattr(config, "quantization_config", None):
        return None
    model, info = cls.from_pretrained(
        None,
        config=config,
        state_dict=state,
        device_map="meta",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return read_loading_info(model, info)


def read_loading_info(model: nn.Module, info: Mapping[str, Any]) -> NameFaults:
    """The faults that transformers reports of a model that it loaded with output_loading_info and
    ignore_mismatched_sizes."""
    wrong = {name: _shape_fault(name, had, has) for name, had, has in info["mismatched_keys"]}
    needed = {name for names in _names_of_parameters(model) for name in names}
    missing = (n for n in set(info["missing_keys"]) - set(wrong) if n in needed or n.rpartition(".")[2] in RUNNING)
    return NameFaults(
        len(model.state_dict()),
        tuple(sorted(missing)),
        tuple(sorted(n for n in info["unexpected_keys"] if not _is_unused(n, model))),
        tuple(wrong.values()),
    )


def _find_diffusers_faults(cls: Any, part: Path, state: dict[str, Tensor]) -> NameFaults | None:
    config = cls.load_config(part)
    if config.get("quantization_config"):
        return None
    with torch.device("meta"):  # of this thread alone, unlike accelerate's init_empty_weights
        model = cls.from_config(config)
    if hasattr(model, "_fix_state_dict_keys_on_load"):
        model._fix_state_dict_keys_on_load(state)
    expected = model.state_dict()
    needed = [*_names_of_parameters(model), *((n,) for n in expected if n.rpartition(".")[2] in RUNNING)]
    return NameFaults(
        len(expected),
        tuple(sorted(names[0] for names in needed if not set(names) & set(state))),
        tuple(sorted(n for n in state if n not in expected and not _is_unused(n, model))),
        tuple(
            _shape_fault(n, t.shape, expected[n].shape)
            for n, t in state.items()
            if n in expected and t.shape != expected[n].shape
        ),
    )


def _names_of_parameters(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """The names of each parameter: several where layers share it."""
    names: dict[int, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = (*names.get(id(parameter), ()), name)
    yield from names.values()


def _is_unused(name: str, model: nn.Module) -> bool:
    """Whether a tensor that the network does not take is known to be of no use to it: the class says so, it is a buffer
    that the network computes itself, or it belongs to a part that the network does not have at all."""
    if name in dict(model.named_buffers()):
        return True
    if any(re.search(pattern, name) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()):
        return True
    hit = UNUSED_PARTS.search(name)
    return hit is not None and name[: hit.end(2)] not in dict(model.named_modules())


def _shape_fault(name: str, had: Sequence[int], has: Sequence[int]) -> str:
    return f"{name}: {list(had)} where the network has {list(has)}"


def _first_names(names: Sequence[str]) -> str:
    """The first name, a second one where both are short, and … for more."""
    count = 2 if sum(map(len, names[:2])) <= SHORT else 1
    return ", ".join([*names[:count], *(["…"] if len(names) > count else [])])


def _suggest_remedy(part: Path, library: str) -> str:
    """What to do about weights that don't fit, by the version of the library that saved them."""
    library = "transformers" if library == "transformers" else "diffusers"
    saved_by = str(weight_files.read_json_object(part / "config.json").get(VERSION_KEYS[library], ""))
    installed = importlib.import_module(library).__version__
    if re.fullmatch(r"[\d.]{1,20}", saved_by) and _as_numbers(saved_by) > _as_numbers(installed):
        return f"{library} {saved_by} saved them, and {installed} is installed: install that version"
    return "get them again"


def _as_numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def check_loaded_values(module: nn.Module, files: Sequence[Path], where: str) -> int:
    """How many tensors of a network have the values in its files. Raises BadInput where one has others, where a tensor
    has no values (meta), and where fewer than half of them are found.

    The first and last rows of each are compared, in the dtype of the network. A tensor that the library has renamed is
    looked for by its values; one that it has split or joined is not found.
    """
    import safetensors

    check_no_meta(module, where)
    unseen, seen, other = dict(_own_tensors(module)), 0, []
    names_by_shape: dict[tuple, list] = {}
    total = len(unseen)
    readers = [safetensors.safe_open(file, "pt") for file in files]
    for reader in readers:
        for name in reader.keys():  # noqa: SIM118  # a reader is no mapping
            names_by_shape.setdefault(tuple(reader.get_slice(name).get_shape()), []).append((reader, name))
    for name, tensor in unseen.items():
        alike = names_by_shape.get(tuple(tensor.shape), [])
        own = [(reader, other_name) for reader, other_name in alike if other_name == name]
        if any(_has_rows(tensor, *entry) for entry in (*own, *(entry for entry in alike if entry not in own))):
            seen += 1
        elif own:
            other.append(name)
    if other or seen < FRACTION_SEEN * total:
        lost = f"{len(other)} ({_first_names(other)})" if other else str(total - seen)
        raise BadInput(
            f"{where}: {lost} of its {total} tensors do not have the values in {_first_names([f.name for f in files])} "
            "after loading; the installed versions of transformers and diffusers can't read these weights"
        )
    return seen


def check_no_meta(module: nn.Module, where: str) -> int:
    """How many tensors a network has. Raises BadInput where one has no values: it was built, and nothing was loaded
    into it."""
    own = dict(_own_tensors(module))
    if empty := [name for name, tensor in own.items() if tensor.is_meta]:
        raise BadInput(
            f"{where}: {len(empty)} of its {len(own)} tensors ({_first_names(empty)}) came without values from "
            "loading; start again in a new process, and if it stays so, get the weights again"
        )
    return len(own)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from ((name, b) for name, b in module.named_buffers() if name.rpartition(".")[2] in RUNNING)


def _has_rows(tensor: Tensor, reader: Any, name: str) -> bool:
    """Whether the first and last values of a tensor are those in a file."""
    if tensor.dim() == 0:
        return torch.equal(reader.get_tensor(name).to(tensor.dtype), tensor.detach().cpu())
    rows, values = reader.get_slice(name), tensor.detach()
    count = FEW if tensor.dim() == 1 else 1
    return all(
        torch.equal(rows[part].to(values.dtype), values[part].cpu()) for part in (slice(0, count), slice(-count, None))
    )
