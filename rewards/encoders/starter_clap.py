"""The music pack's own text-audio encoder (pipelines/starter/music/clap.py).

The folder holds a transformers CLIPModel whose pictures are log-mel spectrograms, and beside it what the spectrogram
is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from rewards.encoders import checkpoints, image_text
from rewards.encoders.audio import AudioEncoder
from rewards.encoders.audio_frontend import LogMel, fit_length, mel_filters
from workbench.core.errors import BadInput
from workbench.core.io.parsing import read_json

MODEL = "starter:music/clap"


def load_music_clap(model: str) -> AudioEncoder:
    """The encoder in this folder or part of the pack. Raises BadInput for a folder that holds something else."""
    import transformers

    folder = Path(image_text.resolve_model(model)).expanduser()
    try:
        settings = read_json(folder / "preprocessor_config.json")
        front = LogMel(
            settings["sampling_rate"], settings["n_fft"], settings["hop_length"], settings["bands"],
            settings["min_frequency"], settings["max_frequency"], "htk", slaney_norm=False,
        )  # fmt: skip
        length, floor, mean, scale = (settings[name] for name in ("samples", "floor", "mean", "scale"))
        net: Any = checkpoints.load_pretrained(transformers.CLIPModel, str(folder), model)
        tokenise = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, RuntimeError, ValueError, KeyError, checkpoints.safetensors.SafetensorError) as error:
        line = checkpoints.first_line(error)
        raise BadInput(f"{model} is no encoder of the music pack ({line}); take {MODEL}, or build one") from None
    longest = net.config.text_config.max_position_embeddings

    def embed_windows(x: Tensor) -> Tensor:  # [N,l] -> [N,D]
        power = front.power_spectrum(fit_length(x.float(), length, "pad"))[:, :-1] @ mel_filters(front).to(
            x
        )  # [N,T,bands]
        mel = (((power + floor).log() - mean) / scale).transpose(1, 2)[:, None]
        return net.get_image_features(pixel_values=mel.to(net.dtype)).pooler_output

    def embed_text(prompt: str) -> Tensor:  # [D]
        ids = tokenise(prompt, padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
        return net.get_text_features(input_ids=ids.input_ids.to(net.device)).pooler_output[0]

    view, seconds = f"{front} {floor} {mean} {scale}", length / front.rate
    return AudioEncoder(
        model, net, front.rate, seconds, seconds / 2, embed_windows, net.config.projection_dim, True, embed_text, view
    )
