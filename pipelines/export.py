"""Export of trained weights to files for other programs, each loaded back and compared before it counts as written.

The scale is folded into the weights (B alpha / rank, then alpha = rank), so that a program that ignores alpha gets the
same policy. The comparison with the policy is on the predictions of the denoisers.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.dial_files import load_dials, usage_lines, write_dials
from pipelines.dials import find_dials
from pipelines.export_files import load_line, write_for_comfy, write_for_diffusers, write_for_peft
from pipelines.fingerprint import fingerprint_network, own_tensors
from pipelines.lora_source import BASE_FINGERPRINT, BASE_MODEL, PEFT_WEIGHTS, RECORD
from pipelines.lora_start import Factors, fold_strength, join_factors
from pipelines.trainable_policy import TrainablePolicy

from .adapters import LIVE, lora_factors, lora_layers, strip_lora
from .config import PipelineConfig
from .policy import Policy

PROMPT, SEED = "a red circle and a blue square", 0
DIALS = "dials."  # how names of their tensors begin in a denoiser


class ExportMismatch(RuntimeError):  # noqa: N818
    """The written files don't reproduce the trained policy; they have been removed."""


@dataclass(frozen=True)
class PolicyExport:
    """What `export_policy` wrote."""

    files: tuple[Path, ...]
    load: tuple[str, ...]  # the Python that loads them into `pipe`
    difference: float  # largest absolute difference between the predictions of the policy and of the loaded files
    effect: float  # the same between the policy and its base
    notes: tuple[str, ...] = ()  # on what was not written, and why


def export_policy(
    policy: TrainablePolicy,
    folder: str | Path,
    *,
    name: str = LIVE,
    comfy: bool = True,
    merged: bool = False,
    about: Mapping[str, str] | None = None,
    pipeline: PipelineConfig | None = None,
) -> PolicyExport:
    """Write the policy ("train", or a copy of it such as "ema") into the new folder `folder`, atomically.

    `pytorch_lora_weights.safetensors` is for `pipe.load_lora_weights(folder)`. Where the pipeline has no such method,
    each denoiser gets a folder in peft's own layout. `comfyui.safetensors` is for ComfyUI, where it knows the model.
    With `merged`, and always where the weights themselves were trained, `merged/<denoiser>` holds the whole denoiser.
    `about` is put into the files' metadata, with the base and its fingerprint. A LoRA from which the training
    started is in the files too, so that they are for the base alone. With `pipeline`, the config of the base, the
    folder can be loaded by `pipelines.load`. Raises FileExistsError for a folder that exists, ExportMismatch where
    the loaded files differ.

    All processes of a sharded policy must call this together; the first one writes, and the others return no files. An
    unsharded policy is moved to the CPU while the exported one is compared on its device, so that no more memory is
    needed there than the policy itself takes.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: exists already; an export is never written over")
    with policy.use(name), torch.no_grad():
        expected = _record_predictions(policy)
    if not policy.is_main_process:
        return PolicyExport((), (), 0.0, expected.effect)
    temp = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    try:
        with _offloaded_to_cpu(policy), policy.use(name), torch.no_grad():
            exported = _write_files(policy, expected, temp, comfy, merged, _base_about(pipeline) | (dict(about or {})))
        if pipeline is not None:
            axes = _list_axes(policy)
            record: dict[str, Any] = {"pipeline": _base_config(pipeline), "parts": _written_layouts(policy, temp)}
            record |= {"dials": axes} if axes else {}
            (temp / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        for path in (p for p in temp.rglob("*") if p.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        os.rename(temp, folder)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    lines = tuple(line.replace("{folder}", str(folder)) for line in exported.load)
    return PolicyExport(tuple(files), lines, exported.difference, exported.effect, exported.notes)


@contextmanager
def _offloaded_to_cpu(policy: TrainablePolicy) -> Iterator[None]:
    """Inside the block the trained denoisers and their copies are on the CPU, to make room. Shards are not moved, as
    their modules can't be."""
    if policy.device.type == "cpu" or policy.sharded:
        yield
        return
    policy.adapters.to(torch.device("cpu"))
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold what was loaded, and its memory is needed
        raise
    finally:
        gc.collect()
        policy.adapters.to(policy.device)


def _load_base(policy: TrainablePolicy) -> Any:
    """A fresh base pipeline on the policy's device, where only its denoisers take memory; earlier ones are freed."""
    gc.collect()  # the modules of some pipelines, Flux among them, refer to each other
    fresh = policy.load_base()
    for name in policy.adapters.denoisers:
        getattr(fresh, name).to(policy.device)  # a copied one is where the trained one is
    return fresh


def _base_config(config: PipelineConfig) -> dict[str, Any]:
    """The settings of the base without a LoRA, with an absolute path for a local folder."""
    without = ("name", "lora", "lora_weight", "any_base")
    settings = {key: value for key, value in asdict(config).items() if key not in without}
    local = Path(config.repo).expanduser()
    return settings | ({"repo": str(local.resolve())} if local.is_dir() else {})


def _base_about(config: PipelineConfig | None) -> dict[str, str]:
    """The base by name, for the files' metadata; of a local folder its last part alone."""
    if config is None:
        return {}
    return {BASE_MODEL: Path(config.repo).name if Path(config.repo).expanduser().is_dir() else config.repo}


def _needs_whole_weights(policy: TrainablePolicy) -> bool:
    """Whether a LoRA can't hold what changed: weights were trained, or the training started from a DoRA."""
    start = policy.start_lora
    return policy.adapters.lora.targets == "weights" or (start is not None and not start.low_rank)


def _written_layouts(policy: TrainablePolicy, folder: Path) -> dict[str, str]:
    """Network -> layout of its files: "lora", "peft" or "merged". Text encoders are in the LoRA file of the
    denoiser."""
    names = sorted(policy.adapters.denoisers)
    if _needs_whole_weights(policy):
        return dict.fromkeys([*names, *_started_encoders(policy)], "merged")
    return {name: "peft" if (folder / name / PEFT_WEIGHTS).is_file() else "lora" for name in names}


@dataclass(frozen=True)
class PolicyPredictions:
    """The policy's predictions, computed before the export, by all processes where it is sharded."""

    states: Tensor  # [1,S+1,*latent]
    want: list[Tensor]  # its predictions at some of them
    effect: float  # see PolicyExport
    weights: Mapping[str, Tensor]  # "<denoiser>.<name>" -> trained weights, put together from shards; else empty


def _record_predictions(policy: TrainablePolicy) -> PolicyPredictions:
    prompts = policy.example_prompts(PROMPT)
    states = policy.sample(prompts, seeds=(SEED,)).x
    want = _predict_states(policy, states, prompts)
    with policy.reference():
        effect = _largest_difference(want, _predict_states(policy, states, prompts))
    weights = policy.adapters.gather_full() if policy.sharded else {}
    return PolicyPredictions(states, want, effect, weights)


def _write_files(
    policy: TrainablePolicy,
    expected: PolicyPredictions,
    folder: Path,
    comfy: bool,
    merged: bool,
    about: Mapping[str, str],
) -> PolicyExport:
    about = {"format": "pt", "software": "media-alignment-workbench", **about}
    exports, whole = [], _needs_whole_weights(policy)
    if _list_axes(policy):
        write_dials(policy.pipe, folder)
    if not whole:
        exports.append(_write_adapters(policy, expected, folder, comfy, about))
    if merged or whole:
        exports.append(_write_merged(policy, expected, folder))
    lines, notes = (tuple(line for each in exports for line in getattr(each, key)) for key in ("load", "notes"))
    return PolicyExport(
        (), (*lines, *usage_lines(folder)), max(each.difference for each in exports), expected.effect, notes
    )


def _write_adapters(
    policy: TrainablePolicy, expected: PolicyPredictions, folder: Path, comfy: bool, about: Mapping[str, str]
) -> PolicyExport:
    fresh, lines, notes = _load_base(policy), [], []
    encoders = {name: _export_factors(policy, name) for name in _started_encoders(policy)}
    for number, (name, module) in enumerate(policy.adapters.denoisers.items()):
        weights, network, beside = _export_factors(policy, name), getattr(fresh, name), {} if number else encoders
        if base := fingerprint_network(network):
            about = {**about, BASE_FINGERPRINT: base}
        if _loads_lora(fresh, name):
            lines.append(write_for_diffusers(fresh, name, weights, beside, folder, about))
        else:
            lines.append(write_for_peft(fresh, name, weights, folder, about))
        for each, factors in {name: weights, **beside}.items():
            _check_loaded_layers(getattr(fresh, each), factors, each)
        if comfy and _list_axes(policy):
            notes.append(f"no ComfyUI file of {name}: ComfyUI has no dials, and without them it is another model")
        elif comfy:
            notes += write_for_comfy(module, name, weights, beside, folder, about)
    _load_exported_dials(policy, fresh, folder)
    return PolicyExport(
        (), tuple(lines), _check_predictions(policy, fresh, expected, "the adapters"), expected.effect, tuple(notes)
    )


def _list_axes(policy: TrainablePolicy) -> list[str]:
    """The axes of the policy's dials; [] where it has none."""
    return list(next((dials.axes for dials in find_dials(policy.pipe).values()), ()))


def _load_exported_dials(policy: TrainablePolicy, pipe: Any, folder: Path) -> None:
    """Put the dials that were written on a fresh pipeline."""
    if axes := _list_axes(policy):
        load_dials(pipe, folder, axes)


def _write_merged(policy: TrainablePolicy, expected: PolicyPredictions, folder: Path) -> PolicyExport:
    fresh, trained = _load_base(policy), expected.weights
    if policy.adapters.lora.targets == "weights" and not policy.sharded:
        trained = policy.adapters.gather_full()
    encoders = {name: getattr(policy.pipe, name) for name in _started_encoders(policy)}
    lines = [
        _write_merged_network(policy, fresh, name, module, trained, folder)
        for name, module in (policy.adapters.denoisers | encoders).items()
    ]
    _load_exported_dials(policy, fresh, folder)
    return PolicyExport(
        (), tuple(lines), _check_predictions(policy, fresh, expected, "the merged weights"), expected.effect
    )


def _export_factors(policy: TrainablePolicy, name: str) -> Factors:
    """The LoRA of a network, as the base takes it: what it started from and what was trained, with the scale in B."""
    start = policy.start_lora.factors.get(name, {}) if policy.start_lora else {}
    module = policy.adapters.denoisers.get(name)
    trained = {key: fold_strength(layer) for key, layer in lora_layers(module).items()} if module is not None else {}
    return join_factors(start, trained)


def _started_encoders(policy: TrainablePolicy) -> list[str]:
    """Networks beside the denoisers that the LoRA changed from which the training started."""
    return sorted(policy.start_lora.networks - policy.adapters.denoisers.keys()) if policy.start_lora else []


def _loads_lora(pipe: Any, name: str) -> bool:
    """Whether the pipeline's own load_lora_weights takes this denoiser; some denoisers lack diffusers' mixin for it."""
    takes_name = hasattr(pipe, "load_lora_weights") and name in pipe._lora_loadable_modules
    return takes_name and hasattr(getattr(pipe, name), "load_lora_adapter")


def _write_merged_network(
    policy: TrainablePolicy, pipe: Any, name: str, module: Any, trained: Mapping[str, Tensor], folder: Path
) -> str:
    """Merge a network, write it, load it back and compare, on the CPU, as the device has room for one denoiser. Puts
    it into `pipe`; returns the Python that loads it."""
    device = next(getattr(pipe, name).parameters()).device
    denoiser = getattr(pipe, name).cpu()
    is_shard = policy.sharded and name in policy.adapters.denoisers  # its whole weights are in `trained`
    if policy.start_lora and name in policy.start_lora.networks and not is_shard:
        start_state = {key: value.detach().cpu() for key, value in own_tensors(module)}
        denoiser.load_state_dict(start_state, strict=False)  # the base's, with what the training started from
    for key, value in trained.items():
        if key.startswith(f"{name}.") and not key.startswith(f"{name}.{DIALS}"):
            weight = denoiser.get_parameter(key.removeprefix(f"{name}."))
            weight.data = value.to(weight, copy=True)
    for key, layer in lora_layers(module).items():
        weight, (a, b, scale) = denoiser.get_submodule(key).weight, lora_factors(layer)
        delta = (b.float().flatten(1) @ a.float().flatten(1)).view(weight.shape) * scale
        weight.data = (weight.float() + delta.to(weight.device)).to(weight.dtype)
    denoiser.save_pretrained(folder / "merged" / name)
    reloaded = type(denoiser).from_pretrained(folder / "merged" / name, torch_dtype=denoiser.dtype)
    reloaded_state = reloaded.state_dict()
    for key, value in denoiser.state_dict().items():
        if not torch.equal(reloaded_state[key], value):
            raise ExportMismatch(f"{name}.{key}: other weights were loaded back than were merged; not exported")
    setattr(pipe, name, strip_lora(reloaded.eval()).to(device))
    return load_line(name, "merged")


def _check_loaded_layers(module: Any, weights: Factors, name: str) -> None:
    """Raises ExportMismatch unless all layers were loaded as written: loaders may skip layers with only a warning."""
    loaded = {key: lora_factors(layer) for key, layer in lora_layers(module).items()}
    if differing := sorted(set(weights) ^ set(loaded)):
        raise ExportMismatch(
            f"{name}: {len(differing)} layers were not loaded back as written, {differing[0]} among them; not exported"
        )
    for key, (a, b, scale) in loaded.items():
        if scale != 1 or not all(
            torch.equal(x.cpu(), y.to(x.dtype)) for x, y in zip((a, b), weights[key], strict=True)
        ):
            raise ExportMismatch(f"{name}.{key}: other weights were loaded back than were written; not exported")


def _predict_states(policy: Policy, states: Tensor, prompts: Sequence[str]) -> list[Tensor]:
    """The guided denoiser outputs at the first, a middle and the last step; under guidance with momentum, at the first
    alone."""
    last = policy.steps - 1
    places = (0,) if policy._has_momentum else sorted({0, last // 2, last})
    return [policy._model_output(states[:, i], i, prompts).float() for i in places]


def _check_predictions(policy: TrainablePolicy, pipe: Any, expected: PolicyPredictions, what: str) -> float:
    """The largest difference between the predictions of `pipe` and those expected. Raises ExportMismatch."""
    plain = Policy(
        pipe,
        modality=policy.modality,
        rate=policy.rate,
        call=policy.call,
        text=policy.text,
        dials=policy.dials,
        guidance=policy.guidance,
    )
    plain.conditions = policy.conditions
    predictions = _predict_states(plain, expected.states, policy.example_prompts(PROMPT))
    off, effect = _largest_difference(expected.want, predictions), expected.effect
    dtype = max(
        (p.dtype for name in policy.adapters.denoisers for p in getattr(pipe, name).parameters()), key=_dtype_eps
    )
    rounding = 32 * _dtype_eps(dtype) * max(float(t.abs().max()) for t in expected.want)
    if not off <= rounding + effect * (1e-3 + 8 * _dtype_eps(dtype)):
        raise ExportMismatch(
            f"{what}, loaded back, predict otherwise than the policy: by up to {off:.2g}, where training "
            f"moved it by {effect:.2g} and rounding explains {rounding:.1g}; not exported"
        )
    return off


def _largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def _dtype_eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
