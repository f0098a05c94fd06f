"""The video pack's reward: a small CLIP that reads a clip as a film strip, its nine frames in one picture, three by
three. Trained with near misses on both sides: wrong words, and wrong, frozen, reversed, melted and broken clips.

It is a plain CLIPModel; what makes it a video encoder is `film_strip`, and that its patches see each other across
frames.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.models import AutoencoderKLWan
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from pipelines.starter.image.clip import contrastive_loss, tokenise_prompts
from pipelines.starter.resumable_training import Draw, TrainingStage, train_stage
from pipelines.starter.tokenizer import LENGTH
from pipelines.starter.video import world
from pipelines.starter.video.autoencoder import MIX, decode_latents, encode_clips

WIDTH, GRID = 128, 4  # of the towers; patches across a frame
COARSE, SIDE = 32, world.SIZE  # of a frame in the strip, while what happens is learnt, and then


def film_strip(x: Tensor, side: int = SIDE) -> Tensor:
    """[B,9,3,64,64] -> [B,3,3 side,3 side]: the frames three by three, first row first."""
    small = F.avg_pool2d(x.flatten(0, 1), x.shape[-1] // side).unflatten(0, x.shape[:2])
    rows = small.unflatten(1, (3, 3)).permute(0, 3, 1, 4, 2, 5)  # [B,3,row,y,column,x]
    return rows.flatten(4, 5).flatten(2, 3)


def new_clip(tokenizer: CLIPTokenizer, side: int = SIDE) -> CLIPModel:
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = dict(hidden_size=WIDTH, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=LENGTH, vocab_size=len(tokenizer), pad_token_id=tokenizer.eos_token_id,
                projection_dim=64, **special)  # fmt: skip
    vision = dict(hidden_size=WIDTH, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
                  image_size=3 * side, patch_size=side // GRID, projection_dim=64)  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def refine_patches(coarse: CLIPModel, tokenizer: CLIPTokenizer) -> CLIPModel:
    """The same function of clips, with patches of whole frames: each weight spread over the pixels it took the mean
    of."""
    clip, times = new_clip(tokenizer), SIDE // COARSE
    state, patches = coarse.state_dict(), "vision_model.embeddings.patch_embedding.weight"
    state[patches] = state[patches].repeat_interleave(times, 2).repeat_interleave(times, 3) / times**2
    clip.load_state_dict(state)
    return clip


# --- near misses -----------------------------------------------------------------------------------------------------

KINDS = (world.COLOURS, world.SHAPES, tuple(world.DIRECTIONS), tuple(world.SPEEDS), world.CHANGES)


def false_prompts(
    prompt: str, true: Sequence[str], rng: random.Random, n: int, *, allow_held_out: bool = False
) -> list[str]:
    """`n` prompts that differ from this one in a word or in what it does, and are not `true`; none of them held out,
    unless `allow_held_out`."""
    out: list[str] = []
    while len(out) < n:
        words = prompt.split()
        if "turning" in words and rng.random() < 0.4:  # the wrong way round
            words[1], words[-1] = words[-1], words[1]
        elif rng.random() < 0.25:
            other = rng.choice(world.all_prompts()).split()
            words = words[:3] + other[3:]
        else:
            places = [(i, kind) for i, w in enumerate(words) for kind in KINDS if w in kind]
            at, kind = rng.choice(places)
            words[at] = rng.choice([w for w in kind if w != words[at]])
        wrong = " ".join(words)
        need = world.parse_prompt(wrong)
        same = need and len(set(need.nouns)) < len(need.nouns)
        if (
            need
            and not same
            and wrong not in true
            and wrong not in out
            and (allow_held_out or not world.is_held_out(wrong))
        ):
            out.append(wrong)
    return out


def _show_false_prompt(clip: world.Clip, rng: random.Random) -> world.Clip:
    """A clip that shows one of the false prompts."""
    true = world.true_captions(clip)
    wrong = false_prompts(rng.choice(true), true, rng, 1, allow_held_out=True)[0]
    return world.clip_for(world.require_prompt(wrong), rng)


def _hold_still(clip: world.Clip, rng: random.Random) -> world.Clip:
    """The first of its things, doing nothing, as it was at the start or at the end."""
    a = clip[0]
    if rng.random() < 0.5:
        a = _reverse_time((a,), rng)[0]
    return (replace(a, end=a.start, radii=(a.radii[0],) * 2, turns=None),)


def _reverse_time(clip: world.Clip, rng: random.Random) -> world.Clip:
    """Time turned round."""
    return tuple(
        replace(
            a, start=a.end, end=a.start, radii=a.radii[::-1], colour=a.turns or a.colour, turns=a.turns and a.colour
        )
        for a in clip
    )


def _add_thing(clip: world.Clip, rng: random.Random) -> world.Clip:
    """One more thing, standing somewhere."""
    need = world.Requirements("still", ((rng.choice(world.COLOURS), rng.choice(world.SHAPES)),))
    return (*clip, *world.clip_for(need, rng))


def _slant_path(clip: world.Clip, rng: random.Random) -> world.Clip:
    """The same things on a slant that no prompt describes."""
    dx, dy = rng.choice((-1, 1)) * rng.uniform(10, 18), rng.choice((-1, 1)) * rng.uniform(10, 18)
    a, *others = clip
    middle = tuple(min(max((s + e) / 2, 22), 42) for s, e in zip(a.start, a.end, strict=True))
    start, end = ((middle[0] + k * dx, middle[1] + k * dy) for k in (-0.5, 0.5))
    return (replace(a, start=start, end=end), *others)


def _break_frames(x: Tensor, rng: random.Random) -> Tensor:
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


def _melt_outlines(x: Tensor, draw: Draw) -> Tensor:
    """[9,3,64,64] with its outlines bent, in all frames or in those towards one end: each pixel is taken from some
    pixels away, by a smooth field that drifts in time."""
    rng, time = draw.python, torch.linspace(0, 1, world.FRAMES)[:, None, None, None]
    first, last = torch.randn(2, 1, 2, 8, 8, generator=draw.torch) * rng.uniform(2, 4.5)
    when = rng.choice((torch.ones_like(time), time, 1 - time)) * 2 / world.SIZE
    field = F.interpolate(torch.lerp(first, last, time) * when, size=x.shape[-2:], mode="bicubic", align_corners=True)
    axis = torch.linspace(-1, 1, world.SIZE)
    at = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1) + field.movedim(1, -1)
    return F.grid_sample(x, at, padding_mode="border", align_corners=True)


WRONG = {
    "other": _show_false_prompt,
    "lazy": _hold_still,
    "backwards": _reverse_time,
    "extra": _add_thing,
    "bent": _slant_path,
}
MISSES = {  # how often each kind is taken, and who can be so: still ones stay right when they are broken
    "other": (3.0, world.CATEGORIES),
    "extra": (1.0, world.CATEGORIES),
    "bent": (1.0, world.CATEGORIES),
    "broken": (1.0, ("move", "grow", "turn", "pass")),
    "lazy": (1.0, ("move", "grow", "turn", "pass")),
    "backwards": (1.5, ("move", "grow", "turn")),
    "melted": (2.5, world.CATEGORIES),
}
AT_FIRST = ("other", "extra", "bent", "broken")
TRUE_OF = ("other", "lazy", "backwards")  # kinds that show what another prompt asks for


def near_misses(
    clips: Sequence[world.Clip], draw: Draw, kinds: Sequence[str] = tuple(MISSES), *, allow_held_out: bool = False
) -> tuple[Tensor, list[list[str]], list]:
    """A wrong one of each clip: [B,9,3,64,64], every prompt that is true of it (none if it is broken), and what it
    shows (None if it is broken). Broken ones of still clips would be right; these get something else."""
    rng, scenes, true, hows = draw.python, [], [], []
    for clip in clips:
        category = world.prompt_category(world.true_captions(clip)[0])
        applicable = [how for how in kinds if category in MISSES[how][1]]
        how = rng.choices(applicable, [MISSES[how][0] for how in applicable])[0]
        wrong = WRONG.get(how, lambda c, _: c)(clip, rng)
        while how in TRUE_OF and not allow_held_out and world.is_clip_held_out(wrong):
            how, wrong = "other", _show_false_prompt(clip, rng)
        scenes.append(wrong)
        true.append(world.true_captions(wrong) if how in TRUE_OF else [])
        hows.append(how)
    spoil = {"broken": lambda c: _break_frames(c, rng), "melted": lambda c: _melt_outlines(c, draw)}
    x = world.render_clips(scenes, draw.torch)
    x = torch.stack([spoil.get(how, lambda c: c)(c) for c, how in zip(x, hows, strict=True)])
    return x, true, [None if how in spoil else s for s, how in zip(scenes, hows, strict=True)]


# --- training --------------------------------------------------------------------------------------------------------


def patch_labels(clips: Sequence[world.Clip | None]) -> Tensor:
    """[B,144] in the strip's order: 0 ground, else 1 + the shape on whose inside the patch centre lies; -1 unknown."""
    labels = torch.zeros(len(clips), world.FRAMES, GRID, GRID, dtype=torch.long)
    centre = (torch.arange(GRID) + 0.5) * world.SIZE / GRID
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


def augment_strips(x: Tensor, draw: Draw) -> Tensor:
    """Blur and noise, each on about half of the strips [B,3,H,W]."""
    on = torch.rand(2, len(x), 1, 1, 1, generator=draw.torch)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, ((on[0] - 0.5) * 1.4).clamp(0, 1))
    return (x + 0.08 * (on[1] - 0.5).clamp(0) * torch.randn(x.shape, generator=draw.torch)).clamp(0, 1)


@torch.no_grad()
def reconstruct_some(vae: AutoencoderKLWan, x: Tensor, draw: Draw) -> Tensor:
    """[B,9,3,64,64], every fourth as the autoencoder gives it back from latents a little off, as a generator's are."""
    rows = torch.arange(draw.python.randrange(4), len(x), 4)
    with torch.autocast("cpu", torch.bfloat16):
        z = encode_clips(vae, x[rows])
        off = 0.1 * torch.rand(len(rows), 1, 1, 1, 1, generator=draw.torch)
        decoded = decode_latents(vae, z + off * torch.randn(z.shape, generator=draw.torch))
    return x.index_copy(0, rows, decoded)


def draw_batch(
    batch: int, draw: Draw, kinds: Sequence[str] = tuple(MISSES)
) -> tuple[Tensor, list[str | None], list[str], Tensor, list]:
    """2B clips (B true ones, then B near misses), the caption of each, every text, which are true [2B,N], and what is
    shown."""
    source = world.training_clips(draw.python, MIX)
    scenes = [next(source) for _ in range(batch)]
    wrong, true, wrong_scenes = near_misses(scenes, draw, kinds)
    every = [world.true_captions(clip) for clip in scenes] + true
    captions = [draw.python.choice(t) if t else None for t in every]
    texts = [c for c in captions if c]
    for caption, true_prompts in zip(captions[:batch], every, strict=False):
        assert caption is not None  # the first B clips are true ones
        texts += false_prompts(caption, true_prompts, draw.python, 3)
    texts = list(dict.fromkeys(texts))
    truth = torch.tensor([[t in true_prompts for t in texts] for true_prompts in every])
    return torch.cat([world.render_clips(scenes, draw.torch), wrong]), captions, texts, truth, [*scenes, *wrong_scenes]


def train_clip(
    folder: Path, tokenizer: CLIPTokenizer, vae: AutoencoderKLWan, *, seed: int, steps: tuple[int, int], batch: int = 16
) -> tuple[CLIPModel, dict]:
    """First what happens, on frames at half their size; then how well it is drawn, at full size, with the near misses
    that need it: melted things, lazy ones, time turned round."""
    torch.manual_seed(seed + 1)
    clip, what = new_clip(tokenizer, COARSE), nn.Linear(WIDTH, 1 + len(world.SHAPES))
    coarse_log = _train_phase(
        folder, "clip", clip, what, tokenizer, lambda x, _: x, AT_FIRST,
        side=COARSE, seed=seed, steps=steps[0], batch=batch,
    )  # fmt: skip
    clip = refine_patches(clip, tokenizer)
    fine_log = _train_phase(
        folder, "clip-fine", clip, what, tokenizer, lambda x, draw: reconstruct_some(vae, x, draw), tuple(MISSES),
        side=SIDE, seed=seed, steps=steps[1], batch=batch, lr=5e-4,
    )  # fmt: skip
    return clip.eval().requires_grad_(False), {k: v + fine_log[k] for k, v in coarse_log.items()}


def _train_phase(
    folder: Path, name: str, clip: CLIPModel, what: nn.Module, tokenizer: CLIPTokenizer,
    transform: Callable[[Tensor, Draw], Tensor], kinds: Sequence[str], *,
    side: int, seed: int, steps: int, batch: int, lr: float = 1e-3,
) -> dict:  # fmt: skip
    def clip_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        x, captions, texts, truth, scenes = draw_batch(batch, draw, kinds)
        x = augment_strips(film_strip(transform(x, draw), side), draw)
        patches = clip.vision_model(x * 2 - 1).last_hidden_state  # [2B,145,128]
        image = F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(patches[:, 0])), dim=-1)
        text = F.normalize(
            clip.text_projection(clip.text_model(tokenise_prompts(tokenizer, texts)).pooler_output), dim=-1
        )
        text_index = {t: i for i, t in enumerate(texts)}
        caption_index = torch.tensor([text_index[c] if c else -1 for c in captions])
        logits = clip.logit_scale.clamp(max=4.0).exp() * image @ text.T
        main = contrastive_loss(logits, truth, caption_index)
        hint = F.cross_entropy(what(patches[:, 1:]).flatten(0, 1), patch_labels(scenes).flatten(), ignore_index=-1)
        is_hit = (
            logits[:batch].masked_fill(truth[:batch], -9e9).amax(1) < logits[range(batch), caption_index[:batch]]
        ).float()
        return main + 0.5 * hint, {"clip": main.item(), "what": hint.item(), "hit": is_hit.mean().item()}

    optimizer = torch.optim.AdamW([*clip.parameters(), *what.parameters()], lr=lr, weight_decay=0.01)
    log = train_stage(TrainingStage(name, {"clip": clip, "what": what}, optimizer, clip_loss, steps), folder, seed=seed)
    return log | {"samples": log["steps"] * 2 * batch}


@torch.no_grad()
def cosine_scores(clip: CLIPModel, tokenizer: CLIPTokenizer, x: Tensor, prompts: Sequence[str]) -> Tensor:
    """[B]"""
    image = torch.cat(
        [clip.get_image_features(pixel_values=film_strip(part) * 2 - 1).pooler_output for part in x.split(64)]
    )
    text = clip.get_text_features(input_ids=tokenise_prompts(tokenizer, list(prompts))).pooler_output
    return F.cosine_similarity(image, text)
