"""MPS: multi-dimensional human preference (Zhang et al., CVPR 2024, arXiv:2405.14705).

A CLIP ViT-H/14 whose image tokens then read the prompt through four cross-attention layers, in which only the prompt's
words that have to do with a condition can be seen. Names and shapes are those of the authors' checkpoint, which is a
pickled model and so is never loaded; weights come from a state dict of it (RE-N-Y/mpsv1). On random weights of a small
size it agrees with the authors' code, run as their benchmark runs it, to 1e-6.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from rewards.encoders import checkpoints, image_text
from rewards.encoders.frozen_reward import FrozenReward
from rewards.encoders.preprocess import View
from workbench.core.errors import BadInput
from workbench.core.types import RewardSpec

HEAD = 64  # width of one attention head
CACHED_PROMPTS = 256  # prompts whose token features are kept: 0.3 MB each
OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, "
    "texture, quantity, attributes, position, number, location, word, things."
)


class Norm(nn.Module):
    """A layer norm whose bias is a constant zero that checkpoints carry."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias)


class SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * x


def multi_query_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Many query heads, one key and value head (arXiv:1911.02150): q [B,N,H*64], k and v [B,M,64] -> [B,N,H*64]."""
    q = q.unflatten(-1, (-1, HEAD)).transpose(1, 2)
    k, v = (t[:, None].expand(-1, q.shape[1], -1, -1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Image tokens read the prompt's; a feed-forward layer runs beside the attention."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm = Norm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * HEAD, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)
        expand = nn.Linear(width, 8 * width, bias=False)
        self.ff = nn.Sequential(expand, SwiGLU(), nn.Linear(4 * width, width, bias=False))

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(x)
        return self.to_out(multi_query_attention(self.to_q(x), *self.to_kv(words).chunk(2, -1), mask)) + self.ff(x)


class Rotary(nn.Module):
    """arXiv:2104.09864, on halves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / 10000 ** (torch.arange(0, HEAD, 2).float() / HEAD))

    def forward(self, x: Tensor) -> Tensor:
        """[...,N,64]."""
        angle = torch.arange(x.shape[-2], device=x.device)[:, None] * self.inv_freq.float()
        cos, sin = (torch.cat([t, t], -1).to(x.dtype) for t in (angle.cos(), angle.sin()))
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin


class SelfAttention(nn.Module):
    """Image tokens read each other, from one fused projection."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.split = (inner, HEAD, HEAD, 8 * width)
        self.norm, self.rotary_emb = Norm(width), Rotary()
        self.fused_attn_ff_proj = nn.Linear(width, sum(self.split), bias=False)
        self.attn_out = nn.Linear(inner, width, bias=False)
        self.ff_out = nn.Sequential(SwiGLU(), nn.Linear(4 * width, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, hidden = self.fused_attn_ff_proj(self.norm(x)).split(self.split, -1)
        q = self.rotary_emb(q.unflatten(-1, (-1, HEAD)).transpose(1, 2)).transpose(1, 2).flatten(2)
        return self.attn_out(multi_query_attention(q, self.rotary_emb(k), v)) + self.ff_out(hidden)


class Residual(nn.Module):
    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return x + self.fn(x, *more)


class MPSScorer(nn.Module):
    """The published module: a CLIP of `config`, and as many layers and heads as the state dict has."""

    def __init__(self, config: Any, state: Mapping[str, Tensor]):
        from transformers import CLIPModel

        super().__init__()
        depth = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("cross_model.layers."))
        inner, width = state["cross_model.layers.0.0.fn.to_q.weight"].shape
        layers = [[Residual(block(width, inner)) for block in (CrossAttention, SelfAttention)] for _ in range(depth)]
        self.model, self.cross_model = CLIPModel(config), nn.Module()
        self.cross_model.layers = nn.ModuleList(map(nn.ModuleList, layers))

    def token_features(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """[N,L] -> every token [N,L,D], padding included, and the one at the end of the text [N,D]."""
        tokens = self.model.text_projection(self.model.text_model(input_ids=ids).last_hidden_state)
        return tokens, tokens[torch.arange(len(ids)), ids.argmax(-1)]

    def forward(self, x: Tensor, words: Tensor, visible: Tensor) -> Tensor:
        """[B,D] of normalised pictures, the prompts' tokens [B,L,D] and which of them can be seen [B,L]."""
        x = self.model.visual_projection(self.model.vision_model(pixel_values=x).last_hidden_state)
        for cross, attention in self.cross_model.layers:
            x = attention(cross(x, words, visible[:, None, None]))
        return x[:, 0]


def unwrap_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the authors' names, and without the constants that only old transformers save."""
    return {n.removeprefix("mps."): value for n, value in state.items() if not n.endswith(".position_ids")}


@functools.cache
@checkpoints.isolated_load()
def _load_cached(weights: str, backbone: str, device: str, dtype: str) -> tuple[MPSScorer, image_text.TextCache]:
    """The network, and `read`: prompt -> its token features with those at the text's end on top, [1+L,D]."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        config, tokenise = AutoConfig.from_pretrained(backbone), AutoTokenizer.from_pretrained(backbone)
    except (OSError, ValueError) as error:
        why = checkpoints.first_line(error)
        raise BadInput(f"can't read the config and tokenizer of {backbone}: {why}; give a folder or a hub id") from None
    state = unwrap_weights(checkpoints.read_weights(weights))
    try:
        with checkpoints.BlankInit():
            net = MPSScorer(config, state)
    except (KeyError, ValueError, AttributeError) as error:
        raise BadInput(f"{weights} is no MPS checkpoint: {checkpoints.first_line(error)}") from None
    checkpoints.fill_weights(net, state, weights).to(device=device, dtype=getattr(torch, dtype))
    length = config.text_config.max_position_embeddings

    @torch.no_grad()
    def encode_prompt(prompt: str) -> Tensor:
        encoded = tokenise([prompt], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        if len(tokenise(prompt, truncation=True, max_length=length)["input_ids"]) == length:
            image_text.warn_truncated("MPS", length, prompt)
        with torch.autocast(torch.device(device).type, enabled=False):
            tokens, end = net.token_features(encoded["input_ids"].to(device))
        return torch.cat([end[:, None], tokens], 1)[0]

    return net, image_text.TextCache(encode_prompt, CACHED_PROMPTS)


@dataclass(frozen=True)
class MPS(FrozenReward):
    """What people prefer overall among pictures of one prompt: exp(logit_scale) * cosine of the prompt and a picture
    that has read those of its words that matter.

    Only weights for overall preference are published; another `condition` asks them what they weren't trained for.
    """

    weights: str = "RE-N-Y/mpsv1/model.safetensors"  # a file, or owner/repo/file of the hub
    backbone: str = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # hub id or folder: its config and tokenizer are used
    condition: str = OVERALL  # words that say what is judged
    threshold: float = 0.3  # of similarity, for a word to be seen: the benchmark's; the authors' example has 0.01

    spec = RewardSpec(
        "mps",
        "overall",
        frozenset({"image"}),
        differentiable=True,
        needs=frozenset({"prompt"}),
        typical=(5.0, 15.0),
        paper="arXiv:2405.14705",
        weights="RE-N-Y/mpsv1 + laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        licence="MIT",
    )

    def check(self) -> None:
        checkpoints.check_source(self.weights)

    def load(self, device: torch.device | str = "cpu") -> tuple[MPSScorer, image_text.TextCache]:
        return _load_cached(self.weights, self.backbone, image_text.device_key(device), self.dtype)

    def score(self, loaded: tuple[MPSScorer, image_text.TextCache], x: Tensor, prompts: Sequence[str]) -> Tensor:
        net, encode_prompts = loaded
        text = encode_prompts(prompts)  # [B,1+L,D]
        end, words = text[:, 0], text[:, 1:]
        similarity = torch.einsum("bid,jd->bji", words.float(), encode_prompts([self.condition])[0, 1:].float()).amax(
            1
        )  # [B,L]
        visible = similarity / similarity.amax(1, keepdim=True) > self.threshold
        side = net.model.config.vision_config.image_size
        x = View((side, side))(x).to(words.dtype)
        with torch.autocast(x.device.type, enabled=False):
            image = (
                recompute(net, x, words, visible, use_reentrant=False) if self.checkpoint else net(x, words, visible)
            )
        return net.model.logit_scale.exp().float() * F.cosine_similarity(end.float(), image.float(), dim=1)
