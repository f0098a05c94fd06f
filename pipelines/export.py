"""Trained adapters as files that other programs load, each loaded back before it counts as written.

Strength is folded into the weights (B alpha / rank, then alpha = rank): a reader that ignores alpha, or takes it from another
place, gets the same policy. What is loaded back is compared with the policy on the predictions of its denoisers.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.lora_loading import RECORD, WEIGHTS, quietly
from pipelines.trainable_policy import TrainablePolicy

from .adapters import LIVE, factors, layers, strip
from .config import PipelineConfig
from .policy import Policy

PROMPT, SEED = "a red circle and a blue square", 0
EXPERT = "transformer_2"  # the second expert of Wan 2.2 and its like: loaded from a file of its own

# How ComfyUI (comfy/lora.py) calls the layers of a denoiser: prefix, what replaces the dots, and renamed parts in order.
WAN = {"attn1.": "self_attn.", "attn2.": "cross_attn.", "to_out.0": "o", "to_q": "q", "to_k": "k", "to_v": "v"} | {
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "proj_out": "head.head",
}
COMFY: dict[str, tuple[str, str, dict[str, str]]] = {
    "UNet2DConditionModel": ("lora_unet_", "_", {}),
    **{
        name: ("transformer.", ".", {})
        for name in [
            "SD3Transformer2DModel",
            "FluxTransformer2DModel",
            "QwenImageTransformer2DModel",
            "PixArtTransformer2DModel",
            "AuraFlowTransformer2DModel",
        ]
    },
    "LTXVideoTransformer3DModel": ("diffusion_model.", ".", {}),
    "WanTransformer3DModel": ("diffusion_model.", ".", WAN),
}

Factors = dict[str, tuple[Tensor, Tensor]]  # layer -> A [rank,in,...], B [out,rank,...], strength folded in


class Mismatch(RuntimeError):  # noqa: N818
    """What was written does not give back the policy that was trained; nothing of it was left on disk."""


@dataclass(frozen=True)
class Exported:
    files: tuple[Path, ...]
    load: tuple[str, ...]  # the Python that loads them into `pipe`
    difference: float  # largest absolute difference between the predictions of the policy and of what was loaded back
    effect: float  # the same between the policy and its base: what training has changed
    notes: tuple[str, ...] = ()  # what was not written, and why


def export(
    policy: TrainablePolicy,
    folder: str | Path,
    *,
    name: str = LIVE,
    comfy: bool = True,
    merged: bool = False,
    about: Mapping[str, str] | None = None,
    pipeline: PipelineConfig | None = None,
) -> Exported:
    """Write the policy ("train", or a copy of it such as "ema") into `folder`, which appears with its files or not at all.

    `pytorch_lora_weights.safetensors` is for `pipe.load_lora_weights(folder)`. Where the pipeline has no such method, each
    denoiser gets a folder in peft's own layout. `comfyui.safetensors` is for ComfyUI, where it knows the model. With
    `merged`, and always where the weights themselves were trained, `merged/<denoiser>` holds the whole denoiser. `about` is
    put into the files' metadata. With `pipeline`, the config of the base, the folder is a pipeline of its own for
    `pipelines.load`. Raises FileExistsError for a folder that is there, Mismatch where what is loaded back
    differs.

    Of a sharded policy all processes export together; the first one writes, and the others return with no files.
    Of any other, what was trained is on the CPU while the pipelines that compare are on its device: no more memory is needed
    there than the policy itself takes.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: exists already; an export is never written over")
    with policy.use(name), torch.no_grad():
        seen = _seen(policy)
    if not policy.leads:
        return Exported((), (), 0.0, seen.effect)
    temp = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    try:
        with _aside(policy), policy.use(name), torch.no_grad():
            exported = _write(
                policy, seen, temp, comfy, merged or policy.adapters.lora.targets == "weights", about or {}
            )
        if pipeline is not None:
            record = {"pipeline": _plain(pipeline), "parts": _parts(policy, temp)}
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
    return Exported(tuple(files), lines, exported.difference, exported.effect, exported.notes)


@contextmanager
def _aside(policy: TrainablePolicy) -> Iterator[None]:
    """Inside the block the trained denoisers and their copies are on the CPU, for others need their place. Shards stay where they
    are: a process has but a part of them, and their modules can't be moved."""
    if policy.device.type == "cpu" or policy.sharded:
        yield
        return
    policy.adapters.to(torch.device("cpu"))
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # what was loaded is in them, and in the way of what comes back
        raise
    finally:
        gc.collect()
        policy.adapters.to(policy.device)


def _fresh(policy: TrainablePolicy) -> Any:
    """The base again, on the policy's device; its denoisers alone take room there, and those of the one before are gone."""
    gc.collect()  # the modules of some pipelines, Flux among them, refer to each other
    fresh = policy.fresh()
    for name in policy.adapters.denoisers:
        getattr(fresh, name).to(policy.device)  # one that was copied is where the trained one is
    return fresh


def _plain(config: PipelineConfig) -> dict[str, Any]:
    """Of the base, without what this export puts on it; a local folder by its whole path."""
    kept = {key: value for key, value in asdict(config).items() if key not in ("name", "lora")}
    local = Path(config.repo).expanduser()
    return kept | ({"repo": str(local.resolve())} if local.is_dir() else {})


def _parts(policy: TrainablePolicy, folder: Path) -> dict[str, str]:
    """Denoiser -> how it was written."""
    names = sorted(policy.adapters.denoisers)
    if policy.adapters.lora.targets == "weights":
        return dict.fromkeys(names, "merged")
    return {name: "peft" if (folder / name / "adapter_model.safetensors").is_file() else "lora" for name in names}


@dataclass(frozen=True)
class Seen:
    """What is asked of the policy itself: all that needs its other processes, where it is sharded."""

    states: Tensor
    want: list[Tensor]  # its predictions there
    effect: float
    weights: Mapping[str, Tensor]  # "<denoiser>.<name>" -> what was trained, put together from shards


def _seen(policy: TrainablePolicy) -> Seen:
    states = policy.sample((PROMPT,), seeds=(SEED,)).x
    want = _predictions(policy, states)
    with policy.reference():
        effect = _distance(want, _predictions(policy, states))
    weights = policy.adapters.whole() if policy.sharded else {}
    return Seen(states, want, effect, weights)


def _write(
    policy: TrainablePolicy, seen: Seen, folder: Path, comfy: bool, merged: bool, about: Mapping[str, str]
) -> Exported:
    about = {"format": "pt", "software": "media-alignment-workbench", **about}
    told = []
    if policy.adapters.lora.targets != "weights":
        told.append(_adapters(policy, seen, folder, comfy, about))
    if merged:
        told.append(_wholes(policy, seen, folder))
    lines, notes = (tuple(line for each in told for line in getattr(each, key)) for key in ("load", "notes"))
    return Exported((), lines, max(each.difference for each in told), seen.effect, notes)


def _adapters(policy: TrainablePolicy, seen: Seen, folder: Path, comfy: bool, about: Mapping[str, str]) -> Exported:
    fresh, lines, notes = _fresh(policy), [], []
    for name, module in policy.adapters.denoisers.items():
        weights = {key: _folded(layer) for key, layer in layers(module).items()}
        write = _for_diffusers if _loads(fresh, name) else _for_peft
        lines.append(write(fresh, name, weights, folder, about))
        _same(getattr(fresh, name), weights, name)
        if comfy and type(module).__name__ in COMFY:
            _for_comfy(module, name, weights, folder, about)
        elif comfy:
            notes.append(f"no ComfyUI file: how it calls the layers of {type(module).__name__} is not known")
    return Exported((), tuple(lines), _compare(policy, fresh, seen, "the adapters"), seen.effect, tuple(notes))


def _wholes(policy: TrainablePolicy, seen: Seen, folder: Path) -> Exported:
    fresh, trained = _fresh(policy), seen.weights
    if policy.adapters.lora.targets == "weights" and not policy.sharded:
        trained = policy.adapters.whole()
    lines = [_merged(fresh, name, module, trained, folder) for name, module in policy.adapters.denoisers.items()]
    return Exported((), tuple(lines), _compare(policy, fresh, seen, "the merged weights"), seen.effect)


def _folded(layer: Any) -> tuple[Tensor, Tensor]:
    a, b, scale = factors(layer)
    return a.detach().float().cpu().contiguous(), (b.detach().float() * scale).cpu().contiguous()


def _config(weights: Factors) -> dict[str, Any]:
    rank = len(next(iter(weights.values()))[0])
    return {"r": rank, "lora_alpha": rank, "target_modules": sorted(weights)}


def _tensors(weights: Factors, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}.lora_{x}.weight": ab[i] for key, ab in weights.items() for i, x in enumerate("AB")}


def _loads(pipe: Any, name: str) -> bool:
    """Whether the pipeline's own load_lora_weights takes this denoiser."""
    return hasattr(pipe, "load_lora_weights") and name in pipe._lora_loadable_modules


def _for_diffusers(pipe: Any, name: str, weights: Factors, folder: Path, about: Mapping[str, str]) -> str:
    second, prefix = name == EXPERT, name.removesuffix("_2")
    home = folder / name if second else folder
    home.mkdir(exist_ok=True)
    config = json.dumps({f"{prefix}.{key}": value for key, value in _config(weights).items()}, sort_keys=True)
    save_file(_tensors(weights, f"{prefix}."), home / WEIGHTS, {**about, "lora_adapter_metadata": config})
    with quietly():
        pipe.load_lora_weights(str(home), weight_name=WEIGHTS, **({f"load_into_{EXPERT}": True} if second else {}))
    return (
        f'pipe.load_lora_weights("{{folder}}/{name}", load_into_{name}=True)'
        if second
        else 'pipe.load_lora_weights("{folder}")'
    )


def _for_peft(pipe: Any, name: str, weights: Factors, folder: Path, about: Mapping[str, str]) -> str:
    from peft import LoraConfig, PeftModel

    home = folder / name
    LoraConfig(**_config(weights), inference_mode=True).save_pretrained(home)
    save_file(_tensors(weights, "base_model.model."), home / "adapter_model.safetensors", dict(about))
    PeftModel.from_pretrained(getattr(pipe, name), home)  # adapts the module in place, too
    return f'pipe.{name} = peft.PeftModel.from_pretrained(pipe.{name}, "{{folder}}/{name}").base_model.model'


def _for_comfy(module: Any, name: str, weights: Factors, folder: Path, about: Mapping[str, str]) -> None:
    prefix, dot, renamed = COMFY[type(module).__name__]
    tensors = {}
    for key, (a, b) in weights.items():
        for ours, theirs in renamed.items():
            key = key.replace(ours, theirs)
        key = prefix + key.replace(".", dot)
        parts = {"lora_down.weight": a, "lora_up.weight": b, "alpha": torch.tensor(float(len(a)))}
        tensors |= {f"{key}.{part}": value for part, value in parts.items()}
    about = {**about, "ss_network_dim": str(len(a)), "ss_network_alpha": str(float(len(a)))}
    save_file(tensors, folder / f"comfyui{'_2' if name == EXPERT else ''}.safetensors", about)


def _merged(pipe: Any, name: str, module: Any, trained: Mapping[str, Tensor], folder: Path) -> str:
    """Merged, loaded back and compared on the CPU: the device has room for one denoiser."""
    device = next(getattr(pipe, name).parameters()).device
    whole = getattr(pipe, name).cpu()
    for key, value in trained.items():
        if key.startswith(f"{name}."):
            weight = whole.get_parameter(key.removeprefix(f"{name}."))
            weight.data = value.to(weight, copy=True)
    for key, layer in layers(module).items():
        weight, (a, b, scale) = whole.get_submodule(key).weight, factors(layer)
        delta = (b.float().flatten(1) @ a.float().flatten(1)).view(weight.shape) * scale
        weight.data = (weight.float() + delta).to(weight.dtype)
    whole.save_pretrained(folder / "merged" / name, safe_serialization=True)
    again = type(whole).from_pretrained(folder / "merged" / name, torch_dtype=whole.dtype)
    found = again.state_dict()
    for key, value in whole.state_dict().items():
        if not torch.equal(found[key], value):
            raise Mismatch(f"{name}.{key}: other weights were loaded back than were merged; not exported")
    setattr(pipe, name, strip(again.eval()).to(device))
    return f'pipe.{name} = type(pipe.{name}).from_pretrained("{{folder}}/merged/{name}")'


def _same(module: Any, weights: Factors, name: str) -> None:
    """A loader may leave layers out, or all of them, with no more than a warning."""
    found = {key: factors(layer) for key, layer in layers(module).items()}
    if missing := sorted(set(weights) ^ set(found)):
        raise Mismatch(
            f"{name}: {len(missing)} layers were not loaded back as written, {missing[0]} among them; not exported"
        )
    for key, (a, b, scale) in found.items():
        if scale != 1 or not all(
            torch.equal(x.cpu(), y.to(x.dtype)) for x, y in zip((a, b), weights[key], strict=True)
        ):
            raise Mismatch(f"{name}.{key}: other weights were loaded back than were written; not exported")


def _predictions(policy: Policy, states: Tensor) -> list[Tensor]:
    """What the scheduler is told at the first, a middle and the last step, or the first alone under momentum guidance."""
    last = policy.steps - 1
    places = (0,) if policy._remembers else sorted({0, last // 2, last})
    return [policy._output(states[:, i], i, (PROMPT,)).float() for i in places]


def _compare(policy: TrainablePolicy, pipe: Any, seen: Seen, what: str) -> float:
    plain = Policy(
        pipe,
        modality=policy.modality,
        rate=policy.rate,
        call=policy.call,
        text=policy.text,
        guidance=policy.guidance,
    )
    off, effect = _distance(seen.want, _predictions(plain, seen.states)), seen.effect
    dtype = max((p.dtype for name in policy.adapters.denoisers for p in getattr(pipe, name).parameters()), key=_eps)
    rounding = 32 * _eps(dtype) * max(float(t.abs().max()) for t in seen.want)
    if not off <= rounding + effect * (1e-3 + 8 * _eps(dtype)):
        raise Mismatch(
            f"{what}, loaded back, predict otherwise than the policy: by up to {off:.2g}, where training moved it by {effect:.2g} "
            f"and rounding explains {rounding:.1g}; not exported"
        )
    return off


def _distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
