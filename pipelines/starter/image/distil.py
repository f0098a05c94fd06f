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
from diffusers.models import UNet2DConditionModel
from rich.progress import track
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from pipelines.starter.image import world
from pipelines.starter.image.clip import tokenise_prompts
from pipelines.starter.image.generator import add_noise, new_scheduler
from pipelines.starter.resumable_training import Draw, TrainingStage, save_atomically, train_stage

TOP = 0.999  # the noise level from which the scheduler starts, and the student's only one
GUIDANCE = 3.0
STEPS = 8


class PromptEncodings:
    """The seen prompts, each category equally likely, and their encodings [P,16,128]; the last row is that of ""."""

    def __init__(self, encoder: CLIPTextModel, tokenizer: CLIPTokenizer):
        prompts = [p for p in world.all_prompts() if not world.is_held_out(p)]
        kinds = [world.prompt_category(p) for p in prompts]
        self.chance = torch.tensor([1.0 / kinds.count(k) for k in kinds], dtype=torch.float64)
        with torch.no_grad():
            self.codes = encoder(tokenise_prompts(tokenizer, [*prompts, ""])).last_hidden_state

    def draw_rows(self, n: int, generator: torch.Generator) -> Tensor:
        """[n] row numbers."""
        return torch.multinomial(self.chance, n, replacement=True, generator=generator)


def predict_velocity(unet: UNet2DConditionModel, x: Tensor, t: Tensor | float, code: Tensor) -> Tensor:
    """[B,4,16,16]"""
    with torch.autocast("cpu", torch.bfloat16):
        return unet(x, t, code).sample.float()


def guided_velocity(
    unet: UNet2DConditionModel, x: Tensor, t: Tensor | float, code: Tensor, null: Tensor, scale: float
) -> Tensor:
    with_text = predict_velocity(unet, x, t, code)
    without = predict_velocity(unet, x, t, null.expand_as(code))
    return without + scale * (with_text - without)


@torch.no_grad()
def solve_ode(unet: UNet2DConditionModel, z: Tensor, code: Tensor, null: Tensor, steps: int = STEPS) -> Tensor:
    """The teacher's guided ODE solution [B,4,16,16] from noise z, by the pipeline's own scheduler."""
    scheduler = new_scheduler()
    scheduler.set_timesteps(steps)
    x = z
    for t in scheduler.timesteps:
        x = scheduler.step(guided_velocity(unet, x, t, code, null, GUIDANCE), t, x, return_dict=False)[0]
    return x


def one_step(student: UNet2DConditionModel, z: Tensor, code: Tensor) -> Tensor:
    """What the pipeline returns for one step from z."""
    return z - TOP * predict_velocity(student, z, 1000 * TOP, code)


def teacher_pairs(
    folder: Path, teacher: UNet2DConditionModel, prompts: PromptEncodings, *, seed: int, n: int, batch: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """n triples (noise, solution, prompt row), in chunks that survive an interruption."""
    path = folder / "pairs.pt"
    parts = torch.load(path, weights_only=True) if path.exists() else []
    batch = min(batch, n)
    for part in track(range(len(parts), -(-n // batch)), description="pairs"):
        draw = Draw.at_step(seed, "pairs", part)
        rows = prompts.draw_rows(batch, draw.torch)
        z = torch.randn(batch, 4, 16, 16, generator=draw.torch)
        parts.append((z.half(), solve_ode(teacher, z, prompts.codes[rows], prompts.codes[-1:]).half(), rows))
        if part % 5 == 4 or (part + 1) * batch >= n:
            save_atomically(parts, path)
    z, x, rows = (torch.cat(column)[:n] for column in zip(*parts, strict=True))
    return z.float(), x.float(), rows


def pseudo_huber(a: Tensor, b: Tensor, c: float = 0.3) -> Tensor:
    """Pseudo-Huber per sample (Song & Dhariwal, arXiv:2310.14189): far targets do not pull the answer to their mean."""
    return (((a - b).square().mean((1, 2, 3)) + c**2).sqrt() - c).mean()


def regress_on_pairs(
    folder: Path, teacher: UNet2DConditionModel, prompts: PromptEncodings, data: tuple[Tensor, Tensor, Tensor], *,
    seed: int, steps: int, batch: int = 32,
) -> tuple[UNet2DConditionModel, dict]:  # fmt: skip
    """Stage 1. Returns the student's running average."""
    student = copy.deepcopy(teacher).requires_grad_(True)
    average = copy.deepcopy(teacher).requires_grad_(False)
    z, x, rows = data

    def pair_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        i = torch.randint(len(z), (batch,), generator=draw.torch)
        return pseudo_huber(one_step(student, z[i], prompts.codes[rows[i]]), x[i]), {}

    optimizer = torch.optim.AdamW(student.parameters(), lr=7e-4, betas=(0.9, 0.99), weight_decay=0.0)
    stage = TrainingStage("regress", {"student": student}, optimizer, pair_loss, steps, 50, {"student": average}, 0.99)
    return average, train_stage(stage, folder, seed=seed)


def matching_direction(
    x: Tensor, teacher: UNet2DConditionModel, fake: UNet2DConditionModel, code: Tensor, null: Tensor, draw: Draw
) -> Tensor:
    """[B,4,16,16]: where the student's samples x should not go (DMD2, eq. 2; normalised as in DMD, eq. 8)."""
    t = (20 + 960 * torch.rand(len(x), generator=draw.torch)).round()
    noisy = add_noise(x, torch.randn(x.shape, generator=draw.torch), t)
    s = (t / 1000)[:, None, None, None]
    real_x0 = noisy - s * guided_velocity(teacher, noisy, t, code, null, GUIDANCE)
    fake_x0 = noisy - s * predict_velocity(fake, noisy, t, code)
    return (fake_x0 - real_x0) / (x - real_x0).abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-3)


def match_distribution(
    folder: Path, teacher: UNet2DConditionModel, student: UNet2DConditionModel, prompts: PromptEncodings,
    data: tuple[Tensor, Tensor, Tensor], *, seed: int, steps: int, batch: int = 32,
) -> tuple[UNet2DConditionModel, dict]:  # fmt: skip
    """Stage 2. Returns the student's running average."""
    student = copy.deepcopy(student).requires_grad_(True)
    average = copy.deepcopy(student).requires_grad_(False)
    fake = copy.deepcopy(teacher).requires_grad_(True)
    z, x, rows = data
    null, pair_batch = prompts.codes[-1:], batch // 2

    def matching_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        i = torch.randint(len(z), (pair_batch,), generator=draw.torch)
        prompt_rows = prompts.draw_rows(batch, draw.torch)
        code = prompts.codes[prompt_rows]
        noise = torch.cat([torch.randn(batch, 4, 16, 16, generator=draw.torch), z[i]])
        generated, regressed = one_step(student, noise, torch.cat([code, prompts.codes[rows[i]]])).split(
            [batch, pair_batch]
        )
        sample = generated.detach()
        with torch.no_grad():
            push = matching_direction(sample, teacher, fake, code, null, draw)
        matching = 0.5 * (generated - (sample - push)).square().mean()
        pair_loss = pseudo_huber(regressed, x[i])
        eps = torch.randn(sample.shape, generator=draw.torch)
        t = (20 + 960 * torch.rand(batch, generator=draw.torch)).round()
        fake_loss = (predict_velocity(fake, add_noise(sample, eps, t), t, code) - (eps - sample)).square().mean()
        return matching + 0.5 * pair_loss + fake_loss, {
            "push": push.square().mean().item(),
            "pairs": pair_loss.item(),
            "fake": fake_loss.item(),
        }

    groups = [{"params": student.parameters(), "lr": 1.5e-4}, {"params": fake.parameters(), "lr": 4e-4}]
    optimizer = torch.optim.AdamW(groups, betas=(0.5, 0.99), weight_decay=0.0)
    modules = {"student": student, "fake": fake}
    stage = TrainingStage("match", modules, optimizer, matching_loss, steps, 50, {"student": average}, 0.98)
    return average, train_stage(stage, folder, seed=seed)


def distil_student(
    folder: Path, teacher: UNet2DConditionModel, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, *, seed: int,
    n: int, regression: int, matching: int, batch: int = 32,
) -> tuple[UNet2DConditionModel, dict]:  # fmt: skip
    """The one-step student, and what it took."""
    prompts = PromptEncodings(encoder, tokenizer)
    data = teacher_pairs(folder, teacher, prompts, seed=seed, n=n)
    student, first = regress_on_pairs(folder, teacher, prompts, data, seed=seed, steps=regression, batch=batch)
    student, second = match_distribution(
        folder, teacher, student, prompts, data, seed=seed, steps=matching, batch=batch
    )
    return student.eval(), {"pairs": n, "regression": first, "matching": second}
