"""How well a clip fits its prompt, by the music pack's own text-audio encoder (pipelines/starter/music/clap.py).

The folder holds a transformers CLIPModel whose pictures are log-mel spectrograms, and beside it what the spectrogram is.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rewards.audio.clap import CLAPScore
from rewards.encoders import audio, checkpoints, image_text
from rewards.encoders.audio_frontend import AUDIO, LogMel, filters, fit
from workbench.core.types import BadInput, RewardSpec

MODEL = "starter:music/clap"


@dataclass(frozen=True)
class StarterCLAP(CLAPScore):
    """How well a piece of the starter world fits its prompt, by the embedded CLAP: knows that world's words and sounds and
    no others. It was shown broken pieces too, so its gradient leads away from them."""

    model: str = MODEL

    spec = RewardSpec(
        "starter_clap",
        "1",
        AUDIO,
        differentiable=True,
        needs=frozenset({"prompt"}),
        typical=(-0.3, 0.9),
        paper="arXiv:2206.04769",
        weights=MODEL,
        licence="Apache-2.0",
    )

    def load(self, device: torch.device | str = "cpu") -> audio.Ear:
        return _load(self.model, image_text.place(device), self.dtype)


@functools.cache
@checkpoints.aside()
def _load(model: str, device: str, dtype: str) -> audio.Ear:
    found = ear(model)
    checkpoints.freeze(found.net).to(device=device, dtype=getattr(torch, dtype))
    return found


def ear(model: str) -> audio.Ear:
    """The encoder in this folder or part of the pack. Raises BadInput for a folder that holds something else."""
    import transformers

    folder = Path(image_text._resolve(model)).expanduser()
    try:
        settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        front = LogMel(
            settings["sampling_rate"], settings["n_fft"], settings["hop_length"], settings["bands"],
            settings["min_frequency"], settings["max_frequency"], "htk", slaney_norm=False,
        )  # fmt: skip
        length, floor, mean, scale = (settings[name] for name in ("samples", "floor", "mean", "scale"))
        net = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32)
        tokenise = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, RuntimeError, ValueError, KeyError, checkpoints.safetensors.SafetensorError) as error:
        line = checkpoints.first_line(error)
        raise BadInput(f"{model} is no encoder of the music pack ({line}); take {MODEL}, or build one") from None
    longest = net.config.text_config.max_position_embeddings

    def embed(x: Tensor) -> Tensor:  # [N,l] -> [N,D]
        power = front.power(fit(x.float(), length, "pad"))[:, :-1] @ filters(front).to(x)  # [N,T,bands]
        seen = (((power + floor).log() - mean) / scale).transpose(1, 2)[:, None]
        return net.get_image_features(pixel_values=seen.to(net.dtype)).pooler_output

    def text(prompt: str) -> Tensor:  # [D]
        ids = tokenise(prompt, padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
        return net.get_text_features(input_ids=ids.input_ids.to(net.device)).pooler_output[0]

    view, seconds = f"{front} {floor} {mean} {scale}", length / front.rate
    return audio.Ear(model, net, front.rate, seconds, seconds / 2, embed, net.config.projection_dim, True, text, view)
