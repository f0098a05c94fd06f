"""Encoding media into the clean latents of a pipeline, by inverting the pipeline's own decoding.

Between its last state x and its autoencoder a pipeline unpacks, scales and shifts: z = d P x + b, with P a
rearrangement. d, P and b are found by running the decoding, as the first state's are (structure.py), so no pipeline
needs code of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.types import Media

from . import replay, seams


@dataclass(frozen=True)
class DecodePath:
    """How the last state becomes the autoencoder's input."""

    state: Tensor  # [1,*latent], zero, a leaf
    # b: [R,*z], the autoencoder's input for the zero state, with the graph; R: frames that it decodes one by one, or 1
    shift: Tensor
    scale: Tensor  # d: [R,*z]
    length: int = 0  # audio: samples that the autoencoder encodes to that many latents; the pipeline may cut its output

    @property
    def reaches(self) -> Tensor:
        """[R,*z] bool: the entries of z that the state reaches; a first frame that is given is none of them."""
        return self.scale != 0

    def invert_to_state(self, z: Tensor) -> Tensor:
        """x [B,*latent] of z [B R,*z]: P' (z - b) / d, by the transpose d P' of what the pipeline does; 0 where x does
        not reach z."""
        rows = z.float().unflatten(0, (-1, len(self.shift)))  # [B,R,*z]
        weight = (1 / self.scale.float().square()).where(self.reaches, 0.0)
        u = ((rows - self.shift.detach().float()) * weight).to(self.shift)
        return torch.cat([torch.autograd.grad(self.shift, self.state, row, retain_graph=True)[0] for row in u])


@torch.inference_mode(False)
@torch.enable_grad()
def find_decode_path(policy: Any) -> DecodePath:
    """The DecodePath of a policy's pipeline, by three runs of it without its denoiser.

    Raises BadInput for sounds that are made by a vocoder, and TypeError where there is no autoencoder `vae` or its
    input is not d P x + b.
    """
    name, counts = type(policy.pipe).__name__, (policy.nfe, policy.decodes)
    if policy.modality == "audio" and getattr(policy.pipe, "vocoder", None) is not None:
        raise BadInput(f"{name} makes its sounds by a vocoder, which can't be turned back into latents")
    if not callable(getattr(getattr(policy.pipe, "vae", None), "encode", None)):
        raise TypeError(f"{name} has no autoencoder `vae` that encodes")
    like = policy.structure.state
    try:
        zero = torch.zeros_like(like).requires_grad_()
        shift = capture_decoder_input(policy, zero)
        scale = (capture_decoder_input(policy, torch.ones_like(like)) - shift).detach()
        path = DecodePath(zero, shift, scale, _padded_length(policy, shift))
        probe = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)
        probe_again = path.invert_to_state(capture_decoder_input(policy, probe).detach())
        (reached,) = torch.autograd.grad(shift, zero, torch.ones_like(shift), retain_graph=True)
    finally:
        policy.nfe, policy.decodes = counts
    close = 1e-4 if shift.dtype == torch.float32 else 5e-2
    is_partial = (reached == 0).any() or not path.reaches.all()
    if is_partial and (policy.is_blending or not policy.conditions):
        probe_again = probe_again * torch.nan  # what is left out differs from row to row, by their masks
    if not torch.allclose(probe_again.float(), probe.where(reached != 0, 0.0).float(), rtol=close, atol=close):
        raise TypeError(
            f"{name} does more to its last state than to rearrange, scale and shift it before it is decoded"
        )
    return path


@torch.inference_mode(False)
@torch.no_grad()
def find_media_size(policy: Any) -> tuple[int, ...]:
    """Of one medium that the policy's pipeline makes: (3,H,W), (T,3,H,W) or (C,L). By decoding a state of zeros."""
    counts = policy.nfe, policy.decodes
    try:
        media = policy.decode(torch.zeros_like(policy.structure.state), policy.example_prompts("a"))
    finally:
        policy.nfe, policy.decodes = counts
    return tuple(media.data.shape[1:])


def encode_media(policy: Any, path: DecodePath, media: Media) -> Tensor:
    """[B,*latent]: clean latents by the mode of the autoencoder's posterior, in the dtype of decoding. No gradient.

    Raises BadInput for media of another modality, size or rate than the pipeline's.
    """
    if media.modality == "audio" and media.rate != policy.rate:
        raise BadInput(
            f"a sound at {media.rate:g} Hz was given where this pipeline makes {policy.rate:g} Hz; resample it"
        )
    if media.modality != policy.modality or tuple(media.data.shape[1:]) != policy.size:
        size = "x".join(map(str, media.data.shape[1:]))
        raise BadInput(
            f"{media.modality} of size {size} can't be latents of {type(policy.pipe).__name__}, which makes "
            f"{policy.modality} of size {'x'.join(map(str, policy.size))}; bring them to that size"
        )
    return path.invert_to_state(run_autoencoder(policy, path, media))


def run_autoencoder(policy: Any, path: DecodePath, media: Media) -> Tensor:
    """[B R,*z]: the mode of the autoencoder's posterior for these media."""
    vae, x = policy.pipe.vae, _to_autoencoder_input(media, path)
    with torch.no_grad(), _autoencoder_dtype(vae, path.shift.dtype), _posterior_mode(vae):
        encoded = vae.encode(x.to(path.shift))
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0]
    return _check_latent_shape(z, path.shift)


def _to_autoencoder_input(media: Media, path: DecodePath) -> Tensor:
    """Media as the autoencoder's input: pictures and clips in [-1,1], clips as [B,3,T,H,W] or frame by frame, sounds
    zero-padded."""
    if media.modality == "audio":
        return F.pad(media.data, (0, max(path.length - media.data.shape[-1], 0)))
    x = media.data * 2 - 1
    if media.modality == "video":
        return x.flatten(0, 1) if path.shift.dim() == 4 else x.transpose(1, 2)
    return x[:, :, None] if path.shift.dim() == 5 else x  # a video autoencoder that makes single pictures


def _padded_length(policy: Any, z: Tensor) -> int:
    if policy.modality != "audio":
        return 0
    with torch.no_grad(), _autoencoder_dtype(policy.pipe.vae, z.dtype):
        decoded_length = policy.pipe.vae.decode(z.detach()).sample.shape[-1]
    return z.shape[-1] * -(-decoded_length // z.shape[-1])


@contextmanager
def _posterior_mode(vae: Any) -> Iterator[None]:
    """Inside the context, an autoencoder that samples from its posterior takes the mode."""
    file: Any = sys.modules[type(vae).__module__]
    if not hasattr(file, "randn_tensor"):
        yield
        return
    original, file.randn_tensor = file.randn_tensor, lambda *args, **kwargs: torch.zeros_like(original(*args, **kwargs))
    try:
        yield
    finally:
        file.randn_tensor = original


def _check_latent_shape(z: Tensor, like: Tensor) -> Tensor:
    """Raises TypeError for latents that are not of the shape that the pipeline decodes."""
    if z.shape[1:] != like.shape[1:]:
        raise TypeError(f"the autoencoder encodes to {tuple(z.shape[1:])} and decodes {tuple(like.shape[1:])}")
    return z


def capture_decoder_input(policy: Any, x: Tensor) -> Tensor:
    """[1,*z]: the autoencoder's input for the last state x [1,*latent]."""

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        raise seams.LeavePipeline(z)

    vae = policy.pipe.vae
    with _autoencoder_dtype(vae, vae.dtype):  # some pipelines change the dtype to decode
        vae.decode = decode
        try:
            return replay.run_decoder(policy, x, policy.example_prompts("a"))
        finally:
            del vae.decode


@contextmanager
def _autoencoder_dtype(vae: Any, dtype: torch.dtype) -> Iterator[None]:
    """Inside the context the autoencoder has this dtype; afterwards its previous one."""
    previous = vae.dtype
    try:
        if previous != dtype:
            vae.to(dtype)
        yield
    finally:
        if vae.dtype != previous:
            vae.to(previous)
