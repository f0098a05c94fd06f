"""Loading trained adapters into a pipeline: what a training exported, or a LoRA file from elsewhere.

Only safetensors, which are checked before any weight loads. Every key of a file is then applied, or named as dropped.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines import weight_folder
from pipelines.config import PipelineConfig
from pipelines.dial_files import load_dials
from pipelines.fingerprint import fingerprint_network
from pipelines.lora_file import LoraFile, read_lora_file
from pipelines.lora_layers import DENOISERS, LayerLora, find_networks
from pipelines.lora_layout import LoraPlacement, place_lora
from pipelines.lora_source import BASE_FINGERPRINT, BASE_MODEL, PEFT_WEIGHTS, WEIGHTS, find_lora, read_record
from pipelines.seams import named_networks
from workbench.core.errors import BadInput
from workbench.core.io.parsing import one_line
from workbench.core.paths import resolve_repo


@dataclass(frozen=True)
class InstalledLora:
    """What `install_lora` did."""

    notes: tuple[str, ...]  # sentences on what was applied and what not
    replaced: frozenset[str] = frozenset()  # networks whose weights were replaced as a whole


def install_lora(pipe: Any, config: PipelineConfig) -> InstalledLora:
    """Put the config's LoRA, a file or an export, on a pipeline. Raises BadInput where its layers are not the
    pipeline's, or its base is another one."""
    path = find_lora(config.lora)
    if path.is_file():
        return InstalledLora(tuple(_install_file(pipe, path, "", config)))
    notes: list[str] = []
    replaced = set()
    for name, layout in read_record(path)["parts"].items():
        if not isinstance(getattr(pipe, name, None), nn.Module):
            raise BadInput(f"lora: {path} is for a {one_line(name, 60)}, which this pipeline has not")
        if layout == "merged":
            old = getattr(pipe, name)
            whole = type(old).from_pretrained(path / "merged" / name, torch_dtype=old.dtype, use_safetensors=True)
            setattr(pipe, name, whole.eval().requires_grad_(False).to(old.device))
            replaced.add(name)
        else:
            notes += _install_file(pipe, _export_file(path, name, layout), name, config)
    if axes := read_record(path).get("dials"):
        load_dials(pipe, path, axes)
    return InstalledLora(tuple(notes), frozenset(replaced))


def _export_file(folder: Path, name: str, layout: str) -> Path:
    if layout == "peft":
        return folder / name / PEFT_WEIGHTS
    return folder / name / WEIGHTS if (folder / name / WEIGHTS).is_file() else folder / WEIGHTS


def _install_file(pipe: Any, path: Path, denoiser: str, config: PipelineConfig) -> list[str]:
    label = f"lora: {path}"
    file, networks = read_lora_file(path, label), find_networks(type(pipe), named_networks(pipe), denoiser)
    placement = place_lora(file, label, type(pipe), networks)
    notes = check_base(file, label, networks, config)
    for network, module in networks.items():
        layers = {layer: lora for (name, layer), lora in placement.layers.items() if name == network}
        attach_layers(module, layers, config.lora_weight)
    if config.lora_weight != 1:
        notes = [*notes, f"at strength {config.lora_weight:g}"]
    return [f"{path.name}: {note}" for note in [*placement.describe(), *notes]]


def check_base(file: LoraFile, label: str, networks: Mapping[str, nn.Module], config: PipelineConfig) -> list[str]:
    """Sentences on the base of a LoRA: not recorded, or another one that `any_base` allows. Raises BadInput for
    another one that it does not."""
    recorded = file.metadata.get(BASE_FINGERPRINT)
    if not recorded:
        return ["its base is not recorded, so only the shapes of its layers were compared"]
    name, module = next(iter(networks.items()))
    if fingerprint_network(module) in (recorded, ""):
        return []
    base = one_line(file.metadata.get(BASE_MODEL, "another pipeline"), 80)
    if config.any_base:
        return [f"it was trained on other weights ({base}) than this {name}'s; taken, as any_base asks"]
    raise BadInput(
        f"{label}: was trained on other weights ({base}) than this {name}'s, whose layers only have the same shapes; "
        "use it on its own base, or set any_base: true in the pipeline to take it all the same"
    )


def attach_layers(module: Any, layers: Mapping[str, LayerLora], strength: float = 1.0) -> None:
    """Put LoRA layers on a network, frozen and active, as diffusers and peft do: W + strength scale B A."""
    from peft import LoraConfig, inject_adapter_in_model

    groups: dict[tuple[bool, bool], dict[str, LayerLora]] = {}
    for name, lora in layers.items():
        groups.setdefault((lora.magnitude is not None, lora.bias is not None), {})[name] = lora
    for number, ((dora, bias), group) in enumerate(sorted(groups.items())):
        adapter = f"lora_{number}"
        config = LoraConfig(r=1, lora_alpha=1, target_modules=sorted(group), use_dora=dora, lora_bias=bias)
        keys = {f"{name}.lora_{half}.weight": value for name, lora in group.items() for half, value in lora.halves}
        inject_adapter_in_model(config, module, adapter_name=adapter, state_dict=keys)
        for name, lora in group.items():
            _set_values(module.get_submodule(name), adapter, lora, strength)
    if layers:
        module._hf_peft_config_loaded = True
        for name in layers:  # each injection has switched the earlier ones off
            part = module.get_submodule(name)
            part.set_adapter(list(part.lora_A))
        module.eval().requires_grad_(False)


def _set_values(part: Any, adapter: str, lora: LayerLora, strength: float) -> None:
    """Put values, rank and scale of a layer into place. peft would find them by a search over patterns of names, which
    takes minutes for some files."""
    weight = part.get_base_layer().weight
    part.r[adapter], part.scaling[adapter] = len(lora.a), lora.scale * strength
    part.lora_alpha[adapter] = lora.scale * len(lora.a)
    part.lora_A[adapter].weight.data = lora.a.to(weight.device).contiguous()
    part.lora_B[adapter].weight.data = lora.b.to(weight.device, lora.a.dtype).contiguous()
    if lora.bias is not None:  # peft scales it too
        part.lora_B[adapter].bias.data = (lora.bias / lora.scale).to(weight.device, lora.a.dtype)
    if lora.magnitude is not None:
        magnitude = part.lora_magnitude_vector[adapter].weight
        norms = lora.magnitude.to(weight.device, lora.a.dtype)
        if strength != 1:  # from the norms of the plain weights, so that 0 leaves the layer as it was
            norms = torch.lerp(weight.detach().to(norms.dtype).flatten(1).norm(dim=1), norms, strength)
        magnitude.data = norms.view(magnitude.shape)


def plan_lora(config: PipelineConfig) -> list[str]:
    """What `install_lora` would do, told without weights, as far as the pipeline's settings are in a local folder.
    Raises BadInput."""
    path = find_lora(config.lora)
    if path.is_dir():
        return []
    label, networks = f"lora: {path}", read_empty_networks(config)
    file = read_lora_file(path, label)
    if not networks:
        file.read_tensors()
        return [f"{path.name}: which of its {len(file.pairs)} layers apply shows when the pipeline is loaded"]
    placement = place_lora(file, label, pipeline_class(config), networks)
    known = [] if file.metadata.get(BASE_FINGERPRINT) else ["its base is not recorded"]
    return [f"{path.name}: {note}" for note in [*placement.describe(), *known]]


def place_on_pipeline(file: LoraFile, label: str, config: PipelineConfig) -> LoraPlacement | None:
    """A file on the layers of a pipeline that is not loaded; None where its settings are not in a local folder."""
    networks = read_empty_networks(config)
    return place_lora(file, label, pipeline_class(config), networks) if networks else None


def pipeline_class(config: PipelineConfig) -> Any:
    """The diffusers class of a pipeline."""
    import diffusers

    if (cls := getattr(diffusers, config.pipeline, None)) is None:
        raise BadInput(f"class: diffusers has no pipeline {config.pipeline!r}")
    return cls


def read_empty_networks(config: PipelineConfig) -> dict[str, nn.Module]:
    """The networks of a local pipeline that a LoRA may change, without weights; {} for one that is on the hub."""
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    if config.folder is None or not (config.folder / "model_index.json").is_file():
        return {}
    networks, loadable = {}, getattr(pipeline_class(config), "_lora_loadable_modules", ())
    for name, (_, cls_name) in weight_folder.list_components(config.folder).items():
        if name not in DENOISERS and name not in loadable:
            continue
        home = _component_folder(config, name)
        cls = getattr(diffusers, cls_name or "", None) or getattr(transformers, cls_name or "", None)
        if home is None or not inspect.isclass(cls) or not issubclass(cls, nn.Module):
            continue
        try:
            with init_empty_weights():
                if issubclass(cls, diffusers.ModelMixin):
                    networks[name] = cls.from_config(cls.load_config(home))
                elif issubclass(cls, transformers.PreTrainedModel):
                    networks[name] = cls((cls.config_class or transformers.AutoConfig).from_pretrained(home))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise BadInput(f"{home}: no {cls_name} can be made of its config.json ({one_line(error, 120)})") from error
    return find_networks(pipeline_class(config), networks)


def _component_folder(config: PipelineConfig, name: str) -> Path | None:
    """The local folder with the settings of a network; None where there is none."""
    assert config.folder is not None
    spec, home = config.components.get(name, True), config.folder / name
    if isinstance(spec, str):
        home = Path(resolve_repo(spec))
    elif isinstance(spec, dict) and "file" not in spec:
        home = Path(resolve_repo(spec["repo"]), spec.get("subfolder", ""))
    return home if spec is not None and weight_folder.is_network(home) else None
