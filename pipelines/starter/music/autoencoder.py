"""The music pack's autoencoder: LongCatAudioDiTVae whose weights are computed, not trained.

The world's frames span few directions, so their principal components are a nearly lossless code. They are written into
the strided convolutions; every other layer is set to the identity, and the class is loaded and run as it is.
"""

from __future__ import annotations

import math

import torch
from diffusers.models import LongCatAudioDiTVae
from torch import Tensor, nn

from pipelines.starter.music import world
from pipelines.starter.resumable_training import Draw

WIDTH = 64  # dimensions of a frame's latent
FRAMES = world.LENGTH // world.FRAME


def principal_components(*, seed: int, clips: int) -> tuple[Tensor, Tensor]:
    """[64,1024] principal directions of the frames of `clips` training pieces, and their standard deviations [64]."""
    draw = Draw.at_step(seed, "music autoencoder")
    source, total, n = world.training_pieces(draw.python), torch.zeros(world.FRAME, world.FRAME, dtype=torch.float64), 0
    for first in range(0, clips, 100):
        batch = [next(source) for _ in range(min(100, clips - first))]
        frames = world.render_pieces(batch, draw.python, draw.torch).view(-1, world.FRAME).double()
        total, n = total + frames.T @ frames, n + len(frames)
    values, vectors = torch.linalg.eigh(total / n)
    # an eigenvector's sign is arbitrary: its greatest entry is made positive
    basis = vectors.flip(1)[:, :WIDTH].T
    basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
    return basis.float(), values.flip(0)[:WIDTH].clamp(min=1e-12).sqrt().float()


def new_autoencoder(basis: Tensor, deviation: Tensor) -> LongCatAudioDiTVae:
    """Encodes 1024 samples a frame into `basis` coordinates divided by the root of their deviation (half whitened:
    great ones stay greater), scaled to a mean variance of 1; decodes by the transpose."""
    vae = LongCatAudioDiTVae(
        in_channels=1, channels=1, c_mults=[WIDTH], strides=[world.FRAME],
        latent_dim=WIDTH, encoder_latent_dim=2 * WIDTH,
        downsample_shortcut="none", upsample_shortcut="none", out_shortcut="none", in_shortcut="none",
        downsampling_ratio=world.FRAME, sample_rate=world.RATE, scale=1.0,
    )  # fmt: skip
    unit = deviation.sqrt() * deviation.mean().sqrt()
    kernel = torch.zeros(WIDTH, 1, 2 * world.FRAME)
    kernel[:, 0, world.FRAME // 2 : 3 * world.FRAME // 2] = basis
    with torch.no_grad():
        for module in vae.modules():
            _make_identity(module)
        for part, weight in ((vae.encoder, kernel / unit[:, None, None]), (vae.decoder, kernel * unit[:, None, None])):
            _set_weight(next(m for m in part.modules() if _kernel_size(m) == 2 * world.FRAME), weight)
        last = vae.encoder.layers[-1]
        weight = torch.zeros(2 * WIDTH, WIDTH, 3)
        weight[:WIDTH, :, 1] = torch.eye(WIDTH)
        weight[WIDTH:] = 1e-4 * torch.eye(WIDTH)[:, :, None]  # a norm above 0 for weight normalisation
        _set_weight(last, weight)
        last.weight_g[WIDTH:] = 0
        last.bias[WIDTH:] = -6  # a posterior of deviation softplus(-6) = 0.0025
    return vae.eval().requires_grad_(False)


def _kernel_size(module: nn.Module) -> int:
    return module.kernel_size[0] if isinstance(module, nn.Conv1d | nn.ConvTranspose1d) else 0


def _make_identity(module: nn.Module) -> None:
    """Snake and convolutions to the identity; the last layer of a residual unit to zero."""
    if hasattr(module, "alpha_logscale"):
        module.get_parameter("beta").fill_(9.0)  # x + sin(x)^2 / e^9
    if not isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
        return
    if module.bias is not None:
        module.bias.zero_()
    if _kernel_size(module) == 1:
        module.get_parameter("weight_g").zero_()
    elif _kernel_size(module) < world.FRAME and module.in_channels == module.out_channels:
        _set_weight(module, nn.init.dirac_(torch.empty_like(module.get_parameter("weight_v"))))


def _set_weight(module: nn.Module, weight: Tensor) -> None:
    module.get_parameter("weight_v").copy_(weight)
    module.get_parameter("weight_g").copy_(weight.flatten(1).norm(dim=1)[:, None, None])


@torch.no_grad()
def encode_waves(vae: LongCatAudioDiTVae, waves: Tensor) -> Tensor:
    """[B,32768] -> [B,32,64], in the layout of the pipeline's latents, without the posterior's noise."""
    parts = [vae.encode(part[:, None], sample_posterior=False).latents for part in waves.split(25)]
    return torch.cat(parts).transpose(1, 2)


@torch.no_grad()
def decode_latents(vae: LongCatAudioDiTVae, latents: Tensor) -> Tensor:
    """[B,32,64] -> [B,32768]"""
    return torch.cat([vae.decode(part.transpose(1, 2)).sample[:, 0] for part in latents.split(25)])


def signal_to_noise(waves: Tensor, decoded: Tensor) -> float:
    """dB"""
    return 10 * math.log10(waves.square().sum().item() / (waves - decoded).square().sum().item())
