"""`workbench score` on anything that people have: what can be judged is, the rest is told in one sentence a file."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from judge_server import Status
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from reward_fixtures import media_for, small_settings
from scipy.io import wavfile

from rewards import REWARDS, build
from workbench.core.errors import BadInput
from workbench.core.io import media
from workbench.core.types import Media, RewardSpec
from workbench.evaluation import scoring
from workbench.tools import doctor


class Loudness:
    """Root mean square of a sound; a silent one has no score."""

    spec = RewardSpec("loudness", "1", frozenset({"audio"}), differentiable=True)

    def __call__(self, *, media, prompts, references=None):
        level = media.data.square().flatten(1).mean(1).sqrt()
        return torch.where(level > 0, level, torch.nan)


LOUD = "test_scoring:Loudness"


def picture(path, mode="RGB", colour="white", size=(8, 8), **how):
    Image.new(mode, size, colour).save(path, **how)
    return path


def sound(path, samples, rate=8000):
    wavfile.write(path, rate, np.asarray(samples, np.float32))
    return path


def score(*paths, rewards=("brightness",), prompt=None):
    return scoring.score_files(paths, rewards, prompt)


def test_a_folder_is_scored_through_and_in_order(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    picture(tmp_path / "c.png", colour="black")
    picture(tmp_path / "b" / "deep" / "x.jpg")
    picture(tmp_path / ".hidden" / "y.png")
    picture(tmp_path / "a.PNG", colour=(255, 0, 0))
    (tmp_path / "notes.txt").write_text("no picture")
    rows = score(tmp_path)
    assert [row["file"] for row in rows] == [str(tmp_path / n) for n in ("a.PNG", "b/deep/x.jpg", "c.png")]
    assert [row["brightness"] for row in rows] == pytest.approx([0.299, 1.0, 0.0], abs=1e-6)
    assert not any(row["error"] for row in rows)


def test_pictures_clips_and_sounds_go_to_the_rewards_that_judge_them(tmp_path):
    clip = Media(torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])[None], "video", 8.0)
    media.write_media(clip, tmp_path / "clip.apng")
    picture(tmp_path / "picture.png")
    sound(tmp_path / "sound.wav", [0.5, -0.5] * 100)
    clip, image, tone = score(tmp_path, rewards=("brightness", "compressibility", LOUD))
    assert clip["brightness"] == pytest.approx(0.5) and clip["compressibility"] is None and clip["loudness"] is None
    assert image["brightness"] == 1.0 and image["compressibility"] < 0 and image["loudness"] is None
    assert tone["loudness"] == pytest.approx(0.5) and tone["brightness"] is None
    assert not clip["error"] and not image["error"] and not tone["error"]


@pytest.mark.parametrize(
    ("make", "value", "note"),
    [
        (lambda p: picture(p, "RGBA", (0, 0, 0, 0)), 1.0, "transparency laid on white"),
        (lambda p: picture(p, "RGBA", (0, 0, 0, 255)), 0.0, ""),
        (lambda p: picture(p, "LA", (0, 0)), 1.0, "greyscale, made three equal channels; transparency laid on white"),
        (lambda p: picture(p, "L", 51), 0.2, "greyscale, made three equal channels"),
        (lambda p: picture(p, "I;16", 13107), 0.2, "greyscale, made three equal channels; 16 bits a value"),
        (lambda p: picture(p, size=(1, 1), colour=(51, 51, 51)), 0.2, ""),
        (lambda p: picture(p, size=(1, 4000)), 1.0, ""),
    ],
)
def test_unusual_pictures_are_scored_and_what_was_done_to_them_is_said(tmp_path, make, value, note):
    (row,) = score(make(tmp_path / "x.png"))
    assert row["brightness"] == pytest.approx(value, abs=1e-5) and row["note"] == note and not row["error"]


@pytest.mark.parametrize("name", ["clip", "pickscore", "hps", "aesthetic", "imagereward"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_every_published_scorer_judges_a_picture_of_one_pixel(name, size):
    reward = build(name, **small_settings(name))
    assert reward(media=Media(torch.full((1, 3, *size), 0.3), "image"), prompts=["a cat"]).isfinite().all()


def test_a_reward_that_can_not_judge_one_file_says_so_and_the_other_scores_stand(tmp_path):
    (row,) = score(picture(tmp_path / "x.png", size=(1, 1)), rewards=("sharpness", "brightness"))
    assert row["brightness"] == 1.0 and row["sharpness"] is None
    assert row["error"].startswith(f"sharpness can't judge {tmp_path / 'x.png'}: ") and "\n" not in row["error"]
    assert row["error"].endswith("sharpness needs at least 3 x 3 pixels, this has 1 x 1")


@pytest.mark.parametrize(
    ("samples", "rate", "value", "note", "error"),
    [
        ([0.25] * 50 + [-0.25] * 50, 8000, 0.25, "", ""),
        ([2.0, -2.0] * 50, 8000, 2.0, "louder than full scale, peak 2.00", ""),
        ([0.0] * 100, 8000, None, "silent: every sample is the same", "loudness found no score"),
        ([0.1, math.nan, 0.1], 8000, None, "", "not finite"),
        ([0.1, math.inf, 0.1], 8000, None, "", "not finite"),
        ([], 8000, None, "", "holds no sound (0 samples"),
        ([0.1] * 9, 0, None, "", "can't be read as a sound"),
    ],
)
def test_unusual_sounds_are_judged_or_told(tmp_path, samples, rate, value, note, error):
    good = sound(tmp_path / "good.wav", [0.5, -0.5] * 50)
    row, other = score(sound(tmp_path / "x.wav", samples, rate), good, rewards=(LOUD,))
    assert other["loudness"] == pytest.approx(0.5) and not other["error"]
    assert row["loudness"] == (value and pytest.approx(value)) and note in row["note"]
    assert error in row["error"] and bool(error) == bool(row["error"])
    assert not error or "x.wav" in row["error"]


def test_a_judge_that_stops_answering_costs_its_score_and_says_why_and_one_that_never_did_is_bad_input(serve, tmp_path):
    server = serve(lambda body, n: Status(503, "too busy"))
    requests = f'{{judge: {{url: "{server.url}", model: judge, retries: 0}}}}'
    (row,) = score(picture(tmp_path / "x.png"), rewards=(requests, "brightness"), prompt="a cat")
    assert row["brightness"] == 1.0 and row["judge"] is None
    assert row["error"] == f"judge found no score for {tmp_path / 'x.png'}: no answer in 1 attempt (HTTP 503: too busy)"
    server.close()
    with pytest.raises(BadInput, match=f"nothing answers at {server.url}"):
        score(tmp_path / "x.png", rewards=(requests.replace("judge:", "q_insight:"),))


def test_what_is_missing_corrupt_or_empty_is_a_row_and_the_rest_is_scored(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.png").write_bytes(picture(tmp_path / "good.png").read_bytes()[:40])
    paths = [tmp_path / n for n in ("nowhere.png", "cut.png", "empty", "good.png")]
    *bad, good = score(*paths)
    assert good["brightness"] == 1.0 and not good["error"]
    for row, says in zip(bad, ["no such file or folder", "broken or cut short", "no media files"], strict=True):
        assert says in row["error"] and row["file"] in row["error"] and "\n" not in row["error"]
        assert row["brightness"] is None and row.keys() == good.keys()


@pytest.mark.parametrize("name", ["nowhere.png", "empty"])
def test_paths_that_all_lead_nowhere_are_bad_input(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=name):
        score(tmp_path / name)


def test_a_question_that_fits_no_file_is_bad_input_and_one_that_fits_some_is_rows(tmp_path):
    shot, tone = picture(tmp_path / "x.png"), sound(tmp_path / "y.wav", [0.5, -0.5])
    with pytest.raises(BadInput, match="image, which is judged by none of these rewards: loudness judges audio"):
        score(shot, rewards=(LOUD,))
    with pytest.raises(BadInput, match="give --prompt"):
        score(shot, rewards=("starter_clip",))
    bad, good = score(shot, tone, rewards=(LOUD,))
    assert "judged by none" in bad["error"] and good["loudness"] == pytest.approx(0.5)


def test_the_prompt_that_a_file_carries_is_used_unless_another_is_given(tmp_path):
    reward = f"{{starter_clip: {{model: {small_settings('starter_clip')['model']}}}}}"
    media.write_media(media_for(REWARDS["clip"].spec, 1), tmp_path / "x.png", meta={"prompt": "a red circle"})
    (embedded,), (same,), (other,) = (
        score(tmp_path / "x.png", rewards=(reward,), prompt=prompt) for prompt in (None, "a red circle", "a cat")
    )
    assert (
        embedded["prompt"] == "a red circle"
        and embedded["starter_clip"] == same["starter_clip"] != other["starter_clip"]
    )


def test_the_prompt_of_a_file_is_the_text_beside_it_or_what_another_program_wrote_into_it(tmp_path):
    def with_texts(name, **texts):
        info = PngInfo()
        for key, text in texts.items():
            info.add_text(key, text)
        return picture(tmp_path / name, pnginfo=info)

    graph = '{"1": {"class_type": "KSampler", "inputs": {"positive": ["2", 0]}}, "2": {"class_type": "CLIPTextEncode", '
    paths = [
        with_texts("a1111.png", parameters="a red circle\nSteps: 20, Seed: 1"),
        with_texts("beside.png", parameters="a red circle"),
        with_texts("comfy.png", prompt=graph + '"inputs": {"text": "a red circle"}}}'),
        with_texts("empty.png", prompt=graph + '"inputs": {}}}'),
        with_texts("none.png", workbench="[1,2]"),
    ]
    (tmp_path / "beside.txt").write_text("two blue\nsquares\n")
    rows = score(*paths)
    circle = "a red circle"
    assert [row["prompt"] for row in rows] == [circle, "two blue squares", circle, None, None]
    assert [row["brightness"] for row in rows] == [1.0] * 5, "what needs no prompt is scored without one"
    assert rows[0]["note"] == "prompt from the file (AUTOMATIC1111)" and rows[1]["note"] == "prompt from beside.txt"
    assert "no text that reaches what samples" in rows[3]["note"] and rows[4]["note"] == ""
    with pytest.raises(BadInput, match="the file carries none; give --prompt TEXT, --prompts FILE, or none.txt beside"):
        score(paths[4], rewards=("starter_clip",))


@pytest.mark.parametrize(("modality", "shape"), [("image", (3, 8, 8)), ("video", (2, 3, 8, 8)), ("audio", (1, 800))])
def test_the_prompt_that_the_workbench_wrote_is_read_from_every_kind_of_file(tmp_path, modality, shape):
    path = media.write_media(
        Media(torch.rand(1, *shape), modality, 8.0), tmp_path / "x", meta={"prompt": "a [red] circle"}
    )
    (row,) = score(path, rewards=(LOUD if modality == "audio" else "brightness",))
    assert row["prompt"] == "a [red] circle"


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        (["brightnes"], "did you mean 'brightness'"),
        (["{compressibility: {qualty: 3}}"], "did you mean 'quality'"),
        (["{compressibility: fast}"], "a weight is a finite number"),
        (["{compressibility: {"], "not valid YAML"),
        (["brightness", "brightness"], "named twice"),
        (["{aesthetic: {weights: ./nowhere.pth}}"], "no weights file"),
    ],
)
def test_a_reward_that_can_not_be_is_bad_input_before_any_file_is_read(tmp_path, reward, says):
    with pytest.raises(BadInput, match=says):
        score(tmp_path / "nowhere.png", rewards=reward)


def test_settings_and_labels_are_taken_as_in_a_run(tmp_path):
    noise = media.write_media(Media(torch.rand(1, 3, 16, 16), "image"), tmp_path / "x.png")
    (row,) = score(noise, rewards=("compressibility", "{coarse: {reward: compressibility, quality: 5}}"))
    assert row["coarse"] > row["compressibility"]


def test_a_reward_of_sets_judges_all_files_together_in_a_row_of_its_own(tmp_path):
    for i, colour in enumerate(("red", "red", "blue")):
        picture(tmp_path / f"{i}.png", colour=colour, size=(64, 64))
    small = small_settings("clip")["model"]
    *each, set_row = score(tmp_path, rewards=(f"{{vendi: {{model: {small}}}}}", "brightness"))
    assert [row["vendi"] for row in each] == [None] * 3 and set_row["file"] == "all together"
    assert 1.0 < set_row["vendi"] < 3.0 and set_row["brightness"] is None and not set_row["error"]
    (tmp_path / "2.png").unlink()
    assert score(tmp_path, rewards=(f"{{vendi: {{model: {small}}}}}",))[-1]["vendi"] == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(BadInput, match="compares with examples"):
        score(tmp_path, rewards=(f"{{frechet: {{model: {small}}}}}",))


# Clips


def test_a_clip_is_written_without_loss_and_its_story_and_equal_frames_come_back(tmp_path):
    frames = media.quantise_media(Media(torch.rand(1, 5, 3, 8, 12), "video", 24.0))
    frames.data[:, 1:4] = frames.data[:, :1]
    path = media.write_media(frames, tmp_path / "clip", meta={"prompt": "rain", "seed": 3})
    loaded = media.inspect_media(path)
    assert path.suffix == ".apng" and loaded.media.modality == "video" and loaded.media.rate == 24.0
    assert torch.equal(loaded.media.data, frames.data) and loaded.story == {"prompt": "rain", "seed": 3}
    assert media.encode_apng(frames) == media.encode_apng(frames) and b"rain" not in media.encode_apng(frames)
    (tmp_path / "frame.png").write_bytes(media.encode_thumbnail(path, side=12))
    assert torch.equal(media.read_media(tmp_path / "frame.png").data, frames.data[:, 2])


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_of_other_programs_are_clips_at_their_rate(tmp_path, suffix):
    """Their encoders join equal frames into one that lasts longer."""
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "red", "blue", "lime")]
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:], duration=100)
    loaded = media.inspect_media(tmp_path / f"x{suffix}").media
    assert loaded.data.shape == (1, 4, 3, 8, 8) and loaded.rate == 10.0
    assert loaded.data[0, :, 2].amax((1, 2)).round().tolist() == [0, 0, 1, 0]


def test_films_and_compressed_sounds_are_read_by_pyav(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(tmp_path / "x.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=12)
        stream.width = stream.height = 32
        for level in (0, 128, 255):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8))))
        file.mux(stream.encode())
    loaded = media.inspect_media(tmp_path / "x.mp4").media
    assert loaded.data.shape == (1, 3, 3, 32, 32) and loaded.rate == 12.0
    assert loaded.data.mean((0, 2, 3, 4)).tolist() == pytest.approx([0, 0.5, 1], abs=0.05)
    with av.open(str(tmp_path / "x.flac"), "w") as file:
        stream = file.add_stream("flac", rate=8000, layout="mono")
        samples = (np.sin(np.arange(8000) / 5) * 16000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.rate = 8000
        file.mux(stream.encode(frame)), file.mux(stream.encode())
    (row,) = score(tmp_path / "x.flac", rewards=(LOUD,))
    assert row["loudness"] == pytest.approx(16000 / 32768 / 2**0.5, rel=0.01)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "x.mp4").read_bytes()[:100])
    with pytest.raises(BadInput, match=r"cut\.mp4: can't be read as a clip"):
        media.inspect_media(tmp_path / "cut.mp4")


# The doctor's test of rewards


class Flat:
    """Gives everything the same score."""

    spec = RewardSpec("flat", "1", frozenset({"image"}), differentiable=False)

    def __call__(self, *, media, prompts, references=None):
        return torch.full((len(media),), 0.7)


class Contrary:
    """The starter's CLIP, turned round: likes pictures that don't fit their prompts."""

    spec = RewardSpec("contrary", "1", frozenset({"image"}), differentiable=False, needs=frozenset({"prompt"}))

    def __call__(self, *, media, prompts, references=None):
        return -build("starter_clip")(media=media, prompts=prompts)


class Lost(Flat):
    """Says nothing of anything."""

    def __call__(self, *, media, prompts, references=None):
        return torch.full((len(media),), torch.nan)


class Absent(Flat):
    spec = RewardSpec("absent", "1", frozenset({"image"}), False, weights="nobody/nothing-of-the-kind + starter:x")


class Torn(Flat):
    def __call__(self, *, media, prompts, references=None):
        raise RuntimeError("torn\nto pieces")


@pytest.mark.parametrize(
    ("cls", "state", "says"),
    [
        (Flat, "broken", "zero variance: gives 0.7 to everything"),
        (Contrary, "broken", "each other's"),
        (Lost, "broken", "no score for 8 of 8"),
        (Torn, "broken", "RuntimeError: torn"),
        (Absent, "missing", "nobody/nothing-of-the-kind"),
        (REWARDS["starter_clip"], "ok", "each other's"),
        (REWARDS["brightness"], "ok", "over 8 test media"),
        (REWARDS["saturated_pixels"], "ok", "over 8 test media"),
        (Loudness, "ok", "over 7 of 8 test media"),
        (REWARDS["imagereward"], "missing", "THUDM/ImageReward"),
    ],
)
def test_the_doctor_tells_a_good_reward_from_a_bad_one_and_from_one_that_is_not_there(
    cls, state, says, monkeypatch, tmp_path
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert doctor.examine_reward(cls)[0] == state and says in doctor.examine_reward(cls)[1]


def test_a_reward_whose_weights_lie_in_the_hubs_cache_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert not doctor.is_cached("some/weights")
    (tmp_path / "models--some--weights" / "snapshots" / "abc").mkdir(parents=True)
    assert doctor.is_cached("some/weights")
    assert doctor.hub_repositories(REWARDS["aesthetic"].spec) == [
        "trl-lib/ddpo-aesthetic-predictor",
        "openai/clip-vit-large-patch14",
    ]


# A reward block, as runs have it


def test_a_block_that_says_how_rewards_make_one_has_the_whole_beside_them(tmp_path):
    path = picture(tmp_path / "a.png", colour=(200, 100, 50))
    worst = "{brightness: 1.0, contrast: 1.0, combine: worst}"
    (row,) = score(path, rewards=[worst])
    assert row["reward"] == pytest.approx(min(row["brightness"], row["contrast"]), abs=1e-5)
    nested = "{both: {reward: {brightness: 1.0, contrast: 2.0}, weight: 3.0}, sharpness: 0.5}"
    (row,) = score(path, rewards=[nested])
    brightness, contrast = (score(path, rewards=[name])[0][name] for name in ("brightness", "contrast"))
    assert row["both"] == pytest.approx(brightness + 2 * contrast, abs=1e-6)
    assert row["reward"] == pytest.approx(3 * row["both"] + 0.5 * row["sharpness"], abs=1e-6)
    (tmp_path / "block.yaml").write_text(f"reward: {worst}\n")
    assert score(path, rewards=[str(tmp_path / "block.yaml")]) == score(path, rewards=[worst])
    assert "reward" not in score(path, rewards=["{brightness: 1.0, contrast: {weight: 1}}"])[0]


MINE = """
import torch
from dataclasses import dataclass
from workbench.core.types import RewardSpec

@dataclass(frozen=True)
class Warm:
    strength: float = 1.0
    spec = RewardSpec("warm", "1", frozenset({"image"}), differentiable=True)

    def __call__(self, *, media, prompts, references=None):
        red, _, blue = media.data.flatten(2).mean(2).unbind(1)
        return self.strength * (red - blue)
"""


def test_a_reward_in_a_file_of_ones_own_is_named_by_its_path(tmp_path, monkeypatch):
    from workbench.engine.plan import plan_run
    from workbench.runs.config import RunConfig

    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("raise SystemExit('not today\\nnor tomorrow')")
    path = picture(tmp_path / "a.png", colour=(255, 0, 0))
    monkeypatch.chdir(tmp_path)
    for name in ("./mine.py:Warm", "mine.py:Warm", f"{tmp_path}/mine.py:Warm"):
        assert score(path, rewards=[name])[0]["warm"] == pytest.approx(1.0)
    assert score(path, rewards=['{"./mine.py:Warm": {strength: 2}}'])[0]["warm"] == pytest.approx(2.0)
    run = RunConfig(pipeline="starter-image", reward="./mine.py:Warm", prompts=["a"], method="best_of_n", name="x")
    assert list(plan_run(run).reward.rewards) == ["warm"]
    for name, says in {
        "./mine.py:Cold": "has no attribute 'Cold'",
        "./nowhere.py:Warm": "nowhere.py: no such file",
        "./broken.py:Warm": "can't import './broken.py:Warm': not today nor tomorrow",
        "mine:Warm": "No module named 'mine'; a file is given by its path",
        ".mine:Warm": "can't import",
        "./mine.py:torch": "is no reward",
    }.items():
        with pytest.raises(BadInput, match=says):
            score(path, rewards=[name])
