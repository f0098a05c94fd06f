"""The methods that train, on a policy with two weights and Gaussian data: every update against arithmetic done by hand.

The policy predicts x0 = theta_0 + (1 + theta_1) m, m = E[x0 | x]; so each update's gradient is a sum over samples and
noise levels of c (1, m), and what differs between methods is the number c = dL/dx0.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from mixture_policy import Value
from training_toys import (
    BATCH,
    CHAINS,
    DIRECT,
    LIVE,
    MATCHING,
    OLD,
    G,
    Rows,
    Worded,
    gaussian_policy,
    one,
    set_weights,
)

from pipelines.schedule import NoiseLevel
from workbench.methods.common.best_sample import seeded_normal
from workbench.methods.common.noised_batch import NoisedBatch
from workbench.methods.common.rollout import sample_groups
from workbench.methods.training.awm import AWM
from workbench.methods.training.crd import CRD
from workbench.methods.training.dgpo import DGPO
from workbench.methods.training.dpo import DPO
from workbench.methods.training.kto import KTO
from workbench.methods.training.nft import NFT
from workbench.methods.training.prdp import PRDP, difference_loss
from workbench.methods.training.srpo import SRPO


def c_nft(m, a, e, eo, er, s):
    r, beta, bound = min(max(a / (2 * m.advantage_clip) + 0.5, 0), 1), m.beta, m.advantage_clip
    good, bad = beta * e + (1 - beta) * eo, (1 + beta) * eo - beta * e
    c = r * 2 * beta * good / abs(good).mean() - (1 - r) * 2 * beta * bad / abs(bad).mean()
    return bound / beta * c + m.kl * 2 * (e - er) / s**2


def c_awm(m, a, e, eo, er, s):
    a, v = min(max(a, -m.advantage_clip), m.advantage_clip), e / s
    c = a * s * (np.mean(v**2) + 1e-10) ** (m.power - 1) * 2 * v / s
    return c + 2 * m.kl * (e - er) / s**2 + 2 * m.anchor * (e - eo) / s**2


def hand_gradient(name, m, policy, path, a):
    """The gradient of a matching method's first update at LIVE, by loops over samples and levels. a: [N] weights."""
    total, rows = np.zeros(2), [n for n in range(len(a)) if not np.isnan(a[n])]
    for i, level in enumerate(policy.levels):
        s, seen = level.s, {}
        for n in rows:
            seed = BATCH.seeds[n // G] if m.same_eps else path.seeds[n]
            x0 = path.x[n, -1].numpy().ravel().astype(float)
            x = level.a * x0 + s * seeded_normal([seed], (1, 1, 2), "eps", i, 0).numpy().ravel()
            mean = level.a * x / (level.a**2 + s**2)  # E[x0 | x] of N(0,1) data
            seen[n] = (mean, *(t0 + (1 + t1) * mean - x0 for t0, t1 in (LIVE, OLD, (0.0, 0.0))))
        for n in rows:
            c = slope(name, m, n, a, seen, s) / 2  # over the two dimensions
            total += np.array([c.sum(), (c * seen[n][0]).sum()])
    return total / (len(rows) * policy.steps)


def slope(name, m, n, a, seen, s):
    """dL/dx0 of row n, times the number of dimensions."""
    _, e, eo, er = seen[n]
    mates = [k for k in seen if k // G == n // G]
    square = lambda d: np.mean(d**2) / s**2  # noqa: E731
    gain = {k: square(seen[k][1]) - square(seen[k][3]) for k in mates}
    ratio = lambda d: np.mean(d**2) / np.mean(abs(d))  # noqa: E731
    if name == "nft":
        return c_nft(m, a[n], e, eo, er, s)
    if name == "awm":
        return c_awm(m, a[n], e, eo, er, s)
    if name == "crd":
        r = {k: (ratio(seen[k][2]) - ratio(seen[k][1])) / s for k in mates}
        want = {k: min(max(a[k] / 10, -0.5), 0.5) + 0.5 for k in mates}
        miss = m.beta * (r[n] - np.mean(list(r.values()))) - (want[n] - np.mean(list(want.values())))
        held = m.kl * (1e-3 + want[n] * (1 - 1e-3))
        return 5 / m.beta * 2 * miss * m.beta * -2 * e / np.mean(abs(e)) / s + held * 2 * (e - er) / s**2
    if name == "dgpo":
        w = 1 / (1 + math.exp(-np.mean([m.beta * a[k] * gain[k] for k in mates])))
        far = math.exp(square(eo) - square(e))
        past = (a[n] > 0 and far > 1 + m.clip_range) or (a[n] < 0 and far < 1 - m.clip_range)
        return (0 if past else w * a[n] * 2 * e / s**2) + m.kl * 2 * (e - er) / s**2
    if name == "dpo":
        worse = sum(a[k] * gain[k] + m.anchor * max(gain[k], 0) * (a[k] > 0) for k in mates)
        mine = a[n] + m.anchor * (a[n] > 0 and gain[n] > 0)
        # both rows of a pair carry its loss, so each row's own error counts twice
        return 2 * m.beta / 2 / (1 + math.exp(-m.beta / 2 * worse)) * mine * 2 * e / s**2
    if name == "kto":
        z = max(0, -np.mean(list(gain.values())))
        y = np.sign(a[n])
        u = 1 / (1 + math.exp(-y * m.beta * (-gain[n] - z)))
        return (m.desirable_weight if y > 0 else m.undesirable_weight) * u * (1 - u) * a[n] * m.beta * 2 * e / s**2
    return a[n] * 2 * e / s**2 + m.kl * 2 * (e - er) / s**2  # raft, rwr


def hand_weights(name, m, r):
    """What each method makes of rewards r [2,G], by hand."""
    centred = r - r.mean(1, keepdims=True)
    if name in ("nft", "awm", "crd", "rwr"):
        a = centred / r.std()
        return np.minimum(np.exp(a), m.max_weight) if name == "rwr" else a
    if name == "dgpo":
        return centred / r.std(1, keepdims=True)
    if name == "kto":  # both sides of a prompt weigh alike, however many there are
        y = np.sign(centred)
        return np.array([[v * len(row) / 2 / (row == v).sum() for v in row] for row in y])
    rank = np.argsort(np.argsort(-r, 1), 1)
    if name == "raft":
        return np.where(rank < m.keep_best, 1.0, np.nan)
    return np.where(rank == 0, 1.0, np.where(rank == G - 1, -1.0, np.nan))


REWARDS = tuple(np.random.default_rng(3).normal(size=2 * G).tolist())


@pytest.mark.parametrize("name", MATCHING)
def test_an_update_on_noised_samples_is_the_one_computed_by_hand(name):
    method = replace(MATCHING[name], lr=0.1)
    policy = set_weights(gaussian_policy(method))
    with policy.use(method.samples):
        path = sample_groups(policy, BATCH, G)
    r = np.array(REWARDS, dtype=np.float32).astype(float).reshape(2, G)
    expected = hand_gradient(name, method, policy, path, hand_weights(name, method, r).ravel())
    one(method, Rows(REWARDS), policy=policy)
    np.testing.assert_allclose(policy.grads[0].numpy(), expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(policy.theta.detach().numpy(), np.array(LIVE) - 0.1 * expected, rtol=1e-4, atol=1e-5)


def steps_by_hand(policy, path):
    """For each random step: f [N,D] = (x' - mu) / std^2 at LIVE, dmu/dx0, m [N,D], std, mu - mu at theta = 0."""
    for i in path.stochastic:
        n = policy.levels[i]
        x, x_next = (path.x[:, k].flatten(1).double().numpy() for k in (i, i + 1))
        kept = n.a * n.s_next / (n.a_next * n.s)
        std = n.s_next * math.sqrt(1 - kept**2)
        tail = math.sqrt(n.s_next**2 - std**2) / n.s
        mean = n.a * x / (n.a**2 + n.s**2)
        push = n.a_next - tail * n.a  # dmu/dx0
        mu, base = ((n.a_next - tail * n.a) * (t[0] + (1 + t[1]) * mean) + tail * x for t in (LIVE, (0.0, 0.0)))
        yield i, std, push, mean, mu, base, x_next


def chain_gradient(name, m, policy, path, r):
    """Of the first update at LIVE, which are also the weights that drew the samples."""
    a = ((r - (r.mean() if name == "ddpo" else r.mean(1, keepdims=True))) / r.std()).ravel()
    found, table = np.zeros(2), list(steps_by_hand(policy, path))
    order = np.argsort(r, 1) + np.array([[0], [G]])
    logs = {i: ((x - b) ** 2 - (x - u) ** 2).mean(1) / (2 * s**2) for i, s, _, _, u, b, x in table}
    score = sum(logs.values())
    pace = {i: 1 / (policy.levels[i].s - policy.levels[i].s_next) for i, *_ in table}
    for i, std, push, mean, mu, base, x in table:
        glog = (x - mu) / std**2 * push / 2  # dlogp/dx0, per dimension
        if name in ("grpo:raw", "ddpo"):
            c = -a[:, None] * glog + m.kl * (mu - base) / std**2 * push / 2
            c = c / len(a) / len(table)
        elif name == "grpo":
            scale = pace[i] / np.mean(list(pace.values()))
            c = -scale * a[:, None] * glog * std + m.kl * (mu - base) / std**2 * push / 2
            c = c / len(a) / len(table)
        elif name == "d3po":
            ratio = np.exp(logs[i])
            held = np.clip(ratio, 1 - m.clip_range, 1 + m.clip_range)
            c = np.zeros_like(glog)
            for up, down in zip(order[:, -1], order[:, 0], strict=True):
                miss = m.beta / (1 + np.exp(m.beta * (np.log(held[up]) - np.log(held[down])))) / 2 / len(table)
                c[up] -= miss * glog[up] * (held[up] == ratio[up])
                c[down] += miss * glog[down] * (held[down] == ratio[down])
        else:  # prdp; at the weights that drew them, held and free log-ratios are one
            c = np.zeros_like(glog)
            for g in range(2):
                for p in range(g * G, g * G + G):
                    for q in range(p):
                        if q >= g * G:
                            miss = score[p] - score[q] - (r.ravel()[p] - r.ravel()[q]) / m.beta
                            c[p] += 2 * miss * glog[p] / (G * (G - 1))
                            c[q] -= 2 * miss * glog[q] / (G * (G - 1))
        found += np.array([c.sum(), (c * mean).sum()])
    return found


@pytest.mark.parametrize("name", ["grpo", "grpo:raw", "ddpo", "d3po", "prdp"])
def test_an_update_on_the_chain_is_the_one_computed_by_hand(name):
    method = replace(CHAINS[name], **{"d3po": {"clip_range": 0.5}, "ddpo": {"group": G}}.get(name, {}))
    policy = set_weights(gaussian_policy(method))
    s = [3 * t / (1 + 2 * t) for t in (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)]  # steps of unequal length
    policy.levels = [NoiseLevel(1 - p, p, 1 - q, q, "flow_prediction") for p, q in zip(s, s[1:], strict=False)]
    path, r = sample_groups(policy, BATCH, G), np.array(REWARDS, dtype=np.float32).astype(float).reshape(2, G)
    expected = chain_gradient(name, method, policy, path, r)
    one(method, Rows(REWARDS), policy=policy)
    np.testing.assert_allclose(policy.grads[0].numpy(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["draft", "draft_lv", "refl"])
def test_a_reward_gradient_is_the_one_computed_by_hand(name):
    """r = 3 x: the gradient of -r by (1, m) is -3 and -3 m, averaged over samples (and noisings)."""
    method, policy = DIRECT[name], set_weights(gaussian_policy(None, kernel=None))
    _, event = one(method, Value(3.0), policy=policy)
    path, last = set_weights(policy).sample(BATCH.prompts, seeds=BATCH.seeds), policy.steps - 1
    i, states = last, [path.x[:, last]]
    if name == "draft_lv":
        states = [policy.noised(path.x[:, -1], last, seeded_normal(BATCH.seeds, (1, 1, 2), "again", n)) for n in (0, 1)]
    if name == "refl":
        i = int(event.metrics["late"])
        states = [path.x[:, i]]
    m = torch.cat([policy.levels[i].a * x / (policy.levels[i].a ** 2 + policy.levels[i].s ** 2) for x in states])
    np.testing.assert_allclose(policy.grads[0], [-3.0, -3.0 * m.mean().item()], rtol=1e-4)


@pytest.mark.parametrize("known", ["own", "fresh"])
def test_srpo_sees_the_sample_through_one_step_and_the_true_noise(known):
    """Up with the good words by the step from level j - 1, down with the same words swapped by the one from j + 1, each
    by its own factor."""
    method = SRPO(
        positive_words="good ",
        negative_words="bad ",
        k=(0.1, 0.3),
        k_inverse=(0.5, 0.2),
        injected_noise=known,
        reward_threshold=math.inf,
    )
    policy, event = one(method, Worded("good "), policy=gaussian_policy(method, steps=6))
    j, s = int(event.metrics["level"]), policy.levels
    t = j / (policy.steps - 1)
    push = [1 - s[j].s * s[i].a / (s[i].s * s[j].a) for i in (j - 1, j + 1)]
    up, down = 1 + 0.1 + t * 0.2 - 0.3, 0.3 * (1 + 0.5 - t * 0.3) - 1
    assert push[0] > 0 > push[1]
    np.testing.assert_allclose(policy.grads[0][0], -(up * push[0] + down * push[1]), rtol=1e-4)


# --- what the families share -----------------------------------------------------------------------------------------


def test_the_four_forward_losses_pull_alike_where_live_old_and_reference_agree():
    """Each is A (x0_hat - x0) there, by factors 1, 1, 1 and 1/2, when errors are of one size."""
    g = torch.Generator().manual_seed(1)
    predicted = torch.randn(8, 3, generator=g).double()
    x0 = predicted + torch.randn(8, 3, generator=g).sign()
    a = torch.randn(8, generator=g).double()
    a = a - a.mean()
    found = {}
    for cls, settings in ((NFT, {}), (AWM, dict(power=1.0, advantage_clip=5.0)), (CRD, {}), (DGPO, {})):
        live = predicted.clone().requires_grad_()
        seen = NoisedBatch(x0, 1.0, 1.0, a, torch.zeros(8, dtype=torch.int64), live, predicted, predicted)
        (found[cls],) = torch.autograd.grad(cls(**settings).loss(seen).sum(), live)
    expected = 2 / 3 * a[:, None] * (predicted - x0)
    for cls, factor in ((NFT, 1), (AWM, 1), (CRD, 1), (DGPO, 0.5)):
        torch.testing.assert_close(found[cls], factor * expected, rtol=1e-6, atol=1e-9)


def test_one_sample_is_pulled_alike_whatever_the_size_of_its_error():
    """With unequal errors the losses weigh samples differently, yet each still pulls along A (x0_hat - x0)."""
    g = torch.Generator().manual_seed(2)
    predicted, x0 = torch.randn(6, 4, generator=g).double(), torch.randn(6, 4, generator=g).double()
    a = torch.linspace(-2, 2, 6).double()
    for cls in (NFT, AWM, CRD, DGPO):
        live = predicted.clone().requires_grad_()
        seen = NoisedBatch(x0, 0.7, 0.7, a, torch.zeros(6, dtype=torch.int64), live, predicted, predicted)
        (grad,) = torch.autograd.grad(cls().loss(seen).sum(), live)
        cosine = torch.cosine_similarity(grad, a[:, None] * (predicted - x0), dim=1)
        torch.testing.assert_close(cosine, torch.ones(6).double(), rtol=1e-6, atol=1e-6)


def test_dpo_finds_the_shift_that_explains_the_preferences():
    """Samples at one level, preferred by Bradley-Terry with reward kappa x. The error of a prediction shifted by theta
    makes the margin beta theta (x_w - x_l) / s^2, so the loss is least at theta = kappa s^2 / beta."""
    kappa, s, beta, eps = 1.3, 0.8, 5.0, torch.randn(40, generator=torch.Generator().manual_seed(0)).double()
    good, bad = eps[:20], eps[20:]
    reference, group = torch.full((40, 1), 0.2).double(), torch.arange(20).repeat(2)
    sure = torch.sigmoid(kappa * (good - bad))  # how often the first is preferred
    method = DPO(beta=beta)

    def loss(theta):
        total = 0.0
        for sign, share in ((1.0, sure), (-1.0, 1 - sure)):
            weight = sign * torch.cat([torch.ones(20), -torch.ones(20)]).double()
            seen = NoisedBatch(eps[:, None], s, s, weight, group, reference + theta, None, reference)
            total = total + (method.loss(seen) * share.repeat(2)).sum() / 2
        return total / 20

    best = torch.tensor(kappa * s**2 / beta, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(best), best)
    assert abs(grad) < 1e-9
    assert all(loss(best + d) > loss(best) + 1e-5 for d in (-0.05, 0.05))
    torch.testing.assert_close(loss(torch.zeros(())).item(), math.log(2))


def test_the_anchor_of_dpo_lets_no_margin_count_that_the_winner_pays_for():
    """Winner and loser both denoised worse, the loser more: plain DPO is content, the anchored one is not."""
    x0 = torch.tensor([[0.0], [1.0]]).double()
    seen = NoisedBatch(
        x0, 1.0, 1.0, torch.tensor([1.0, -1.0]).double(), torch.zeros(2, dtype=torch.int64), x0 - 0.0, None, x0
    )
    seen = replace(seen, live=torch.tensor([[0.5], [2.0]]).double())  # errors 0.25 and 1
    assert DPO(beta=2.0).loss(seen)[0] < math.log(2) < DPO(beta=2.0, anchor=4.0).loss(seen)[0]


def test_at_the_reference_preferences_are_not_yet_learnt():
    zero = torch.zeros(4, 1).double()
    seen = NoisedBatch(
        zero + 1, 1.0, 1.0, torch.tensor([1.0, -1, 1, -1]).double(), torch.tensor([0, 0, 1, 1]), zero, zero, zero
    )
    torch.testing.assert_close(DPO().loss(seen), torch.full((4,), math.log(2)).double())
    torch.testing.assert_close(KTO().loss(seen), torch.full((4,), 0.5).double())


def test_prdp_is_zero_at_the_optimum_and_the_squared_difference_at_the_reference():
    r, group = torch.tensor([1.0, -0.5, 2.0, 0.3]).double(), torch.tensor([0, 0, 1, 1])
    settings, nothing = PRDP(beta=4.0, clip_range=1e9), torch.zeros(4, 3).double()
    at_reference = difference_loss(nothing, nothing, r, group, settings)
    torch.testing.assert_close(at_reference.item(), ((1.5 / 4) ** 2 + (1.7 / 4) ** 2) / 2)
    best = (r / 4)[:, None].expand(4, 3) / 3 + torch.tensor([7.0, 7.0, -2.0, -2.0]).double()[
        :, None
    ]  # per-prompt constants
    assert difference_loss(best, nothing, r, group, settings) < 1e-20
    assert difference_loss(best, nothing, r, group, PRDP(beta=4.0, clip_range=1e-3)) > 0.9 * at_reference
