"""Loudness as broadcasters measure it, the gates that keep silence and clipping from winning, and equal loudness by
ear."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import scipy.signal
import torch
from sound_fixtures import heard, tone

from rewards import build
from rewards.audio.loudness import (
    Clipping,
    Gated,
    Loudness,
    Silence,
    clipped_share,
    integrated_loudness,
    k_weighting,
    silent_share,
    true_peak,
)
from rewards.encoders.audio_frontend import AUDIO, mono_samples
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.io.resampling import resample_audio
from workbench.core.types import Media, RewardSpec
from workbench.report import audio_view
from workbench.ui.widgets import result_view


def at(level: float) -> float:
    return 10 ** (level / 20)


def one(x: torch.Tensor, rate: float = 48000.0) -> float:
    """LUFS of [C,L]."""
    return integrated_loudness(x[None], rate).item()


def test_the_filters_at_48_khz_are_the_standards_own():
    """ITU-R BS.1770-4, tables 1 and 2."""
    (b1, a1), (b2, a2) = k_weighting(48000)
    assert b1 == pytest.approx([1.53512485958697, -2.69169618940638, 1.19839281085285], abs=1e-9)
    assert a1[1:] == pytest.approx([-1.69065929318241, 0.73248077421585], abs=1e-9)
    assert b2 == [1.0, -2.0, 1.0] and a2[1:] == pytest.approx([-1.99004745483398, 0.99007225036621], abs=1e-9)


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_full_scale_sine_reads_minus_3_in_one_channel_and_0_in_two(rate):
    """BS.1770's calibration: 0 dBFS at 997 Hz in one front channel is -3.01 LKFS."""
    sine, off = tone(997, 2.0, rate, 1.0)[None], 0.05 if rate < 32000 else 0.01  # low rates bend the shelf a little
    assert one(sine, rate) == pytest.approx(-3.01, abs=off)
    assert one(sine.repeat(2, 1), rate) == pytest.approx(0.0, abs=off)


@pytest.mark.parametrize("levels, want", [
    ([(-23, 20)], -23.0), ([(-33, 20)], -33.0),  # EBU Tech 3341, cases 1 and 2
    ([(-36, 10), (-23, 60), (-36, 10)], -23.0),  # case 3: the relative gate
    ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23.0),  # case 4: and the absolute one
    ([(-26, 20), (-20, 20.1), (-26, 20)], -23.0),  # case 5
])  # fmt: skip
def test_the_test_signals_of_the_ebu_read_what_they_must(levels, want):
    rate = 12000  # a quarter of theirs, for time; 1 kHz is far below
    signal = torch.cat([tone(1000, seconds, rate, at(level)) for level, seconds in levels])
    assert one(signal.repeat(2, 1), rate) == pytest.approx(want, abs=0.1)


def test_without_the_relative_gate_the_quiet_parts_would_pull_case_3_down():
    """The control: the plain mean of that signal is half a decibel lower."""
    levels = [(-36, 10), (-23, 60), (-36, 10)]
    power = sum(10 ** (v / 10) * s for v, s in levels) / sum(s for _, s in levels)
    assert 10 * math.log10(power) < -23.9


def test_the_frequency_domain_filter_is_the_recursive_one():
    """The same blocks, filtered by scipy sample after sample, gates written out."""
    x = heard(1, 3.0, 22050, channels=2).data[0].double()
    y = x.numpy()
    for b, a in k_weighting(22050):
        y = scipy.signal.lfilter(b, a, y)
    starts = range(0, y.shape[1] - 8820 + 1, 2205)
    power = [sum((c[s : s + 8820] ** 2).mean() for c in y) for s in starts]
    power = [p for p in power if -0.691 + 10 * math.log10(p) > -70]
    gate = sum(power) / len(power) / 10
    power = [p for p in power if p > gate]
    want = pytest.approx(-0.691 + 10 * math.log10(sum(power) / len(power)), abs=1e-6)
    assert one(x, 22050) == want
    assert integrated_loudness(x[None].requires_grad_(), 22050).item() == want  # the way with a gradient


def test_silence_reads_the_gate_and_a_short_sound_nothing():
    assert one(torch.zeros(1, 48000)) == pytest.approx(-70.0)
    assert math.isnan(one(tone(440, 0.3, 48000)[None]))
    broken = tone(440, 1.0, 48000)[None].clone()
    broken[0, 100] = torch.nan
    assert math.isnan(one(broken))


def test_the_gradient_of_loudness_is_its_slope():
    x = heard(1, 0.8, 8000).data.double().requires_grad_()
    (gradient,) = torch.autograd.grad(integrated_loudness(x, 8000).sum(), x)
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-5
    change = (integrated_loudness(x.detach() + step, 8000) - integrated_loudness(x.detach() - step, 8000)) / 2
    assert change.item() == pytest.approx((gradient * step).sum().item(), rel=1e-5)


def test_true_peak_sees_what_lies_between_samples():
    """A sine at a quarter of the sample rate, sampled 45 degrees off its tops, peaks 3 dB above every sample."""
    n = torch.arange(4800, dtype=torch.float64)
    x = torch.sin(math.pi / 2 * n + math.pi / 4)[None, None]
    assert x.abs().max().item() == pytest.approx(0.5**0.5, abs=1e-4)
    assert true_peak(x, 48000)[0].item() == pytest.approx(1.0, abs=0.02)


# Resampling


@pytest.mark.parametrize("old, new", [(8000, 48000), (44100, 48000), (48000, 16000), (44100, 16000), (22050, 44100)])
def test_a_tone_stays_the_tone_at_another_rate(old, new):
    x = resample_audio(tone(700, 0.5, old)[None], old, new)[0]
    assert len(x) == math.ceil(0.5 * new)
    inner = slice(len(x) // 5, -len(x) // 5)
    assert (x - tone(700, 0.5, new))[inner].abs().max() < 2e-4


def test_what_a_lower_rate_cannot_carry_is_gone_and_not_folded_down():
    x = resample_audio(tone(9500, 0.5, 48000)[None], 48000, 16000)[0]
    assert x[1000:-1000].abs().max() < 1e-4
    assert tone(9500, 0.5, 48000)[::3].abs().max() > 0.4  # the control: every third sample


def test_a_rate_that_divides_nothing_is_refused():
    with pytest.raises(BadInput, match="no ratio that sounds are resampled by"):
        resample_audio(torch.zeros(1, 100), 47999, 48000)
    with pytest.raises(BadInput, match="whole number"):
        resample_audio(torch.zeros(1, 100), 47999.5, 48000)


def test_resampling_passes_the_gradient():
    torch.autograd.gradcheck(
        lambda x: resample_audio(x, 3, 2), torch.randn(1, 12, dtype=torch.float64, requires_grad=True), atol=1e-4
    )


# Rewards


def test_loudness_as_a_reward_is_best_at_its_target():
    sine = tone(997, 1.0, 48000, 1.0)  # -3.01 LUFS
    media = Media(torch.stack([sine * at(v) for v in (-17.0, -11.0, -5.0)])[:, None], "audio", 48000.0)
    scores = Loudness()(media=media, prompts=[""] * 3)
    assert scores.tolist() == pytest.approx([-6.01, -0.01, -5.99], abs=0.03)
    assert Loudness(target=-20.01)(media=media, prompts=[""] * 3).argmax() == 0


def test_clipping_and_silence_are_shares():
    x = torch.full((1, 1, 1000), 0.5)
    x[..., :100] = 1.0
    x[..., 500:] = 0.0
    assert clipped_share(x).item() == pytest.approx(0.1) and silent_share(x, 1000.0).item() == pytest.approx(0.5)
    media = Media(x, "audio", 1000.0)
    assert Clipping()(media=media, prompts=[""]).item() == pytest.approx(-0.1)
    assert Silence()(media=media, prompts=[""]).item() == pytest.approx(-0.5)


class Quiet:
    """A reward that silence wins: minus the mean square."""

    spec = RewardSpec("quiet", "1", AUDIO, differentiable=True, typical=(-0.2, 0.0))

    def __call__(self, *, media, prompts, references=None):
        return -mono_samples(self.spec, media, prompts).square().mean(1)


class Untold(Quiet):
    spec = RewardSpec("untold", "1", AUDIO, differentiable=True)


def four() -> Media:
    """A whole sound, a silent one, one driven into clipping, and one with NaN."""
    x = heard(4, 1.0, 16000).data
    x[1] = 0
    x[2] = (x[2] * 20).clamp(-1, 1)
    x[3, 0, 5] = torch.nan
    return Media(x, "audio", 16000.0)


def test_a_gate_leaves_a_whole_sound_alone_and_takes_silence_its_prize():
    media, prompts = four(), [""] * 4
    plain, gated = Quiet()(media=media, prompts=prompts), Gated(Quiet())(media=media, prompts=prompts)
    assert plain[1] > plain[0], "silence wins without the gate"
    assert gated.tolist()[:3] == pytest.approx([plain[0].item(), -0.2, -0.2])
    assert gated.isnan().tolist() == [False, False, False, True]


def test_inside_its_ramp_the_gate_pulls_a_quiet_sound_up():
    """At 3 LU under the threshold half the reward counts, and the gradient raises the level."""
    sine = tone(997, 1.0, 16000, 1.0) * at(-53 + 3.01)
    x = sine[None, None].clone().requires_grad_()
    gate = Gated(Quiet(), floor=-1.0).gate(x, 16000.0)
    assert gate.item() == pytest.approx(0.5, abs=0.01)
    (slope,) = torch.autograd.grad(Gated(Quiet(), floor=-1.0)(media=Media(x, "audio", 16000.0), prompts=[""]).sum(), x)
    assert (slope * x).sum() > 0


def test_a_gate_says_what_it_cannot_gate():
    with pytest.raises(BadInput, match="no reward of single sounds"):
        build("gated", of="brightness")
    with pytest.raises(BadInput, match="declares no typical range"):
        Gated(Untold())
    with pytest.raises(BadInput, match="must be more than 0"):
        Gated(Quiet(), clipped=0.0)


@pytest.mark.parametrize("reward", [Loudness(), Clipping(), Silence(), Gated(Quiet())])
def test_bad_sounds_are_told_in_a_sentence(reward):
    with pytest.raises(BadInput, match="has no samples"):
        reward(media=Media(torch.zeros(1, 1, 0), "audio", 8000.0), prompts=[""])
    with pytest.raises(BadInput, match="does not say its sample rate"):
        reward(media=Media(torch.zeros(1, 1, 10), "audio"), prompts=[""])
    with pytest.raises(BadInput, match="judges audio, not image"):
        reward(media=Media(torch.zeros(1, 3, 8, 8), "image"), prompts=[""])


# For listening only


def test_matched_sounds_are_equally_loud_and_none_is_clipped():
    base = heard(3, 1.0, 16000)
    sounds = [Media(base.data[b : b + 1] * g, "audio", 16000.0) for b, g in enumerate((1.5, 0.05, 0.6))]
    before = [s.data.clone() for s in sounds]
    equal = audio_view.match_loudness(sounds, target=-14.0)
    levels = [integrated_loudness(s.data, s.rate).item() for s, _ in equal]
    assert max(levels) - min(levels) < 1e-3
    assert all(true_peak(s.data, s.rate).item() <= at(-1.0) + 1e-3 for s, _ in equal)
    assert all(torch.equal(s.data, b) for s, b in zip(sounds, before, strict=True)), "the originals are not touched"
    for (s, gain), was in zip(equal, before, strict=True):
        torch.testing.assert_close(s.data, was * at(gain))


def test_silence_is_not_made_loud():
    silent_one = Media(torch.zeros(1, 1, 16000), "audio", 16000.0)
    (_, first), (still, gain) = audio_view.match_loudness([heard(1, 1.0, 16000), silent_one])
    assert first != 0 and gain == 0 and not still.data.any()


def test_the_app_and_the_report_say_the_loudness_that_the_reward_says(tmp_path):
    """Of five channels, whose surrounds count more, of 0.3 seconds and of silence as of any sound."""
    for n, sound in enumerate((heard(1, 1.0, 8000, channels=5), heard(1, 0.3, 8000), heard(1, 1.0, 8000))):
        sound = replace(sound, data=sound.data * (n < 2))
        path = media.write_media(sound, tmp_path / f"{n}.wav")
        (said,) = Loudness(target=0.0)(media=sound, prompts=[""]).tolist()
        shown = result_view._sound_facts(path)["loudness"]
        (_, gain), *_ = audio_view.match_loudness([media.read_media(path)], target=-90.0)
        assert (said != said and shown != shown) or said == pytest.approx(-abs(shown), abs=1e-4)
        assert gain == (pytest.approx(-90.0 - shown) if n == 0 else 0.0)
