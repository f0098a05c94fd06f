"""Where a pipeline's components come from: its own folder, other repositories, single files; and which files these
are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines import weight_folder
from pipelines.config import IPAdapterConfig, PipelineConfig
from pipelines.guards import SWITCHES
from workbench.core.errors import BadInput
from workbench.core.paths import resolve_repo
from workbench.core.text import first_line
from workbench.core.weights import files as weight_files
from workbench.core.weights.libraries import find_snapshot

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SETTINGS = (".json", ".txt", ".model", ".jinja")  # configs, and the files of tokenizers


@dataclass(frozen=True)
class ComponentSource:
    """Where a component comes from, other than the pipeline's own folder."""

    name: str
    repo: str = ""  # a hub id, a folder, or a part of the starter pack
    subfolder: str = ""
    file: str = ""  # in that repo, or a path: safetensors or gguf
    dtype: str = ""
    block: str = "components"  # of the config, that names it

    @property
    def where(self) -> str:
        return f"{self.block}.{self.name}"

    @property
    def folder(self) -> Path | None:
        """The local folder that it is loaded from, if it is a local one. Raises BadInput."""
        part = Path(resolve_place(self.repo), self.subfolder).expanduser()
        try:
            return part if self.repo and part.is_dir() else None
        except (OSError, ValueError) as error:  # no file can have this name
            raise BadInput(f"{self.where}: {str(part)[:80]!r} can't be looked for ({explain_error(error)})") from None

    @property
    def path(self) -> Path | None:
        """The local file that it is loaded from; None for one of the hub. Raises BadInput for a missing or unsafe
        one."""
        path = Path(resolve_place(self.repo), self.file).expanduser()
        if path.suffix not in (".safetensors", ".gguf"):
            raise BadInput(f"{self.where}: {self.file} is neither .safetensors nor .gguf; {weight_files.NO_PICKLES}")
        try:
            if path.is_file():
                return path
        except (OSError, ValueError) as error:
            raise BadInput(f"{self.where}: {str(path)[:80]!r} can't be looked for ({explain_error(error)})") from None
        if not self.repo or self.folder is not None:
            raise BadInput(f"{self.where}: no such file: {path}")
        return None


def read_sources(config: PipelineConfig) -> dict[str, ComponentSource | None]:
    """Component -> where a config takes it from, None for one that is left out. Raises BadInput."""
    sources: dict[str, ComponentSource | None] = {}
    for name, spec in config.components.items():
        if spec is True or name in SWITCHES and spec is None:
            continue
        sources[name] = None if spec is None else _read_source(name, spec)
    return sources


def _read_source(name: str, spec: Any) -> ComponentSource:
    if not isinstance(spec, str | Mapping):
        raise BadInput(f"components.{name}: expected null, true, a repository or a mapping, got {spec!r:.60}")
    values = {"repo": spec} if isinstance(spec, str) else dict(spec)
    if unknown := set(values) - {"repo", "subfolder", "dtype", "file"}:
        first = min(unknown, key=str)
        raise BadInput(f"components.{name}: unknown key {first!r}; known: dtype, file, repo, subfolder")
    if not all(isinstance(value, str) for value in values.values()) or not (values.get("repo") or values.get("file")):
        raise BadInput(f"components.{name}: needs a repo or a file, as texts, got {spec!r:.60}")
    if values.get("dtype") not in (None, *DTYPES):
        raise BadInput(f"components.{name}.dtype: {values['dtype']!r} is not a choice; known: {', '.join(DTYPES)}")
    return ComponentSource(name, **values)


def adapter_sources(adapter: IPAdapterConfig) -> tuple[ComponentSource, ComponentSource | None]:
    """The weights of an IP-Adapter and its picture encoder; None where that is the pipeline's own."""
    weights = ComponentSource("file", adapter.repo, file=adapter.file, block="ip_adapter")
    if not adapter.encoder:
        return weights, None
    return weights, ComponentSource("encoder", adapter.repo, adapter.encoder, block="ip_adapter")


def find_unread(config: PipelineConfig, base: Path) -> set[str]:
    """The components in the folder `base` of a config's pipeline that are not loaded: they come from elsewhere, or are
    left out."""
    index = weight_folder.list_components(base)
    return {*read_sources(config)} | {n for n in SWITCHES if n in index and config.components.get(n) is None}


def choose_variant(config: PipelineConfig) -> str:
    """The variant of a config's weight files: its own, or the only one that its local folder has. Raises BadInput."""
    base = config.folder
    if config.file or base is None:
        return config.variant
    return weight_folder.find_variant(base, config.variant, find_unread(config, base))


def list_weight_files(config: PipelineConfig) -> list[Path]:
    """The local files, sorted, that loading a config's pipeline reads: of its folder, components, scheduler, checkpoint
    and LoRA. What lies on the hub is not among them. Raises BadInput for a folder that can't be read."""
    files = [Path(config.file).expanduser()] if config.file else []
    if base := config.folder:
        unread, variant = find_unread(config, base), choose_variant(config)
        files.append(base / "model_index.json")
        for name in weight_folder.list_components(base).keys() - unread:
            files += _list_part(base / name, variant)
    adapter = adapter_sources(IPAdapterConfig(**config.ip_adapter)) if config.ip_adapter else ()
    for source in filter(None, (*read_sources(config).values(), *adapter)):
        path = source.path if source.file else None
        files += [path] if path else _list_part(source.folder, config.variant)
    if repo := config.scheduler.get("repo"):
        files += _list_part(Path(resolve_place(repo), "scheduler"), "")
    if config.lora:
        lora = Path(config.lora).expanduser()
        files += [lora] if lora.is_file() else [*lora.rglob("*.safetensors"), *lora.rglob("*.json")]
    return sorted({file for file in files if file.is_file()})


def _list_part(part: Path | None, variant: str) -> list[Path]:
    """The files of a component's folder that loading reads: its weights, if it is a network, and all that is small."""
    if part is None or not part.is_dir():
        return []
    small = [file for file in part.iterdir() if file.suffix in SETTINGS and ".safetensors.index." not in file.name]
    return [*small, *(weight_files.select_weights(part, variant) if weight_files.is_network(part) else [])]


def find_cached(source: ComponentSource) -> Path | None:
    """The folder of the hub's cache that holds a component from another repository, if it is there."""
    snapshot = find_snapshot(source.repo)
    return snapshot / source.subfolder if snapshot else None


def download_file(source: ComponentSource) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source.repo, source.file))
    except (OSError, ValueError) as error:
        raise BadInput(f"{source.where}: {source.repo}/{source.file}: {explain_error(error)}") from error


def resolve_place(repo: str) -> str:
    try:
        return resolve_repo(repo)
    except FileNotFoundError as error:
        raise BadInput(str(error)) from None


def explain_error(error: Exception) -> str:
    """An error of a library in one line."""
    line = first_line(error)
    return "tensors that it needs are not in the file" if "meta tensor" in line else line[:200]
