"""The pack's autoencoder: 64 x 64 x 3 <-> 16 x 16 x 4 (Rombach et al., arXiv:2112.10752, without its adversarial loss).

The decoder is narrow on purpose: ReNO runs it forwards and backwards in its inner loop.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from pipelines.starter.image import rendering, world
from pipelines.starter.resumable_training import Draw, TrainingStage, train_stage

MIX = {"single": 0.05, "color": 0.06, "size": 0.12, "two": 0.14, "count": 0.18, "position": 0.27, "attr": 0.18}


def new_autoencoder(widths: tuple[int, ...] = (8, 16, 32)) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=world.SIZE,
        mid_block_add_attention=False,
    )


def draw_pictures(n: int, draw: Draw) -> tuple[Tensor, list[str], list[world.Scene]]:
    """[n,3,64,64] fresh training pictures, one caption each, and their scenes."""
    source = world.training_pairs(draw.python, MIX)
    scenes, prompts = zip(*(next(source) for _ in range(n)), strict=True)
    return rendering.render_scenes(scenes, draw.torch), list(prompts), list(scenes)


def train_autoencoder(folder: Path, *, seed: int, steps: int, batch: int = 32) -> tuple[AutoencoderKL, dict]:
    """MSE + 0.3 L1 + 2e-4 KL; afterwards the latents are standardised."""
    torch.manual_seed(seed)
    vae = new_autoencoder()

    def reconstruction_loss(k: int, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        x = draw_pictures(batch, draw)[0] * 2 - 1  # [B,3,64,64]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            eps = torch.randn(posterior.mean.shape, generator=draw.torch)
            decoded = vae.decode(posterior.mean + posterior.std * eps).sample
        mse, kl = F.mse_loss(decoded.float(), x), posterior.kl().float().mean() / posterior.mean[0].numel()
        total = mse + 0.3 * F.l1_loss(decoded.float(), x) + 2e-4 * kl
        return total, {"mse": mse.item(), "kl": kl.item()}

    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0)
    log = train_stage(
        TrainingStage("autoencoder", {"vae": vae}, optimizer, reconstruction_loss, steps, warmup=50), folder, seed=seed
    )
    vae.eval().requires_grad_(False)
    standardise_latents(vae, draw_pictures(256 if steps > 100 else 16, Draw.at_step(seed, "latent scale"))[0])
    return vae, log | {"samples": log["steps"] * batch}


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, x: Tensor) -> None:
    """Folds mean 0 and deviation 1 of each latent channel, over the pictures x [B,3,64,64], into the two 1x1
    convolutions.

    The usual single `scaling_factor` would leave the channels' means in, as much variance as the content itself has:
    noise levels then mean less than they say.
    """
    vae.register_to_config(scaling_factor=1.0)
    z, quant_conv, post_quant_conv = encode_pictures(vae, x), vae.quant_conv, vae.post_quant_conv
    assert quant_conv is not None and quant_conv.bias is not None  # `new_autoencoder` asks for both convolutions
    assert post_quant_conv is not None and post_quant_conv.bias is not None
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    quant_conv.bias[:4] = (quant_conv.bias[:4] - mean) / std
    quant_conv.weight[:4] /= std[:, None, None, None]
    quant_conv.bias[4:] -= 2 * std.log()
    post_quant_conv.bias += post_quant_conv.weight[:, :, 0, 0] @ mean
    post_quant_conv.weight *= std[None, :, None, None]


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """[B,3,64,64] in [0,1] -> the posterior's mean [B,4,16,16]."""
    return torch.cat([vae.encode(part * 2 - 1).latent_dist.mean for part in x.split(128)])


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """Latents [B,4,16,16] -> pictures [B,3,64,64] in [0,1]."""
    parts = [vae.decode(part).sample for part in z.split(128)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)
