"""A reward learned from votes: what it recovers, what it refuses to claim, and how it is kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from reward_fixtures import media_for, small_settings

from rewards import build_reward
from rewards.people import learned, personal, votes
from rewards.people.learned import Learned, solve_logistic
from rewards.people.personal import Personal
from rewards.people.votes import Votes, clopper_pearson, make_report, votes_to_show
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.types import Media, Reward
from workbench.engine import catalogue
from workbench.feedback import learn

WIDTH = 8


def simulated(n: int, taste: torch.Tensor, seed: int = 0, prompts: int = 20, voter: str = "") -> Votes:
    """n votes of one person whose Bradley-Terry taste is `taste` [D], on pairs of random unit features."""
    g = torch.Generator().manual_seed(seed)
    a, b = F.normalize(torch.randn(2, n, len(taste), generator=g, dtype=torch.float64), dim=2)
    p = ((a - b) @ taste).sigmoid()
    target = (torch.rand(n, generator=g, dtype=torch.float64) < p).double()
    names = tuple(f"prompt {i % prompts}" for i in range(n))
    return Votes(
        a, b, target, names, (voter,) * n, tuple((f"{voter}{seed}a{i}", f"{voter}{seed}b{i}") for i in range(n))
    )


def axis(k: int, length: float = 8.0, width: int = WIDTH) -> torch.Tensor:
    return length * F.one_hot(torch.tensor(k), width).double()


def shuffled(one: Votes, seed: int) -> Votes:
    order = torch.randperm(len(one), generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(one, target=one.target[order])


def together(*parts: Votes) -> Votes:
    joined = [torch.cat([getattr(p, f) for p in parts]) for f in ("a", "b", "target")]
    return Votes(*joined, *(sum((getattr(p, f) for p in parts), ()) for f in ("prompts", "voters", "media")))


@pytest.fixture(scope="module")
def head():
    return learned.fit_taste(simulated(200, axis(0)), small_settings("clip")["model"])


# The fit


def test_the_fit_of_two_votes_is_the_root_of_its_equation():
    """One feature, differences 1 and 1, one win and one tie: mean gradient s(w) - 3/4 + l2 w = 0."""
    (w,) = solve_logistic(torch.ones(2, 1, dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64), 0.1)
    assert (w.sigmoid() - 0.75 + 0.1 * w).item() == pytest.approx(0, abs=1e-8)
    (even,) = solve_logistic(torch.ones(2, 1, dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64), 0.1)
    assert even.item() == pytest.approx(0, abs=1e-12)
    assert torch.equal(
        solve_logistic(torch.ones(0, 3, dtype=torch.float64), torch.ones(0, dtype=torch.float64), 0.1),
        torch.zeros(3).double(),
    )


def test_the_fit_agrees_with_scipy_and_is_the_same_twice():
    from scipy.optimize import minimize

    one = simulated(60, axis(1))
    x, t = one.a - one.b, one.target
    ours = solve_logistic(x, t, 0.01)

    def loss(w):
        w = torch.from_numpy(w)
        gradient = x.T @ ((x @ w).sigmoid() - t) / 60 + 0.01 * w
        return (learned.bradley_terry_nll(x @ w, t).mean() + 0.005 * w.square().sum()).item(), gradient.numpy()

    theirs = minimize(loss, torch.zeros(WIDTH).double().numpy(), jac=True, method="L-BFGS-B", tol=1e-14)
    torch.testing.assert_close(ours, torch.from_numpy(theirs.x), atol=1e-5, rtol=1e-5)
    assert loss(ours.numpy())[0] <= theirs.fun + 1e-14
    assert torch.equal(solve_logistic(x, t, 0.01), ours)


def test_more_features_than_votes_leave_no_gradient_outside_their_span_either():
    one = simulated(30, axis(0, width=100))
    w, l2 = learned.fit_direction(one)
    x = one.a - one.b
    left = x.T @ ((x @ w).sigmoid() - one.target) / 30 + l2 * w
    assert left.abs().max() < 1e-9 and w.norm() > 1


def test_a_hidden_taste_is_found_and_shown_on_held_out_votes(head):
    assert F.cosine_similarity(head.weights, axis(0), dim=0) > 0.95
    assert head.report.is_better and head.report.votes_needed == 0
    assert head.report.low > 0.7 and head.report.votes == 200 and head.report.by == "prompts"
    assert str(head.report).startswith("better than chance: right on")


def test_shuffled_votes_are_never_called_better_than_chance():
    """The control that must fail: the same votes, dealt out to other pairs."""
    for seed in range(6):
        found = learned.fit_taste(shuffled(simulated(150, axis(0), seed), seed)).report
        assert not found.is_better and found.low <= 0.5
        assert str(found).startswith(("not enough votes yet", "not better than chance"))


def test_few_votes_of_a_true_taste_ask_for_more():
    found = learned.fit_taste(simulated(12, axis(0, 2.0), prompts=6)).report
    assert not found.is_better and found.votes_needed > 5
    assert f"about {found.votes_needed} more" in str(found)
    with pytest.raises(BadInput, match="not enough votes yet: 4 without a tie .* about [0-9]+ to show a taste"):
        learned.fit_taste(simulated(4, axis(0)))
    ties = simulated(40, axis(0))
    with pytest.raises(BadInput, match="0 without a tie"):
        learned.fit_taste(dataclasses.replace(ties, target=torch.full((40,), 0.5, dtype=torch.float64)))


# What may be claimed


def test_the_interval_is_the_exact_binomial_one():
    """Clopper-Pearson: 6 of 6 from .025^(1/6), 5 of 5 not yet above a half."""
    each = torch.arange(10)
    assert make_report(torch.ones(6), each[:6], "prompts").low == pytest.approx(0.025 ** (1 / 6))
    assert make_report(torch.ones(6), each[:6], "prompts").is_better
    assert not make_report(torch.ones(5), each[:5], "prompts").is_better
    seven = make_report(torch.tensor([1.0] * 7 + [0.0] * 3).double(), each, "prompts")
    assert seven.design == pytest.approx(10 / 9), "Bessel's correction over ten clusters of one"
    assert clopper_pearson(0.7, 10) == pytest.approx((0.3475, 0.9333), abs=1e-4), "as the tables have it"
    assert (seven.low, seven.high) == clopper_pearson(0.7, 9)
    none = make_report(torch.zeros(4), each[:4], "prompts")
    assert none.low == 0.0 and none.high == pytest.approx(1 - 0.025 ** (1 / 4))


def test_votes_that_stand_or_fall_together_count_as_one():
    """70 of 100 right is more than chance; 7 prompts of 10 whose ten votes agree is not."""
    right = torch.tensor([1.0] * 70 + [0.0] * 30).double()
    spread = torch.arange(100) % 10
    assert make_report(right, spread, "prompts").is_better
    whole = make_report(right, torch.arange(100) // 10, "prompts")
    assert whole.design == pytest.approx(10 * 10 / 9) and not whole.is_better
    assert not make_report(torch.ones(50), torch.arange(50) // 10, "prompts").is_better, "five prompts, all right"


def test_as_many_votes_as_are_wanted_would_show_and_fewer_would_not():
    for accuracy in (0.55, 0.6, 0.8, 1.0):
        n = votes_to_show(accuracy)
        assert clopper_pearson(accuracy, n)[0] > 0.5 >= clopper_pearson(accuracy, 0.95 * n - 1)[0]
    assert 95 < votes_to_show(0.6) < 115, "the normal approximation says 93"


def test_cross_validation_counts_each_likeness_twice_so_its_votes_count_half():
    right = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0] * 5).double()
    once, twice = (make_report(right, torch.arange(50), "prompts", reuse=r) for r in (1.0, 2.0))
    assert (twice.low, twice.high) == clopper_pearson(0.7, 25 / once.design)
    assert once.is_better and not twice.is_better and twice.votes_needed > 0


def test_votes_on_one_picture_stay_on_one_side_of_the_split():
    one = simulated(12, axis(0), prompts=1)
    chain = tuple((f"p{i // 3}", f"q{i}") for i in range(12))  # four pictures, three votes each
    cluster, by = votes.vote_clusters(dataclasses.replace(one, media=chain))
    assert by == "media" and cluster.tolist() == [i // 3 for i in range(12)]
    fold = votes.assign_folds(torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4]))
    assert torch.equal(fold[:5], fold[5:]) and sorted(fold[:5].tolist()) == [0, 1, 2, 3, 4]
    assert votes.vote_clusters(simulated(12, axis(0), prompts=6))[1] == "prompts"


# Reading votes


def line(**more) -> str:
    plain = {"prompt": "p", "a_features": [1.0, 0.0], "b_features": [0.0, 2.0], "winner": "a"}
    return json.dumps({k: v for k, v in (plain | more).items() if v is not None}) + "\n"


def test_votes_are_read_from_features_ties_and_voters_included(tmp_path):
    file = tmp_path / "votes.jsonl"
    file.write_text(line() + "\n" + line(winner="tie", voter="ada") + line(winner="b", a_features=[float("nan"), 1.0]))
    found = votes.read_votes(file)
    assert found.target.tolist() == [1.0, 0.5] and found.voters == ("", "ada")
    assert found.b.tolist() == [[0.0, 1.0], [0.0, 1.0]], "of norm 1"
    assert found.dropped == 1, "a vote with a NaN is left out, and only that one"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no votes in it"),
        ("{", "line 1: not valid JSON"),
        ("3", "line 1: not a JSON object"),
        (line() + line(winer="a"), "line 2: unknown key 'winer'; did you mean 'winner'"),
        (line(winner="A"), "`winner` must be a, b or tie, got 'A'"),
        (line(winner=["a"]), "`winner` must be a, b or tie"),
        (line(prompt=None), "`prompt` must be a text"),
        (line(voter=3), "`voter` must be a text"),
        (line(a_path="x.png"), "either `a_path` or `a_features`"),
        (line(b_features=None), "either `b_path` or `b_features`"),
        (line(a_features=["x"]), "must be a list of numbers"),
        (line(a_features=3), "must be a list of numbers"),
        (line(a_features=[1.0, 2.0, 3.0]), r"different lengths, \[2, 3\]"),
        (line(a_features=None, a_path="none.png"), "line 1: .*none.png: no such file"),
        (line(a_features=None).replace("{", '{"a_path": null, ', 1), "`a_path` must be a text, got None"),
        ("[" * 3000, "line 1: nested more than 100 deep"),
    ],
)
def test_a_wrong_vote_is_one_sentence_about_its_line(text, says, tmp_path):
    (tmp_path / "votes.jsonl").write_text(text)
    with pytest.raises(BadInput, match=says):
        votes.read_votes(tmp_path / "votes.jsonl")
    with pytest.raises(BadInput, match="no such file"):
        votes.read_votes(tmp_path / "none.jsonl")


def test_a_prompt_of_a_vote_may_hold_any_character(tmp_path):
    """U+2028 ends a line of a text, though not of JSON lines."""
    text = line(prompt="a-cat").replace("a-cat", "a\u2028cat")
    (tmp_path / "votes.jsonl").write_text(text + "\n" + text, encoding="utf-8")
    assert votes.read_votes(tmp_path / "votes.jsonl").prompts == ("a\u2028cat",) * 2


def test_pictures_are_seen_through_the_encoder_as_the_reward_sees_them(tmp_path):
    from PIL import Image

    from rewards.encoders import image_text

    model, eight_bit = small_settings("clip")["model"], (media_for(Learned.spec, 2).data * 255).round()
    for name, data in zip("ab", eight_bit, strict=True):
        Image.fromarray(data.byte().permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    text = line(a_features=None, b_features=None, a_path="a.png", b_path="b.png")
    (tmp_path / "votes.jsonl").write_text(text)
    found = votes.read_votes(tmp_path / "votes.jsonl", model)
    encoder = image_text.load_encoder(model, "cpu")
    seen = encoder.embed_images(eight_bit / 255)
    torch.testing.assert_close(torch.cat([found.a, found.b])[:, :-1].float(), seen)
    assert found.encoder.reads_prompts, "and how well they fit their prompt, last"
    torch.testing.assert_close(torch.cat([found.a, found.b])[:, -1].float(), seen @ encoder.embed_texts(["p"])[0])


# Pictures, clips and sounds


def write_votes(folder, modality: str, prompts=("a red circle", "two blue squares")) -> tuple[Path, Media]:
    """Sixteen votes for the louder, or brighter, of two samples; and these samples."""
    g, rows, samples = torch.Generator().manual_seed(0), [], []
    shape, rate = {"image": ((3, 24, 24), 0.0), "video": ((5, 3, 24, 24), 4.0), "audio": ((1, 4000), 8000.0)}[modality]
    for n in range(16):
        for side, level in (("a", 0.2), ("b", 1.0)):
            content = Media(level * torch.rand(1, *shape, generator=g), modality, rate)
            path = media.write_media(content, folder / f"{n}{side}")
            samples.append(media.read_media(path))
            rows.append(path.name)
        a, b = rows[-2:] if n % 2 else rows[:-3:-1]
        winner = "b" if b == rows[-1] else "a"
        rows[-2:] = [{"prompt": f"{prompts[n % 2]} {n}", "a_path": a, "b_path": b, "winner": winner, "voter": "ada"}]
    (folder / "votes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "votes.jsonl", Media.cat(samples)


@pytest.mark.parametrize(
    ("modality", "encoder"),
    [
        ("image", "starter:image/clip"),
        ("video", ""),
        ("video", "starter:image/clip"),
        ("audio", ""),
        ("audio", "logmel"),
    ],
)
def test_a_taste_is_learnt_of_pictures_clips_and_sounds_through_an_encoder_that_fits(tmp_path, modality, encoder):
    """All of a clip counts, and how well a sample fits its prompt where the encoder reads."""
    file, samples = write_votes(tmp_path, modality)
    result = learn.learn_from_votes(file, tmp_path / "taste", encoder)
    assert result["better"] and result["modality"] == modality and not result["control"]["low"] > 0.5
    reward = Learned(path=str(tmp_path / "taste"))
    assert reward.spec.modalities == {modality} and reward.spec.needs == ({"prompt"} if encoder != "logmel" else set())
    prompts = [f"a red circle {n // 2}" for n in range(len(samples))]
    scores = reward(media=samples, prompts=prompts).view(-1, 2)
    assert (scores[:, 1] > scores[:, 0]).float().mean() > 0.9, "the second of each pair was preferred"
    broken = Media(samples.data[:2].clone(), modality, samples.rate)
    broken.data[0].view(-1)[-1] = torch.nan
    broken.data.requires_grad_()
    values = reward(media=broken, prompts=prompts[:2])
    assert values.isnan().tolist() == [True, False]
    values[1].backward()
    assert broken.data.grad[1].isfinite().all() and broken.data.grad[1].any()
    card = (tmp_path / "taste" / "card.md").read_text()
    assert "16 on " + modality in card and "better than chance" in card and "dealt out to other pairs" in card


def test_votes_on_two_kinds_of_media_are_refused_by_line(tmp_path):
    file, _ = write_votes(tmp_path, "image")
    media.write_media(Media(torch.rand(1, 2, 3, 8, 8), "video", 4.0), tmp_path / "clip")
    file.write_text(
        file.read_text() + "\n" + json.dumps({"prompt": "x", "a_path": "clip.apng", "b_path": "0a.png", "winner": "a"})
    )
    with pytest.raises(BadInput, match="line 17: clip.apng is a clip where other votes are on a picture"):
        votes.read_votes(file)


def test_a_taste_is_named_wherever_a_reward_is(tmp_path, monkeypatch):
    file, samples = write_votes(tmp_path, "image")
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/learned/sharp")
    learn.learn_from_votes(file, folder)
    block = build_reward({"taste:sharp": {"weight": 2.0}, "brightness": 1.0})
    assert list(block.rewards) == ["taste-sharp", "brightness"] and block.weights["taste-sharp"] == 2.0
    assert build_reward("taste:runs/learned/sharp").rewards["taste-sharp"] == block.rewards["taste-sharp"]
    (row,) = (row for row in catalogue.list_rewards() if row["name"] == "taste:sharp")
    assert row["modality"] == "image" and "right on" in row["what"]
    for name, says in (("taste:shrp", "did you mean 'sharp'"), ("taste:../x", "holds no taste")):
        with pytest.raises(BadInput, match=says):
            build_reward(name)


# The reward


def wide(head) -> learned.TasteHead:
    """The fitted head, on as many features as the small encoder has."""
    return dataclasses.replace(head, weights=F.pad(head.weights, (0, 32 - WIDTH)))


def test_a_saved_head_is_a_reward_whose_version_is_its_content(head, tmp_path):
    wide(head).save(tmp_path / "one")
    reward = Learned(path=str(tmp_path / "one"))
    reward.check()
    assert isinstance(reward, Reward) and sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "head.json",
        "head.safetensors",
    ]
    media = media_for(reward.spec, 3)
    media.data[1, 0, 18, 24] = torch.nan
    media.data.requires_grad_()
    scores = reward(media=media, prompts=("",) * 3)
    features = reward.load().embed_images(media.data)
    torch.testing.assert_close(scores, features @ wide(head).weights.float(), equal_nan=True)
    assert scores.isnan().tolist() == [False, True, False] and scores.dtype == torch.float32
    (gradient,) = torch.autograd.grad(scores[[0, 2]].sum(), media.data)
    assert gradient[[0, 2]].isfinite().all() and gradient[[0, 2]].flatten(1).any(1).all()
    wide(head).save(tmp_path / "same")
    assert Learned(path=str(tmp_path / "same")).spec.version == reward.spec.version
    dataclasses.replace(wide(head), weights=-wide(head).weights).save(tmp_path / "other")
    assert Learned(path=str(tmp_path / "other")).spec.version != reward.spec.version


def test_a_head_that_is_not_shown_to_be_better_than_chance_is_refused(head, tmp_path):
    chance = learned.fit_taste(shuffled(simulated(150, axis(0)), 1), head.model)
    wide(chance).save(tmp_path / "chance")
    with pytest.raises(BadInput, match="vote more, or set `unproven: true`"):
        Learned(path=str(tmp_path / "chance")).check()
    Learned(path=str(tmp_path / "chance"), unproven=True).check()


def test_a_broken_head_is_refused(head, tmp_path):
    with pytest.raises(BadInput, match="holds no fitted head"):
        Learned(path=str(tmp_path))
    head.save(tmp_path)
    with pytest.raises(BadInput, match="weighs 8 features, .* has 32"):
        Learned(path=str(tmp_path)).load()
    saved = (tmp_path / "head.safetensors").read_bytes()
    dataclasses.replace(head, weights=-head.weights).save(tmp_path)
    (tmp_path / "head.safetensors").write_bytes(saved)
    with pytest.raises(BadInput, match="of different fits"):
        Learned(path=str(tmp_path))
    (tmp_path / "head.json").write_text("{}")
    with pytest.raises(BadInput, match="is damaged"):
        Learned(path=str(tmp_path))


# Several people


@pytest.fixture(scope="module")
def mixture():
    """Four people of two opposite tastes on one axis, and what they have in common on none."""
    crowd = [
        simulated(60, axis(0, s * 8.0), seed=n, voter=v)
        for n, (v, s) in enumerate(zip("abcd", (1, 1, -1, -1), strict=True))
    ]
    return personal.fit_mixture(together(*crowd), small_settings("clip")["model"], prototypes=2)


def test_opposite_tastes_are_told_apart_where_one_taste_for_all_is_chance(mixture):
    assert mixture.report.is_better and mixture.report.accuracy > 0.75
    assert not mixture.shared.is_better
    cosine = {p: F.cosine_similarity(mixture.direction_of(p), axis(0), dim=0).item() for p in "abcd"}
    assert min(cosine["a"], cosine["b"]) > 0.8 and max(cosine["c"], cosine["d"]) < -0.8
    for w in (*mixture.people.values(), mixture.prior):
        assert w.sum().item() == pytest.approx(1) and (w >= 0).all()


def test_who_has_not_voted_is_everybody_and_who_votes_moves_away(mixture):
    nobody = simulated(0, axis(0))
    torch.testing.assert_close(mixture.fit_weights(nobody), mixture.prior)
    assert torch.equal(mixture.weights_of("stranger"), mixture.prior)
    few, many = (mixture.fit_weights(simulated(n, axis(0), seed=9)) for n in (3, 60))
    far = [(w - mixture.prior).norm().item() for w in (few, many)]
    assert 0 < far[0] < far[1]
    eve = mixture.fit_weights(simulated(60, axis(0), seed=9)) @ mixture.prototypes
    assert F.cosine_similarity(eve, axis(0), dim=0) > 0.8


def test_a_persons_weights_are_the_minimum_of_likelihood_and_prior(mixture):
    """No other point of the simplex (of two prototypes: a line) does better."""
    own = simulated(10, axis(0), seed=3)
    x = (own.a - own.b) @ mixture.prototypes.T

    def loss(first: float) -> float:
        w = torch.tensor([first, 1 - first], dtype=torch.float64)
        prior = -(mixture.strength * mixture.prior * w.log()).sum()
        return (learned.bradley_terry_nll(x @ w, own.target).sum() + prior).item()

    found = mixture.fit_weights(own)[0].item()
    grid = torch.linspace(0.001, 0.999, 999, dtype=torch.float64).tolist()
    assert loss(found) <= min(map(loss, grid)) + 1e-6


def test_a_mixture_is_kept_and_used_for_one_person_or_all(mixture, tmp_path):
    fitted = dataclasses.replace(mixture, prototypes=F.pad(mixture.prototypes, (0, 32 - WIDTH)))
    fitted.save(tmp_path)
    ada, charles, all_ = (Personal(path=str(tmp_path), person=p) for p in ("a", "c", ""))
    assert len({r.spec.version for r in (ada, charles, all_)}) == 3
    torch.testing.assert_close(ada.weights, fitted.direction_of("a").float())
    torch.testing.assert_close(all_.weights, (fitted.prior @ fitted.prototypes).float())
    media = media_for(ada.spec, 3)
    assert (ada(media=media, prompts=("",) * 3) != charles(media=media, prompts=("",) * 3)).all()
    with pytest.raises(BadInput, match="no votes of 'e'"):
        Personal(path=str(tmp_path), person="e")
    with pytest.raises(BadInput, match="name it as `personal`"):
        Learned(path=str(tmp_path))
    with pytest.raises(BadInput, match="number of voters, 1"):
        personal.fit_mixture(simulated(40, axis(0)), prototypes=2)
    with pytest.raises(BadInput, match="judges image, not audio"):
        ada(media=Media(torch.zeros(1, 1, 8), "audio", 8000.0), prompts=("",))
