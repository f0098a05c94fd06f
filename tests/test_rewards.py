"""Every reward keeps the contract; the closed forms are exact; the ports agree with their publications."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch
from PIL import Image
from reward_fixtures import PROMPTS, batch_for, media_for, scored, small, small_settings

from rewards import REWARDS, build
from workbench.core.errors import BadInput
from workbench.core.paths import ROOT
from workbench.core.types import Media, Reward, RewardSpec

PER_SAMPLE = [name for name, cls in REWARDS.items() if cls.spec.scope == "sample"]


# The contract, for every reward there is


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_that_loads_weights_has_small_ones_for_these_tests(name):
    try:
        settings = small_settings(name)
        build(name, **settings)
    except (LookupError, BadInput) as error:
        pytest.fail(f"reward {name} can't be tested: {error} (tests/reward_fixtures.py, SMALL)", pytrace=False)


def test_a_reward_without_small_weights_is_named_with_the_place_for_them(monkeypatch):
    """The control of the test above."""

    class Heavy:
        spec = RewardSpec("heavy", "1", frozenset({"image"}), differentiable=False, weights="some/weights")

    monkeypatch.setitem(REWARDS, "heavy", Heavy)
    with pytest.raises(LookupError, match="heavy loads weights: give it small ones in SMALL of tests/reward_fixtures"):
        small_settings("heavy")


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_returns_one_finite_float32_score_a_sample_or_a_set(name, n):
    reward = small(name)
    assert isinstance(reward, Reward)
    scores = scored(reward, batch_for(reward.spec, n))
    assert scores.shape == (() if reward.spec.scope == "set" else (n,))
    assert scores.dtype == torch.float32
    alone = n == 1 and reward.spec.scope == "group"  # nothing to be compared with is no score, and no 0 either
    assert scores.isnan().all() if alone else scores.isfinite().all()


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_a_score_does_not_depend_on_the_rest_of_the_batch(name):
    reward, media = small(name), media_for(REWARDS[name].spec, 3)
    together = scored(reward, media)
    assert len(set(together.tolist())) == 3, "samples must differ for this test to mean anything"
    for b in range(3):
        assert scored(reward, media[b], PROMPTS[b:]) == pytest.approx(together[b].item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", REWARDS)
def test_a_gradient_reaches_the_media_exactly_where_declared(name):
    reward = small(name)
    media = batch_for(reward.spec, 3)
    media.data.requires_grad_()
    scores = scored(reward, media)
    assert scores.requires_grad == reward.spec.differentiable
    if reward.spec.differentiable:
        (gradient,) = torch.autograd.grad(scores.sum(), media.data)
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("name", [n for n, c in REWARDS.items() if c.spec.differentiable and c.spec.scope != "group"])
def test_the_declared_gradient_is_the_slope_of_the_score(name):
    """Along the gradient the score rises at the rate that the gradient's norm says. (Credit in a group is meant for its
    own sample's gradient only, so its sum has another slope.)"""
    reward = small(name)
    media = batch_for(reward.spec, 1)
    media.data.requires_grad_()
    (gradient,) = torch.autograd.grad(scored(reward, media).sum(), media.data)
    step = 0.02 * gradient / gradient.norm()
    up, down = (scored(reward, Media(media.data.detach() + s, media.modality, media.rate)) for s in (step, -step))
    assert ((up - down) / 0.04).item() == pytest.approx(gradient.norm().item(), rel=0.05)


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_nan_in_one_sample_is_nan_in_its_score_alone(name):
    reward, media = small(name), media_for(REWARDS[name].spec, 3)
    whole = scored(reward, media)
    media.data[1].view(-1)[7] = torch.nan
    scores = scored(reward, media)
    assert scores.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(scores[[0, 2]], whole[[0, 2]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in PER_SAMPLE if REWARDS[n].spec.differentiable])
def test_nan_in_one_sample_spoils_no_other_gradient(name):
    reward, media = small(name), media_for(REWARDS[name].spec, 3)
    media.data[1].view(-1)[7] = torch.nan
    media.data.requires_grad_()
    (gradient,) = torch.autograd.grad(scored(reward, media)[[0, 2]].sum(), media.data)
    assert gradient[[0, 2]].isfinite().all() and gradient[[0, 2]].any()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", REWARDS)
def test_half_precision_media_score_as_their_values_do_in_float32(name, kind):
    reward, media = small(name), batch_for(REWARDS[name].spec, 3)
    half = Media(media.data.to(kind), media.modality, media.rate)
    half.data.requires_grad_(reward.spec.differentiable)
    scores = scored(reward, half)
    assert scores.dtype == torch.float32
    same = Media(half.data.detach().float(), media.modality, media.rate)
    torch.testing.assert_close(scores.detach(), scored(reward, same), rtol=1e-4, atol=1e-5)
    if reward.spec.differentiable:
        (gradient,) = torch.autograd.grad(scores.sum(), half.data)
        assert gradient.dtype == kind and gradient.isfinite().all()


@pytest.mark.parametrize("name", REWARDS)
def test_what_a_reward_loads_is_frozen_and_in_eval_mode(name):
    """Whatever networks hang on what `load` gives back."""
    reward = small(name)
    for net in networks(reward.load("cpu") if hasattr(reward, "load") else reward):
        assert not net.training
        assert not any(p.requires_grad for p in net.parameters())


def networks(thing, depth: int = 3) -> list[torch.nn.Module]:
    if isinstance(thing, torch.nn.Module):
        return [thing]
    inside = thing if isinstance(thing, (tuple, list)) else vars(thing).values() if hasattr(thing, "__dict__") else ()
    return [net for part in inside for net in networks(part, depth - 1)] if depth else []


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_is_called_by_keywords_only(name):
    """Swapping media and prompts can't happen by accident."""
    reward = small(name)
    with pytest.raises(TypeError):
        reward(media_for(reward.spec, 1), PROMPTS[:1])


@pytest.mark.parametrize("name", REWARDS)
def test_a_reward_says_what_it_is_before_it_is_built(name):
    spec, cls = REWARDS[name].spec, REWARDS[name]
    assert isinstance(spec, RewardSpec)
    assert spec.name == name
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), "the docstring is the help"
    assert spec.modalities <= {"image", "video", "audio"} and spec.modalities
    assert spec.typical is None or spec.typical[0] < spec.typical[1]
    if spec.weights:
        assert spec.licence and spec.paper


def test_listing_rewards_imports_no_model_library():
    code = "import sys, rewards; print({'transformers', 'open_clip', 'torchvision', 'PIL'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_a_reward_refuses_a_medium_that_it_does_not_judge():
    with pytest.raises(BadInput, match="clip judges image, not video"):
        scored(small("clip"), Media(torch.rand(1, 2, 3, 8, 8), "video", 8.0))


def test_prompts_and_samples_must_be_as_many():
    with pytest.raises(ValueError, match="2 prompts for 3 samples"):
        scored(small("clip"), media_for(REWARDS["clip"].spec, 3), PROMPTS[:2])


# Building by name


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("brightnes", {}, "did you mean 'brightness'"),
        ("clip", {"modl": "x"}, "did you mean 'model'"),
        ("clip", {"mode": "cosin"}, "did you mean 'cosine'"),
        ("clip", {"checkpoint": 3}, "expected true or false, got 3"),
        ("clip", {"mode": "contrastive"}, "go together"),
        ("compressibility", {"quality": 0}, "at least 1"),
        ("no_such.module:Thing", {}, "can't import"),
        ("rewards.encoders.preprocess:View", {}, "is no reward"),
    ],
)
def test_a_wrong_name_or_setting_is_answered_with_the_nearest(name, settings, says):
    with pytest.raises(BadInput, match=says):
        build(name, **settings)


class Redness:
    """A reward of someone else's package: one class, no registration."""

    spec = RewardSpec("redness", "1", frozenset({"image"}), differentiable=True)

    def __call__(self, *, media, prompts, references=None):
        return media.data[:, 0].flatten(1).mean(1)


def test_an_outside_reward_is_named_by_its_import_path():
    reward = build("test_rewards:Redness")
    assert scored(reward, Media(torch.full((1, 3, 4, 4), 0.25), "image")).item() == 0.25
    with pytest.raises(BadInput, match="takes no settings"):
        build("test_rewards:Redness", strength=2)


def test_a_reward_with_other_settings_is_another_version_and_how_it_is_computed_is_not():
    """So base scores of one are refused for the other, and a run does not go on under it."""
    assert build("hps").spec.version == build("hps", dtype="float16").spec.version == "v2.1"
    assert build("hps", model="x/HPSv2.0").spec.version == "v2.1 model=x/HPSv2.0"
    assert build("loudness", target=-20.0).spec.version != build("loudness").spec.version
    own = "judge", {"url": "http://localhost:1", "key": "MY_KEY", "model": "m", "timeout": 3.0}
    assert "KEY" not in build(own[0], **own[1]).spec.version and "model=m" in build(own[0], **own[1]).spec.version


# Closed forms


def picture(*colours: tuple[float, float, float]) -> Media:
    """One picture of equal vertical stripes."""
    stripes = torch.tensor(colours).T[:, None, :].repeat_interleave(8, 2).expand(3, 16, -1)
    return Media(stripes[None].clone(), "image")


BLACK, WHITE, RED, GREY = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "colours", "score"),
    [
        ("brightness", [WHITE], 1.0),
        ("brightness", [RED], 0.299),
        ("brightness", [BLACK, WHITE], 0.5),
        ("contrast", [GREY], 0.0),
        ("contrast", [BLACK, WHITE], 0.5),
        ("colourfulness", [GREY], 0.0),
        ("colourfulness", [BLACK, WHITE], 0.0),
        ("colourfulness", [RED], 0.3 * 1.25**0.5),  # rg 1, yb 1/2: no spread, mean only
        ("colourfulness", [RED, BLACK], (1.25**0.5) / 2 + 0.3 * (1.25**0.5) / 2),
        ("sharpness", [GREY], 0.0),
        ("saturated_pixels", [GREY], 0.0),
        ("saturated_pixels", [BLACK, GREY], -0.5),
        ("saturated_pixels", [WHITE, RED], -1.0),
    ],
)
def test_a_closed_form_is_exact(name, colours, score):
    assert scored(build(name), picture(*colours)).item() == pytest.approx(score, abs=2e-6)


def test_sharpness_of_a_checkerboard_is_known():
    """Each inner Laplacian of a 0/1 checkerboard is +4 or -4, half each: variance 16."""
    board = (torch.arange(10)[:, None] + torch.arange(10)) % 2
    assert scored(build("sharpness"), Media(board.float().expand(1, 3, 10, 10), "image")).item() == pytest.approx(16.0)


def test_compressibility_is_the_size_of_the_jpeg_on_disk():
    media = media_for(REWARDS["compressibility"].spec, 1)
    file = io.BytesIO()
    array = (media.data[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(file, "JPEG", quality=95)
    assert scored(build("compressibility"), media).item() == pytest.approx(-len(file.getvalue()) / 1000)
    noise = Media(torch.rand(1, 3, 36, 48), "image")
    assert scored(build("compressibility"), noise) < scored(build("compressibility"), media)
    assert scored(build("compressibility", quality=20), media) > scored(build("compressibility"), media)


@pytest.mark.parametrize("name", ["brightness", "contrast", "colourfulness", "sharpness", "saturated_pixels"])
def test_a_video_scores_the_mean_of_its_frames(name):
    frames = media_for(REWARDS[name].spec, 4).data
    frames[0] = frames[0].round()
    one_by_one = build(name)(media=Media(frames, "image"), prompts=[""] * 4)
    whole = build(name)(media=Media(frames[None], "video", 8.0), prompts=[""])
    assert whole.item() == pytest.approx(one_by_one.mean().item(), rel=1e-5)


# The page about them


PAGE = ROOT / "docs" / "rewards.md"


def table() -> str:
    """docs/rewards.md's table, from the specs."""
    head = ["reward", "judges", "gradient", "needs", "typical", "licence", "paper", "weights"]
    rows = [head, ["---"] * len(head)]
    for name, cls in REWARDS.items():
        s = cls.spec
        row = [
            f"`{name}`",
            ", ".join(sorted(s.modalities)),
            "yes" if s.differentiable else "no",
            ", ".join(sorted(s.needs)),
        ]
        typical = f"{s.typical[0]:g} to {s.typical[1]:g}" if s.typical else ""
        rows.append([*row, typical, s.licence, s.paper, s.weights])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def test_the_page_about_rewards_holds_the_table_of_their_specs():
    page = PAGE.read_text(encoding="utf-8")
    held = page.partition("<!-- table -->\n")[2].partition("\n<!-- /table -->")[0]
    assert held == table(), (
        "the table of docs/rewards.md is of other rewards; write it anew: python tests/test_rewards.py"
    )


def test_the_reward_written_out_on_the_page_works_as_an_outside_package(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    reward = build("mine:Warmth", strength="3.0")
    assert isinstance(reward, Reward)
    assert scored(reward, picture(RED)).item() == 3.0
    assert scored(reward, picture(GREY)).item() == 0.0
    with pytest.raises(BadInput, match="did you mean 'strength'"):
        build("mine:Warmth", strenght=1)


def write_table() -> None:
    """The table of the specs, put into the page."""
    before, mark, held = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")
    end = "\n<!-- /table -->"
    PAGE.write_text(before + mark + table() + end + held.partition(end)[2], encoding="utf-8")


if __name__ == "__main__":
    write_table()
