"""The pack's reward model: a small CLIP (Radford et al., arXiv:2103.00020) with near misses on both sides.

Contrastive both ways over 2B pictures (B true ones, B near misses of them) and their captions plus near-miss captions;
a pair that happens to be true is masked, never used as a negative. `AuxiliaryHeads`, thrown away after training,
shorten the plateaus before shapes, and later left and right, are told apart.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from pipelines.starter.image import negatives, world
from pipelines.starter.image.autoencoder import MIX
from pipelines.starter.image.auxiliary_heads import AuxiliaryHeads
from pipelines.starter.resumable_training import Draw, TrainingStage, train_stage
from pipelines.starter.tokenizer import LENGTH

PATCH = 8


def vocabulary_words() -> list[str]:
    return sorted({word for prompt in world.all_prompts() for word in prompt.split()})


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
                max_position_embeddings=LENGTH, vocab_size=len(tokenizer), pad_token_id=tokenizer.eos_token_id,
                projection_dim=64, **special)  # fmt: skip
    vision = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
                  image_size=world.SIZE, patch_size=PATCH, projection_dim=64)  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def tokenise_prompts(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """[B,16]"""
    return tokenizer(prompts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids


def augment_pictures(x: Tensor, draw: Draw) -> Tensor:
    """Blur, noise and brightness, each on about half of the pictures [B,3,64,64]."""
    on = torch.rand(3, len(x), 1, 1, 1, generator=draw.torch)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, ((on[0] - 0.5) * 2).clamp(0, 1))
    x = x + 0.08 * (on[1] - 0.5).clamp(0) * torch.randn(x.shape, generator=draw.torch)
    return (x * (1 + 0.5 * (on[2] - 0.5).clamp(0) - 0.1)).clamp(0, 1)


def draw_batch(batch: int, draw: Draw) -> tuple[list[negatives.Picture], list[str | None], list[str]]:
    """2B pictures, the caption of each (None for a malformed one), and every text of the batch."""
    source = world.training_pairs(draw.python, MIX)
    true = [next(source) for _ in range(batch)]
    pictures = [negatives.Picture(scene) for scene, _ in true]
    pictures += [negatives.wrong_picture(scene, prompt, draw.python) for scene, prompt in true]
    captions: list[str | None] = [prompt for _, prompt in true]
    captions += [draw.python.choice(p.true_captions()) if p.true_captions() else None for p in pictures[batch:]]
    texts = [c for c in captions if c]
    for scene, prompt in true:
        texts += negatives.false_prompts(prompt, world.true_captions(scene), draw.python, 3)
    return pictures, captions, list(dict.fromkeys(texts))


def contrastive_loss(logits: Tensor, truth: Tensor, caption_index: Tensor) -> Tensor:
    """InfoNCE both ways with masked false negatives (Chuang et al., arXiv:2007.00224, with known labels).

    logits [I,T]; truth [I,T] bool; caption_index [I] the index of each picture's caption, -1 for none.
    """
    rows = (caption_index >= 0).nonzero().flatten()
    positive = logits[rows, caption_index[rows]]  # [P]
    others = logits.masked_fill(truth, -torch.inf)
    to_text = torch.logsumexp(torch.cat([positive[:, None], others[rows]], 1), 1) - positive
    to_picture = torch.logsumexp(torch.cat([positive[:, None], others[:, caption_index[rows]].T], 1), 1) - positive
    return (to_text.mean() + to_picture.mean()) / 2


def train_clip(
    folder: Path, tokenizer: CLIPTokenizer, *, seed: int, steps: int, batch: int = 32
) -> tuple[CLIPModel, dict]:
    torch.manual_seed(seed + 1)
    clip, heads = new_clip(tokenizer), AuxiliaryHeads(PATCH)

    def clip_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        pictures, captions, texts = draw_batch(batch, draw)
        x = augment_pictures(negatives.render_pictures(pictures, draw.torch), draw) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            patches = clip.vision_model(x).last_hidden_state.float()  # [I,65,128]
        pooled = clip.vision_model.post_layernorm(patches[:, 0])
        image = F.normalize(clip.visual_projection(pooled), dim=-1)
        text_output = clip.text_model(tokenise_prompts(tokenizer, texts))
        text = F.normalize(clip.text_projection(text_output.pooler_output), dim=-1)
        text_index = {t: i for i, t in enumerate(texts)}
        truth = torch.zeros(len(pictures), len(texts), dtype=torch.bool)
        for row, picture in zip(truth, pictures, strict=True):
            row[[text_index[c] for c in picture.true_captions() if c in text_index]] = True
        caption_index = torch.tensor([text_index[c] if c else -1 for c in captions])
        logits = clip.logit_scale.clamp(max=4.0).exp() * image @ text.T
        main = contrastive_loss(logits, truth, caption_index)
        what, where = heads.content_loss(patches[:, 1:], pictures), heads.position_loss(pooled, pictures)
        who = heads.relation_loss(text_output.last_hidden_state, texts)
        is_hit = (
            logits[:batch].masked_fill(truth[:batch], -9e9).amax(1) < logits[range(batch), caption_index[:batch]]
        ).float()
        metrics = {"clip": main.item(), "what": what.item(), "where": where.item(), "who": who.item()}
        return main + 0.5 * what + 2 * where + who, metrics | {"hit": is_hit.mean().item()}

    optimizer = torch.optim.AdamW([*clip.parameters(), *heads.parameters()], lr=1e-3, weight_decay=0.01)
    log = train_stage(
        TrainingStage("clip", {"clip": clip, "hints": heads}, optimizer, clip_loss, steps), folder, seed=seed
    )
    return clip.eval().requires_grad_(False), log | {"samples": log["steps"] * 2 * batch}
