"""What the image-to-video model is worth, measured by the oracles that nothing was trained on: the numbers of
`report.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from diffusers.models import AutoencoderKLWan
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from pipelines.starter.edit.measure import round_pixels
from pipelines.starter.image.measure import ranking_auc, wilson_interval
from pipelines.starter.image_to_video.oracle import keeps_ground, keeps_things
from pipelines.starter.pack_builder import DiffusersPipeline
from pipelines.starter.resumable_training import Draw
from pipelines.starter.video import clip as encoder
from pipelines.starter.video import world
from pipelines.starter.video.autoencoder import SHAPE, decode_latents, draw_clips, encode_clips
from pipelines.starter.video.generator import WORDS
from pipelines.starter.video.measure import EVEN, choose_prompts, hits_by_category, score_exact


@dataclass(frozen=True)
class Task:
    """A prompt, and a first frame [3,64,64] from which it can come true."""

    prompt: str
    first: Tensor


@dataclass(frozen=True)
class Verdicts:
    """[B] 1 or 0 each: the clip shows what the text asks for; it begins with the things of its first frame; every frame
    has its ground."""

    text: Tensor
    things: Tensor
    ground: Tensor

    @property
    def kept(self) -> Tensor:
        return self.things * self.ground

    @property
    def exact(self) -> Tensor:
        return self.text * self.kept


class ClipSampling(TypedDict):
    """How the pipeline is sampled."""

    steps: int
    guidance: float


def draw_tasks(*, held_out: bool, per_category: int, draw: Draw) -> list[Task]:
    """Up to so many prompts of each category, in turns, each with the first frame, as a PNG keeps it, of a clip of
    which it is true."""
    prompts, clips = choose_prompts(held_out, per_category), []
    for prompt in prompts:
        clip = world.clip_for(world.require_prompt(prompt), draw.python)
        while not held_out and world.is_clip_held_out(clip):
            clip = world.clip_for(world.require_prompt(prompt), draw.python)
        clips.append(clip)
    firsts = round_pixels(world.render_clips(clips, draw.torch)[:, 0])
    return [Task(prompt, first) for prompt, first in zip(prompts, firsts, strict=True)]


def shuffle_firsts(tasks: Sequence[Task]) -> list[Task]:
    """Each prompt with the first frame of the next task: the control."""
    return [replace(task, first=other.first) for task, other in zip(tasks, [*tasks[1:], tasks[0]], strict=True)]


def animate_pictures(
    pipe: DiffusersPipeline, tasks: Sequence[Task], *, seed: int, seeds: int, steps: int, guidance: float
) -> Tensor:
    """[tasks * seeds,9,3,64,64], rounded as files keep them; every row has noise of its own. A call of the pipeline
    takes one picture."""
    pipe.set_progress_bar_config(disable=True)
    z = torch.randn(len(tasks), seeds, *SHAPE, generator=Draw.at_step(seed, "measure image to video").torch)
    clips = [
        pipe(image=task.first[None], prompt=[task.prompt] * seeds, latents=noise, height=world.SIZE, width=world.SIZE,
             num_frames=world.FRAMES, num_inference_steps=steps, guidance_scale=guidance, max_sequence_length=WORDS,
             output_type="pt").frames.float()
        for task, noise in zip(tasks, z, strict=True)
    ]  # fmt: skip
    return round_pixels(torch.cat(clips))


def judge_clips(clips: Tensor, tasks: Sequence[Task]) -> Verdicts:
    """clips: [B,9,3,64,64], a task each."""
    things = [keeps_things(task.first, clip[0]) for task, clip in zip(tasks, clips, strict=True)]
    ground = [keeps_ground(task.first, clip) for task, clip in zip(tasks, clips, strict=True)]
    text = score_exact(clips, [task.prompt for task in tasks])
    return Verdicts(text, torch.tensor(things).float(), torch.tensor(ground).float())


def tabulate_verdicts(verdicts: Verdicts) -> dict:
    """Shares with intervals."""
    names = ("exact", "text", "kept", "things", "ground")
    return {name: wilson_interval(getattr(verdicts, name).sum().item(), len(verdicts.text)) for name in names}


def measure_generator(
    pipe: DiffusersPipeline, tasks: Sequence[Task], clip: tuple[CLIPModel, CLIPTokenizer], *,
    seed: int, seeds: int, steps: int, guidance: float,
) -> dict:  # fmt: skip
    """The oracles' verdicts, those on the text by category, the first frame's signal-to-noise ratio, and how well the
    reward ranks the clips."""
    rows = [task for task in tasks for _ in range(seeds)]
    x = animate_pictures(pipe, tasks, seed=seed, seeds=seeds, steps=steps, guidance=guidance)
    verdicts, prompts = judge_clips(x, rows), [task.prompt for task in rows]
    error = (x[:, 0] - torch.stack([task.first for task in rows])).square().flatten(1).mean(1)
    score = encoder.cosine_scores(*clip, x, prompts)
    return tabulate_verdicts(verdicts) | {
        "text by category": hits_by_category(verdicts.text, prompts)["categories"],
        "first frame, dB": round(-10 * error.log10().mean().item(), 2),
        "clip auc, text": round(ranking_auc(score, verdicts.text), 4),
        "clip mean": round(score.mean().item(), 4),
        "tasks": len(tasks),
        "seeds": seeds,
        "steps": steps,
        "guidance": guidance,
    }


def measure_shuffled(
    pipe: DiffusersPipeline, tasks: Sequence[Task], *, seed: int, seeds: int, steps: int, guidance: float
) -> dict:
    """The control: clips from the first frames of other tasks, judged by their own prompts and their own frames."""
    x = animate_pictures(pipe, shuffle_firsts(tasks), seed=seed, seeds=seeds, steps=steps, guidance=guidance)
    return tabulate_verdicts(judge_clips(x, [task for task in tasks for _ in range(seeds)]))


def measure_choice(
    pipe: DiffusersPipeline, tasks: Sequence[Task], clip: tuple[CLIPModel, CLIPTokenizer], *,
    n: int, seed: int, steps: int, guidance: float,
) -> dict:  # fmt: skip
    """What is gained by taking the best of `n` clips of a task, by the reward and by the oracles; and how often, within
    a task, the reward has a right one above a wrong one."""
    x = animate_pictures(pipe, tasks, seed=seed, seeds=n, steps=steps, guidance=guidance)
    rows = [task for task in tasks for _ in range(n)]
    exact = judge_clips(x, rows).exact.view(-1, n)
    score = encoder.cosine_scores(*clip, x, [task.prompt for task in rows]).view(-1, n)
    above = (score[:, :, None] > score[:, None, :])[exact[:, :, None] > exact[:, None, :]].float()
    return {
        "by chance": wilson_interval(exact.sum().item(), exact.numel()),
        "by the reward": wilson_interval(exact.gather(1, score.argmax(1, keepdim=True)).sum().item(), len(tasks)),
        "by the oracles": wilson_interval(exact.amax(1).sum().item(), len(tasks)),
        "right above wrong within a task": wilson_interval(above.sum().item(), len(above)) if len(above) else None,
        "n": n,
    }


def measure_oracle(vae: AutoencoderKLWan, *, seed: int, n: int) -> dict:
    """How often true clips keep their first frame, plain and through the autoencoder; false alarms on what doesn't."""
    draw = Draw.at_step(seed, "measure first kept")
    x = round_pixels(draw_clips(n, draw, EVEN)[0])
    first, reconstructed = x[:, 0], decode_latents(vae, encode_clips(vae, x))
    faded = x.clone()
    faded[:, -1] = (faded[:, -1] + 0.05).clamp(0, 1)
    shapes = {
        "true clips": x,
        "true clips through the autoencoder": reconstructed,
        "another clip (must be near 0)": x.roll(1, 0),
        "four pixels aside (must be near 0)": x.roll(4, -1),
        "the last frame lighter (must be 0)": faded,
    }
    return {
        name: wilson_interval(
            sum(keeps_things(f, c[0]) and keeps_ground(f, c) for f, c in zip(first, clips, strict=True)), n
        )
        for name, clips in shapes.items()
    }
