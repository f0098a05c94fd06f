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
from rewards.encoders.audio import Ear
from rewards.encoders.audio_frontend import LogMel, filters
from workbench.core.types import BadInput

FRONT = LogMel(rate=16000, fft=512, hop=160, bins=64, low=125.0, high=7500.0, scale="kaldi", slaney_norm=False)
WINDOW, FRAMES = 400, 96  # samples of a frame, frames of an example
LENGTH = WINDOW + (FRAMES - 1) * FRONT.hop  # samples of an example


class VGGish(nn.Module):
    """[N,<=15600] at 16 kHz -> [N,D]; what is shorter is followed by silence."""

    convolutions = (0, 3, 6, 8, 11, 13)  # where they stand among `features`; a maximum is taken before all but 8 and 13

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        layers, channels = [], 1
        for place in self.convolutions:
            wide = state[f"features.{place}.weight"].shape[0]
            layers += [nn.MaxPool2d(2)] if place not in (0, 8, 13) else []
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.ReLU()]
            channels = wide
        self.features = nn.Sequential(*layers, nn.MaxPool2d(2))
        wide = [channels * 24, *(state[f"embeddings.{i}.weight"].shape[0] for i in (0, 2, 4))]
        linear = [nn.Linear(a, b) for a, b in zip(wide, wide[1:], strict=False)]
        self.embeddings = nn.Sequential(linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2])
        self.width = wide[-1]

    def picture(self, x: Tensor) -> Tensor:
        """[N,l] -> log-mel [N,T,64]: natural logarithm of magnitudes, frames of 25 ms that are not centred."""
        side = (FRONT.fft - WINDOW) // 2
        window = torch.hann_window(WINDOW, device=x.device)
        found = torch.stft(
            F.pad(x, (side, side)), FRONT.fft, FRONT.hop, WINDOW, window, center=False, return_complex=True
        )
        size = (found.real.square() + found.imag.square() + 1e-16).sqrt()  # [N,257,T]; silence has a finite gradient
        return (size.transpose(1, 2) @ filters(FRONT).to(x) + 0.01).log()

    def forward(self, x: Tensor) -> Tensor:
        seen = self.picture(F.pad(x.float(), (0, LENGTH - x.shape[1])))
        found = self.features(seen[:, None].to(self.embeddings[0].weight.dtype))  # [N,C,6,4]
        return self.embeddings(found.permute(0, 2, 3, 1).flatten(1))


def ear(source: str) -> Ear:
    """Raises BadInput for a file that holds no VGGish."""
    state = checkpoints.read(source)
    try:
        with checkpoints.Blank():
            net = VGGish(state)
    except KeyError as error:
        raise BadInput(f"{source} lacks {error.args[0]}: these are not the weights of VGGish") from None
    checkpoints.fill(net, state, source)
    return Ear(f"vggish:{source}", net, FRONT.rate, LENGTH / FRONT.rate, 0.96, net, net.width, view=repr(FRONT))
