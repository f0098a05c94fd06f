"""The video pack's reward: a small CLIP that reads a clip as a film strip, nine frames of 32 x 32 in one picture, three by
three. Trained with near misses on both sides: wrong words, and wrong, frozen, reversed and broken clips.

It is a plain CLIPModel; what makes it a video encoder is `strip`, and that its patches see each other across frames.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from pipelines.starter import video_world as world
from pipelines.starter.tokens import LENGTH
from pipelines.starter.train_clip import contrast, tokenise
from pipelines.starter.training import Draw, Stage, train
from pipelines.starter.video_autoencoder import MIX

SIDE, PATCH, WIDTH = 32, 8, 128  # of a frame in the strip, of a patch; width of the towers
DOWN = world.SIZE // SIDE


def strip(x: Tensor) -> Tensor:
    """[B,9,3,64,64] -> [B,3,96,96]: the frames at half their size, three by three, first row first."""
    small = F.avg_pool2d(x.flatten(0, 1), DOWN).unflatten(0, x.shape[:2])  # [B,9,3,32,32]
    rows = small.unflatten(1, (3, 3)).permute(0, 3, 1, 4, 2, 5)  # [B,3,row,y,column,x]
    return rows.flatten(4, 5).flatten(2, 3)


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = dict(hidden_size=WIDTH, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=LENGTH, vocab_size=len(tokenizer), pad_token_id=tokenizer.eos_token_id,
                projection_dim=64, **special)  # fmt: skip
    vision = dict(hidden_size=WIDTH, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
                  image_size=3 * SIDE, patch_size=PATCH, projection_dim=64)  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


# --- near misses -----------------------------------------------------------------------------------------------------

KINDS = (world.COLOURS, world.SHAPES, tuple(world.DIRECTIONS), tuple(world.SPEEDS), world.CHANGES)


def false_prompts(prompt: str, true: Sequence[str], rng: random.Random, n: int, *, held: bool = False) -> list[str]:
    """`n` prompts that differ from this one in a word or in what it does, and are not `true`; `held=False` leaves out those
    that are held out."""
    out: list[str] = []
    while len(out) < n:
        words = prompt.split()
        if rng.random() < 0.25:
            other = rng.choice(world.all_prompts()).split()
            words = words[:3] + other[3:]
        else:
            places = [(i, kind) for i, w in enumerate(words) for kind in KINDS if w in kind]
            at, kind = rng.choice(places)
            words[at] = rng.choice([w for w in kind if w != words[at]])
        wrong = " ".join(words)
        need = world.parse(wrong)
        same = need and len(set(need.nouns)) < len(need.nouns)
        if need and not same and wrong not in true and wrong not in out and (held or not world.held_out(wrong)):
            out.append(wrong)
    return out


def _other(clip: world.Clip, rng: random.Random) -> world.Clip:
    """A clip that shows one of the false prompts."""
    true = world.captions(clip)
    return world.clip_for(world.parse(false_prompts(rng.choice(true), true, rng, 1, held=True)[0]), rng)


def _extra(clip: world.Clip, rng: random.Random) -> world.Clip:
    """One more thing, standing somewhere."""
    need = world.Requirements("still", ((rng.choice(world.COLOURS), rng.choice(world.SHAPES)),))
    return (*clip, *world.clip_for(need, rng))


def _bent(clip: world.Clip, rng: random.Random) -> world.Clip:
    """The same things on a slant that no prompt describes."""
    dx, dy = rng.choice((-1, 1)) * rng.uniform(10, 18), rng.choice((-1, 1)) * rng.uniform(10, 18)
    a, *rest = clip
    middle = tuple(min(max((s + e) / 2, 22), 42) for s, e in zip(a.start, a.end, strict=True))
    start, end = ((middle[0] + k * dx, middle[1] + k * dy) for k in (-0.5, 0.5))
    return (replace(a, start=start, end=end), *rest)


def _break(x: Tensor, rng: random.Random) -> Tensor:
    """[9,3,64,64] with frames frozen, shuffled, emptied or turned round."""
    order, how = list(range(world.FRAMES)), rng.choice(("frozen", "shuffled", "empty", "halted", "twice"))
    if how == "frozen":
        return x[:1].expand_as(x) if rng.random() < 0.5 else x[-1:].expand_as(x)
    if how == "shuffled":
        rng.shuffle(order)
    if how == "halted":
        order = [min(k, 4) for k in order] if rng.random() < 0.5 else [max(k, 4) for k in order]
    if how == "twice":
        order = [abs(2 * k - 8) for k in order]  # there and back
    x = x[order].clone()
    if how == "empty":
        for k in rng.sample(range(world.FRAMES), rng.randint(2, 5)):
            x[k] = x[k].flatten(1).median(1).values[:, None, None]
    return x


def near_misses(clips: Sequence[world.Clip], draw: Draw, *, held: bool = False) -> tuple[Tensor, list[list[str]], list]:
    """A wrong one of each clip: [B,9,3,64,64], every prompt that is true of it (none if it is broken), and what it shows
    (None if it is broken). Broken ones of still clips would be right; these get something else."""
    rng, scenes, true, broken = draw.python, [], [], []
    for clip in clips:
        moving = world.category(world.captions(clip)[0]) != "still"
        how = rng.choice(("other", "other", "other", "extra", "bent", "broken" if moving else "bent"))
        wrong = {"other": _other, "extra": _extra, "bent": _bent}.get(how, lambda c, _: c)(clip, rng)
        while how == "other" and not held and world.clip_held_out(wrong):
            wrong = _other(clip, rng)
        scenes.append(wrong)
        true.append(world.captions(wrong) if how == "other" else [])
        broken.append(how == "broken")
    x = world.render(scenes, draw.torch)
    x = torch.stack([_break(c, rng) if b else c for c, b in zip(x, broken, strict=True)])
    return x, true, [None if b else s for s, b in zip(scenes, broken, strict=True)]


# --- training --------------------------------------------------------------------------------------------------------


def patch_labels(clips: Sequence[world.Clip | None]) -> Tensor:
    """[B,144] in the strip's order: 0 ground, else 1 + the shape on whose inside the patch centre lies; -1 unknown."""
    labels = torch.zeros(len(clips), world.FRAMES, SIDE // PATCH, SIDE // PATCH, dtype=torch.long)
    centre = torch.arange(PATCH / 2, SIDE, PATCH) * DOWN
    share = torch.linspace(0, 1, world.FRAMES)
    for row, clip in zip(labels, clips, strict=True):
        if clip is None:
            row[:] = -1
        for a in clip or ():
            x, y, r = (
                s + share * (e - s)
                for s, e in ((a.start[0], a.end[0]), (a.start[1], a.end[1]), (a.radii[0], a.radii[1]))
            )
            inside = (centre - x[:, None, None]).square() + (centre[:, None] - y[:, None, None]).square()
            row[inside < r[:, None, None] ** 2] = 1 + world.SHAPES.index(a.shape)
    grid = labels.unflatten(1, (3, 3)).permute(0, 1, 3, 2, 4)  # [B,row,y,column,x]
    return grid.flatten(1)


def augment(x: Tensor, draw: Draw) -> Tensor:
    """Blur and noise, each on about half of the strips [B,3,96,96]."""
    on = torch.rand(2, len(x), 1, 1, 1, generator=draw.torch)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, ((on[0] - 0.5) * 1.4).clamp(0, 1))
    return (x + 0.08 * (on[1] - 0.5).clamp(0) * torch.randn(x.shape, generator=draw.torch)).clamp(0, 1)


def draw_batch(batch: int, draw: Draw) -> tuple[Tensor, list[str | None], list[str], Tensor, list]:
    """2B strips (B true ones, B near misses), the caption of each, every text, which are true [2B,N], and what is shown."""
    source = world.stream(draw.python, MIX)
    shown = [next(source) for _ in range(batch)]
    wrong, true, seen = near_misses(shown, draw)
    every = [world.captions(clip) for clip in shown] + true
    captions = [draw.python.choice(t) if t else None for t in every]
    texts = [c for c in captions if c]
    for caption, own in zip(captions[:batch], every, strict=False):
        texts += false_prompts(caption, own, draw.python, 3)
    texts = list(dict.fromkeys(texts))
    truth = torch.tensor([[t in own for t in texts] for own in every])
    x = torch.cat([world.render(shown, draw.torch), wrong])
    return augment(strip(x), draw), captions, texts, truth, [*shown, *seen]


def train_clip(
    folder: Path, tokenizer: CLIPTokenizer, *, seed: int, steps: int, batch: int = 16
) -> tuple[CLIPModel, dict]:
    torch.manual_seed(seed + 1)
    clip, what = new_clip(tokenizer), nn.Linear(WIDTH, 1 + len(world.SHAPES))

    def loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        x, captions, texts, truth, shown = draw_batch(batch, draw)
        seen = clip.vision_model(x * 2 - 1).last_hidden_state  # [2B,145,128]
        image = F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(seen[:, 0])), dim=-1)
        text = F.normalize(clip.text_projection(clip.text_model(tokenise(tokenizer, texts)).pooler_output), dim=-1)
        place = {t: i for i, t in enumerate(texts)}
        own = torch.tensor([place[c] if c else -1 for c in captions])
        logits = clip.logit_scale.clamp(max=4.0).exp() * image @ text.T
        main = contrast(logits, truth, own)
        hint = F.cross_entropy(what(seen[:, 1:]).flatten(0, 1), patch_labels(shown).flatten(), ignore_index=-1)
        right = (logits[:batch].masked_fill(truth[:batch], -9e9).amax(1) < logits[range(batch), own[:batch]]).float()
        return main + 0.5 * hint, {"clip": main.item(), "what": hint.item(), "hit": right.mean().item()}

    optimizer = torch.optim.AdamW([*clip.parameters(), *what.parameters()], lr=1e-3, weight_decay=0.01)
    told = train(Stage("clip", {"clip": clip, "what": what}, optimizer, loss, steps), folder, seed=seed)
    return clip.eval().requires_grad_(False), told | {"samples": told["steps"] * 2 * batch}


@torch.no_grad()
def cosine(clip: CLIPModel, tokenizer: CLIPTokenizer, x: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B]"""
    image = torch.cat([clip.get_image_features(pixel_values=strip(part) * 2 - 1).pooler_output for part in x.split(64)])
    text = clip.get_text_features(input_ids=tokenise(tokenizer, list(prompts))).pooler_output
    return F.cosine_similarity(image, text)
