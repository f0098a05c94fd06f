"""Published formulas written out from the papers and the authors' code, on numbers that the test draws.

Those that are not here stand beside the code they check: losses of training methods in test_training_updates.py, steps
of the chain in test_transitions.py, Fréchet, Vendi and MMD in test_sets.py, FK's potentials in test_steering.py,
ratings in test_ratings.py, loudness in test_loudness.py, ImageReward and MPS in test_published_scorers.py.
benchmarks/parity.py measures against the packages of others.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mixture_policy import MixturePolicy, Value
from reward_fixtures import PROMPTS, media_for, scored, small
from set_fixtures import draw

from rewards import REWARDS
from rewards.encoders.preprocess import CLIP_MEAN, CLIP_STD
from rewards.sets.mmd import KID
from rewards.sets.prdc import prdc_metrics
from workbench.core.types import Batch
from workbench.methods import ReNO


def features(net, prompts, pixels, tokens):
    """Unit features of a transformers CLIP."""
    ids = tokens(list(prompts))
    image = net.get_image_features(pixel_values=pixels).pooler_output
    return F.normalize(image, dim=1), F.normalize(net.get_text_features(**ids).pooler_output, dim=1)


def normalised(x):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (x - mean) / std


@torch.no_grad()
def test_pickscore_is_the_models_temperature_times_the_cosine():
    reward, x = small("pickscore"), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoder, media = reward.load(), media_for(REWARDS["pickscore"].spec, 3)
    media = type(media)(x, "image")
    image, text = features(encoder.net, PROMPTS[:3], normalised(x), encoder.tokens)
    torch.testing.assert_close(
        scored(reward, media), encoder.net.logit_scale.exp() * (image * text).sum(1), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_hps_is_the_bare_cosine_of_the_whole_picture_on_black():
    reward, x = small("hps"), torch.rand(3, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    encoder, media = reward.load(), media_for(REWARDS["hps"].spec, 3)
    seen = normalised(F.pad(x, (0, 0, 8, 8)))  # open_clip's ResizeMaxSize: 32 wide, zeros above and below
    image = F.normalize(encoder.net.encode_image(seen), dim=1)
    text = F.normalize(encoder.net.encode_text(**encoder.tokens(list(PROMPTS[:3]))), dim=1)
    torch.testing.assert_close(scored(reward, type(media)(x, "image")), (image * text).sum(1), rtol=1e-4, atol=1e-5)


def test_kid_is_the_unbiased_estimate_under_the_cubic_kernel_of_features_of_their_usual_norm():
    """(x.y / D + 1)^3 (Binkowski et al. 2018), on norms of sqrt(D)."""
    unit = [F.normalize(draw(9, 6), dim=1), F.normalize(draw(11, 6, 1) + 0.4, dim=1)]
    x, y = (6**0.5 * rows for rows in unit)

    def k(a, b):
        return ((a * b).sum().item() / 6 + 1) ** 3

    def mean(pairs):
        values = [k(a, b) for a, b in pairs]
        return sum(values) / len(values)

    want = mean([(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    want += mean([(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    want -= 2 * mean([(a, b) for a in x for b in y])
    reward = KID()
    assert reward.score_rows(unit[0], reward.prepare(unit[1])).item() == pytest.approx(-want, abs=1e-12)


@pytest.mark.parametrize(("n", "m", "k"), [(25, 31, 3), (12, 9, 5)])
def test_precision_recall_density_and_coverage_are_counts_of_balls(n, m, k):
    """Naeem et al. 2020 (arXiv:2002.09797), Eq. 1-4, ball by ball."""
    x, y = draw(n, 4).numpy(), draw(m, 4, 1).numpy() * 0.8

    def radius(points, i):
        return np.sort(np.linalg.norm(points - points[i], axis=1))[k]

    inside = np.array([[np.linalg.norm(a - b) < radius(y, j) for j, b in enumerate(y)] for a in x])
    held = np.array([[np.linalg.norm(a - b) < radius(x, i) for b in y] for i, a in enumerate(x)])
    want = {"precision": inside.any(1).mean(), "density": inside.sum() / (k * n)}
    want |= {"recall": held.any(0).mean(), "coverage": inside.any(0).mean()}
    got = prdc_metrics(torch.from_numpy(x), torch.from_numpy(y), k)
    assert {name: value.item() for name, value in got.items()} == pytest.approx(want, abs=1e-12)
    assert 0 < want["precision"] < 1 or 0 < want["coverage"] < 1


def test_a_whole_run_of_reno_is_the_published_loop():
    """Nesterov SGD on one noise, with the norm's term, the gradient clipped, the best reward kept."""
    policy, reward, method = MixturePolicy(shape=(3, 4, 4), steps=1), Value(1.0, -0.2), ReNO(iterations=12)
    z = policy.noise([7]).requires_grad_()
    optimizer, best = torch.optim.SGD([z], lr=5.0, momentum=0.9, nesterov=True), (-math.inf, None)
    for _ in range(method.iterations + 1):  # the paper's n_iters
        media = policy.sample(("a",), seeds=(7,), noise=z, grad=1).media
        value = reward(media=media, prompts=("a",))[0]
        if value.item() > best[0]:
            best = value.item(), z.detach().clone()
        norm = torch.linalg.vector_norm(z)
        loss = -value + 0.01 * (0.5 * norm**2 - (z.numel() - 1) * torch.log(norm))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([z], 0.1)
        optimizer.step()
    *_, end = method(policy, reward, [Batch(("a",), (7,))])
    assert end.scores["reward"].item() == best[0] and best[0] > reward(
        media=policy.sample(("a",), seeds=(7,)).media, prompts=("a",)
    )
    torch.testing.assert_close(end.latents, best[1], rtol=0, atol=1e-6)
