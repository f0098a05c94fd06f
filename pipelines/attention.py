"""The choice of attention kernels. A backend that can't work is refused with the reason, which is found by trying
it."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Collection
from functools import cache
from typing import Any

import torch

from pipelines.known_classes import text_class
from workbench.core.errors import BadInput
from workbench.core.schema import suggest_nearest

BACKENDS = ("sdpa", "xformers", "flash")
# classes that take only text; those with the same networks that take a source count with them
FIXED = {  # pipelines whose denoisers always call torch's attention, whatever backend diffusers is set to
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "LatentConsistencyModelPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "SanaPipeline",
    "SanaSprintPipeline",
    "CogVideoXPipeline",
    "TextToVideoSDPipeline",
    "AnimateDiffPipeline",
    "AudioLDM2Pipeline",
    "MusicLDMPipeline",
    "StableAudioPipeline",
}
MASKED = {  # pipelines whose denoisers mask attention, some only if prompts differ in length
    "QwenImagePipeline",
    "ZImagePipeline",
    "LTXPipeline",
    "HunyuanVideoPipeline",
    "HunyuanVideo15Pipeline",
    "LongCatAudioDiTPipeline",
}
_FIXED = "in diffusers its attention is torch's own, whatever is asked for"


@cache
def find_backend_problem(backend: str) -> str:
    """Why `backend` can't work on this machine, or '' when a tiny attention call with it has just worked."""
    if backend not in BACKENDS:
        raise BadInput(f"attention: {backend!r} is not known; {suggest_nearest(backend, ('auto', *BACKENDS))}")
    return {"sdpa": lambda: "", "xformers": _try_xformers, "flash": _try_flash}[backend]()


def choose_backend(backend: str, device: torch.device, dtype: torch.dtype | None = None, pipeline: str = "") -> str:
    """The backend's name, with the reason if it was chosen automatically. Raises BadInput if it can't work on this
    machine, on that device, in that dtype, or for that pipeline class, as far as they are given."""
    if backend == "auto":
        return "sdpa (auto: torch picks flash or memory-efficient kernels itself)"
    if reason := find_backend_problem(backend):
        raise BadInput(f"attention: {backend} can't work here: {reason}; use: auto")
    if device.type == "cpu" and backend != "sdpa":
        raise BadInput(f"attention: {backend} has no CPU kernels, and the pipeline runs on the CPU; use: auto")
    if backend == "flash":
        _check_flash_fits(pipeline, {dtype})
    return backend


def install_backend(pipe: Any, backend: str) -> None:
    """Make the pipeline's networks use `backend`; sdpa is what diffusers does by itself. Raises BadInput where a
    network would go on without it or could not run."""
    if backend == "xformers":
        pipe.enable_xformers_memory_efficient_attention()
    if backend == "flash":
        parts = [p for n in ("transformer", "transformer_2", "unet") if (p := getattr(pipe, n, None)) is not None]
        for part in parts:
            _check_flash_fits(type(pipe).__name__, {p.dtype for p in part.parameters() if p.is_floating_point()})
        for part in parts:
            _enable_flash(part, type(pipe).__name__)


def _check_flash_fits(pipeline: str, dtypes: Collection[torch.dtype | None]) -> None:
    if text_class(pipeline) in FIXED:
        raise BadInput(f"attention: flash would change nothing in {pipeline}: {_FIXED}; use: auto")
    if text_class(pipeline) in MASKED:
        raise BadInput(f"attention: flash takes no masks, and {pipeline} gives its attention one; use: auto")
    if set(dtypes) == {torch.float32}:
        raise BadInput("attention: flash has no kernels for fp32; use dtype: bf16 or fp16, or attention: auto")


def _enable_flash(part: Any, pipeline: str) -> None:
    """Set flash attention on one network only. Diffusers ignores processors without a choice, which is refused here,
    and makes flash the default of the whole process, which is undone: text encoders may need masks."""
    from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

    try:
        with attention_backend():  # puts the default back
            part.set_attention_backend("flash")
    except RuntimeError as error:  # flash-attn is too old
        raise BadInput(f"attention: flash can't work here: {_first_line(error)}; use: auto") from error
    processors = [getattr(module, "processor", None) for module in part.modules()]
    if not any(getattr(p, "_attention_backend", None) == AttentionBackendName.FLASH for p in processors):
        raise BadInput(f"attention: flash would change nothing in {pipeline}: {_FIXED}; use: auto")


def _try_xformers() -> str:
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a torch that doesn't fit is reported below
            import xformers.ops as ops
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return f"xformers does not import ({_first_line(error)})"
    if not torch.cuda.is_available():
        return "it needs a GPU, and torch sees none"
    return _try_kernels(lambda q: ops.memory_efficient_attention(q, q, q))


def _try_flash() -> str:
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    try:
        from flash_attn import flash_attn_func
    except (ImportError, OSError) as error:
        return f"flash-attn does not import ({_first_line(error)})"
    if not torch.cuda.is_available():
        return "it needs a GPU, and torch sees none"
    return _try_kernels(lambda q: flash_attn_func(q, q, q))


def _try_kernels(attend: Any) -> str:
    """Why a call fails, or "": the package may be installed without kernels for this torch or GPU."""
    q = torch.zeros(1, 16, 1, 64, device="cuda", dtype=torch.float16)
    try:
        attend(q)
        torch.cuda.synchronize()
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return f"its kernels do not run on this torch and GPU ({_first_line(error)})"
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
