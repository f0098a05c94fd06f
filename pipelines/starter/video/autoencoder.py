"""The video pack's autoencoder: 9 x 64 x 64 x 3 <-> 5 x 8 x 8 x 12, Wan's causal one (arXiv:2503.20314, section 4.1) at
a small size, on patches of 4 x 4 pixels as in Wan 2.2: all convolutions run at 16 x 16 or below."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models import AutoencoderKLWan
from torch import Tensor
from torch.nn import functional as F

from pipelines.starter.resumable_training import Draw, TrainingStage, train_stage
from pipelines.starter.video import world

CHANNELS, SHAPE = 12, (12, 5, 8, 8)  # of a latent
MIX = {"still": 0.10, "move": 0.05, "speed": 0.37, "grow": 0.13, "turn": 0.13, "pass": 0.22}


def new_autoencoder(widths: tuple[int, int] = (16, 24)) -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=widths[0],
        decoder_base_dim=widths[1],
        z_dim=CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        in_channels=48,
        out_channels=48,
        patch_size=4,
        scale_factor_temporal=2,
        scale_factor_spatial=8,
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )


def draw_clips(n: int, draw: Draw, mix: dict[str, float] | None = None) -> tuple[Tensor, list[world.Clip]]:
    """[n,9,3,64,64] fresh training clips, and what they show."""
    source = world.training_clips(draw.python, mix or MIX)
    scenes = [next(source) for _ in range(n)]
    return world.render_clips(scenes, draw.torch), scenes


def draw_close_ups(n: int, draw: Draw) -> Tensor:
    """[n,5,3,32,32]: five frames in a row, a quarter of the picture, around a thing or beside it.

    Convolutions look no further, and seven times as many of these are seen in the same time.
    """
    source = world.training_clips(draw.python, MIX)
    scenes = [next(source) for _ in range(n)]
    corners: list[tuple[int, int]] = []
    first = draw.python.randrange(world.FRAMES - 4)
    for clip in scenes:
        a, share = draw.python.choice(clip), (first + 2) / (world.FRAMES - 1)
        centre = (s + share * (e - s) for s, e in zip(a.start, a.end, strict=True))
        x, y = (min(max(round(c + draw.python.uniform(-40, 8)), 0), 32) for c in centre)
        corners.append((x, y))
    return world.render_clips(scenes, draw.torch, corners=corners, side=32)[:, first : first + 5]


def pixel_weights(x: Tensor) -> Tensor:
    """[B,T,1,H,W]: five for what differs from the clip's ground and the two pixels around it, one for the rest."""
    ground = x.transpose(1, 2).flatten(2).median(2).values[:, None, :, None, None]
    thing = ((x - ground).square().sum(2, keepdim=True) > 0.05).float()
    return 1 + 4 * F.max_pool2d(thing.flatten(0, 1), 5, stride=1, padding=2).view_as(thing)


def train_autoencoder(folder: Path, *, seed: int, steps: int, batch: int = 16) -> tuple[AutoencoderKLWan, dict]:
    """MSE + 0.3 L1, things and their outlines weighing most, the latents kept small and a little noise added to them;
    no KL, whose noise delays the colours by hundreds of steps. Close-ups alone at first, then in turns with whole
    clips.

    Afterwards the latents' mean and deviation go into the config, where the pipeline looks for them.
    """
    torch.manual_seed(seed)
    vae = new_autoencoder()

    def reconstruction_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        x = draw_close_ups(batch, draw) if k < 0.2 * steps or k % 2 else draw_clips(max(batch // 4, 1), draw)[0]
        weight, x = pixel_weights(x).transpose(1, 2), x.transpose(1, 2) * 2 - 1  # [B,3,T,H,W]
        with torch.autocast("cpu", torch.bfloat16):
            z = vae.encode(x).latent_dist.mean
            noise = torch.randn(z.shape, generator=draw.torch)
            decoded = vae.decode(z + 0.05 * z.detach().std() * noise).sample.float()
        error, small = decoded - x, z.float().square().mean()
        total = (weight * (error.square() + 0.3 * error.abs())).mean() + 1e-4 * small
        return total, {"mse": error.square().mean().item(), "z": small.item()}

    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    log = train_stage(
        TrainingStage("autoencoder", {"vae": vae}, optimizer, reconstruction_loss, steps, warmup=50), folder, seed=seed
    )
    vae.eval().requires_grad_(False)
    z = raw_latents(vae, draw_clips(256 if steps > 100 else 16, Draw.at_step(seed, "latent scale"))[0])
    mean, std = z.mean((0, 2, 3, 4)), z.std((0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return vae, log


def train_decoder(folder: Path, vae: AutoencoderKLWan, *, seed: int, steps: int, batch: int = 16) -> dict:
    """Goes on with the decoder alone: the latents stay as they are, and get more noise, as a generator's have."""
    decoder = torch.nn.ModuleDict({"post_quant_conv": vae.post_quant_conv, "decoder": vae.decoder})
    vae.post_quant_conv.requires_grad_(True), vae.decoder.requires_grad_(True)
    _, std = _latent_scale(vae)

    def reconstruction_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        x = draw_close_ups(batch, draw) if k % 2 else draw_clips(max(batch // 4, 1), draw)[0]
        weight = pixel_weights(x).transpose(1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            z = raw_latents(vae, x)
            noise = torch.randn(z.shape, generator=draw.torch)
            decoded = vae.decode(z + 0.1 * std * noise).sample.float()
        error = decoded - (x.transpose(1, 2) * 2 - 1)
        total = (weight * (error.square() + 0.3 * error.abs())).mean()
        return total, {"mse": error.square().mean().item()}

    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    log = train_stage(
        TrainingStage("decoder", {"decoder": decoder}, optimizer, reconstruction_loss, steps, warmup=50),
        folder,
        seed=seed,
    )
    vae.eval().requires_grad_(False)
    return log


@torch.no_grad()
def raw_latents(vae: AutoencoderKLWan, x: Tensor) -> Tensor:
    """[B,9,3,64,64] in [0,1] -> the posterior's mean [B,12,5,8,8], not standardised."""
    return torch.cat([vae.encode(part.transpose(1, 2) * 2 - 1).latent_dist.mean.float() for part in x.split(32)])


def _latent_scale(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    mean, std = torch.tensor(vae.config["latents_mean"]), torch.tensor(vae.config["latents_std"])
    return mean[:, None, None, None], std[:, None, None, None]


def encode_clips(vae: AutoencoderKLWan, x: Tensor) -> Tensor:
    """[B,9,3,64,64] in [0,1] -> standardised latents [B,12,5,8,8]."""
    mean, std = _latent_scale(vae)
    return (raw_latents(vae, x) - mean) / std


@torch.no_grad()
def decode_latents(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """Standardised latents [B,12,5,8,8] -> clips [B,9,3,64,64] in [0,1]."""
    mean, std = _latent_scale(vae)
    parts = [vae.decode(part * std + mean).sample for part in z.split(32)]
    return (torch.cat(parts).float().transpose(1, 2) / 2 + 0.5).clamp(0, 1)
