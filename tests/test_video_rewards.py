"""Video rewards: the frames that are looked at and what they weigh, how much moves, and what a still clip can't win."""

from __future__ import annotations

import math

import pytest
import torch
from reward_fixtures import PROMPTS, small

from rewards import build
from rewards.video.frames import Consistency, Frames, Motion, choose_frames, flow_magnitude, frame_weights
from workbench.core.errors import BadInput
from workbench.core.types import Media, RewardSpec


def moving(speed: float, frames: int = 8, size: int = 32, contrast: float = 0.4, seed: int = 0) -> torch.Tensor:
    """[1,T,3,H,W]: a smooth texture of long waves that slides by `speed` pixels a frame, without edges to enter by."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size).double(), torch.arange(size).double(), indexing="ij")
    angle, out = 2 * math.pi * torch.rand(12, 2, generator=g).double(), 0
    turn = 2 * math.pi * torch.arange(12) / 12
    for t in range(frames):
        waves = [
            torch.sin(0.5 * (x - speed * t) * turn[k].cos() + 0.5 * y * turn[k].sin() + angle[k, 0]) for k in range(12)
        ]
        frame = (0.5 + contrast * torch.stack(waves).mean(0)).expand(3, -1, -1)[None]
        out = frame if t == 0 else torch.cat([out, frame])
    return out[None].float()


def film(n: int = 2, frames: int = 6, seed: int = 0) -> Media:
    """n clips of smooth pictures, no two frames alike."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n * frames, 3, 6, 8, generator=g) * 0.9 + 0.05
    data = torch.nn.functional.interpolate(coarse, (36, 48), mode="bilinear")
    return Media(data.view(n, frames, 3, 36, 48), "video", 8.0)


# Which frames, and what they weigh


def test_one_frame_of_each_segment_is_chosen():
    assert choose_frames(16, "segments", 4) == [2, 6, 10, 14]
    assert choose_frames(3, "segments", 4) == [0, 1, 2], "fewer frames than segments: each frame once"
    assert (
        choose_frames(1, "segments", 4) == [0]
        and choose_frames(7, "one", 4) == [3]
        and choose_frames(5, "all", 4) == [0, 1, 2, 3, 4]
    )
    g = torch.Generator().manual_seed(0)
    for frames in (16, 13, 5):
        drawn = torch.tensor([choose_frames(frames, "segments", 4, g) for _ in range(300)])
        edges = [round(frames * i / 4) for i in range(5)]
        for s in range(4):
            assert set(drawn[:, s].tolist()) == set(range(edges[s], edges[s + 1]))
    assert {choose_frames(5, "one", 4, g)[0] for _ in range(200)} == set(range(5))


def test_attenuation_is_the_papers_and_normalised_keeps_its_proportions():
    """c_i = exp(-lambda |i - T/2|), T = 16, lambda = 1; the loss divides the sum by S."""
    at = [2, 6, 10, 14]
    published = frame_weights(at, 16, 1.0, normalised=False)
    assert published.tolist() == pytest.approx([math.exp(-abs(i - 8)) / 4 for i in at])
    ours = frame_weights(at, 16, 1.0)
    assert ours.sum().item() == pytest.approx(1.0)
    torch.testing.assert_close(ours / ours[1], published / published[1])
    assert frame_weights(at, 16, 0.0).tolist() == pytest.approx([0.25] * 4)


class Red:
    """Mean red of a picture."""

    spec = RewardSpec("red", "1", frozenset({"image"}), differentiable=True)

    def __call__(self, *, media, prompts, references=None):
        assert media.modality == "image" and len(prompts) == len(media)
        return media.data[:, 0].flatten(1).mean(1)


def test_a_clip_scores_the_weighted_mean_of_its_frames():
    red = torch.linspace(0, 1, 16)
    media = Media(red.view(1, 16, 1, 1, 1).expand(1, 16, 3, 4, 4).clone(), "video", 8.0)
    at, value = [2, 6, 10, 14], Frames(Red())(media=media, prompts=["x"]).item()
    weights = torch.tensor([math.exp(-abs(i - 8)) for i in at])
    assert value == pytest.approx(((weights / weights.sum()) * red[at]).sum().item(), rel=1e-5)
    assert Frames(Red(), pick="all", decay=0.0)(media=media, prompts=["x"]).item() == pytest.approx(0.5)
    assert Frames(Red(), pick="one")(media=media, prompts=["x"]).item() == pytest.approx(8 / 15, rel=1e-5)


def test_drawn_frames_differ_from_call_to_call_and_come_again_with_the_seed():
    media = film(1, 16)
    first, again, other = (Frames(Red(), pick="one", draw=True, seed=s) for s in (1, 1, 2))
    runs = [[r(media=media, prompts=["x"]).item() for _ in range(6)] for r in (first, again, other)]
    assert len(set(runs[0])) > 2 and runs[0] == runs[1] != runs[2]


def test_only_the_frames_looked_at_get_a_gradient():
    """VADER's one frame: the middle."""
    media = film(2, 7)
    media.data.requires_grad_()
    scores = Frames(small("clip"), pick="one")(media=media, prompts=PROMPTS[:2])
    (gradient,) = torch.autograd.grad(scores.sum(), media.data)
    assert gradient.flatten(2).norm(dim=2).gt(0).tolist() == [[i == 3 for i in range(7)]] * 2


def test_any_image_reward_by_name_with_settings():
    media = film(2)
    settings = {"clip": {"model": small("clip").model}}
    scores = build("rewards.video.frames:Frames", of=settings, segments=3)(media=media, prompts=PROMPTS[:2])
    by_hand = torch.stack(
        [small("clip")(media=Media(media.data[:, i], "image"), prompts=PROMPTS[:2]) for i in (1, 3, 5)]
    )
    torch.testing.assert_close(scores, frame_weights([1, 3, 5], 6, 1.0) @ by_hand, rtol=1e-5, atol=1e-6)
    spec = build("frames", of=settings).spec
    assert spec.needs == {"prompt"} and spec.modalities == {"video"}


def test_what_judges_no_single_picture_is_refused():
    for of in ("motion_of_nothing", {"vendi": {"model": "x"}}, "video_dimensions"):
        with pytest.raises(BadInput):
            build("frames", of=of)


def test_nan_in_a_frame_that_is_not_looked_at_still_makes_the_clip_nan():
    media = film(3)
    media.data[1, 0, 0, 0, 0] = torch.nan
    assert Frames(Red(), pick="one")(media=media, prompts=["x"] * 3).isnan().tolist() == [False, True, False]


# Motion


def test_flow_is_the_speed_in_pixels_whatever_the_contrast():
    for speed in (0.25, 0.5, 1.0):
        for contrast in (0.4, 0.1):
            assert flow_magnitude(moving(speed, contrast=contrast)).mean().item() == pytest.approx(speed, rel=0.15)
    assert flow_magnitude(moving(0.0)).max().item() == 0
    twice = [moving(0.5, contrast=c) for c in (0.4, 0.1)]
    change = [Motion(by="difference")(media=Media(x, "video", 8.0), prompts=[""]).item() for x in twice]
    assert change[0] == pytest.approx(4 * change[1], rel=0.01), "the control: a difference of frames follows contrast"


@pytest.mark.parametrize("by", ["flow", "difference"])
def test_motion_orders_clips_by_speed_and_says_nothing_of_one_frame(by):
    clips = [Media(moving(s), "video", 8.0) for s in (0.0, 0.2, 0.6, 1.0)]
    scores = [Motion(by=by)(media=c, prompts=[""]).item() for c in clips]
    assert scores[0] == 0 and scores == sorted(set(scores))
    assert Motion(by=by)(media=Media(moving(1.0, frames=1), "video", 8.0), prompts=[""]).isnan().all()
    odd = Media(moving(1.0, frames=3, size=33), "video", 8.0)
    assert Motion(by=by)(media=odd, prompts=[""]).isfinite().all()


def slope_of(score, x: torch.Tensor, size: float = 1e-3) -> tuple[float, float]:
    """The slope of `score` along its gradient, by differences, and the gradient's norm."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(x).sum(), x)
    step = size * gradient / gradient.norm()
    with torch.no_grad():
        return ((score(x + step) - score(x - step)).sum() / (2 * size)).item(), gradient.norm().item()


@pytest.mark.parametrize("reward", [
    lambda: Motion(), lambda: Motion(by="difference"), lambda: Consistency(model=small("clip").model, least=50.0),
    lambda: Consistency(model=small("clip").model, least=0.01), lambda: Frames(small("clip")),
    lambda: Frames(small("aesthetic"), pick="all", decay=0.3),
], ids=["flow", "difference", "consistency by motion", "consistency", "segments", "all frames"])  # fmt: skip
def test_the_gradient_to_the_frames_is_the_slope_of_the_score(reward):
    judge, media = reward(), film(1, 5)
    found, norm = slope_of(lambda x: judge(media=Media(x, "video", 8.0), prompts=PROMPTS[:1]), media.data, 0.01)
    assert norm > 0 and found == pytest.approx(norm, rel=0.03)


# Consistency is not to be had without motion


def test_a_still_clip_is_perfectly_consistent_and_scores_nothing():
    still, slow, wild = (Media(x, "video", 8.0) for x in (moving(0.0), moving(0.5), film(1, 8).data[..., :32, :32]))
    judge = Consistency(model=small("clip").model)
    found = {n: judge(media=m, prompts=[""]).item() for n, m in (("still", still), ("slow", slow), ("wild", wild))}
    assert judge.score_parts(still)["consistency"].item() == pytest.approx(1.0, abs=1e-5)
    assert found["still"] == 0
    assert found["slow"] > found["wild"] > 0


def test_consistency_is_always_reported_with_the_dynamic_degree():
    judge, media = Consistency(model=small("clip").model), film(2)
    judge(media=media, prompts=["", ""])
    assert set(judge.last) == {"consistency", "dynamic_degree"}
    torch.testing.assert_close(judge.last["dynamic_degree"], Motion()(media=media, prompts=["", ""]))
    assert not judge.last["consistency"].requires_grad
    with pytest.raises(BadInput, match="a still clip would win"):
        Consistency(least=0.0)


def test_a_clip_of_one_frame_has_no_consistency_but_frames_judge_it():
    media = Media(film(2).data[:, :1], "video", 8.0)
    assert Consistency(model=small("clip").model)(media=media, prompts=["", ""]).isnan().all()
    assert Frames(Red())(media=media, prompts=["x", "x"]).isfinite().all()


@pytest.mark.parametrize(
    "reward", [lambda: Motion(), lambda: Frames(Red()), lambda: Consistency(model=small("clip").model)]
)
def test_bad_clips_are_told_in_a_sentence(reward):
    judge = reward()
    with pytest.raises(BadInput, match="has no frames"):
        judge(media=Media(torch.zeros(1, 0, 3, 8, 8), "video", 8.0), prompts=[""])
    with pytest.raises(BadInput, match="judges video, not image"):
        judge(media=Media(torch.zeros(1, 3, 8, 8), "image"), prompts=[""])


def test_vq_mq_and_ta_are_asked_of_a_judge_and_only_ta_of_the_prompt():
    """The preset that is there for VideoReward's three axes."""
    from rewards.vlm.judge_presets import PRESETS

    questions = PRESETS["video_dimensions"].questions
    assert [q.answer.dimensions for q in questions] == [("VQ",), ("MQ",), ("TA",)]
    assert [("{prompt}" in q.text) for q in questions] == [False, False, True]
