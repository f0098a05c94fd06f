"""A pipeline that breaks for some states, and a reward that fails on some samples: neither is ever chosen."""

from __future__ import annotations

import math

import pytest
import torch
from mixture_policy import MixturePolicy, Value

from workbench.core.finite import score_finite
from workbench.core.types import Batch
from workbench.methods import METHODS

ROWS = 60


class Breaking(MixturePolicy):
    """Its denoiser is NaN from the second step on where a state is above 0.9."""

    def _model_output(self, x, i, prompts, guidance):
        out = super()._model_output(x, i, prompts, guidance)
        return out.masked_fill(x > 0.9, math.nan) if i else out


class Overflowing(Value):
    """Infinite above 0.4: no score, and no reason to be chosen."""

    def __call__(self, *, media, prompts, references=None):
        x = media.data[:, 0].flatten(1).mean(1)
        return super().__call__(media=media, prompts=prompts).masked_fill(x > 0.4, math.inf)


class Recorded:
    """A reward as a run asks it: it never sees a broken sample."""

    def __init__(self, reward):
        self.reward, self.spec, self.said = reward, reward.spec, []

    def __call__(self, *, media, prompts, references=None):
        scores = score_finite(self.reward, media=media, prompts=prompts)
        self.said.append(scores.detach())
        return scores


class Wordings:
    def expand(self, prompts, n, modality):
        return [[f"{k % 2}" for k in range(n)] for _ in prompts]


class Latent:
    objectives = ("up",)

    def check(self, latent):
        pass

    def __call__(self, x, a, s, prompts):
        return x.flatten(1).mean(1, keepdim=True)


SMALL = {
    "zero_order": [{"iterations": 2, "neighbours": 2, "angle": 60.0}],
    "search_over_paths": [{"rounds": 1}],
    "reno": [{"iterations": 2}],
    "dno": [{"iterations": 2, "subvector": 1}],
    "dno_black_box": [{"iterations": 2, "subvector": 1, "directions": 2}],
    "ditto": [{"iterations": 2}],
    "fk": [{}, {"choose": "draw", "lam": 1.0}],
    "das": [{}, {"choose": "draw"}, {"choose": "draw", "lam": 1.0}],
    "svdd": [{"candidates": 4}, {"candidates": 4, "alpha": 0.3}],
    "rewrite": [{"expander": Wordings()}],
    "centred": [{"expander": Wordings()}],
    "nrg": [{"model": Latent()}],
}
INFERENCE = [name for name, cls in METHODS.items() if ".inference." in cls.__module__ and "reward" in cls.needs]
CASES = [(name, settings) for name in INFERENCE for settings in SMALL.get(name, [{}])]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("reward", [Value(), Overflowing()], ids=["broken state", "infinite reward"])
def test_a_sample_without_a_finite_score_is_never_delivered_where_another_has_one(name, settings, reward):
    policy = Breaking(steps=6) if type(reward) is Value else MixturePolicy(steps=6)
    method, asked = METHODS[name](**settings), Recorded(reward)
    *_, end = method(policy, asked, [Batch(("a",) * ROWS, tuple(range(ROWS)))])
    if method.yields_predictions:  # a choice among the particles as they end
        said = asked.said[-1].view(ROWS, -1)
    else:  # among all candidates; what is perturbed to estimate a gradient is none
        said = torch.stack(asked.said[:: 1 + getattr(method, "directions", 0)], 1)
    has_score = said.isfinite().any(1)
    assert torch.equal(end.scores["reward"].isfinite(), has_score)
    assert end.media.data[has_score].isfinite().all() and has_score.any()
