"""LAION aesthetic predictor v2: how pretty a picture is on a 1..10 scale, whatever the prompt.

An MLP without activations on the L2-normalised image embedding of CLIP ViT-L/14
(github.com/christophschuhmann/improved-aesthetic-predictor, sac+logos+ava1-l14-linearMSE).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rewards.encoders import checkpoints, image_text
from rewards.encoders.frozen_reward import EncoderReward
from workbench.core.types import RewardSpec


class AestheticHead(nn.Module):
    """[B,D] -> [B]: the published predictor, names and shapes; ImageReward ends in the same one."""

    def __init__(self, width: int):
        super().__init__()
        first = [nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2)]
        self.layers = nn.Sequential(*first, nn.Linear(128, 64), nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, 0]


@functools.cache
@checkpoints.isolated_load()
def _load_head(source: str, device: str, width: int) -> AestheticHead:
    with checkpoints.BlankInit():
        head = AestheticHead(width)
    return checkpoints.fill_weights(head, checkpoints.read_weights(source), source).to(device)


@dataclass(frozen=True)
class Aesthetic(EncoderReward):
    """How pretty a picture is, 1..10, whatever the prompt: LAION's aesthetic predictor v2. Above 7 suspect hacking."""

    model: str = "openai/clip-vit-large-patch14"  # the encoder that the head was trained on
    weights: str = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"  # the head: a file, or owner/repo/file

    spec = RewardSpec(
        "aesthetic",
        "sac+logos+ava1-l14-linearMSE",
        frozenset({"image"}),
        differentiable=True,
        typical=(4.0, 7.0),
        paper="arXiv:2210.08402",
        weights="trl-lib/ddpo-aesthetic-predictor + openai/clip-vit-large-patch14",
        licence="Apache-2.0",
    )

    def check(self) -> None:
        checkpoints.check_source(self.weights)
        super().check()

    def load(self, device: torch.device | str = "cpu") -> tuple[image_text.ImageTextEncoder, AestheticHead]:
        encoder = super().load(device)
        return encoder, _load_head(self.weights, image_text.device_key(device), encoder.width)

    def score(
        self, loaded: tuple[image_text.ImageTextEncoder, AestheticHead], x: Tensor, prompts: Sequence[str]
    ) -> Tensor:
        encoder, head = loaded
        with torch.autocast(x.device.type, enabled=False):
            return head(encoder.embed_images(x, checkpoint=self.checkpoint))
