"""The edit pack's reward model: a small CLIP (Radford et al., arXiv:2103.00020) of pairs of pictures.

Its picture side sees source and result as one picture of six channels, so that every patch is compared with what was
there; its text side reads the instruction. Contrastive both ways over true pairs, near misses of them, and the
instructions of all; a pair to which no instruction leads has none. `EditHeads`, thrown away after training, ask each
side for what was edited.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from pipelines.starter.edit import negatives, world
from pipelines.starter.image.auxiliary_heads import patch_labels
from pipelines.starter.image.clip import PATCH, contrastive_loss, new_clip, tokenise_prompts
from pipelines.starter.image.negatives import Picture
from pipelines.starter.image.world import COLOURS, SHAPES, SIZES, UNSEEN_PAIRS
from pipelines.starter.resumable_training import Draw, TrainingStage, train_stage

TARGETS = ("", *COLOURS, *SIZES, *SHAPES, *world.DIRECTIONS, *world.PLACES)


def new_edit_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """As the picture pack's, with six channels: source, then result."""
    config = new_clip(tokenizer).config.to_dict()
    vision = config["vision_config"] | {"num_channels": 6}
    return CLIPModel(CLIPConfig(text_config=config["text_config"], vision_config=vision, projection_dim=64))


class EditHeads(nn.Module):
    """What each side must know: the patches, which thing was and is there; both pooled sides, which edit it is."""

    def __init__(self, width: int = 128):
        super().__init__()
        kinds = 1 + len(SHAPES) * len(COLOURS)
        self.before, self.after = nn.Linear(width, kinds), nn.Linear(width, kinds)
        sizes = (len(world.KINDS), len(SHAPES), len(COLOURS), len(TARGETS))
        self.of_pair = nn.ModuleList(nn.Linear(width, n) for n in sizes)
        self.of_text = nn.ModuleList(nn.Linear(width, n) for n in sizes)

    def content_loss(self, patches: Tensor, before: Sequence[Picture], after: Sequence[Picture]) -> Tensor:
        """Cross-entropy of what each patch [I,64,W] shows in the source and in the result."""
        losses = []
        for head, pictures in ((self.before, before), (self.after, after)):
            labels = patch_labels(pictures, PATCH).flatten()
            losses.append(F.cross_entropy(head(patches).flatten(0, 1), labels, ignore_index=-1))
        return losses[0] + losses[1]

    def edit_loss(self, heads: nn.ModuleList, pooled: Tensor, asked: Sequence[world.Instruction]) -> Tensor:
        """Cross-entropy of the edit's kind, shape, colour (where it is said) and target from features [N,W]."""
        labels = torch.tensor([_edit_labels(a) for a in asked]).T  # [4,N]
        losses = [
            F.cross_entropy(head(pooled), answer, ignore_index=-1, reduction="sum") / len(asked)
            for head, answer in zip(heads, labels, strict=True)
        ]
        return sum(losses, pooled.new_zeros(()))


def _edit_labels(asked: world.Instruction) -> tuple[int, int, int, int]:
    """Numbers of kind, shape, colour and target; -1 where unsaid, and for the two things of a swap."""
    is_swap = asked.kind == "swap"
    shape = -1 if is_swap else SHAPES.index(asked.noun.shape)
    colour = COLOURS.index(asked.noun.colour) if asked.noun.colour and not is_swap else -1
    return world.KINDS.index(asked.kind), shape, colour, TARGETS.index(asked.to)


def augment_results(x: Tensor, draw: Draw) -> Tensor:
    """Blur, noise and a slight shift of brightness, such as an autoencoder makes, each on about half of the results
    [B,3,64,64]."""
    on = torch.rand(3, len(x), 1, 1, 1, generator=draw.torch)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, ((on[0] - 0.5) * 2).clamp(0, 1))
    x = x + 0.06 * (on[1] - 0.5).clamp(0) * torch.randn(x.shape, generator=draw.torch)
    return (x + 0.015 * (2 * on[2] - 1)).clamp(0, 1)


def random_training_edit(rng: random.Random, kind: str) -> world.Edit:
    while True:
        edit = world.random_edit(rng, kind=kind)
        if world.may_train_on(edit):
            return edit


def false_wordings(edit: world.Edit, rng: random.Random, n: int, *, allow_held_out: bool = False) -> list[str]:
    """Up to n instructions that are none of the edit's: about the same source, mostly of the same kind; none held out
    unless `allow_held_out`."""
    true, texts = set(world.instruction_wordings(edit)), set[str]()
    for _ in range(4 * n):
        kind = edit.instruction.kind if rng.random() < 0.7 else rng.choice(world.KINDS)
        asked = world.random_instruction(edit.before, kind, rng)
        nouns = [noun for noun in (asked.noun, asked.other) if noun]
        if kind == "swap" and asked.other is None:
            continue
        is_hidden = world.is_instruction_held_out(asked) or any((w.colour, w.shape) in UNSEEN_PAIRS for w in nouns)
        text = world.write_instruction(asked)
        if text not in true and len(texts) < n and (allow_held_out or not is_hidden):
            texts.add(text)
    return sorted(texts)


def train_edit_clip(
    folder: Path, tokenizer: CLIPTokenizer, *, seed: int, steps: int, batch: int = 32
) -> tuple[CLIPModel, dict]:
    torch.manual_seed(seed + 3)
    clip, heads = new_edit_clip(tokenizer), EditHeads()

    def clip_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        rng = draw.python
        true = [random_training_edit(rng, rng.choice(world.KINDS)) for _ in range(batch)]
        edits = true + true
        results = [negatives.true_result(edit) for edit in true]
        results += [negatives.random_miss(edit, rng) for edit in true]
        captions = [rng.choice(result.true_wordings() or [""]) for result in results]
        texts = [c for c in captions if c]
        for edit in true:
            texts += false_wordings(edit, rng, 3)
        texts = list(dict.fromkeys(texts))
        before, after = negatives.render_results(edits, results, draw.torch)
        x = torch.cat([before, augment_results(after, draw)], 1) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            patches = clip.vision_model(x).last_hidden_state.float()  # [I,65,128]
        pooled = clip.vision_model.post_layernorm(patches[:, 0])
        pair = F.normalize(clip.visual_projection(pooled), dim=-1)
        text_pooled = clip.text_model(tokenise_prompts(tokenizer, texts)).pooler_output
        text = F.normalize(clip.text_projection(text_pooled), dim=-1)
        number = {t: i for i, t in enumerate(texts)}
        truth = torch.zeros(len(results), len(texts), dtype=torch.bool)
        for row, result in zip(truth, results, strict=True):
            row[[number[c] for c in result.true_wordings() if c in number]] = True
        caption_index = torch.tensor([number[c] if c else -1 for c in captions])
        logits = clip.logit_scale.clamp(max=4.0).exp() * pair @ text.T
        main = contrastive_loss(logits, truth, caption_index)
        pictures = [Picture(e.before) for e in edits], [Picture(r.scene, malformed=bool(r.opacity)) for r in results]
        what = heads.content_loss(patches[:, 1:], *pictures)
        told = [i for i, result in enumerate(results) if result.edit]
        asked = [edit.instruction for edit in (results[i].edit for i in told) if edit]
        which = heads.edit_loss(heads.of_pair, pooled[told], asked)
        said = heads.edit_loss(heads.of_text, text_pooled, [a for a in map(world.parse_instruction, texts) if a])
        is_hit = logits[:batch].masked_fill(truth[:batch], -9e9).amax(1) < logits[range(batch), caption_index[:batch]]
        metrics = {"clip": main.item(), "what": what.item(), "which": which.item(), "said": said.item()}
        return main + 0.5 * what + 0.5 * which + 0.2 * said, metrics | {"hit": is_hit.float().mean().item()}

    optimizer = torch.optim.AdamW([*clip.parameters(), *heads.parameters()], lr=1e-3, weight_decay=0.01)
    stage = TrainingStage("edit-clip", {"clip": clip, "hints": heads}, optimizer, clip_loss, steps)
    log = train_stage(stage, folder, seed=seed)
    return clip.eval().requires_grad_(False), log | {"samples": log["steps"] * 2 * batch}
