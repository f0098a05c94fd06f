"""A reward on noisy latents: its network and its file. What Flow-NRG is guided by (arXiv:2501.13918).

    NRG(model=LatentReward("judge.safetensors"))           # latent_training.py makes such a file

The network is a small convolutional one whose features are scaled and shifted by the noise level and the prompt (FiLM,
Perez et al. 2018, arXiv:1709.07871). It reads the prompt with a small recurrent encoder of its own over hashed words,
trained with it: so it needs neither the pipeline nor the reward that it learnt from, of whose text features a picture
reward may have none. Noise is an angle, atan2(s, a), and states come at unit variance, so that one file serves every
schedule of its pipeline.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.core.errors import BadInput
from workbench.core.io.parsing import parse_json

WORDS, LONGEST = 4096, 64  # buckets of the hash; words of a prompt that are read
KEY = "latent_reward"  # of the header, in the file's metadata
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def word_ids(prompt: str) -> list[int]:
    """Each word's bucket, the same everywhere; 0 stands for no word."""
    words = re.findall(r"\w+", prompt.lower())[:LONGEST]
    return [1 + int.from_bytes(hashlib.blake2b(w.encode(), digest_size=4).digest(), "big") % (WORDS - 1) for w in words]


class FilmBlock(nn.Module):
    """A residual block whose features are scaled and shifted by what is known of the state."""

    def __init__(self, width: int, condition_width: int, rank: int):
        super().__init__()
        self.first, self.second = (CONV[rank](width, width, 3, padding=1) for _ in range(2))
        self.norm, self.film = nn.GroupNorm(8, width), nn.Linear(condition_width, 2 * width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition).view(len(h), -1, *[1] * (h.dim() - 2)).chunk(2, 1)
        return h + self.second(F.silu(self.norm(self.first(F.silu(h))) * (1 + scale) + shift))


class Network(nn.Module):
    """Latents [B,C,...] at unit variance, angles [B] and prompts -> scores [B,K], standardised."""

    def __init__(self, channels: int, rank: int, objectives: int, width: int = 96, blocks: int = 4):
        super().__init__()
        condition_width = 2 * width
        self.words = nn.Embedding(WORDS, width, padding_idx=0)
        self.reader = nn.GRU(width, width, batch_first=True)
        self.known = nn.Sequential(
            nn.Linear(width + 16, condition_width), nn.SiLU(), nn.Linear(condition_width, condition_width), nn.SiLU()
        )
        self.enter = CONV[rank](channels + rank, width, 3, padding=1)
        self.blocks = nn.ModuleList(FilmBlock(width, condition_width, rank) for _ in range(blocks))
        self.leave = nn.Sequential(
            nn.Linear(2 * width + condition_width, condition_width), nn.SiLU(), nn.Linear(condition_width, objectives)
        )

    def forward(self, x: Tensor, angle: Tensor, prompts: Sequence[str]) -> Tensor:
        waves = angle[:, None] * torch.arange(1, 9, device=x.device)
        condition = self.known(torch.cat([self.encode_prompts(prompts), waves.sin(), waves.cos()], 1))
        axes = torch.meshgrid(*(torch.linspace(-1, 1, n, device=x.device) for n in x.shape[2:]), indexing="ij")
        h = self.enter(torch.cat([x, torch.stack(axes).expand(len(x), *[-1] * (x.dim() - 1))], 1))
        for k, block in enumerate(self.blocks):
            h = block(h, condition)
            if k % 2 == 0 and k + 1 < len(self.blocks) and min(h.shape[2:]) >= 8:
                h = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[h.dim() - 3](h, 2)
        return self.leave(torch.cat([h.flatten(2).mean(2), h.flatten(2).amax(2), condition], 1))

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """[B,D]: the reader's state after each prompt's last word; zeros without one."""
        rows = [word_ids(p) for p in prompts]
        longest, device = max(1, *map(len, rows)), self.words.weight.device
        ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows], device=device)
        states = F.pad(self.reader(self.words(ids))[0], (0, 0, 1, 0))  # [B,L+1,D], before the first word and after each
        return states[torch.arange(len(rows), device=device), torch.tensor([len(r) for r in rows], device=device)]


class LatentScorer(nn.Module):
    """The network with what brings latents to unit variance and its scores back to the rewards' own units."""

    def __init__(self, latent: Sequence[int], objectives: int, axis: int, width: int, blocks: int):
        super().__init__()
        self.axis = axis
        self.network = Network(latent[axis], len(latent) - 1, objectives, width, blocks)
        for name, n, value in (("mean", latent[axis], 0.0), ("std", latent[axis], 1.0)):
            self.register_buffer(name, torch.full((n,), value))
        for name, value in (("centre", 0.0), ("spread", 1.0)):
            self.register_buffer(name, torch.full((objectives,), value))

    def forward(self, x: Tensor, a: Tensor, s: Tensor, prompts: Sequence[str]) -> Tensor:
        """x = a x0 + s eps [B,*latent], a and s [B] -> [B,K]."""
        x = x.float().movedim(1 + self.axis, 1)
        a, s = a.float(), s.float()
        shape = (len(x), -1, *[1] * (x.dim() - 2))
        at, st = a.view(shape), s.view(shape)
        mean, std = self.mean.view(1, *shape[1:]), self.std.view(1, *shape[1:])
        x = (x - at * mean) / ((at * std).square() + st.square()).sqrt()
        return self.network(x, torch.atan2(s, a), prompts) * self.spread + self.centre


@dataclass(frozen=True)
class LatentReward:
    """A trained reward on noisy latents. The header is read when made, the weights when first asked.

    Raises BadInput for a file that is none, or damaged.
    """

    path: str

    def __post_init__(self):
        self.header  # noqa: B018  an unreadable file is refused at once

    @cached_property
    def header(self) -> dict:
        """latent (shape), axis (of the channels), levels (angles trained on), objectives, loss, and `correlation`: with
        the clean reward on prompts that were not trained on, by noise level."""
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                return parse_json((file.metadata() or {})[KEY], self.path)
        except FileNotFoundError:
            raise BadInput(f"latent reward: no file {self.path}; train one with rewards.latent_training") from None
        except KeyError:
            raise BadInput(f"latent reward: {self.path} holds other weights, not a latent reward") from None
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise BadInput(f"latent reward: {self.path} can't be read: {str(error).splitlines()[0]}") from None

    @property
    def objectives(self) -> tuple[str, ...]:
        return tuple(self.header["objectives"])

    def check(self, latent: Sequence[int]) -> None:
        """Raises BadInput unless it reads latents of this shape."""
        if list(latent) != self.header["latent"]:
            expected, actual = ("x".join(map(str, n)) for n in (self.header["latent"], latent))
            raise BadInput(
                f"latent reward: {self.path} reads latents of {expected}, this pipeline's are {actual}; "
                "train one for it"
            )

    @cached_property
    def scorer(self) -> LatentScorer:
        h = self.header
        scorer = LatentScorer(h["latent"], len(h["objectives"]), h["axis"], h["width"], h["blocks"])
        try:
            scorer.load_state_dict(safetensors.torch.load_file(self.path))
        except (RuntimeError, safetensors.SafetensorError) as error:
            message = str(error).splitlines()[-1].strip()
            raise BadInput(f"latent reward: {self.path} does not hold what its header says: {message}") from None
        return scorer.eval().requires_grad_(False)

    def __call__(self, x: Tensor, a: float, s: float, prompts: Sequence[str]) -> Tensor:
        """[B,K]: what the clean rewards are expected to be, at the state x = a x0 + s eps [B,*latent]."""
        ones = torch.ones(len(x), device=x.device)
        return self.scorer.to(x.device)(x, a * ones, s * ones, prompts)
