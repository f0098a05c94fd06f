"""VGGish (arXiv:1609.09430), the embedding that FAD was first measured in: 128 numbers for each 0.96 s at 16 kHz.

As FAD takes it: no PCA, no quantisation, and without the last ReLU. Weights: vggish-10086976.pth of
github.com/harritaylor/torchvggish. Channels are read from the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewards.encoders import checkpoints
from rewards.encoders.audio import AudioEncoder
from rewards.encoders.audio_frontend import LogMel, mel_filters
from workbench.core.errors import BadInput

LOG_MEL = LogMel(rate=16000, fft=512, hop=160, bins=64, low=125.0, high=7500.0, scale="kaldi", slaney_norm=False)
WINDOW, FRAMES = 400, 96  # samples of a frame, frames of an example
LENGTH = WINDOW + (FRAMES - 1) * LOG_MEL.hop  # samples of an example


class VGGish(nn.Module):
    """[N,<=15600] at 16 kHz -> [N,D]; what is shorter is followed by silence."""

    convolutions = (0, 3, 6, 8, 11, 13)  # where they stand among `features`; a maximum is taken before all but 8 and 13

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        layers, channels = [], 1
        for index in self.convolutions:
            width = state[f"features.{index}.weight"].shape[0]
            layers += [nn.MaxPool2d(2)] if index not in (0, 8, 13) else []
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers, nn.MaxPool2d(2))
        width = [channels * 24, *(state[f"embeddings.{i}.weight"].shape[0] for i in (0, 2, 4))]
        linear = [nn.Linear(a, b) for a, b in zip(width, width[1:], strict=False)]
        self.embeddings = nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2])
        self.width = width[-1]

    def log_mel(self, x: Tensor) -> Tensor:
        """[N,l] -> log-mel [N,T,64]: natural logarithm of magnitudes, frames of 25 ms that are not centred."""
        side = (LOG_MEL.fft - WINDOW) // 2
        window = torch.hann_window(WINDOW, device=x.device)
        spectrum = torch.stft(
            F.pad(x, (side, side)), LOG_MEL.fft, LOG_MEL.hop, WINDOW, window, center=False, return_complex=True
        )
        size = (
            spectrum.real.square() + spectrum.imag.square() + 1e-16
        ).sqrt()  # [N,257,T]; silence has a finite gradient
        return (size.transpose(1, 2) @ mel_filters(LOG_MEL).to(x) + 0.01).log()

    def forward(self, x: Tensor) -> Tensor:
        mel = self.log_mel(F.pad(x.float(), (0, LENGTH - x.shape[1])))
        maps = self.features(mel[:, None].to(self.embeddings[0].weight.dtype))  # [N,C,6,4]
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))


def load_vggish(source: str) -> AudioEncoder:
    """Raises BadInput for a file that holds no VGGish."""
    state = checkpoints.read_weights(source)
    try:
        with checkpoints.BlankInit():
            net = VGGish(state)
    except KeyError as error:
        raise BadInput(f"{source} lacks {error.args[0]}: these are not the weights of VGGish") from None
    checkpoints.fill_weights(net, state, source)
    return AudioEncoder(
        f"vggish:{source}", net, LOG_MEL.rate, LENGTH / LOG_MEL.rate, 0.96, net, net.width, view=repr(LOG_MEL)
    )
