"""RPO: one update by hand, labels, validation and stopping; and the lambda-Harmonic reward."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_trained
import torch
from reward_fixtures import clip_folder
from test_preference_data import Encoding
from training_toys import set_weights

from rewards import REWARDS, build_reward, compose
from rewards.sets import subject_fidelity
from workbench.core.errors import BadInput
from workbench.core.io import media as files
from workbench.core.types import Batch, Media, RewardSpec, derive_seed
from workbench.methods.common.best_sample import seeded_normal
from workbench.methods.common.subject_pairs import remove_token
from workbench.methods.training.rpo import RPO
from workbench.runs import preference_data

BATCH = Batch(("a [V] dog", "the [V] dog swims"), (5, 6))
SHOWN = Media(torch.linspace(-1, 2, 9).view(3, 3, 1, 1), "image")


class Asked:
    """How light a picture is; remembers what it was asked."""

    spec = RewardSpec("asked", "1", frozenset({"image"}), differentiable=True)

    def __init__(self, slope: float = 1.0):
        self.slope, self.prompts = slope, []

    def __call__(self, *, media, prompts, references=None):
        self.prompts += prompts
        return self.slope * media.data.flatten(1).mean(1)


def policy_with(live=(0.0, 0.0), adam=True, **settings):
    return set_weights(Encoding((0.0,), (1.0,), (1.0,), steps=5, shape=(3, 1, 1), adam=adam, **settings), live)


def test_one_update_is_the_papers_loss_by_hand():
    method, policy = (
        RPO(SHOWN, lr=0.0, validate_every=0, beta=2.0, similarity_weight=0.5, samples_per_prompt=3),
        policy_with((0.3, -0.2), adam=False),
    )
    (event,) = method(policy, Asked(5.0), [BATCH])
    base, total, loss = policy_with(), np.zeros(2), 0.0
    for prompt, seed in zip(BATCH.prompts, BATCH.seeds, strict=True):
        n, j = derive_seed(seed, "which") % 3, derive_seed(seed, "against") % 3
        x = base.sample([prompt], seeds=[derive_seed(j, "generated", prompt)]).x[0, -1]
        likes = 5 * (SHOWN.data[n].mean() - x.mean()).item()
        drawn = torch.rand(
            (), generator=torch.Generator().manual_seed(derive_seed(seed, "label")), dtype=torch.float64
        ).item()
        y, told = drawn < 1 / (1 + math.exp(-likes)), []
        for side, x0 in (("reference", SHOWN.data[n]), ("generated", x)):
            own = derive_seed(seed, side)
            level = policy.levels[derive_seed(own, "level") % 5]
            x0, eps = x0.numpy().ravel().astype(float), seeded_normal([own], (3, 1, 1), "eps").numpy().ravel()
            mean = level.a * (level.a * x0 + level.s * eps) / (level.a**2 + level.s**2)
            ours, reference = 0.3 + 0.8 * mean - x0, mean - x0
            square = [np.mean(e**2) / level.s**2 for e in (ours, reference)]
            slope = np.array([(2 * ours).sum(), (2 * ours * mean).sum()]) / level.s**2 / 3
            told.append((square[0], square[1] - square[0], slope))
        margin = 2.0 * (told[0][1] - told[1][1]) * (1 if y else -1)
        loss += (0.5 * told[0][0] + math.log1p(math.exp(-margin))) / 2
        pull = 2.0 * (1 if y else -1) / (1 + math.exp(margin))
        total += (0.5 * told[0][2] + pull * (told[0][2] - told[1][2])) / 2
    np.testing.assert_allclose(policy.grads[0], total, rtol=1e-4)
    assert event.metrics["loss"] == pytest.approx(loss, rel=1e-5)


def test_before_training_the_loss_is_that_of_the_pictures_and_log_two():
    (event,) = RPO(SHOWN, validate_every=0)(policy_with(), Asked(), [BATCH])
    (alone,) = RPO(SHOWN, validate_every=0, similarity_weight=0.0)(policy_with(), Asked(), [BATCH])
    assert alone.metrics["loss"] == pytest.approx(math.log(2)) and event.metrics["loss"] > math.log(2)


def test_labels_are_drawn_as_often_as_the_reward_says():
    """r(R) = 1 and samples of N(0,1) against a reward that counts them 0: y is 1 in sigmoid(1) = 73 % of the draws,
    not in all."""

    class Known(Asked):
        def __call__(self, *, media, prompts, references=None):
            return (media.data.flatten(1).mean(1) == 1).float()

    given = [Batch(("a",) * 20, tuple(range(20 * k, 20 * k + 20))) for k in range(20)]
    events = list(RPO(Media(torch.ones(1, 3, 1, 1), "image"), validate_every=0, lr=0.0)(policy_with(), Known(), given))
    assert np.mean([e.metrics["labelled"] for e in events]) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.08)


def test_each_picture_of_the_untrained_model_is_made_once_and_costs_what_is_announced():
    method, policy = RPO(SHOWN, validate_every=0, samples_per_prompt=2, lr=0.1), policy_with()
    list(method(policy, Asked(), [Batch(("a",), (k,)) for k in range(30)]))
    assert policy.nfe == 2 * policy.steps + 30 * 4 <= 30 * method.calls(policy.steps)


def test_rewards_are_asked_without_the_subjects_token():
    reward = Asked()
    list(RPO(SHOWN, validate_every=1, validation_samples=1)(policy_with(), reward, [BATCH]))
    assert set(reward.prompts) == {"a dog", "the dog swims"} and remove_token("a [V] dog", "") == "a [V] dog"


def test_pairs_may_be_labelled_by_one_part_of_the_reward():
    """The paper's lambda = 0 in training and another in validation."""
    light, dark = Asked(100.0), Asked(-100.0)
    reward = compose.WeightedReward({light: 1.0, dark: 3.0}, ["text", "image"])
    shown = Media(torch.full((1, 3, 1, 1), 9.0), "image")  # lighter than any sample
    told = {
        name: next(
            iter(RPO(shown, validate_every=1, validation_samples=1, label_reward=name)(policy_with(), reward, [BATCH]))
        )
        for name in ("text", "image", "")
    }
    assert [told[n].metrics["labelled"] for n in ("text", "image", "")] == [1.0, 0.0, 0.0]
    assert told["text"].metrics["reward"] == told["image"].metrics["reward"]  # validation asks the whole
    with pytest.raises(BadInput, match="no part 'txt'; it has: text, image"):
        next(iter(RPO(shown, label_reward="txt")(policy_with(), reward, [BATCH])))


def test_the_best_weights_are_kept_and_training_ends_when_none_better_come():
    """The subject is light and the reward likes dark: each validation is worse than the one before."""
    shown, given = Media(torch.full((1, 3, 1, 1), 2.0), "image"), [Batch(("a",), (k,)) for k in range(60)]
    method = RPO(shown, validate_every=5, validation_samples=16, patience=2, lr=0.1, similarity_weight=1.0)
    policy = policy_with()
    events = list(method(policy, Asked(-1.0), given))
    values = [e.metrics["reward"] for e in events if "reward" in e.metrics]
    assert len(events) == 15 and len(values) == 3 and max(values) == values[0]
    with policy.use(method.delivered_copy):
        again = method.validate(policy, Asked(-1.0), ("a",))[0].mean().item()
    assert again == pytest.approx(values[0]) and events[-1].metrics["best"] == pytest.approx(values[0])
    assert len(list(method(policy_with(), Asked(1.0), given))) > 15  # where it gets better it goes on


def test_a_subject_is_learnt():
    """Samples of N(0,1) come to look like pictures of 2; the reference weights still make what they did."""
    policy = policy_with()
    given = [Batch(("a",) * 4, tuple(range(4 * k, 4 * k + 4))) for k in range(40)]
    list(RPO(Media(torch.full((1, 3, 1, 1), 2.0), "image"), validate_every=0, lr=0.05)(policy, Asked(), given))
    assert policy.sample([""] * 64, seeds=range(64)).x[:, -1].mean() > 0.5
    with policy.reference():
        assert abs(policy.sample([""] * 64, seeds=range(64)).x[:, -1].mean()) < 0.2


def test_a_real_pipeline_learns_a_folder_of_pictures(tmp_path):
    for n in range(2):
        files.write_media(Media(torch.full((1, 3, 20, 12), 0.3 + 0.4 * n), "image"), tmp_path / f"{n}.png")
    policy = tiny_trained.trainable(tiny_trained.SD)
    method = RPO(
        preference_data.read_references(str(tmp_path)),
        validate_every=2,
        validation_samples=1,
        lr=1e-3,
        samples_per_prompt=2,
    )
    events = list(method(policy, Asked(), [Batch(("a [V] cat",), (k,)) for k in range(4)]))
    assert all(e.metrics["grad_norm"] > 0 for e in events) and "best" in policy.adapters.copies
    assert [e.media is None for e in events] == [True, False, True, False]
    with pytest.raises(BadInput, match="no folder with pictures"):
        preference_data.read_references(str(tmp_path / "none"))


# --- the reward ------------------------------------------------------------------------------------------------------


def test_lambda_harmonic_is_its_equation_between_its_two_ends(tmp_path):
    model = clip_folder(tmp_path / "clip")
    shown = Media(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)), "image")
    media = Media(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)), "image")
    (tmp_path / "dog").mkdir()
    for n in range(3):
        files.write_media(shown[n], tmp_path / "dog" / f"{n}.png")
    asked = dict(media=media, prompts=["a cat"] * 4)
    r = {
        lam: build_reward(subject_fidelity.harmonic_block(str(tmp_path / "dog"), lam, model=model), REWARDS)(**asked)
        for lam in (0.0, 0.3, 1.0)
    }
    subject = subject_fidelity.Subject(model=model, reference=str(tmp_path / "dog"))
    x, y = (subject.embedder(m) for m in (media, files.quantise_media(shown)))
    image = ((torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T).mean(1) + 1) / 2
    torch.testing.assert_close(r[1.0], image, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(r[0.3], 1 / (0.3 / r[1.0] + 0.7 / r[0.0]), rtol=1e-5, atol=1e-6)
    assert (r[0.3] <= torch.maximum(r[0.0], r[1.0])).all() and (r[0.3] >= torch.minimum(r[0.0], r[1.0])).all()
    with pytest.raises(BadInput, match="0, 1"):
        subject_fidelity.harmonic_block("x", 1.5)


def test_a_reference_picture_itself_is_most_like_the_subject_and_gradients_pass(tmp_path):
    subject = subject_fidelity.Subject(model=clip_folder(tmp_path / "clip"))
    shown = Media(torch.rand(1, 3, 32, 32), "image")
    media = Media(torch.cat([shown.data, torch.rand(1, 3, 32, 32)]).requires_grad_(), "image")
    r = subject(media=media, prompts=["", ""], references=shown)
    assert r[0].item() == pytest.approx(1.0, abs=1e-5) and r[1] < r[0]
    assert torch.autograd.grad(r[1], media.data)[0][1].abs().sum() > 0
