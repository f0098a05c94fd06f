"""The methods that train with cheap settings, rewards and a policy to try them on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from mixture_policy import Value
from trainable_policy import TrainableMixture

from pipelines.transitions import Ancestral
from workbench.core.types import Batch, RewardSpec
from workbench.methods.training.awm import AWM
from workbench.methods.training.crd import CRD
from workbench.methods.training.d3po import D3PO
from workbench.methods.training.ddpo import DDPO
from workbench.methods.training.dgpo import DGPO
from workbench.methods.training.direct import AlignProp, DRaFT, DRaFTLV
from workbench.methods.training.dpo import DPO
from workbench.methods.training.grpo import GRPO
from workbench.methods.training.instruct_video import InstructVideo
from workbench.methods.training.kto import KTO
from workbench.methods.training.nft import NFT
from workbench.methods.training.parrot import Parrot
from workbench.methods.training.prdp import PRDP
from workbench.methods.training.raft import RAFT
from workbench.methods.training.refl import ReFL
from workbench.methods.training.rwr import RWR
from workbench.methods.training.srpo import SRPO

G = 6
LIVE, OLD = (0.3, -0.2), (0.1, 0.05)  # weights at which the updates are checked; the reference is (0, 0)
BATCH = Batch(("a", "b"), (5, 6))
SDE = Ancestral(1.0)
MATCHING = {
    "nft": NFT(group=G, beta=0.5, kl=0.3, schedule_fraction=1.0),
    "awm": AWM(group=G, kl=0.2, anchor=0.4, levels_per_sample=0, schedule_fraction=1.0),
    "crd": CRD(group=G, beta=2.0, kl=0.3, optimizer_steps=1, schedule_fraction=1.0),
    "dgpo": DGPO(group=G, beta=3.0, clip_range=0.05, kl=0.1, schedule_fraction=1.0),
    "dpo": DPO(group=G, beta=2.0, anchor=0.5),
    "kto": KTO(group=G, beta=2.0, desirable_weight=1.0, undesirable_weight=1.5),
    "raft": RAFT(group=G, keep_best=2, kl=0.1),
    "rwr": RWR(group=G, max_weight=2.0, kl=0.1),
}
CHAINS = {
    "grpo": GRPO(group=G),
    "grpo:raw": GRPO(group=G, ratio="raw"),
    "grpo:random": GRPO(group=G, window="random", same_noise=True),
    "grpo:mix": GRPO(group=G, window="mix", window_size=2, window_interval=1),
    "grpo:fast": GRPO(group=G, window="fast", window_size=2),
    "ddpo": DDPO(),
    "d3po": D3PO(group=G),
    "prdp": PRDP(group=G, optimizer_steps=1),
    "prdp:fast": PRDP(group=G, optimizer_steps=1, window="fast", window_size=2),
}
DIRECT = {
    "draft": DRaFT(),
    "draft:3": DRaFT(grad_steps=3),
    "draft_lv": DRaFTLV(),
    "align_prop": AlignProp(grad_steps=2, grad_steps_std=1.0),
    "instruct_video": InstructVideo(),
    "refl": ReFL(reward_threshold=math.inf),
    "srpo": SRPO(reward_threshold=math.inf),
}
RANKED = MATCHING | CHAINS  # these learn from differences between rewards
METHODS = RANKED | DIRECT


def gaussian_policy(method=None, *, steps=5, **settings):
    """N(0,1) data. Chains get a random kernel; the solver of the rest is the deterministic flow."""
    kernel = SDE if method is None or type(method) in map(type, CHAINS.values()) or type(method) is Parrot else None
    settings = {"shape": (1, 1, 2), "kernel": kernel} | settings
    return TrainableMixture((0.0,), (1.0,), (1.0,), steps=steps, **settings)


@dataclass
class Rows:
    """Rewards by row, whatever the media: [N], in every call the same."""

    values: tuple[float, ...]
    spec = RewardSpec("rows", "1", frozenset({"image"}), differentiable=False)

    def __call__(self, *, media, prompts, references=None):
        return torch.tensor(self.values, dtype=torch.float32)


@dataclass
class Unsure:
    """`inner`, but the last sample of every `group` can't be judged."""

    inner: Value
    group: int

    @property
    def spec(self):
        return self.inner.spec

    def __call__(self, *, media, prompts, references=None):
        r = self.inner(media=media, prompts=prompts)
        last = torch.arange(len(r)) % self.group == self.group - 1
        return torch.where(last, torch.nan, r)


class Worded(Value):
    """Value, counting 0.3 as much for a prompt that does not begin with `word`."""

    def __init__(self, word: str, scale: float = 1.0):
        super().__init__(scale)
        self.word = word

    def __call__(self, *, media, prompts, references=None):
        factor = torch.tensor([1.0 if p.startswith(self.word) else 0.3 for p in prompts])
        return factor * super().__call__(media=media, prompts=prompts)


def one(method, reward, batch=BATCH, policy=None):
    """The policy after one batch, and the event."""
    policy = policy or gaussian_policy(method)
    (event,) = list(method(policy, reward, [batch]))
    return policy, event


def set_weights(policy, live=LIVE, old=OLD):
    policy.theta.data.copy_(torch.tensor(live, dtype=torch.float64))
    policy.copies["old"] = torch.tensor(old, dtype=torch.float64)
    return policy
