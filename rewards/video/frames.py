"""Video by its frames: any image reward on some of them; how much moves; and whether what is there stays what it is.

Frames are chosen and weighed as InstructVideo does (arXiv:2312.12490): one of each of S equal segments (SegVR), which
count less the farther they are from the middle (TAR, c_i = exp(-decay |i - T/2|)). Or one frame alone, as VADER
(arXiv:2407.08737). A still picture wins every reward of single frames, and of consistency: `motion` is the number to
watch beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.encoders import image_text
from rewards.encoders.preprocess import media_pixels
from rewards.image.simple import FRAMES_AT_ONCE, TINY, to_luma
from workbench.core.errors import BadInput
from workbench.core.inputs import input_needs
from workbench.core.io.clips import StoredClip
from workbench.core.types import Count, Media, NonNegative, Reward, RewardSpec, derive_seed

VIDEO = frozenset({"video"})
Pick = Literal["segments", "one", "all"]


def choose_frames(frames: int, pick: Pick, segments: int, generator: torch.Generator | None = None) -> list[int]:
    """Frames to look at: one of each of `segments` equal parts (of fewer, when there are fewer frames), one of the
    whole, or all. The middle one of each part, or with a generator any."""
    parts = {"segments": min(segments, frames), "one": 1, "all": frames}[pick]
    edges = [round(frames * i / parts) for i in range(parts + 1)]
    if generator is None:
        return [(a + b) // 2 for a, b in zip(edges, edges[1:], strict=False)]
    return [int(torch.randint(a, b, (1,), generator=generator)) for a, b in zip(edges, edges[1:], strict=False)]


def frame_weights(at: Sequence[int], frames: int, decay: float, normalised: bool = True) -> Tensor:
    """[S]: exp(-decay |i - T/2|), summing to 1; not `normalised`, over S, as the paper's loss takes them."""
    weights = torch.tensor([-decay * abs(i - frames / 2) for i in at]).double()
    return (weights.softmax(0) if normalised else weights.exp() / len(at)).float()


@dataclass(frozen=True)
class Frames:
    """An image reward of a video: the weighted mean over some of its frames.

    `segments` frames spread over the clip with decay 1 are InstructVideo's; `one` is VADER's. The paper's decay leaves
    a frame 4 from the middle 2 % of the middle's weight; 0 weighs all alike. With `draw` the frames are drawn anew in
    every call, from `seed`, as in training; without, the middle of each segment is taken, and a clip always scores the
    same.
    """

    of: Reward  # an image reward; in a config its name, or a block as under `reward:`
    pick: Pick = "segments"
    segments: Count = 4  # S
    decay: NonNegative = 1.0  # lambda, per frame
    normalise: bool = True  # weights sum to 1; false: divided by S and no more, as published
    draw: bool = False
    seed: int = 0  # of `draw`

    calls: list = field(default_factory=list, init=False, repr=False, compare=False)

    spec = RewardSpec("frames", "1", VIDEO, differentiable=True, paper="arXiv:2312.12490")
    nested = ("of",)

    def __post_init__(self):
        of = self.of
        if inputs := input_needs(of.spec):
            raise BadInput(
                f"frames.of: {of.spec.name} compares with the {inputs[0]} of a whole clip; name it without frames"
            )
        if of.spec.scope != "sample" or "image" not in of.spec.modalities:
            raise BadInput(f"frames.of: {of.spec.name} does not judge single pictures; name a reward that does")
        inherited = {"differentiable": of.spec.differentiable, "needs": of.spec.needs, "typical": of.spec.typical}
        inherited["version"] = f"{of!r} {of.spec.version} {self.pick} {self.segments} {self.decay:g} {self.normalise}"
        object.__setattr__(self, "spec", replace(self.spec, **inherited))

    def check(self) -> None:
        if hasattr(self.of, "check"):
            self.of.check()

    def load(self, device: torch.device | str = "cpu") -> None:
        if hasattr(self.of, "load"):
            self.of.load(device)

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = media_pixels(self.spec, media, prompts)  # [B,T,3,H,W]
        at = self._choose_frames(x.shape[1])
        broken = x.detach().flatten(1).isnan().any(1)  # in any frame, seen or not
        return self._weigh_frames(x[:, at], at, x.shape[1], prompts, references).masked_fill(broken, torch.nan)

    def score_clip(self, clip: StoredClip, prompts: Sequence[str]) -> Tensor:
        """[1]: of a clip in 8 bits, of which only the frames that are looked at become numbers."""
        at = self._choose_frames(len(clip))
        return self._weigh_frames(clip.frames(at).data, at, len(clip), prompts)

    def _choose_frames(self, frames: int) -> list[int]:
        generator = None
        if self.draw:
            self.calls.append(None)
            generator = torch.Generator().manual_seed(derive_seed(self.seed, len(self.calls)))
        return choose_frames(frames, self.pick, self.segments, generator)

    def _weigh_frames(
        self, x: Tensor, at: list[int], frames: int, prompts: Sequence[str], references: Media | None = None
    ) -> Tensor:
        """[B] of the frames `at` [B,S,3,H,W] of clips of `frames`."""
        weights = frame_weights(at, frames, self.decay, self.normalise).to(x.device)
        frame_prompts = [p for p in prompts for _ in at]
        scores = self.of(media=Media(x.flatten(0, 1), "image"), prompts=frame_prompts, references=references)
        return scores.view(len(x), -1) @ weights


def flow_magnitude(x: Tensor) -> Tensor:
    """[B,T-1] of [B,T,3,H,W]: how far the picture moves from frame to frame, in pixels.

    Brightness that is carried along obeys I_t = -v . grad I, so |v| is near sqrt(2 sum I_t^2 / sum |grad I|^2) over a
    frame (2: half of a texture's gradient lies across the movement). No contrast changes it, as it does a difference of
    frames. It is exact for what moves less than a pixel or so, grows slower beyond, and counts flicker as motion; a
    part that moves before a still, busy background counts by its share of the gradients.
    """
    grey = to_luma(x)
    middle = (grey[:, 1:] + grey[:, :-1]) / 2
    dy = (middle[..., 2:, 1:-1] - middle[..., :-2, 1:-1]) / 2
    dx = (middle[..., 1:-1, 2:] - middle[..., 1:-1, :-2]) / 2
    change = (grey[:, 1:] - grey[:, :-1])[..., 1:-1, 1:-1].square().flatten(2).mean(2)
    slope = (dy.square() + dx.square()).flatten(2).mean(2)
    return (2 * change / (slope + 1e-6) + TINY).sqrt() - TINY**0.5


@dataclass(frozen=True)
class Motion:
    """How much moves, the dynamic degree: the mean over steps of `flow_magnitude`, in percent of the short side a
    frame; or of the root-mean-square `difference` of frames, in percent of full scale. Noise and flicker are motion to
    it; NaN for one frame."""

    by: Literal["flow", "difference"] = "flow"

    spec = RewardSpec("motion", "1", VIDEO, differentiable=True, typical=(0.0, 5.0), paper="arXiv:2311.17982")

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        x = media_pixels(self.spec, media, prompts)
        if x.shape[1] < 2:
            return x.flatten(1).sum(1) * 0 + torch.nan
        broken = ~x.detach().flatten(1).isfinite().all(1)  # also at the edges, at which the flow does not look
        return (100 * self._measure_moves(x).mean(1)).masked_fill(broken, torch.nan)

    def score_clip(self, clip: StoredClip, prompts: Sequence[str]) -> Tensor:
        """[1]: of a clip in 8 bits, of which a few frames at a time become numbers."""
        if len(clip) < 2:
            return torch.tensor([torch.nan])
        parts = (clip.frames(slice(a, a + FRAMES_AT_ONCE + 1)).data for a in range(0, len(clip) - 1, FRAMES_AT_ONCE))
        return 100 * torch.cat([self._measure_moves(x) for x in parts], 1).mean(1)

    def _measure_moves(self, x: Tensor) -> Tensor:
        """[B,T-1] of [B,T,3,H,W]"""
        if min(x.shape[-2:]) < 3:
            raise BadInput(f"motion needs frames of at least 3 x 3 pixels, these have {x.shape[-1]} x {x.shape[-2]}")
        if self.by == "flow":
            return flow_magnitude(x) / min(x.shape[-2:])
        return ((x[:, 1:] - x[:, :-1]).square().flatten(2).mean(2) + TINY).sqrt() - TINY**0.5


@dataclass(frozen=True)
class Consistency:
    """Does what is there stay what it is, as far as anything moves: 0 for a still clip, however consistent.

    Consistency is the mean cosine of a frame's embedding with the one before and with the first (VBench's subject
    consistency, arXiv:2311.17982). It is multiplied by min(1, motion / least), as a still picture is the best it could
    be, and neither factor is to be had without the other: `score_parts` gives both, and after a call `last` holds them.
    """

    model: str = "openai/clip-vit-large-patch14"  # see rewards/encoders/image_text.py for the forms
    least: float = (
        0.5  # dynamic degree, in `motion`'s percent of the short side a frame, from which on a clip counts in full
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpoint: bool = False

    last: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    spec = RewardSpec("consistency", "1", VIDEO, differentiable=True, typical=(0.0, 1.0), paper="arXiv:2311.17982")

    def __post_init__(self):
        if not self.least > 0:
            raise BadInput(f"consistency.least: must be more than 0, got {self.least:g}; a still clip would win")
        object.__setattr__(self, "spec", replace(self.spec, version=f"{self.spec.version} {self.model} {self.least:g}"))

    def check(self) -> None:
        image_text.check_encoder(self.model)

    def load(self, device: torch.device | str = "cpu") -> image_text.ImageTextEncoder:
        return image_text.load_encoder(self.model, device, self.dtype)

    def score_parts(self, media: Media, prompts: Sequence[str] = ()) -> dict[str, Tensor]:
        """`consistency` in [-1,1] and `dynamic_degree`, each [B]; NaN for one frame."""
        x = media_pixels(self.spec, media, prompts)
        motion = Motion()(media=media, prompts=prompts)
        if x.shape[1] < 2:
            return {"consistency": motion, "dynamic_degree": motion}
        rows = self.load(x.device).embed_images(x.flatten(0, 1), checkpoint=self.checkpoint).view(*x.shape[:2], -1)
        return {"consistency": _mean_similarity(rows), "dynamic_degree": motion}

    def __call__(self, *, media: Media, prompts: Sequence[str], references: Media | None = None) -> Tensor:
        return self._join_parts(self.score_parts(media, prompts))

    def score_clip(self, clip: StoredClip, prompts: Sequence[str]) -> Tensor:
        """[1]: of a clip in 8 bits, of which a few frames at a time become numbers."""
        motion = Motion().score_clip(clip, prompts)
        if len(clip) < 2:
            return self._join_parts({"consistency": motion, "dynamic_degree": motion})
        encoder = self.load()
        parts = (clip.frames(slice(a, a + FRAMES_AT_ONCE)).data[0] for a in range(0, len(clip), FRAMES_AT_ONCE))
        rows = torch.cat([encoder.embed_images(x) for x in parts])[None]
        return self._join_parts({"consistency": _mean_similarity(rows), "dynamic_degree": motion})

    def _join_parts(self, parts: dict[str, Tensor]) -> Tensor:
        self.last.update({name: value.detach() for name, value in parts.items()})
        return parts["consistency"] * (parts["dynamic_degree"] / self.least).clamp(max=1)


def _mean_similarity(rows: Tensor) -> Tensor:
    """[B] of the embeddings [B,T,D] of frames: the mean cosine of each with the one before and with the first."""
    before = (rows[:, 1:] * rows[:, :-1]).sum(2)  # [B,T-1]
    first = F.cosine_similarity(rows[:, 1:], rows[:, :1], dim=2)
    return (before + first).mean(1) / 2
