"""What a taste sees of a medium: its place in the space of a frozen encoder that fits its kind.

    pictures   the unit vector of an image-text encoder (rewards/encoders/image_text.py)
    clips      that of the video pack's CLIP, which reads a film strip; of any other image-text encoder the vectors of
               up to 16 frames, evenly spread: their mean, and the mean of their absolute steps
    sounds     that of an audio encoder (rewards/encoders/load_audio.py)

Where the encoder reads texts too, one more number says how well the medium fits its prompt: the cosine of the two. A
direction in the space of media alone can't say that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rewards.encoders import image_text, load_audio
from rewards.encoders.audio_frontend import mono_samples
from rewards.encoders.preprocess import media_pixels
from rewards.video.starter_clip import ROWS, StarterVideoCLIP, film_strip, seen_frames
from workbench.core.types import Media, RewardSpec

STARTER_ENCODERS = {"image": "starter:image/clip", "video": StarterVideoCLIP.model, "audio": "starter:music/clap"}
ENCODERS = {  # for media of any other world
    "image": "openai/clip-vit-large-patch14",
    "video": "openai/clip-vit-large-patch14",
    "audio": "laion/larger_clap_music",
}
MAX_FRAMES = 16
SPEC = RewardSpec("taste", "", frozenset({"image", "video", "audio"}), differentiable=True)


@dataclass(frozen=True)
class TasteEncoder:
    """An encoder for media of one kind. Its features have norm 1, without the cosine that follows them."""

    modality: str
    model: str
    reads_prompts: bool = False  # whether the cosine of medium and prompt is the last feature

    def check(self) -> None:
        """Raises BadInput for what can be known to be wrong without loading."""
        if self.modality == "audio":
            load_audio.check_audio_encoder(self.model)
        else:
            image_text.check_encoder(self.model)

    def load(self, device: torch.device | str = "cpu", dtype: str = "float32") -> Any:
        """The encoder in memory. Raises BadInput."""
        load = load_audio.load_audio_encoder if self.modality == "audio" else image_text.load_encoder
        return load(self.model, device, dtype)

    def can_read(self, device: torch.device | str = "cpu") -> bool:
        """Whether the encoder has a text tower."""
        return self.modality != "audio" or self.load(device).text is not None

    def count_features(self, device: torch.device | str = "cpu", dtype: str = "float32") -> int:
        """How many numbers `embed` gives for a medium."""
        pooled = self.modality == "video" and self.model != STARTER_ENCODERS["video"]
        return self.load(device, dtype).width * (2 if pooled else 1) + self.reads_prompts

    def embed(
        self,
        spec: RewardSpec,
        media: Media,
        prompts: Sequence[str],
        dtype: str = "float32",
        checkpoint: bool = False,
    ) -> Tensor:
        """float32 [B,D] of B media, the graph attached. A value that is not a number makes its own row NaN. spec: of
        the reward that asks. Raises BadInput for media of another kind."""
        x = (mono_samples if self.modality == "audio" else media_pixels)(spec, media, prompts)
        encoder = self.load(media.data.device, dtype)
        features = self._embed_values(encoder, x, media.rate, checkpoint)
        features = features.masked_fill(media.data.detach().flatten(1).isnan().any(1)[:, None], torch.nan)
        if not self.reads_prompts:
            return features
        fit = (features[:, : encoder.width] * encoder.embed_texts(prompts)).sum(1, keepdim=True)
        return torch.cat([features, fit], 1)

    def _embed_values(self, encoder: Any, x: Tensor, rate: float, checkpoint: bool) -> Tensor:
        if self.modality == "audio":
            return F.normalize(encoder(x, rate, checkpoint=checkpoint), dim=1)
        if self.modality == "image":
            return encoder.embed_images(x, checkpoint=checkpoint)
        if self.model == STARTER_ENCODERS["video"]:
            strip = film_strip(x[:, seen_frames(x.shape[1]).to(x.device)], encoder.size[0] // ROWS)
            return encoder.embed_images(strip, checkpoint=checkpoint)
        at = torch.linspace(0, x.shape[1] - 1, min(x.shape[1], MAX_FRAMES)).round().long().to(x.device)
        rows = encoder.embed_images(x[:, at].flatten(0, 1), checkpoint=checkpoint).view(len(x), len(at), -1)
        steps = (rows[:, 1:] - rows[:, :-1]).abs().sum(1) / max(len(at) - 1, 1)
        return F.normalize(torch.cat([F.normalize(rows.mean(1), dim=1), steps], 1), dim=1)


def default_encoder(modality: str, is_starter: bool) -> str:
    """The encoder through which a taste is fitted unless another is named: the starter pack's for its own media."""
    return (STARTER_ENCODERS if is_starter else ENCODERS)[modality]
