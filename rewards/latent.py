"""A reward on noisy latents: its network, its file, its training. What Flow-NRG is guided by (arXiv:2501.13918).

    rewards = {"starter_clip": build("starter_clip")}
    collect(policy, rewards, prompts, "data/", seeds=8)        # the policy's own samples and their scores
    train("data/", "judge.safetensors", steps=6000)            # reads x_i = a x0 + s eps at random noise levels
    NRG(model=LatentReward("judge.safetensors"))

The network is a small convolutional one whose features are scaled and shifted by the noise level and the prompt (FiLM, Perez
et al. 2018, arXiv:1709.07871). It reads the prompt with a small recurrent encoder of its own over hashed words, trained with
it: so it needs neither the pipeline nor the judge that it learnt from, of whose text features a picture judge may have none.
Noise is an angle, atan2(s, a), and states come at unit variance, so that one file serves every schedule of its pipeline.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.core.paths import write_atomic
from workbench.core.types import BadInput, Policy, Reward, derive

WORDS, LONGEST = 4096, 64  # buckets of the hash; words of a prompt that are read
KEY = "latent_reward"  # of the header, in the file's metadata
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def word_ids(prompt: str) -> list[int]:
    """Each word's bucket, the same everywhere; 0 stands for no word."""
    words = re.findall(r"\w+", prompt.lower())[:LONGEST]
    return [1 + int.from_bytes(hashlib.blake2b(w.encode(), digest_size=4).digest(), "big") % (WORDS - 1) for w in words]


class Block(nn.Module):
    """A residual block whose features are scaled and shifted by what is known of the state."""

    def __init__(self, width: int, known: int, rank: int):
        super().__init__()
        self.first, self.second = (CONV[rank](width, width, 3, padding=1) for _ in range(2))
        self.norm, self.film = nn.GroupNorm(8, width), nn.Linear(known, 2 * width)

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        scale, shift = self.film(known).view(len(h), -1, *[1] * (h.dim() - 2)).chunk(2, 1)
        return h + self.second(F.silu(self.norm(self.first(F.silu(h))) * (1 + scale) + shift))


class Network(nn.Module):
    """Latents [B,C,...] at unit variance, angles [B] and prompts -> scores [B,K], standardised."""

    def __init__(self, channels: int, rank: int, objectives: int, width: int = 96, blocks: int = 4):
        super().__init__()
        known = 2 * width
        self.words = nn.Embedding(WORDS, width, padding_idx=0)
        self.reader = nn.GRU(width, width, batch_first=True)
        self.known = nn.Sequential(nn.Linear(width + 16, known), nn.SiLU(), nn.Linear(known, known), nn.SiLU())
        self.enter = CONV[rank](channels + rank, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, known, rank) for _ in range(blocks))
        self.leave = nn.Sequential(nn.Linear(2 * width + known, known), nn.SiLU(), nn.Linear(known, objectives))

    def forward(self, x: Tensor, angle: Tensor, prompts: Sequence[str]) -> Tensor:
        waves = angle[:, None] * torch.arange(1, 9, device=x.device)
        known = self.known(torch.cat([self.read(prompts), waves.sin(), waves.cos()], 1))
        axes = torch.meshgrid(*(torch.linspace(-1, 1, n, device=x.device) for n in x.shape[2:]), indexing="ij")
        h = self.enter(torch.cat([x, torch.stack(axes).expand(len(x), *[-1] * (x.dim() - 1))], 1))
        for k, block in enumerate(self.blocks):
            h = block(h, known)
            if k % 2 == 0 and k + 1 < len(self.blocks) and min(h.shape[2:]) >= 8:
                h = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[h.dim() - 3](h, 2)
        return self.leave(torch.cat([h.flatten(2).mean(2), h.flatten(2).amax(2), known], 1))

    def read(self, prompts: Sequence[str]) -> Tensor:
        """[B,D]: the reader's state after each prompt's last word; zeros without one."""
        rows = [word_ids(p) for p in prompts]
        longest, device = max(1, *map(len, rows)), self.words.weight.device
        ids = torch.tensor([r + [0] * (longest - len(r)) for r in rows], device=device)
        states = F.pad(self.reader(self.words(ids))[0], (0, 0, 1, 0))  # [B,L+1,D], before the first word and after each
        return states[torch.arange(len(rows), device=device), torch.tensor([len(r) for r in rows], device=device)]


class Judge(nn.Module):
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
        wide = (len(x), -1, *[1] * (x.dim() - 2))
        at, st = a.view(wide), s.view(wide)
        mean, std = self.mean.view(1, *wide[1:]), self.std.view(1, *wide[1:])
        x = (x - at * mean) / ((at * std).square() + st.square()).sqrt()
        return self.network(x, torch.atan2(s, a), prompts) * self.spread + self.centre


@dataclass(frozen=True)
class LatentReward:
    """A trained reward on noisy latents. The header is read when made, the weights when first asked.

    Raises BadInput for a file that is none, or damaged.
    """

    path: str

    def __post_init__(self):
        self.header  # noqa: B018  an unreadable file is told at once

    @cached_property
    def header(self) -> dict:
        """latent (shape), axis (of the channels), levels (angles trained on), objectives, loss, and `correlation`: with
        the clean reward on prompts that were not trained on, by noise level."""
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                return json.loads((file.metadata() or {})[KEY])
        except FileNotFoundError:
            raise BadInput(f"latent reward: no file {self.path}; train one with rewards.latent") from None
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
            there, here = ("x".join(map(str, n)) for n in (self.header["latent"], latent))
            raise BadInput(
                f"latent reward: {self.path} reads latents of {there}, this pipeline's are {here}; train one for it"
            )

    @cached_property
    def judge(self) -> Judge:
        h = self.header
        judge = Judge(h["latent"], len(h["objectives"]), h["axis"], h["width"], h["blocks"])
        try:
            judge.load_state_dict(safetensors.torch.load_file(self.path))
        except (RuntimeError, safetensors.SafetensorError) as error:
            told = str(error).splitlines()[-1].strip()
            raise BadInput(f"latent reward: {self.path} does not hold what its header says: {told}") from None
        return judge.eval().requires_grad_(False)

    def __call__(self, x: Tensor, a: float, s: float, prompts: Sequence[str]) -> Tensor:
        """[B,K]: what the clean rewards are expected to be, at the state x = a x0 + s eps [B,*latent]."""
        ones = torch.ones(len(x), device=x.device)
        return self.judge.to(x.device)(x, a * ones, s * ones, prompts)


# --- training --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def collect(
    policy: Policy,
    rewards: Mapping[str, Reward],
    prompts: Sequence[str],
    folder: str | Path,
    *,
    seeds: int = 4,
    others: int = 1,
    seed: int = 0,
    batch: int = 16,
) -> None:
    """The policy's samples of `prompts`, `seeds` each, with their scores, one file a batch; goes on where it was left.

    Each sample is also judged against `others` other prompts, so that the judge has to read: most samples fit their own.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(p, derive(seed, "latent reward", p, k)) for k in range(seeds) for p in prompts]
    for number, at in enumerate(range(0, len(rows), batch)):
        path = folder / f"{number:05d}.safetensors"
        if path.exists():
            continue
        said, noises = zip(*rows[at : at + batch], strict=True)
        made = policy.sample(said, seeds=noises)
        asked = [
            said,
            *([prompts[derive(n, "other", o) % len(prompts)] for n in noises] for o in range(others)),
        ]
        scores = [
            torch.stack([r(media=made.media, prompts=p).float().cpu() for r in rewards.values()], 1) for p in asked
        ]
        state = {"latents": made.x[:, -1].float().cpu().contiguous(), "scores": torch.stack(scores, 1)}
        header = {"prompts": json.dumps(list(zip(*asked, strict=True))), "objectives": json.dumps(list(rewards))}
        write_atomic(path, safetensors.torch.save(state, header))


@dataclass(frozen=True)
class Samples:
    """What `collect` left: M questions about N latents; the first question of each latent is its own prompt."""

    latents: Tensor  # [N,*latent]
    which: Tensor  # [M], the latent that each question is about
    own: Tensor  # [M], whether it asks for the latent's own prompt
    prompts: list[str]  # M
    scores: Tensor  # [M,K]
    objectives: list[str]  # K

    @staticmethod
    def read(folder: str | Path) -> Samples:
        """Raises BadInput for a folder without samples."""
        latents, which, own, prompts, scores, objectives, n = [], [], [], [], [], [], 0
        for path in sorted(Path(folder).glob("*.safetensors")):
            with safetensors.safe_open(path, "pt") as file:
                latents.append(file.get_tensor("latents"))
                given = file.get_tensor("scores")  # [b,questions,K]
                asked, objectives = (json.loads(file.metadata()[key]) for key in ("prompts", "objectives"))
            prompts += [p for row in asked for p in row]
            which += [n + b for b in range(len(given)) for _ in range(given.shape[1])]
            own += [q == 0 for _ in range(len(given)) for q in range(given.shape[1])]
            scores.append(given.flatten(0, 1))
            n += len(given)
        if not latents:
            raise BadInput(f"latent reward: {folder} has no samples; make them with rewards.latent.collect")
        return Samples(
            torch.cat(latents), torch.tensor(which), torch.tensor(own), prompts, torch.cat(scores), objectives
        )

    def split(self) -> tuple[Tensor, Tensor]:
        """Questions to train on, and to test on: a tenth of the prompts, and the latents made for them, are kept out."""
        mine = [p for p, own in zip(self.prompts, self.own.tolist(), strict=True) if own]  # N
        order = sorted(set(mine), key=lambda p: derive(0, "held out", p))
        kept = set(order[: max(1, len(order) // 10)])
        asks = torch.tensor([p in kept for p in self.prompts])
        about = torch.tensor([p in kept for p in mine])[self.which]
        return (~asks & ~about).nonzero().flatten(), (about & self.own).nonzero().flatten()


def train(
    folder: str | Path,
    path: str | Path,
    *,
    steps: int = 6000,
    seconds: float = math.inf,
    loss: Literal["regression", "pairs"] = "regression",
    batch: int = 64,
    lr: float = 2e-3,
    width: int = 96,
    blocks: int = 4,
    axis: int = 0,
    seed: int = 0,
) -> dict:
    """Trains a judge on what `collect` left in `folder` and writes it to `path`; returns its header.

    regression: to the clean scores, whose conditional mean given x_i it learns. pairs: Bradley-Terry on two samples of one
    question with the same noise. `axis` is that of the channels in a latent. Step k draws from a generator of its own, and
    the state is kept beside `path`: the same call goes on where an interrupted one was, or where `seconds` ended it.
    Raises BadInput when there is nothing to learn from, or when what was begun there had other settings.
    """
    data, path, settings = Samples.read(folder), Path(path), [loss, batch, lr, width, blocks, axis, seed, steps]
    fit, test = data.split()
    judge = _new(data, fit, loss, width, blocks, axis, seed)
    optimizer = torch.optim.AdamW(judge.network.parameters(), lr=lr, weight_decay=0.05)
    begun, k, end = path.with_suffix(".resume.pt"), 0, time.monotonic() + seconds
    if begun.exists():
        saved = torch.load(begun, weights_only=True)
        if saved["settings"] != settings:
            raise BadInput(f"latent reward: {begun} was begun with other settings; remove it, or call with the same")
        judge.load_state_dict(saved["judge"]), optimizer.load_state_dict(saved["optimizer"])
        k = saved["step"]
    draw = {"regression": _regression, "pairs": _pairs(data, fit)}[loss]
    over = False
    while k < steps and not over:
        g = torch.Generator().manual_seed(derive(seed, "latent reward", k))
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (k + 1) / 50) * (0.02 + 0.49 * (1 + math.cos(math.pi * k / steps)))
        optimizer.zero_grad()
        draw(judge, data, fit, batch, g).backward()
        nn.utils.clip_grad_norm_(judge.network.parameters(), 1.0)
        optimizer.step()
        k += 1
        over = time.monotonic() >= end
        if k % 200 == 0 or over:
            kept = {"judge": judge.state_dict(), "optimizer": optimizer.state_dict()}
            _keep(begun, kept | {"settings": settings, "step": k})
    judge.eval()
    header = {"latent": list(data.latents.shape[1:]), "axis": axis, "levels": [0.0, math.pi / 2], "loss": loss}
    header |= {"objectives": data.objectives, "width": width, "blocks": blocks, "steps": k, "seed": seed}
    header |= {"samples": len(data.latents), "correlation": correlation(judge, data, test)}
    state = {name: value.contiguous() for name, value in judge.state_dict().items()}
    write_atomic(path, safetensors.torch.save(state, {KEY: json.dumps(header)}))
    if k == steps:
        begun.unlink(missing_ok=True)
    return header


@torch.no_grad()
def correlation(judge: Judge, data: Samples, rows: Tensor, bands: int = 5) -> dict[str, list[float | None]]:
    """Of each objective with the clean reward, Pearson's, from the cleanest band of angles to the noisiest."""
    found: dict[str, list[float | None]] = {name: [] for name in data.objectives}
    for band in range(bands):
        angle = torch.full((len(rows),), (band + 0.5) / bands * math.pi / 2)
        g = torch.Generator().manual_seed(derive(0, "correlation", band))
        said = _judged(judge, data, rows, angle, g).double()
        for k, name in enumerate(data.objectives):
            pair = torch.stack([said[:, k], data.scores[rows, k].double()])
            r = torch.corrcoef(pair[:, pair.isfinite().all(0)])[0, 1].item() if len(rows) > 2 else math.nan
            found[name].append(round(r, 3) if math.isfinite(r) else None)
    return found


def _new(data: Samples, fit: Tensor, loss: str, width: int, blocks: int, axis: int, seed: int) -> Judge:
    there = data.scores[fit].isfinite()
    if not len(fit) or not there.any(0).all():
        raise BadInput(
            "latent reward: nothing to learn from; collect samples of more prompts, that the rewards can judge"
        )
    with torch.random.fork_rng([]):
        torch.manual_seed(derive(seed, "latent reward"))
        judge = Judge(data.latents.shape[1:], len(data.objectives), axis, width, blocks)
    x = data.latents.movedim(1 + axis, 0).flatten(1)  # [C,...]
    judge.mean.copy_(x.mean(1)), judge.std.copy_(x.std(1).clamp_min(1e-6))
    if loss == "regression":  # of pairs no scale is learnt
        clean = [data.scores[fit, k][there[:, k]] for k in range(len(data.objectives))]
        judge.centre.copy_(torch.stack([c.mean() for c in clean]))
        judge.spread.copy_(torch.stack([c.std(correction=0).clamp_min(1e-6) for c in clean]))
    return judge


def _judged(judge: Judge, data: Samples, rows: Tensor, angle: Tensor, g: torch.Generator, pair: int = 1) -> Tensor:
    """[n,K]: the judge on questions `rows` [n] at noise `angle` [n]; each `pair` of neighbours shares its noise."""
    x0 = data.latents[data.which[rows]]
    eps = torch.randn(len(rows) // pair, *x0.shape[1:], generator=g).repeat_interleave(pair, 0)
    a, s = angle.cos(), angle.sin()
    wide = (-1, *[1] * (x0.dim() - 1))
    return judge(a.view(wide) * x0 + s.view(wide) * eps, a, s, [data.prompts[n] for n in rows.tolist()])


def _regression(judge: Judge, data: Samples, fit: Tensor, batch: int, g: torch.Generator) -> Tensor:
    rows = fit[torch.randint(len(fit), (batch,), generator=g)]
    angle = torch.rand(batch, generator=g) * math.pi / 2
    error = (_judged(judge, data, rows, angle, g) - data.scores[rows]) / judge.spread
    return torch.where(error.isfinite(), error, 0).square().mean()


def _pairs(data: Samples, fit: Tensor):
    """Bradley-Terry on pairs of one question: -log sigmoid(r of the better - r of the worse)."""
    asked: dict[str, list[int]] = {}
    for n in fit.tolist():
        asked.setdefault(data.prompts[n], []).append(n)
    groups = [torch.tensor(rows) for rows in asked.values() if len(rows) > 1]

    def loss(judge: Judge, data: Samples, fit: Tensor, batch: int, g: torch.Generator) -> Tensor:
        if not groups:
            raise BadInput("latent reward: `pairs` needs prompts with two samples; collect with seeds above 1")
        chosen = [groups[n] for n in torch.randint(len(groups), (batch // 2,), generator=g).tolist()]
        rows = torch.cat([rows[torch.randperm(len(rows), generator=g)[:2]] for rows in chosen])
        angle = (torch.rand(len(chosen), generator=g) * math.pi / 2).repeat_interleave(2)
        margin = _judged(judge, data, rows, angle, g, pair=2).unflatten(0, (-1, 2)).diff(dim=1)[:, 0]  # [n,K]
        gap = data.scores[rows].unflatten(0, (-1, 2)).diff(dim=1)[:, 0]
        fine = gap.isfinite() & (gap != 0)
        return torch.where(fine, F.softplus(-gap.sign() * margin), 0).sum() / fine.sum().clamp_min(1)

    return loss


def _keep(path: Path, state: dict) -> None:
    file = io.BytesIO()
    torch.save(state, file)
    write_atomic(path, file.getvalue())
