"""ImageReward v1.0: human preference read from picture and prompt together (Xu et al. 2023, arXiv:2304.05977).

BLIP's ViT-L/16 and its text encoder with cross-attention, here as transformers' own Blip classes, and an MLP on the
first token. The published checkpoint (THUDM/ImageReward: ImageReward.pt) loads through a map of names. Measured against
the authors' code on random weights of a small size: the same scores to the last bit.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from rewards.encoders import checkpoints, image_text
from rewards.encoders.frozen_reward import FrozenReward
from rewards.encoders.preprocess import View
from rewards.image.aesthetic import AestheticHead
from workbench.core.errors import BadInput
from workbench.core.types import RewardSpec

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of raw scores on the authors' data
TOKENS = 35
USED = ("blip.visual_encoder.", "blip.text_encoder.", "mlp.")  # BLIP's pretraining projections are in the file too
NAMES = (  # published name -> name in transformers' BlipVisionModel and BlipTextModel
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.", "vision."),
    (r"^vision\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^vision\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^vision\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^vision\.norm\.", "vision.post_layernorm."),
    (r"^vision\.blocks\.(\d+)\.norm(\d)\.", r"vision.encoder.layers.\1.layer_norm\2."),
    (r"^vision\.blocks\.(\d+)\.attn\.qkv\.", r"vision.encoder.layers.\1.self_attn.qkv."),
    (r"^vision\.blocks\.(\d+)\.attn\.proj\.", r"vision.encoder.layers.\1.self_attn.projection."),
    (r"^vision\.blocks\.(\d+)\.mlp\.", r"vision.encoder.layers.\1.mlp."),
)


def rename_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under transformers' names, without what scoring does not use."""
    new = {}
    for name, value in state.items():
        if name.startswith(USED) and not name.endswith(".position_ids"):
            for old, ours in NAMES:
                name = re.sub(old, ours, name)
            new[name] = value
    return new


class BlipScorer(nn.Module):
    """[B] raw scores of normalised pictures and tokenised prompts; its sizes are those of a renamed state dict."""

    def __init__(self, state: Mapping[str, Tensor]):
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        layers = [int(n.split(".")[3]) for n in state if n.startswith("vision.encoder.layers.")]
        text_layers = [int(n.split(".")[3]) for n in state if n.startswith("text.encoder.layer.")]
        vision_width, _, patch, _ = state["vision.embeddings.patch_embedding.weight"].shape
        words, width = state["text.embeddings.word_embeddings.weight"].shape
        self.size = math.isqrt(state["vision.embeddings.position_embedding"].shape[1] - 1) * patch
        vision = BlipVisionConfig(
            hidden_size=vision_width,
            intermediate_size=state["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=max(layers) + 1,
            num_attention_heads=vision_width // 64,
            image_size=self.size,
            patch_size=patch,
            layer_norm_eps=1e-6,
        )
        text = BlipTextConfig(
            vocab_size=words,
            hidden_size=width,
            encoder_hidden_size=vision_width,
            intermediate_size=state["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=max(text_layers) + 1,
            num_attention_heads=width // 64,
            max_position_embeddings=state["text.embeddings.position_embeddings.weight"].shape[0],
        )
        self.vision, self.text = BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False)
        self.mlp = AestheticHead(width)

    def forward(self, x: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        patches = self.vision(pixel_values=x).last_hidden_state  # [B,1+patches,D]
        tokens = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=patches)
        return self.mlp(tokens.last_hidden_state[:, 0])


@functools.cache
@checkpoints.isolated_load()
def _load_cached(weights: str, tokenizer: str, device: str, dtype: str) -> tuple[BlipScorer, Any]:
    from transformers import AutoTokenizer

    state = rename_weights(checkpoints.read_weights(weights))
    try:
        with checkpoints.BlankInit():
            net = BlipScorer(state)
        tokenise = AutoTokenizer.from_pretrained(tokenizer)
    except (KeyError, IndexError, ValueError) as error:
        raise BadInput(f"{weights} is no ImageReward checkpoint: {checkpoints.first_line(error)}") from None
    except OSError as error:
        raise BadInput(f"can't load the tokenizer {tokenizer}: {checkpoints.first_line(error)}") from None
    return checkpoints.fill_weights(net, state, weights).to(device=device, dtype=getattr(torch, dtype)), tokenise


@dataclass(frozen=True)
class ImageReward(FrozenReward):
    """Human preference from picture and prompt together: BLIP with cross-attention, about N(0,1) over generated ones.

    Reads the first 35 tokens of a prompt. Strong for prompt fidelity; optimised alone it bends pictures out of shape.
    """

    weights: str = "THUDM/ImageReward/ImageReward.pt"  # a file, or owner/repo/file of the hub
    tokenizer: str = "bert-base-uncased"  # hub id or folder

    spec = RewardSpec(
        "imagereward",
        "v1.0",
        frozenset({"image"}),
        differentiable=True,
        needs=frozenset({"prompt"}),
        typical=(-2.3, 2.0),
        paper="arXiv:2304.05977",
        weights="THUDM/ImageReward + bert-base-uncased",
        licence="Apache-2.0",
    )

    def check(self) -> None:
        checkpoints.check_source(self.weights)

    def load(self, device: torch.device | str = "cpu") -> tuple[BlipScorer, Any]:
        return _load_cached(self.weights, self.tokenizer, image_text.device_key(device), self.dtype)

    def score(self, loaded: tuple[BlipScorer, Any], x: Tensor, prompts: Sequence[str]) -> Tensor:
        net, tokenise = loaded
        tokens = tokenise(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(x.device)
        for prompt, mask in zip(prompts, tokens["attention_mask"], strict=True):
            if mask.all():
                image_text.warn_truncated("ImageReward", TOKENS, prompt)
        x = View((net.size, net.size))(x).to(getattr(torch, self.dtype))
        with torch.autocast(x.device.type, enabled=False):
            inputs = (x, tokens["input_ids"], tokens["attention_mask"])
            raw = recompute(net, *inputs, use_reentrant=False) if self.checkpoint else net(*inputs)
        return (raw.float() - MEAN) / STD
