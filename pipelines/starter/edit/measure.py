"""What the editor and its reward are worth, measured by the oracle that nothing was trained on: the numbers of
`report.json`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypedDict

import torch
from diffusers.models import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from pipelines.starter.edit import negatives, world
from pipelines.starter.edit.clip import false_wordings
from pipelines.starter.edit.oracle import Verdict, judge_edit, understand_instruction
from pipelines.starter.image.autoencoder import decode_latents, encode_pictures
from pipelines.starter.image.clip import tokenise_prompts
from pipelines.starter.image.measure import Interval, ranking_auc, wilson_interval
from pipelines.starter.pack_builder import DiffusersPipeline
from pipelines.starter.resumable_training import Draw


class EditSampling(TypedDict):
    """How the editor is sampled."""

    steps: int
    guidance: float
    image_guidance: float


def draw_edits(n: int, rng: random.Random, *, held_out: bool, kinds: Sequence[str] = world.KINDS) -> list[world.Edit]:
    """n edits, the kinds in turns: of held-out instructions and sources, or of those that may be trained on."""
    accept = world.is_held_out if held_out else world.may_train_on
    edits: list[world.Edit] = []
    while len(edits) < n:
        edit = world.random_edit(rng, kind=kinds[len(edits) % len(kinds)])
        edits += [edit] if accept(edit) else []
    return edits


def draw_strange_edits(n: int, rng: random.Random, *, held_out: bool | None = None) -> list[world.Edit]:
    """n edits, the kinds in turns, with a colour x shape pair before or after that no training picture has. held_out:
    by instruction and company, as of other edits; None takes all."""
    edits: list[world.Edit] = []
    while len(edits) < n:
        edit = world.random_edit(rng, kind=world.KINDS[len(edits) % len(world.KINDS)])
        if world.has_unseen_pair(edit) and (held_out is None or _belongs_to(edit, held_out)):
            edits.append(edit)
    return edits


def _belongs_to(edit: world.Edit, held_out: bool) -> bool:
    """Whether an edit is held out, or may be trained on, but for the pairs of colour and shape that it has."""
    is_instruction_new = world.is_instruction_held_out(edit.instruction)
    if held_out:
        return is_instruction_new and (len(edit.before) < 2 or world.is_cast_held_out(edit.before))
    return not (is_instruction_new or world.is_cast_held_out(edit.before) or world.is_cast_held_out(edit.after))


def draw_strange_additions(n: int, rng: random.Random, *, held_out: bool) -> list[world.Edit]:
    """n edits that put a thing of such a pair into an empty picture: by held-out instructions, or by others."""
    edits: list[world.Edit] = []
    while len(edits) < n:
        edit = world.random_addition(rng)
        if world.has_unseen_pair(edit) and world.is_instruction_held_out(edit.instruction) == held_out:
            edits.append(edit)
    return edits


def round_pixels(x: Tensor) -> Tensor:
    """As a PNG keeps them."""
    return (x * 255).round() / 255


def judge_results(texts: Sequence[str], sources: Tensor, results: Tensor) -> list[Verdict]:
    """The oracle's verdict on each result; nothing holds where a text names no single thing of its source."""
    verdicts = []
    for text, source, image in zip(texts, sources, results, strict=True):
        task = understand_instruction(text, source)
        verdicts.append(judge_edit(task, source, image) if task else Verdict(False, False, False))
    return verdicts


def tabulate_verdicts(kinds: Sequence[str], verdicts: Sequence[Verdict]) -> dict:
    """Shares of all, done, kept and ground, and of all by kind of edit."""
    n = len(verdicts)
    report: dict = {
        name: wilson_interval(sum(getattr(v, name) for v in verdicts), n)
        for name in ("exact", "done", "kept", "ground")
    }
    by_kind = {}
    for kind in dict.fromkeys(kinds):
        rows = [v.exact for v, k in zip(verdicts, kinds, strict=True) if k == kind]
        by_kind[kind] = wilson_interval(sum(rows), len(rows))
    return report | {"kinds": by_kind}


def edit_pictures(
    pipe: DiffusersPipeline, texts: Sequence[str], sources: Tensor, *,
    seed: int, steps: int, guidance: float, image_guidance: float,
) -> Tensor:  # fmt: skip
    """[B,3,64,64]; every row has noise of its own. Sources [B,3,64,64] in [0,1]."""
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(len(texts), 4, 16, 16, generator=Draw.at_step(seed, "measure editor").torch)
    out = []
    for first in range(0, len(texts), 32):
        rows = slice(first, first + 32)
        out.append(pipe(list(texts[rows]), image=sources[rows], latents=z[rows].to(pipe.dtype),
                        num_inference_steps=steps, guidance_scale=guidance, image_guidance_scale=image_guidance,
                        output_type="pt").images)  # fmt: skip
    return torch.cat(out).float()


def measure_editor(
    pipe: DiffusersPipeline, edits: Sequence[world.Edit], clip: tuple[CLIPModel, CLIPTokenizer], *,
    seed: int, steps: int, guidance: float, image_guidance: float,
) -> dict:  # fmt: skip
    """The oracle's verdicts on the editor's results, one result an edit, and how well the reward ranks by them."""
    sources, _ = world.render_edits(edits, Draw.at_step(seed, "measure sources").torch)
    sources, texts = round_pixels(sources), [world.write_instruction(edit.instruction) for edit in edits]
    results = edit_pictures(
        pipe, texts, sources, seed=seed, steps=steps, guidance=guidance, image_guidance=image_guidance
    )
    verdicts = judge_results(texts, sources, round_pixels(results))
    exact, score = torch.tensor([float(v.exact) for v in verdicts]), cosine_scores(*clip, sources, results, texts)
    mixed = cosine_scores(*clip, sources.roll(1, 0), results, texts)
    return tabulate_verdicts([edit.instruction.kind for edit in edits], verdicts) | {
        "clip auc": round(ranking_auc(score, exact), 4),
        "clip auc, sources shuffled": round(ranking_auc(mixed, exact), 4),
        "clip mean": round(score.mean().item(), 4),
        "steps": steps,
        "guidance": guidance,
        "image guidance": image_guidance,
    }


def measure_choice(
    pipe: DiffusersPipeline, edits: Sequence[world.Edit], clip: tuple[CLIPModel, CLIPTokenizer], *,
    n: int, seed: int, steps: int, guidance: float, image_guidance: float,
) -> dict:  # fmt: skip
    """The oracle's mean over n results of each edit, of the one that the reward likes best, and of the best."""
    sources = round_pixels(world.render_edits(edits, Draw.at_step(seed, "measure sources").torch)[0])
    sources = sources.repeat_interleave(n, 0)
    texts = [world.write_instruction(edit.instruction) for edit in edits for _ in range(n)]
    how = EditSampling(steps=steps, guidance=guidance, image_guidance=image_guidance)
    results = edit_pictures(pipe, texts, sources, seed=seed + 1, **how)
    exact = torch.tensor([float(v.exact) for v in judge_results(texts, sources, round_pixels(results))]).view(-1, n)
    score = cosine_scores(*clip, sources, results, texts).view(-1, n)
    chosen = exact[torch.arange(len(edits)), score.argmax(1)]
    kinds = {"any": exact.mean().item() * len(edits), "best by clip": chosen.sum().item()}
    kinds["best by the oracle"] = exact.amax(1).sum().item()
    mixed = [ranking_auc(s, e) for s, e in zip(score, exact, strict=True) if 0 < e.sum() < n]
    report: dict = {name: wilson_interval(hits, len(edits)) for name, hits in kinds.items()}
    return report | {"n": n, "clip auc within an edit": round(sum(mixed) / max(len(mixed), 1), 4), "edits": len(mixed)}


def measure_oracle(vae: AutoencoderKL, *, seed: int, n: int) -> dict:
    """Accuracy on true targets, plain and through the autoencoder; false alarms on what is not the edit."""
    draw = Draw.at_step(seed, "measure edit oracle")
    edits = [world.random_edit(draw.python, kind=world.KINDS[i % len(world.KINDS)]) for i in range(n)]
    texts = [draw.python.choice(world.instruction_wordings(edit)) for edit in edits]
    sources, targets = map(round_pixels, world.render_edits(edits, draw.torch))
    _, on_other_ground = world.render_edits(edits, draw.torch)
    shapes = {
        "true targets": targets,
        "targets through the autoencoder": decode_latents(vae, encode_pictures(vae, targets)),
        "the source, unedited (must be 0)": sources,
        "the source through the autoencoder (must be 0)": decode_latents(vae, encode_pictures(vae, sources)),
        "another edit's target (must be 0)": targets.roll(1, 0),
        "the target on another random ground (must be near 0)": on_other_ground,
    }
    report = {}
    for name, results in shapes.items():
        verdicts = judge_results(texts, sources, round_pixels(results))
        report[name] = wilson_interval(sum(v.exact for v in verdicts), n)
    return report


@torch.no_grad()
def cosine_scores(
    clip: CLIPModel, tokenizer: CLIPTokenizer, sources: Tensor, results: Tensor, texts: Sequence[str]
) -> Tensor:
    """[B]: how well each pair of pictures [B,3,64,64] fits its instruction."""
    pair = clip.get_image_features(pixel_values=torch.cat([sources, results], 1) * 2 - 1)
    text = clip.get_text_features(input_ids=tokenise_prompts(tokenizer, list(texts)))
    pair, text = (f if isinstance(f, Tensor) else f.pooler_output for f in (pair, text))
    return F.cosine_similarity(pair, text)


def measure_clip(clip: CLIPModel, tokenizer: CLIPTokenizer, *, seed: int, n: int) -> dict:
    """On seen and on held-out edits: how often the true result beats a near miss of each sort, and the true words four
    false ones; with the sources of other rows as the control, which must be near one half."""
    report = {}
    for name, held_out in (("seen", False), ("held out", True)):
        draw = Draw.at_step(seed, "measure edit clip", name)
        edits = draw_edits(n, draw.python, held_out=held_out)
        part: dict[str, Interval] = {}
        words = []
        for miss in negatives.MISSES:
            misses = [negatives.near_miss(edit, miss, draw.python, allow_held_out=True) for edit in edits]
            rows = [edit for edit, wrong in zip(edits, misses, strict=True) if wrong]
            wrongs = [wrong for wrong in misses if wrong]
            if not rows:
                continue
            texts = [world.write_instruction(edit.instruction) for edit in rows]
            both = [*map(negatives.true_result, rows), *wrongs]
            sources, results = negatives.render_results(rows + rows, both, draw.torch)
            for what, x in (("beats a near miss", sources), ("sources shuffled", sources.roll(1, 0))):
                right, false = cosine_scores(clip, tokenizer, x, results, texts * 2).chunk(2)
                part[f"{what}: {miss}"] = wilson_interval((right > false).sum().item(), len(rows))
        sources, targets = world.render_edits(edits, draw.torch)
        for edit, source, target in zip(edits, sources, targets, strict=True):
            texts = [
                world.write_instruction(edit.instruction),
                *false_wordings(edit, draw.python, 4, allow_held_out=True),
            ]
            n_texts = len(texts)
            scores = cosine_scores(
                clip, tokenizer, source.expand(n_texts, -1, -1, -1), target.expand(n_texts, -1, -1, -1), texts
            )
            words.append((scores[0] > scores[1:]).all().item())
        report[name] = part | {"beats 4 false instructions": wilson_interval(sum(words), len(words))}
    return report
