"""Where a reward looks: SmoothGrad (Smilkov et al. 2017, arXiv:1706.03825), per pixel, frame or moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.types import Media, Reward
from workbench.report.formatting import format_number
from workbench.ui.widgets.html import data_uri, escape_text, hint_html
from workbench.ui.widgets.samples import spread_evenly

DRAWS = 8  # noisy copies over which the gradient is averaged
NOISE = 0.1  # of the range between the least and the largest value
SIDE = 512  # a larger picture is looked at smaller
SECONDS, FRAMES = 30, 48  # of a sound or a clip that are looked at
BINS = 240
HEAT = ((0.13, 0.17, 0.30), (0.86, 0.33, 0.13), (1.0, 0.93, 0.55))  # none, some, most
TELL = (
    "Bright is where a small change would move the score most: the mean gradient over {draws} noisy copies. It shows "
    "what the reward reacts to, not what is good."
)


@dataclass(frozen=True)
class SaliencyMap:
    shrunk: Media  # [1,…], what was looked at
    heat: Tensor  # [H,W], [T,H,W] or [L] in [0,1]
    score: float
    note: str = ""


def smooth_gradient(
    reward: Reward, media: Media, prompt: str, stop: threading.Event | None = None
) -> Iterator[tuple[int, SaliencyMap]]:
    """(draws done, map so far): |mean over noisy copies of d reward / d input|, summed over channels.

    Raises BadInput for a reward without a gradient, or whose gradient is zero or not finite here."""
    if not reward.spec.differentiable or reward.spec.scope != "sample":
        raise BadInput(f"{reward.spec.name} has no gradient of a single sample")
    shrunk, cut_note = shrink_media(media)
    total, generator = torch.zeros_like(shrunk.data), torch.Generator().manual_seed(0)
    span = float(shrunk.data.max() - shrunk.data.min()) or 1.0
    with torch.no_grad():
        score = float(reward(media=shrunk, prompts=[prompt])[0])
    for n in range(DRAWS):
        if stop is not None and stop.is_set():
            return
        x = shrunk.data + NOISE * span * torch.randn(shrunk.data.shape, generator=generator)
        x.requires_grad_(True)
        with torch.enable_grad():
            value = reward(media=replace(shrunk, data=x), prompts=[prompt]).sum()
            if not value.requires_grad:
                raise BadInput(f"{reward.spec.name} gave a score without a gradient")
            (slope,) = torch.autograd.grad(value, x)
        total += slope
        yield n + 1, SaliencyMap(shrunk, _normalise_heat(total, shrunk.modality, reward.spec.name), score, cut_note)


def shrink_media(media: Media) -> tuple[Media, str]:
    """What is looked at, and in words what was left out."""
    x = media.data
    if media.modality == "audio":
        limit = int(SECONDS * media.rate)
        return (replace(media, data=x[..., :limit]), f"its first {SECONDS} s") if x.shape[-1] > limit else (media, "")
    if media.modality == "video" and x.shape[1] > FRAMES:
        return replace(media, data=x[:, :FRAMES]), f"its first {FRAMES} frames"
    if media.modality == "image" and max(x.shape[-2:]) > SIDE:
        scale = SIDE / max(x.shape[-2:])
        small = F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True).clamp(0, 1)
        return replace(media, data=small), f"at {small.shape[-1]} x {small.shape[-2]} pixels"
    return media, ""


def _normalise_heat(slope: Tensor, modality: str, name: str) -> Tensor:
    size = slope[0].abs().sum({"image": 0, "video": 1, "audio": 0}[modality])  # [H,W], [T,H,W], [L]
    top = size.flatten().float().sort().values[int(0.995 * (size.numel() - 1))]
    if not size.isfinite().all() or top <= 0:
        raise BadInput(f"the gradient of {name} is zero or not finite here, so there is no map to draw")
    return (size / top).clamp(0, 1)


def overlay_heat(frame: Tensor, heat: Tensor) -> Tensor:
    """[3,H,W] of a picture [3,H,W] and its heat [H,W]: the picture in grey where nothing is, glowing where it is."""
    grey = (frame * frame.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(0, keepdim=True)
    low, middle, high = (frame.new_tensor(c).view(3, 1, 1) for c in HEAT)
    glow = torch.where(heat < 0.5, low + (middle - low) * heat * 2, middle + (high - middle) * (heat * 2 - 1))
    return (grey * 0.55 + 0.12) * (1 - heat) + glow * heat


def draw_map(saliency: SaliencyMap, name: str, draws: int) -> str:
    """HTML."""
    body = {"image": _picture_map, "video": _clip_map, "audio": _sound_map}[saliency.shrunk.modality](saliency)
    cut_sentence = f" Looked at: {saliency.note}." if saliency.note else ""
    title = (
        f"{name}: {format_number(saliency.score, 4)}."
        if draws == DRAWS
        else f"{name}: {draws} of {DRAWS} noisy copies."
    )
    return (
        f'<div class="wb-card"><h3>{escape_text(title)}</h3>{body}'
        f"{hint_html(TELL.format(draws=draws) + cut_sentence)}</div>"
    )


def _draw_picture(x: Tensor, caption: str) -> str:
    tiny = ' class="wb-tiny"' if max(x.shape[-2:]) < 160 else ""
    address = data_uri(media.encode_png(Media(x[None].clamp(0, 1), "image")))
    return (
        f'<figure class="wb-media"><img{tiny} alt="{escape_text(caption)}" src="{address}">'
        f"<figcaption><b>{escape_text(caption)}</b></figcaption></figure>"
    )


def _draw_row(tiles: Sequence[str]) -> str:
    fill = "grid-template-columns:repeat(auto-fill,minmax(min(46%,220px),1fr));margin:8px 0"
    return f'<div class="wb-grid" style="{fill}">{"".join(tiles)}</div>'


def _picture_map(saliency: SaliencyMap) -> str:
    x = saliency.shrunk.data[0]
    return _draw_row([_draw_picture(x, "as it is"), _draw_picture(overlay_heat(x, saliency.heat), "where it looks")])


def _clip_map(saliency: SaliencyMap) -> str:
    x = saliency.shrunk.data[0]
    return _draw_row(
        [_draw_picture(overlay_heat(x[t], saliency.heat[t]), f"frame {t}") for t in spread_evenly(range(len(x)), 6)]
    )


def _sound_map(saliency: SaliencyMap) -> str:
    """The loudest value of each moment as a wave, and the heat of that moment under it."""
    wave, size = saliency.shrunk.data[0].mean(0), max(1, -(-saliency.shrunk.data.shape[-1] // BINS))
    peaks = F.pad(wave.abs(), (0, -len(wave) % size)).view(-1, size).amax(1)
    heat = F.pad(saliency.heat, (0, -len(wave) % size)).view(-1, size).square().mean(1).sqrt()
    peaks, heat = peaks / peaks.max().clamp(min=1e-9), heat / heat.max()
    bar_width = 100 / len(peaks)
    bars = "".join(
        f'<rect x="{n * bar_width:.3f}" y="{30 - 28 * p:.2f}" width="{bar_width * 0.8:.3f}" '
        f'height="{56 * p + 0.4:.2f}" fill="var(--wb-t0)"/>'
        f'<rect x="{n * bar_width:.3f}" y="{100 - 36 * h:.2f}" width="{bar_width:.3f}" height="{36 * h:.2f}" '
        'fill="var(--wb-t2)"/>'
        for n, (p, h) in enumerate(zip(peaks.tolist(), heat.tolist(), strict=True))
    )
    seconds = format_number(len(wave) / saliency.shrunk.rate, 1)
    return (
        '<svg viewBox="0 0 100 102" preserveAspectRatio="none" role="img" '
        'aria-label="loudness above, saliency below, over time" '
        f'style="display:block;width:100%;height:150px">{bars}</svg>'
        f"{hint_html(f'0 to {seconds} s: the wave above, where it listens below')}"
    )
