"""Frozen image-text backbones (CLIP, SigLIP), loaded once however many rewards use them.

A model is named by one string:
    openai/clip-vit-large-patch14           a transformers CLIP or SigLIP: hub id or local folder
    starter:image/clip                      a part of the embedded pack
    open_clip:ViT-H-14/laion2b_s32b_b79k    an open_clip architecture with a pretrained tag,
    open_clip:ViT-H-14/FILE                 or with one weights file (a path, or owner/repo/file of the hub)
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from rewards.encoders import checkpoints
from rewards.encoders.image_processor import ProcessorView, load_view
from rewards.encoders.preprocess import View
from workbench.core import paths
from workbench.core.errors import BadInput
from workbench.core.schema import suggest_nearest

log = logging.getLogger(__name__)
CACHED_PROMPTS = 4096  # prompts whose text features an encoder keeps


class TextCache:
    """A frozen text tower's outputs, remembered for the latest `limit` prompts.

    Each is encoded alone: its last digits must not depend on what else was new, or a resumed run drifts.
    """

    def __init__(self, encode: Callable[[str], Tensor], limit: int | None = None):
        self.encode, self.limit, self.rows = encode, limit, OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """[B,...]: one row a prompt, whose inputs play no part."""
        texts = [str(p) for p in prompts]
        for text in dict.fromkeys(texts):
            if text not in self.rows:
                self.rows[text] = self.encode(text)
            self.rows.move_to_end(text)
        rows = torch.stack([self.rows[text] for text in texts])
        while len(self.rows) > (self.limit or CACHED_PROMPTS):
            self.rows.popitem(last=False)
        return rows


@dataclass(eq=False)
class ImageTextEncoder:
    """Pictures and prompts as unit vectors of one space. Weights frozen; the graph leads to the pixels."""

    net: nn.Module
    view: View | ProcessorView
    size: tuple[int, int]  # height and width of the pictures that `image` takes
    image: Callable[[Tensor], Tensor]  # normalised [B,3,h,w] -> [B,D]
    tokens: Callable[[list[str]], dict[str, Tensor]]  # padded to the model's length
    text: Callable[..., Tensor]  # **tokens -> [N,D]
    width: int  # D
    scale: float  # exp(logit_scale)
    bias: float = 0.0  # SigLIP's logit_bias

    def __post_init__(self):
        self.text_cache = TextCache(self._encode_prompt)

    def embed_images(self, x: Tensor, view: View | ProcessorView | None = None, checkpoint: bool = False) -> Tensor:
        """[B,3,H,W] in [0,1] -> float32 [B,D] of norm 1. `checkpoint` recomputes activations in the backward pass."""
        x = (view or self.view)(x).to(self._dtype)
        with torch.autocast(x.device.type, enabled=False):
            features = recompute(self.image, x, use_reentrant=False) if checkpoint else self.image(x)
        return F.normalize(features.float(), dim=-1)

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """float32 [B,D] of norm 1, without gradient; each prompt is encoded once and remembered."""
        return self.text_cache(prompts)

    def logits(self, cosine: Tensor) -> Tensor:
        """The model's own temperature (and SigLIP's bias) on a cosine."""
        return self.scale * cosine + self.bias

    @torch.no_grad()
    def _encode_prompt(self, prompt: str) -> Tensor:
        device = next(self.net.parameters()).device
        tokens = {k: v.to(device) for k, v in self.tokens([prompt]).items()}
        with torch.autocast(device.type, enabled=False):
            return F.normalize(self.text(**tokens).float(), dim=-1)[0]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype


def load_encoder(model: str, device: torch.device | str, dtype: str = "float32") -> ImageTextEncoder:
    """The one encoder of these arguments. Raises BadInput for an unknown or broken model."""
    return _load_cached(model, device_key(device), dtype)


def device_key(device: torch.device | str) -> str:
    """A device's full name, so that `cuda` and `cuda:0` are one key."""
    return str(torch.empty(0, device=device).device)


@functools.lru_cache(CACHED_PROMPTS)
def warn_truncated(model: str, length: int, prompt: str) -> None:
    """Warn once that a prompt fills all tokens that a model reads."""
    log.warning("%s reads %d tokens, and may not have read all of: %s", model, length, prompt)


@functools.cache
@checkpoints.isolated_load()
def _load_cached(model: str, device: str, dtype: str) -> ImageTextEncoder:
    check_known_model(model)
    encoder = _load_open_clip(model) if model.startswith("open_clip:") else load_transformers(model)
    checkpoints.freeze_module(encoder.net).to(device=device, dtype=getattr(torch, dtype))
    return encoder


def check_encoder(model: str) -> None:
    """Raises BadInput for what can be known to be wrong without loading: a missing folder, an unknown architecture, a
    broken file."""
    check_known_model(model)
    if model.startswith("open_clip:") and _is_file(source := model.removeprefix("open_clip:").partition("/")[2]):
        checkpoints.check_source(source)


def check_known_model(model: str) -> None:
    if model.startswith("open_clip:"):
        import open_clip

        arch, _, source = model.removeprefix("open_clip:").partition("/")
        if arch not in open_clip.list_models():
            raise BadInput(
                f"{model}: open_clip has no architecture {arch!r}; {suggest_nearest(arch, open_clip.list_models())}"
            )
        tags = open_clip.list_pretrained_tags_by_model(arch)
        if not _is_file(source) and source not in tags:
            raise BadInput(f"{model}: no pretrained tag {source!r} for {arch}; {suggest_nearest(source, tags)}")
        return
    folder = Path(resolve_model(model)).expanduser()
    if model.startswith(("starter:", ".", "/", "~")) and not (folder / "config.json").is_file():
        raise BadInput(f"{model}: {folder} has no config.json; give a model's folder or a hub id")


def _is_file(source: str) -> bool:
    return "/" in source or Path(source).suffix in (".safetensors", ".pt", ".pth", ".bin")


def resolve_model(model: str) -> str:
    try:
        return paths.resolve_repo(model)
    except FileNotFoundError as error:
        raise BadInput(str(error)) from None


def load_transformers(model: str) -> ImageTextEncoder:
    import transformers

    folder = resolve_model(model)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config.model_type not in ("clip", "siglip"):
            raise BadInput(f"{model} is a {config.model_type} model; rewards look through clip and siglip")
        net: Any = checkpoints.load_pretrained(transformers.AutoModel, folder, model)
        tokenise = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, RuntimeError, ValueError, checkpoints.safetensors.SafetensorError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(
            f"can't load {model}: {checkpoints.first_line(error)}; give a model's folder or a hub id"
        ) from None
    view, side = load_view(folder, model), (config.vision_config.image_size,) * 2
    if view.size is not None:
        _check_side(model, view.size, side)
    length, siglip = config.text_config.max_position_embeddings, config.model_type == "siglip"
    _lower_case_prompts(tokenise, siglip)

    def embed_pixels(x: Tensor) -> Tensor:
        _check_side(model, x.shape[-2:], side)
        return net.get_image_features(pixel_values=x).pooler_output

    def tokenise_prompts(prompts: list[str]) -> dict[str, Tensor]:
        encoded = tokenise(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        read = tokenise(prompts, truncation=True, max_length=length)["input_ids"]
        for prompt, ids in zip(prompts, read, strict=True):
            if len(ids) == length:
                warn_truncated(model, length, prompt)
        return {k: encoded[k] for k in (["input_ids"] if siglip else ["input_ids", "attention_mask"])}

    return ImageTextEncoder(
        net,
        view,
        side,
        image=embed_pixels,
        tokens=tokenise_prompts,
        text=lambda **ids: net.get_text_features(**ids).pooler_output,
        width=config.vision_config.hidden_size if siglip else config.projection_dim,
        scale=net.logit_scale.exp().item(),
        bias=net.logit_bias.item() if siglip else 0.0,
    )


def _check_side(model: str, side: Sequence[int], taken: Sequence[int]) -> None:
    if tuple(side) != tuple(taken):
        made, wanted = (f"{high} x {wide}" for high, wide in (side, taken))
        raise BadInput(
            f"{model}: preprocessor_config.json makes a picture {made} (height x width), and the model takes {wanted}; "
            "set size or crop_size there"
        )


def _lower_case_prompts(tokenise: Any, siglip: bool) -> None:
    """Make a tokenizer read prompts in lower case, if its config says `do_lower_case`, or it is SigLIP 2's.

    SigLIP 2 was trained on lower-cased text. Its fixed-resolution checkpoints name Gemma's tokenizer, which keeps
    capitals: transformers' Siglip2Tokenizer puts the same step before it.
    """
    names = (type(tokenise).__name__, str(tokenise.init_kwargs.get("tokenizer_class")))
    is_siglip2 = siglip and any("Gemma" in name for name in names)
    if not tokenise.init_kwargs.get("do_lower_case", is_siglip2):
        return
    if tokenise("A")["input_ids"] != tokenise("a")["input_ids"]:
        from tokenizers import normalizers

        backend = tokenise.backend_tokenizer
        steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
        backend.normalizer = normalizers.Sequence(steps)


def _load_open_clip(model: str) -> ImageTextEncoder:
    import open_clip

    arch, _, source = model.removeprefix("open_clip:").partition("/")
    try:
        if _is_file(source):
            with checkpoints.BlankInit():
                net = open_clip.create_model(arch, load_weights=False)
            checkpoints.fill_weights(net, checkpoints.read_weights(source), source)
        else:
            net = open_clip.create_model(arch, pretrained=source)
        tokenise = open_clip.get_tokenizer(arch)
    except (OSError, RuntimeError) as error:
        raise BadInput(f"can't load {model}: {checkpoints.first_line(error)}") from None
    settings = open_clip.get_model_preprocess_cfg(net)
    size = (settings["size"], settings["size"]) if isinstance(settings["size"], int) else tuple(settings["size"])
    fit = {"shortest": "crop", "squash": "squash", "longest": "pad"}[settings.get("resize_mode", "shortest")]
    kernel = "bilinear" if settings.get("interpolation") == "bilinear" else "bicubic"
    bias = getattr(net, "logit_bias", None)

    def tokenise_prompts(prompts: list[str]) -> dict[str, Tensor]:
        ids = tokenise(prompts)
        for prompt, last in zip(prompts, ids[:, -1], strict=True):
            if last:
                warn_truncated(model, ids.shape[1], prompt)
        return {"text": ids}

    return ImageTextEncoder(
        net,
        View(size, tuple(settings["mean"]), tuple(settings["std"]), fit, kernel),
        size,
        image=net.encode_image,
        tokens=tokenise_prompts,
        text=net.encode_text,
        width=open_clip.get_model_config(arch)["embed_dim"],
        scale=net.logit_scale.exp().item(),
        bias=0.0 if bias is None else bias.item(),
    )
