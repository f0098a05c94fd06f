"""Sounds and clips that are hard to judge, to every reward that judges any: a number, NaN for that row alone, or one
clear sentence."""

from __future__ import annotations

import pytest
import torch
from reward_fixtures import modalities_of, scored, small
from sound_fixtures import heard

from rewards import REWARDS
from workbench.core.errors import BadInput
from workbench.core.io import media, video
from workbench.core.types import Media

BY_MACHINE = (
    "judge",
    "unifiedreward",
    "ixc",
    "video_dimensions",
    "remote",
)  # asked of a server: they have tests of their own
AUDIO, VIDEO = (
    [n for n, cls in REWARDS.items() if kind in modalities_of(n) and not n.startswith(BY_MACHINE)]
    for kind in ("audio", "video")
)


def judged(name: str, given: Media) -> torch.Tensor:
    """A single number for a set, else one a row."""
    return scored(small(name), given).reshape(-1)


@pytest.mark.parametrize("name", AUDIO)
def test_any_channels_and_any_usual_rate_can_be_heard(name):
    for channels, rate in ((1, 8000), (2, 44100), (1, 48000)):
        found = judged(name, heard(3, 0.5, rate, channels=channels))
        assert found.isfinite().all(), (channels, rate)


@pytest.mark.parametrize("name", AUDIO)
def test_silence_full_scale_and_what_is_no_number_are_judged_row_by_row(name):
    reward, good = small(name), heard(3, 0.5, 16000)
    hard = good.data.clone()
    hard[1], hard[2] = 0.0, 10 * hard[2].sign()
    x = hard.clamp(-1, 1).requires_grad_()
    found = scored(reward, Media(x, "audio", 16000.0))
    assert found.isfinite().all()
    if reward.spec.differentiable:
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert gradient.isfinite().all()
    for odd in (torch.nan, torch.inf):
        broken = good.data.clone()
        broken[1, 0, 7] = odd
        if reward.spec.scope == "sample":
            found, whole = (judged(name, Media(d, "audio", 16000.0)) for d in (broken, good.data))
            assert found.isfinite().tolist() == [True, False, True]
            torch.testing.assert_close(found[[0, 2]], whole[[0, 2]], rtol=1e-3, atol=1e-3)
        else:
            kept = judged(name, Media(good.data[[0, 2]], "audio", 16000.0))
            torch.testing.assert_close(judged(name, Media(broken, "audio", 16000.0)), kept, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", AUDIO)
def test_a_sound_without_samples_or_rate_is_refused_in_a_sentence(name):
    for given, says in (
        (Media(torch.zeros(2, 1, 0), "audio", 8000.0), "no samples"),
        (Media(torch.ones(2, 1, 9), "audio"), "sample rate"),
    ):
        with pytest.raises(BadInput, match=says) as told:
            judged(name, given)
        assert "\n" not in str(told.value)


def clip(frames: int, high: int = 17, wide: int = 15, n: int = 3) -> Media:
    g = torch.Generator().manual_seed(frames)
    return Media(torch.rand(n, frames, 3, high, wide, generator=g), "video", 8.0)


@pytest.mark.parametrize("name", VIDEO)
def test_odd_counts_odd_sides_and_a_single_frame_are_judged(name):
    """What is about change has nothing to say of one frame."""
    for frames in (1, 3, 9):
        found = judged(name, clip(frames))
        assert found.isfinite().all() or (frames == 1 and name in ("motion", "consistency") and found.isnan().all())


@pytest.mark.parametrize("name", VIDEO)
def test_a_frame_that_is_no_number_makes_its_clip_none_and_no_other(name):
    good = clip(9).data
    broken = good.clone()
    broken[1, 1, 0, 0, 0] = torch.nan
    found = judged(name, Media(broken, "video", 8.0))
    if REWARDS[name].spec.scope == "set":
        torch.testing.assert_close(found, judged(name, Media(good[[0, 2]], "video", 8.0)), rtol=1e-3, atol=1e-3)
    else:
        assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", VIDEO)
def test_a_clip_without_frames_is_refused_in_a_sentence(name):
    with pytest.raises(BadInput) as told:
        judged(name, Media(torch.zeros(2, 0, 3, 8, 8), "video", 8.0))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("share", [0.98, 0.6, 0.3])
def test_a_film_that_was_cut_short_is_named_and_never_read_as_a_shorter_one(share, tmp_path):
    """Its index comes first, so that it plays while it loads: what is missing is at the end."""
    pytest.importorskip("av")
    g = torch.Generator().manual_seed(0)
    whole = video.write_mp4(Media(torch.rand(1, 24, 3, 64, 64, generator=g), "video", 8.0), tmp_path / "whole.mp4")
    content = whole.read_bytes()
    assert media.read_media(whole).data.shape[1] == 24
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadInput, match="cut short") as told:
        media.read_media(cut)
    assert str(cut) in str(told.value) and "\n" not in str(told.value)
