"""A one-step student of the pack's text-to-image model, in two stages.

1. Regression on pairs (noise, the teacher's guided ODE solution): Luhman & Luhman, arXiv:2101.02388.
2. Distribution matching (DMD2, Yin et al., arXiv:2405.14867, eq. 2, without its GAN): the student moves along the
   difference of two scores, that of the guided teacher and that of an online copy trained on the student's own samples.
   A share of the pairs stays in the batch, as in DMD (arXiv:2311.18828, eq. 4), so that no mode is dropped.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from rich.progress import track
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pipelines.starter.image import world
from pipelines.starter.image.clip import tokenise
from pipelines.starter.image.generator import new_scheduler, noised
from pipelines.starter.resumable_training import Draw, Stage, save_atomically, train

TOP = 0.999  # the noise level from which the scheduler starts, and the student's only one
GUIDANCE = 3.0
STEPS = 8


class Prompts:
    """The seen prompts by category, each category equally likely, and their encodings [P,16,128]; the last row is ""."""

    def __init__(self, encoder: CLIPTextModel, tokenizer: CLIPTokenizer):
        seen = [p for p in world.all_prompts() if not world.held_out(p)]
        kinds = [world.category(p) for p in seen]
        self.chance = torch.tensor([1.0 / kinds.count(k) for k in kinds], dtype=torch.float64)
        with torch.no_grad():
            self.codes = encoder(tokenise(tokenizer, [*seen, ""])).last_hidden_state

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n] row numbers."""
        return torch.multinomial(self.chance, n, replacement=True, generator=generator)


def velocity(unet: UNet2DConditionModel, x: Tensor, t: Tensor | float, code: Tensor) -> Tensor:
    """[B,4,16,16]"""
    with torch.autocast("cpu", torch.bfloat16):
        return unet(x, t, code).sample.float()


def guided(
    unet: UNet2DConditionModel, x: Tensor, t: Tensor | float, code: Tensor, null: Tensor, scale: float
) -> Tensor:
    with_text = velocity(unet, x, t, code)
    without = velocity(unet, x, t, null.expand_as(code))
    return without + scale * (with_text - without)


@torch.no_grad()
def solve(unet: UNet2DConditionModel, z: Tensor, code: Tensor, null: Tensor, steps: int = STEPS) -> Tensor:
    """The teacher's guided ODE solution [B,4,16,16] from noise z, by the pipeline's own scheduler."""
    scheduler = new_scheduler()
    scheduler.set_timesteps(steps)
    x = z
    for t in scheduler.timesteps:
        x = scheduler.step(guided(unet, x, t, code, null, GUIDANCE), t, x).prev_sample
    return x


def one_step(student: UNet2DConditionModel, z: Tensor, code: Tensor) -> Tensor:
    """What the pipeline returns for one step from z."""
    return z - TOP * velocity(student, z, 1000 * TOP, code)


def pairs(
    folder: Path, teacher: UNet2DConditionModel, prompts: Prompts, *, seed: int, n: int, batch: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """n triples (noise, solution, prompt row), in chunks that survive an interruption."""
    path = folder / "pairs.pt"
    parts = torch.load(path, weights_only=True) if path.exists() else []
    batch = min(batch, n)
    for part in track(range(len(parts), -(-n // batch)), description="pairs"):
        draw = Draw.at(seed, "pairs", part)
        rows = prompts.draw(batch, draw.torch)
        z = torch.randn(batch, 4, 16, 16, generator=draw.torch)
        parts.append((z.half(), solve(teacher, z, prompts.codes[rows], prompts.codes[-1:]).half(), rows))
        if part % 5 == 4 or (part + 1) * batch >= n:
            save_atomically(parts, path)
    z, x, rows = (torch.cat(column)[:n] for column in zip(*parts, strict=True))
    return z.float(), x.float(), rows


def huber(a: Tensor, b: Tensor, c: float = 0.3) -> Tensor:
    """Pseudo-Huber per sample (Song & Dhariwal, arXiv:2310.14189): far targets do not pull the answer to their mean."""
    return (((a - b).square().mean((1, 2, 3)) + c**2).sqrt() - c).mean()


def regress(folder: Path, teacher, prompts: Prompts, data, *, seed: int, steps: int, batch: int = 32):
    """Stage 1. Returns the student's running average."""
    student = copy.deepcopy(teacher).requires_grad_(True)
    average = copy.deepcopy(teacher).requires_grad_(False)
    z, x, rows = data

    def loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        i = torch.randint(len(z), (batch,), generator=draw.torch)
        return huber(one_step(student, z[i], prompts.codes[rows[i]]), x[i]), {}

    optimizer = torch.optim.AdamW(student.parameters(), lr=7e-4, betas=(0.9, 0.99), weight_decay=0.0)
    stage = Stage("regress", {"student": student}, optimizer, loss, steps, 50, {"student": average}, 0.99)
    return average, train(stage, folder, seed=seed)


def direction(x: Tensor, teacher, fake, code: Tensor, null: Tensor, draw: Draw) -> Tensor:
    """[B,4,16,16]: where the student's samples x should not go (DMD2, eq. 2; normalised as in DMD, eq. 8)."""
    t = (20 + 960 * torch.rand(len(x), generator=draw.torch)).round()
    noisy = noised(x, torch.randn(x.shape, generator=draw.torch), t)
    s = (t / 1000)[:, None, None, None]
    real = noisy - s * guided(teacher, noisy, t, code, null, GUIDANCE)
    own = noisy - s * velocity(fake, noisy, t, code)
    return (own - real) / (x - real).abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-3)


def match(folder: Path, teacher, student: nn.Module, prompts: Prompts, data, *, seed: int, steps: int, batch: int = 32):
    """Stage 2. Returns the student's running average."""
    student = copy.deepcopy(student).requires_grad_(True)
    average = copy.deepcopy(student).requires_grad_(False)
    fake = copy.deepcopy(teacher).requires_grad_(True)
    z, x, rows = data
    null, kept = prompts.codes[-1:], batch // 2

    def loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        i = torch.randint(len(z), (kept,), generator=draw.torch)
        drawn = prompts.draw(batch, draw.torch)
        code = prompts.codes[drawn]
        noise = torch.cat([torch.randn(batch, 4, 16, 16, generator=draw.torch), z[i]])
        made, again = one_step(student, noise, torch.cat([code, prompts.codes[rows[i]]])).split([batch, kept])
        sample = made.detach()
        with torch.no_grad():
            push = direction(sample, teacher, fake, code, null, draw)
        matching = 0.5 * (made - (sample - push)).square().mean()
        repeat = huber(again, x[i])
        eps = torch.randn(sample.shape, generator=draw.torch)
        t = (20 + 960 * torch.rand(batch, generator=draw.torch)).round()
        own = (velocity(fake, noised(sample, eps, t), t, code) - (eps - sample)).square().mean()
        return matching + 0.5 * repeat + own, {
            "push": push.square().mean().item(),
            "pairs": repeat.item(),
            "fake": own.item(),
        }

    groups = [{"params": student.parameters(), "lr": 1.5e-4}, {"params": fake.parameters(), "lr": 4e-4}]
    optimizer = torch.optim.AdamW(groups, betas=(0.5, 0.99), weight_decay=0.0)
    modules = {"student": student, "fake": fake}
    stage = Stage("match", modules, optimizer, loss, steps, 50, {"student": average}, 0.98)
    return average, train(stage, folder, seed=seed)


def distil(
    folder: Path, teacher: UNet2DConditionModel, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, *, seed: int,
    n: int, regression: int, matching: int, batch: int = 32,
) -> tuple[UNet2DConditionModel, dict]:  # fmt: skip
    """The one-step student, and what it took."""
    prompts = Prompts(encoder, tokenizer)
    data = pairs(folder, teacher, prompts, seed=seed, n=n)
    student, first = regress(folder, teacher, prompts, data, seed=seed, steps=regression, batch=batch)
    student, second = match(folder, teacher, student, prompts, data, seed=seed, steps=matching, batch=batch)
    return student.eval(), {"pairs": n, "regression": first, "matching": second}
