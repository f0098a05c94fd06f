"""A pipeline's components: from its own folder, from other repositories, or from single files; all verified."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from pipelines import weight_folder
from pipelines.component_sources import (
    DTYPES,
    ComponentSource,
    download_file,
    explain_error,
    find_cached,
    find_unread,
    read_sources,
    resolve_place,
)
from pipelines.config import PipelineConfig
from pipelines.fingerprint import check_pack_fingerprints
from pipelines.guards import SWITCHES, guards_off
from pipelines.known_classes import OPTIONAL_COMPONENTS
from pipelines.seams import named_networks
from workbench.core.errors import BadInput
from workbench.core.paths import STARTER
from workbench.core.schema import suggest_nearest
from workbench.core.weights import files as weight_files
from workbench.core.weights import tensors
from workbench.core.weights.libraries import find_component_class, find_snapshot

LIBRARY_ERRORS = (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError, AttributeError)  # of loading


def check_components(config: PipelineConfig) -> None:
    """Raises BadInput for everything that can be known to be wrong with the local files of a config's pipeline: files
    that are missing, pickled or cut off, and tensors that are missing, unexpected or of another shape.

    The starter pack's tensors are checked when they load, by their fingerprints.
    """
    sources, base = read_sources(config), config.folder
    if config.file:
        check_single_file(config)
    elif base is not None:
        index, unread = weight_folder.list_components(base), find_unread(config, base)
        variant = weight_folder.find_variant(base, config.variant, unread)
        optional = OPTIONAL_COMPONENTS.get(config.pipeline, frozenset())
        cls = weight_folder.read_pipeline_class(base) if config.inputs and takes_components(config, index) else ""
        weight_folder.check_folder(base, cls or config.pipeline, unread, optional, variant)
        if not base.is_relative_to(STARTER):
            for name, entry in index.items():
                part = base / name
                if name not in unread and part.is_dir() and weight_files.is_network(part):
                    tensors.check_tensor_names(part, tuple(entry), variant)
    for source in filter(None, sources.values()):
        _check_source(source, base, config.variant)


def takes_components(config: PipelineConfig, index: Mapping[str, Any]) -> bool:
    """Whether the components of a folder are those of the config's class: one that starts from a source is often made
    of the weights of a text-to-media class."""
    cls = find_pipeline_class(config.pipeline)
    kinds = {name: [getattr(k, "__name__", "") for k in kinds] for name, kinds in cls._get_signature_types().items()}
    needed = set(cls._get_signature_keys(cls)[0]) - set(cls._optional_components)
    return needed <= {*index, *config.components} and all(
        index[name][1] in kinds[name] for name in {"transformer", "unet", "vae"} & {*index} & {*kinds}
    )


def _check_source(source: ComponentSource, base: Path | None, variant: str) -> None:
    entry = weight_folder.list_components(base).get(source.name) if base else None
    if source.file:
        path = source.path
        if path is not None and path.suffix == ".gguf":
            check_gguf(path, source.where)
        elif path is not None:
            weight_files.check_file(path)
            part = base / source.name if base else None
            if part is not None and entry and weight_files.is_network(part):
                find_file_layout(path, part, find_component_class(entry), source.where)
    elif (part := source.folder) is not None:
        weight_files.check_weights(part, variant)
        if entry and weight_files.is_network(part):
            tensors.check_tensor_names(part, tuple(entry), variant)


def check_single_file(config: PipelineConfig) -> None:
    """Raises BadInput unless `file` is a whole safetensors file and the class can be made of one."""
    path = Path(config.file).expanduser()
    if not path.is_file():
        raise BadInput(f"file: no such file: {path}")
    if path.suffix != ".safetensors":
        raise BadInput(f"file: {path} is not a .safetensors file; {weight_files.NO_PICKLES}")
    weight_files.check_file(path)
    if not hasattr(find_pipeline_class(config.pipeline), "from_single_file"):
        raise BadInput(f"file: diffusers can't make a {config.pipeline} of one file; give the folder in repo")


def check_gguf(path: Path, where: str) -> None:
    """Raises BadInput unless a file begins as GGUF files do and the package gguf is installed."""
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise BadInput(f"{where}: {path} is no GGUF file; download it again")
    if importlib.util.find_spec("gguf") is None:
        raise BadInput(f"{where}: {path.name} needs the package gguf: pip install 'media-alignment-workbench[gguf]'")


def find_file_layout(path: Path, part: Path, cls: Any, where: str) -> str:
    """How the tensors of one safetensors file are named: "diffusers" as in the component's own folder `part`, or
    "original" as by the model's authors, which diffusers converts. Raises BadInput for a file that is neither."""
    faults = tensors.find_name_faults(cls, part, weight_files.read_shapes(path))
    if faults is None or not faults.describe():
        return "diffusers"
    if hasattr(cls, "from_single_file") and faults.missing and faults.unexpected:
        return "original"
    raise BadInput(f"{where}: {path}: the weights of this {cls.__name__} {faults.describe()}; take another file")


def find_pipeline_class(name: str) -> Any:
    """The diffusers pipeline of that name. Raises BadInput, naming the nearest."""
    import diffusers

    cls = getattr(diffusers, name, None)
    if not (inspect.isclass(cls) and issubclass(cls, diffusers.DiffusionPipeline)):
        class_names = [n for n in dir(diffusers) if n.endswith("Pipeline")]
        raise BadInput(f"class: diffusers has no pipeline {name!r}; {suggest_nearest(name, class_names)}")
    return cls


def has_vocoder(config: PipelineConfig) -> bool:
    """Whether a pipeline of diffusers makes its media by a vocoder, through which none can be encoded: by its class."""
    import diffusers

    cls = getattr(diffusers, config.pipeline, None)
    return cls is not None and "vocoder" in inspect.signature(cls.__init__).parameters


def build_components(config: PipelineConfig, dtype: torch.dtype, shared: Mapping[str, Any]) -> Any:
    """The pipeline with the config's components, each with the tensors of its files, in its own scheduler. `shared`
    components of another pipeline take the place of its own. Raises BadInput."""
    cls = find_pipeline_class(config.pipeline)
    repo = str(config.folder or config.repo)
    index, sources = _component_index(cls, repo), read_sources(config)
    for name in config.components:
        if name not in index and name not in SWITCHES:
            raise BadInput(f"components: {config.pipeline} has no component {name!r}; {suggest_nearest(name, index)}")
    parts: dict[str, Any] = {name: part for name, part in shared.items() if name in index}
    files: dict[str, Path] = {}  # to be loaded into components of the base
    for name, source in sources.items():
        if name in shared:
            continue
        if source is None:
            parts[name] = None
        elif not source.file:
            parts[name] = load_component(source, index[name], dtype, config.variant)
        elif _is_converted(source, path := source.path or download_file(source), index[name], repo):
            parts[name] = _convert_file(source, path, index[name], repo, dtype)
        else:
            files[name] = path
    parts |= guards_off(config.components, inspect.signature(cls.__init__).parameters)
    pipe = _load_base(cls, repo, config, index, dtype, parts)
    for name, path in files.items():
        _overwrite(getattr(pipe, name), path, f"components.{name}")
    verify_components(pipe, config, shared)
    return pipe


def verify_components(pipe: Any, config: PipelineConfig, shared: Collection[str] = ()) -> dict[str, tuple[int, int]]:
    """Component -> (its tensors that have the values in its files, its tensors), of a config's pipeline without LoRA.
    Raises BadInput where a tensor has no value, or another, and where a network of the starter pack does not have the
    fingerprint that was recorded when it was built. `shared` components come from another pipeline."""
    files, counts, networks = find_component_files(config), {}, named_networks(pipe)
    for name, network in networks.items():
        where = f"{name} of {config.name or config.repo}"
        total = tensors.check_no_meta(network, where)
        if name in files and name not in shared:
            counts[name] = (tensors.check_loaded_values(network, files[name], where), total)
    base = config.folder
    if base is not None and base.is_relative_to(STARTER):
        unread = find_unread(config, base)
        check_pack_fingerprints(base, {n: m for n, m in networks.items() if n not in unread and n not in shared})
    return counts


def find_component_files(config: PipelineConfig) -> dict[str, list[Path]]:
    """Component -> the files of its tensors, where they are on this machine and have the names of diffusers."""
    if config.file:
        return {}
    files: dict[str, list[Path]] = {}
    base = config.folder or find_snapshot(config.repo)
    index = weight_folder.list_components(base) if base else {}
    if base is not None:
        unread = find_unread(config, base)
        variant = weight_folder.find_variant(base, config.variant, unread)
        parts = {name: base / name for name in index if name not in unread and weight_files.is_network(base / name)}
        files = {name: weight_files.select_weights(part, variant) for name, part in parts.items()}
    for name, source in read_sources(config).items():
        if source is not None and source.file and name in index:
            path = source.path or download_file(source)
            files |= {} if _is_converted(source, path, index[name], str(base)) else {name: [path]}
        elif source is not None and (part := source.folder or find_cached(source)) is not None:
            files |= {name: weight_files.select_weights(part, config.variant)} if weight_files.is_network(part) else {}
    return files


def _load_base(
    cls: Any, repo: str, config: PipelineConfig, index: Mapping[str, Any], dtype: torch.dtype, parts: dict[str, Any]
) -> Any:
    """The pipeline with these parts in place of its own; what one file lacks comes from `repo`, too. Raises
    BadInput."""
    folder = config.folder
    variant = weight_folder.find_variant(folder, config.variant, parts) if folder else config.variant
    settings = {"variant": variant} if variant else {}
    if not config.file:
        try:
            return cls.from_pretrained(repo, dtype=dtype, use_safetensors=True, **settings, **parts)
        except LIBRARY_ERRORS as error:
            raise BadInput(f"{repo}: {explain_error(error)}") from error
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    path = Path(config.file).expanduser()
    while True:
        try:
            return cls.from_single_file(str(path), config=repo, dtype=dtype, **parts)
        except SingleFileComponentError as error:
            kinds = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and name not in parts}
            lacking = [name for name, kind in kinds.items() if f"Failed to load {kind}." in str(error)]
            if not lacking:
                raise BadInput(f"file: {path}: {explain_error(error)}") from error
            source = ComponentSource(lacking[0], repo, lacking[0])
            parts = parts | {source.name: load_component(source, index[source.name], dtype, variant)}
        except LIBRARY_ERRORS as error:
            raise BadInput(
                f"file: {path} can't become a {config.pipeline} with the settings of {repo}: {explain_error(error)}"
            ) from error


def _component_index(cls: Any, repo: str) -> dict[str, Any]:
    """Component -> [module, class], as in model_index.json, and for further networks that the class accepts."""
    from diffusers import ModelMixin

    kinds = {name: next(iter(types), None) for name, types in cls._get_signature_types().items()}
    nets = {name: kind for name, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, ModelMixin)}
    try:
        return {name: [kind.__module__, kind.__name__] for name, kind in nets.items()} | cls.load_config(repo)
    except OSError as error:
        raise BadInput(f"repo: {repo} is neither a local folder nor a reachable hub repository") from error


def load_component(source: ComponentSource, entry: list, default: torch.dtype, variant: str) -> Any:
    """A component loaded from another repository, of the class that model_index.json names. Raises BadInput."""
    cls, part = find_component_class(entry), source.folder
    settings: dict[str, Any] = {"dtype": DTYPES.get(source.dtype, default), "use_safetensors": True}
    if variant and (part is None or variant in weight_files.list_variants(part)):
        settings["variant"] = variant
    try:
        component = cls.from_pretrained(resolve_place(source.repo), subfolder=source.subfolder, **settings)
    except LIBRARY_ERRORS as error:
        raise BadInput(f"{source.where}: {source.repo}: {explain_error(error)}") from error
    part = part or find_cached(source)
    if part is not None and isinstance(component, torch.nn.Module):
        tensors.check_tensor_names(part, tuple(entry), variant)
    return component


def _is_converted(source: ComponentSource, path: Path, entry: list, repo: str) -> bool:
    """Whether diffusers' converter makes the component of its file: of GGUF, and of tensors that have the names of the
    model's authors. Raises BadInput for a file that fits in no way."""
    if path.suffix == ".gguf":
        return True
    base = Path(repo) if Path(repo).is_dir() else find_snapshot(repo)
    part = base / source.name if base else None
    if part is None or not weight_files.is_network(part):
        return False
    return find_file_layout(path, part, find_component_class(entry), source.where) == "original"


def _convert_file(source: ComponentSource, path: Path, entry: list, repo: str, dtype: torch.dtype) -> Any:
    """A component made of one file by diffusers' own converter, with its settings from the base. Raises BadInput."""
    cls = find_component_class(entry)
    settings: dict[str, Any] = {"dtype": DTYPES.get(source.dtype, dtype)}
    if not hasattr(cls, "from_single_file"):
        raise BadInput(f"{source.where}: diffusers can't make a {cls.__name__} of one file; give its folder in repo")
    if path.suffix == ".gguf":
        from diffusers import GGUFQuantizationConfig

        check_gguf(path, source.where)
        settings["quantization_config"] = GGUFQuantizationConfig(compute_dtype=settings["dtype"])
    try:
        return cls.from_single_file(str(path), config=repo, subfolder=source.name, **settings)
    except LIBRARY_ERRORS as error:
        raise BadInput(f"{source.where}: {path} can't become a {cls.__name__}: {explain_error(error)}") from error


def _overwrite(network: torch.nn.Module, path: Path, where: str) -> None:
    """Load the tensors of one file into a network. Raises BadInput."""
    import safetensors.torch

    try:
        network.load_state_dict(safetensors.torch.load_file(path))
    except RuntimeError as error:
        raise BadInput(f"{where}: {path}: {explain_error(error)}") from error
