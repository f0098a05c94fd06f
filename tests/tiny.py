"""Real diffusers pipelines, tiny and with random weights: what the seam is tried on, offline, in milliseconds.

`build("FluxPipeline")` makes one, `save` writes it as a folder that pipelines.load reads, `policy` goes the whole way.
Parameters that start as constants are randomised, because a zero output layer makes every replay look exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers as d
import tiny_audio as audio
import tiny_image as image
import tiny_video as video
import torch
import transformers as t

import pipelines
from pipelines.compat import patch_pipeline
from pipelines.known_classes import INPUTS, MODALITIES


@dataclass(frozen=True)
class Tiny:
    parts: Callable[[], dict[str, Any]]  # components by name
    call: dict[str, Any] = field(default_factory=dict)  # arguments that keep the call short, guidance on
    text: dict[str, str] = field(default_factory=dict)
    guidance: str = "guidance_scale"
    steps: int = 3
    fixed: dict[str, Any] = field(default_factory=dict)  # lengths that the pipeline has as attributes, not as arguments
    inputs: dict[str, str] = field(default_factory=dict)  # by default those of the class
    rate: float | None = None  # by default that of the class
    input_size: list[int] = field(default_factory=list)
    extend: Callable[[Any], None] | None = None  # what is done to the pipeline once it is made: an IP-Adapter


def class_of(name: str) -> str:
    return name.partition(":")[0]


PROMPTS, SEEDS = ("a red cat", "two dogs"), (11, 12)
SQUARE, BAD = dict(height=16, width=16), dict(negative_prompt="bad")
CLIP16 = dict(max_sequence_length=16)
TINY: dict[str, Tiny] = {
    "StableDiffusionPipeline": Tiny(image.stable_diffusion, dict(guidance_scale=5.0), BAD),
    "StableDiffusionXLPipeline": Tiny(image.sdxl, dict(guidance_scale=5.0, **SQUARE), BAD),
    "PixArtAlphaPipeline": Tiny(
        image.pixart, dict(guidance_scale=5.0, use_resolution_binning=False, clean_caption=False, **SQUARE)
    ),
    "PixArtSigmaPipeline": Tiny(
        image.pixart, dict(guidance_scale=5.0, use_resolution_binning=False, clean_caption=False, **SQUARE)
    ),
    "StableDiffusion3Pipeline": Tiny(image.sd3, dict(guidance_scale=5.0, **SQUARE, **CLIP16), BAD),
    "FluxPipeline": Tiny(image.flux, dict(guidance_scale=3.0, true_cfg_scale=2.0, height=8, width=8, **CLIP16), BAD),
    "Flux2KleinPipeline": Tiny(
        image.flux2_klein,
        dict(guidance_scale=4.0, height=8, width=8, max_sequence_length=64, text_encoder_out_layers=(1,)),
    ),
    "SanaPipeline": Tiny(
        image.sana,
        dict(
            guidance_scale=4.0,
            complex_human_instruction=None,
            clean_caption=False,
            use_resolution_binning=False,
            height=32,
            width=32,
            **CLIP16,
        ),
        BAD,
    ),
    "SanaSprintPipeline": Tiny(
        image.sana_sprint,
        dict(
            guidance_scale=4.0,
            complex_human_instruction=None,
            clean_caption=False,
            use_resolution_binning=False,
            intermediate_timesteps=None,
            height=32,
            width=32,
            **CLIP16,
        ),
    ),
    "QwenImagePipeline": Tiny(
        image.qwen_image, dict(true_cfg_scale=3.0, **SQUARE, **CLIP16), BAD, guidance="true_cfg_scale"
    ),
    "ZImagePipeline": Tiny(image.z_image, dict(guidance_scale=3.0, **SQUARE, max_sequence_length=64), BAD),
    "LatentConsistencyModelPipeline": Tiny(image.lcm, dict(guidance_scale=5.0, **SQUARE)),
    "WanPipeline": Tiny(video.wan, dict(guidance_scale=5.0, num_frames=5, **SQUARE, **CLIP16), BAD),
    "LTXPipeline": Tiny(video.ltx, dict(guidance_scale=3.0, num_frames=9, height=32, width=32, **CLIP16), BAD),
    "CogVideoXPipeline": Tiny(video.cogvideox, dict(guidance_scale=5.0, num_frames=8, **SQUARE, **CLIP16), BAD),
    "WanPipeline:2.2": Tiny(
        video.wan_22, dict(guidance_scale=4.0, guidance_scale_2=3.0, num_frames=5, **SQUARE, **CLIP16), BAD
    ),
    "TextToVideoSDPipeline": Tiny(video.text_to_video, dict(guidance_scale=5.0, num_frames=3, **SQUARE), BAD),
    "AnimateDiffPipeline": Tiny(video.animatediff, dict(guidance_scale=5.0, num_frames=3, **SQUARE), BAD),
    "HunyuanVideoPipeline": Tiny(
        video.hunyuan_video,
        dict(
            guidance_scale=6.0,
            true_cfg_scale=3.0,
            num_frames=5,
            prompt_template=dict(template="{}", crop_start=0),
            **SQUARE,
            **CLIP16,
        ),
        BAD,
    ),
    "HunyuanVideo15Pipeline": Tiny(
        video.hunyuan_video_15,
        dict(num_frames=5, **SQUARE),
        BAD,
        fixed=dict(
            tokenizer_max_length=32,
            prompt_template_encode_start_idx=8,
            tokenizer_2_max_length=8,
            vision_num_semantic_tokens=2,
        ),
    ),
    "AudioLDM2Pipeline": Tiny(audio.audioldm2, dict(guidance_scale=3.0)),
    "StableAudioPipeline": Tiny(audio.stable_audio, dict(guidance_scale=3.0), BAD),
    "AceStepPipeline": Tiny(audio.ace_step, dict(audio_duration=4.0, max_text_length=64), dict(lyrics="la la")),
    "MusicLDMPipeline": Tiny(audio.musicldm, dict(guidance_scale=3.0)),
    "LongCatAudioDiTPipeline": Tiny(audio.longcat, dict(guidance_scale=3.0, audio_duration_s=0.001), BAD),
    "StableAudio3Pipeline": Tiny(audio.stable_audio_3, dict(guidance_scale=3.0, duration=1.0), BAD),
}
TABLES = [TINY]  # tiny_conditioned.py has further ones
VIDEO = [name for name in TINY if MODALITIES[class_of(name)][0] == "video"]
AUDIO = [name for name in TINY if MODALITIES[class_of(name)][0] == "audio"]


def find(name: str) -> Tiny:
    return next(table[name] for table in TABLES if name in table)


def build(name: str, seed: int = 0) -> Any:
    """The pipeline of that class: frozen, in eval mode, float32. What follows a colon in its name is a variant of
    it."""
    tiny = find(name)
    t.logging.set_verbosity_error()
    d.logging.set_verbosity_error()
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        parts = tiny.parts()
        for part in parts.values():
            if isinstance(part, torch.nn.Module):
                randomise(part.eval().requires_grad_(False))
        extra = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        pipe = getattr(d, class_of(name))(**parts, **extra)
        if tiny.extend is not None:
            tiny.extend(pipe)
    pipe.set_progress_bar_config(disable=True)
    vars(pipe).update(tiny.fixed)
    return patch_pipeline(pipe)


def randomise(module: torch.nn.Module, size: float = 0.05) -> None:
    """Adds noise to parameters that start as a constant."""
    for p in module.parameters():
        if p.is_floating_point() and p.numel() > 1 and p.min() == p.max():
            p.data.add_(size * torch.randn_like(p))


def save(name: str, folder: Path) -> Path:
    path = folder / name.replace(":", "-")
    build(name).save_pretrained(path, safe_serialization=True)
    return path


def config(name: str, repo: str | Path, **changes: Any) -> pipelines.PipelineConfig:
    return pipelines.PipelineConfig(class_of(name), str(repo), **{**settings(name), **changes})


def settings(name: str) -> dict[str, Any]:
    tiny, (modality, rate) = find(name), MODALITIES[class_of(name)]
    names = ("steps", "call", "text", "guidance", "input_size")
    inputs = tiny.inputs or INPUTS.get(class_of(name), {})
    rate = rate if tiny.rate is None else tiny.rate
    return dict(modality=modality, rate=rate, inputs=inputs, **{name: getattr(tiny, name) for name in names})


def policy(name: str, pipe: Any = None, **changes: Any) -> pipelines.Policy:
    """A Policy straight on the pipeline, without a folder in between."""
    return pipelines.Policy(pipe or build(name), **{**settings(name), **changes})
