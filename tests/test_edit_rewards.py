"""Rewards of what is made from a source: closed forms, judges of edits, and the inputs that come with prompts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from dataclasses import dataclass

import pytest
import torch
from judge_server import completion, greys, judge, level, pictures, user_turn
from reward_fixtures import serving, small_settings

import workbench
from rewards import build, build_reward
from rewards.baseline import BaselineScores
from rewards.latent_training import collect_samples
from rewards.remote import TOKEN
from rewards.sets.set_credit import LeaveOneOut
from rewards.sets.vendi import Vendi
from rewards.vlm.judge_named import EditScore, UnifiedRewardEdit, UnifiedRewardEditPairs, UnifiedRewardEditQuality
from rewards.vlm.judge_pairs import JudgePairs
from workbench import cli
from workbench.core.errors import BadInput
from workbench.core.finite import score_finite
from workbench.core.inputs import MediaInput, stack_sources
from workbench.core.io import media as media_files
from workbench.core.types import Media, Prompt, RewardSpec
from workbench.engine import run
from workbench.engine.plan import plan_run
from workbench.evaluation import scoring
from workbench.runs import config, run_inputs, store
from workbench.tools import reward_server


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """In 256 steps, as files hold them."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).float() / 255


def edit(text: str, **inputs: torch.Tensor | Media) -> Prompt:
    """A prompt with pictures [3,H,W], or media, under their names."""
    rows = {n: x if isinstance(x, Media) else Media(x[None], "image") for n, x in inputs.items()}
    return Prompt(text, {name: MediaInput.of(row) for name, row in rows.items()})


def score(reward, media: Media, prompts) -> torch.Tensor:
    return build_reward({"it": {"reward": reward}} if isinstance(reward, str) else reward)(media=media, prompts=prompts)


# The closed forms


def test_unchanged_is_minus_the_squared_difference_from_each_samples_own_source():
    x, sources = noise(2, 3, 6, 8), noise(2, 3, 6, 8, seed=1)
    prompts = [edit("make it red", source=s) for s in sources]
    scores = score("unchanged", Media(x, "image"), prompts)
    torch.testing.assert_close(scores, -(x - sources).square().flatten(1).mean(1))
    torch.testing.assert_close(score("unchanged", Media(sources, "image"), prompts), torch.zeros(2))
    swapped = score("unchanged", Media(x, "image"), prompts[::-1])
    torch.testing.assert_close(swapped, -(x - sources.flip(0)).square().flatten(1).mean(1))


def test_background_looks_only_where_the_mask_is_black():
    source, x = noise(3, 6, 8), noise(3, 6, 8, seed=1)
    mask = torch.zeros(3, 6, 8)
    mask[:, :, 5:] = 1
    half = source.clone()
    half[:, :, 5:] = x[:, :, 5:]
    prompts = [edit("paint it", source=source, mask=mask)] * 2
    scores = score("background", Media(torch.stack([half, x]), "image"), prompts)
    expected = -(x - source)[:, :, :5].square().mean()
    torch.testing.assert_close(scores, torch.stack([torch.tensor(0.0), expected]))
    everything = edit("paint it", source=source, mask=torch.ones(3, 6, 8))
    assert score("background", Media(x[None], "image"), [everything]).isnan().all()


def test_one_mask_serves_all_frames_of_a_clip():
    clip, source = noise(1, 4, 3, 6, 8), noise(1, 4, 3, 6, 8, seed=1)
    mask = torch.zeros(3, 6, 8)
    mask[:, :3] = 1
    prompt = edit("p", source=Media(source, "video", 8.0), mask=mask)
    scores = score("background", Media(clip, "video", 8.0), [prompt])
    torch.testing.assert_close(scores, -(clip - source)[..., 3:, :].square().flatten(1).mean(1))


def test_a_first_frame_is_measured_in_decibels_and_the_last_one_on_request():
    clip, first = noise(1, 3, 3, 4, 4), noise(3, 4, 4, seed=1)
    prompt = edit("it moves", first=first, last=clip[0, -1])
    ratio = -10 * math.log10((clip[0, 0] - first).square().mean().item() + 1e-6)
    assert score("first_frame", Media(clip, "video", 8.0), [prompt]).item() == pytest.approx(ratio, rel=1e-5)
    last = build("first_frame", frame="last")
    assert last.spec.needs == {"last"}
    assert last(media=Media(clip, "video", 8.0), prompts=[prompt]).item() == pytest.approx(60.0, abs=1e-3)


def test_identity_is_the_cosine_with_the_source_and_of_a_clip_the_mean_of_its_frames():
    settings = small_settings("identity")
    reward = build("identity", **settings)
    encoder = reward.load()
    x, source = noise(3, 3, 32, 32), noise(3, 3, 32, 32, seed=1)
    a, b = (encoder.embed_images(y) for y in (x, source))
    prompts = [edit("p", source=s) for s in source]
    torch.testing.assert_close(
        score({"i": {"reward": "identity", **settings}}, Media(x, "image"), prompts), (a * b).sum(1)
    )
    clip = edit("p", source=Media(source[None], "video", 8.0), first=source[0])
    whole = score({"i": {"reward": "identity", **settings}}, Media(x[None], "video", 8.0), [clip])
    torch.testing.assert_close(whole, (a * b).sum(1).mean(0, keepdim=True))
    to_first = build("identity", to="first", **settings)
    assert to_first.spec.needs == {"first"} and to_first.spec.modalities == {"video"}
    kept = to_first(media=Media(x[None], "video", 8.0), prompts=[clip])
    torch.testing.assert_close(kept, (a @ b[0]).mean()[None])


def test_directional_similarity_compares_the_change_of_picture_and_text_by_hand(tmp_path):
    settings = small_settings("directional_clip")
    x, source = noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)
    media_files.write_media(Media(source[:1], "image"), tmp_path / "one")
    rows = [
        {"prompt": "make it a cat", "source": "one.png", "source_prompt": "a dog", "target_prompt": "a cat"},
        {"prompt": "make it a cat", "source_prompt": "a red circle", "target_prompt": "two cat"},
    ]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reward = build("directional_clip", captions=str(tmp_path / "edits.jsonl"), **settings)
    digest = media_files.file_digest(tmp_path / "one.png")
    prompts = [edit("make it a cat", source=s) for s in source]
    assert prompts[0].inputs["source"].digest == digest, "media in memory are known as the file that holds them"
    scores = build_reward({"d": {"reward": "directional_clip", "captions": str(tmp_path / "edits.jsonl"), **settings}})(
        media=Media(x, "image"), prompts=prompts
    )
    encoder = reward.load()
    image = encoder.embed_images(x) - encoder.embed_images(source)
    text = encoder.embed_texts(["a cat", "two cat"]) - encoder.embed_texts(["a dog", "a red circle"])
    torch.testing.assert_close(scores, torch.cosine_similarity(image, text), rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match=r"edits.jsonl has no line for the prompt 'make it red'"):
        reward.check_prompts([edit("make it red", source=source[0])])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "p"}', "line 1: needs texts under the keys prompt and source_prompt"),
        ('{"prompt": "p", "source_prompt": "a"}\n{"prompt": "p", "source_prompt": "b"}', "line 2: the same prompt has"),
        ("", "has no line in it"),
    ],
)
def test_captions_that_cannot_be_used_are_refused_with_their_line(tmp_path, line, says):
    (tmp_path / "c.jsonl").write_text(line)
    with pytest.raises(BadInput, match=says):
        build("directional_clip", captions=str(tmp_path / "c.jsonl"))


def test_a_sound_is_nearest_to_its_own_source():
    time = torch.arange(8000) / 8000
    sounds = torch.stack([torch.sin(2 * torch.pi * f * time) / 2 for f in (200.0, 1500.0)])[:, None]
    prompts = [edit("louder", source=Media(s[None], "audio", 8000.0)) for s in sounds]
    block = {"a": {"reward": "audio_identity", "model": "logmel"}}
    own, other = (score(block, Media(sounds, "audio", 8000.0), p) for p in (prompts, prompts[::-1]))
    torch.testing.assert_close(own, torch.ones(2), atol=1e-4, rtol=0)
    assert (other < own - 0.01).all()


# Where sources come from


@dataclass(frozen=True)
class Recorder:
    """Somebody else's reward, which only says that it needs `source`."""

    spec = RewardSpec("recorder", "1", frozenset({"image", "video", "audio"}), False, needs=frozenset({"source"}))

    def __call__(self, *, media, prompts, references=None):
        assert references.data.shape == media.data.shape and references.modality == media.modality
        return references.data.flatten(1).mean(1)


def test_a_source_arrives_in_the_size_of_the_sample_and_with_its_row():
    levels = [0.2, 0.6, 0.8]
    prompts = [edit("p", source=torch.full((3, 20, 30), v)) for v in levels]
    reward = build_reward({"r": {"reward": "test_edit_rewards:Recorder"}})
    for order in itertools.permutations(range(3)):
        scores = reward(media=greys(*[0.5] * 3), prompts=[prompts[n] for n in order])
        assert scores.tolist() == pytest.approx([levels[n] for n in order], abs=0.003)
    given = reward(media=greys(0.5), prompts=["p"], references=greys(0.3))
    assert given.item() == pytest.approx(0.3), "what is given explicitly counts"
    nested = build_reward({"both": {"reward": {"test_edit_rewards:Recorder": 1.0}}, "brightness": 1.0})
    assert nested(media=greys(0.5), prompts=prompts[:1]).item() == pytest.approx(0.7, abs=0.003)


def test_a_sample_that_is_not_finite_costs_its_own_row_and_no_source_is_out_of_step():
    prompts = [edit("p", source=torch.full((3, 8, 8), v)) for v in (0.2, 0.6, 0.8)]
    media = greys(0.5, 0.5, 0.5)
    media.data[1] = torch.nan
    reward = Recorder()
    scores = score_finite(reward, media=media, prompts=prompts, references=stack_sources(reward, media, prompts))
    assert scores.isnan().tolist() == [False, True, False]
    assert scores[[0, 2]].tolist() == pytest.approx([0.2, 0.8], abs=0.003)
    whole = score_finite(build_reward("test_edit_rewards:Recorder"), media=media, prompts=prompts)
    torch.testing.assert_close(whole, scores, equal_nan=True)


CLIP = Media(torch.zeros(1, 2, 3, 8, 8), "video", 8.0)
SOUND = Media(torch.zeros(1, 1, 400), "audio", 8000.0)


@pytest.mark.parametrize(
    ("media", "source", "says"),
    [
        (greys(0.5), None, "'make it red': this prompt comes without a source; give one with each prompt"),
        (greys(0.5), CLIP, "compares image with what it was made from, and got video"),
        (greys(0.5), SOUND, "compares image with what it was made from, and got audio"),
        (SOUND, greys(0.5), "compares audio with what it was made from, and got image"),
        (CLIP, greys(0.5), "compares video with what it was made from, and got image"),
        (Media(torch.zeros(1, 5, 3, 8, 8), "video", 8.0), CLIP, "a clip of 2 frames can't be compared with one of 5"),
    ],
)
def test_a_source_that_is_missing_or_of_another_kind_is_one_sentence(media, source, says):
    prompt = "make it red" if source is None else edit("make it red", source=source)
    with pytest.raises(BadInput, match=says):
        build_reward("test_edit_rewards:Recorder")(media=media, prompts=[prompt])


def test_a_source_of_another_size_is_refused_where_it_is_given_by_hand():
    with pytest.raises(BadInput, match="3x8x8 and 3x6x6 of sample and source can't be compared"):
        build("unchanged")(media=greys(0.5), prompts=[""], references=greys(0.5, size=6))


def test_what_cannot_see_a_source_refuses_rewards_that_compare_with_one(tmp_path):
    with pytest.raises(BadInput, match="identity compares with the source of a whole clip; name it without frames"):
        build("frames", of={"identity": small_settings("identity")})
    with pytest.raises(BadInput, match="latent reward: unchanged compares with the source of a sample"):
        collect_samples(None, {"unchanged": build("unchanged")}, ["p"], tmp_path)


def test_diversity_counts_within_one_source():
    """Edits of two sources by one instruction: of each source two that are alike. Over all four they look diverse."""
    reward = LeaveOneOut(of=Vendi(**small_settings("vendi")), per="prompt")
    x = noise(2, 3, 32, 32).repeat_interleave(2, 0)
    prompts = [edit("make it red", source=s) for s in noise(2, 3, 32, 32, seed=1).repeat_interleave(2, 0)]
    apart = reward(media=Media(x, "image"), prompts=prompts)
    torch.testing.assert_close(apart, torch.zeros(4), atol=1e-3, rtol=0)
    together = reward(media=Media(x, "image"), prompts=[str(p) for p in prompts])
    assert not torch.allclose(together, apart, atol=1e-3)


def test_base_scores_of_one_instruction_are_kept_apart_by_source(tmp_path):
    prompts = [edit("make it red", source=torch.full((3, 8, 8), v)) for v in (0.2, 0.6)]
    measured = BaselineScores.measure(build_reward("test_edit_rewards:Recorder"), [(greys(0.5, 0.5), prompts)])
    measured.write(tmp_path / "base.json")
    read = BaselineScores.read(tmp_path / "base.json")
    found = [read.for_prompt("recorder", p).item() for p in prompts]
    assert found == pytest.approx([0.2, 0.6], abs=0.003)
    with pytest.raises(BadInput, match="no base scores of recorder for the prompt 'make it red'"):
        read.for_prompt("recorder", "make it red")


def test_a_served_reward_gets_sources_and_masks_too(monkeypatch):
    monkeypatch.setenv(TOKEN, "secret-of-this-test")
    served = {"background": build("background"), "brightness": build("brightness")}
    url = serving(reward_server.create_app(served, "secret-of-this-test"))
    x, source = noise(2, 3, 6, 8), noise(2, 3, 12, 16, seed=1)
    mask = torch.zeros(3, 12, 16)
    mask[:, :, 8:] = 1
    prompts = [edit("paint it", source=s, mask=mask) for s in source]
    media = Media(x, "image")
    remote = build_reward({"r": {"reward": "remote", "names": ["background"], "url": url}})
    assert remote.spec.needs == {"source", "mask"}
    torch.testing.assert_close(
        remote(media=media, prompts=prompts), score("background", media, prompts), atol=1e-5, rtol=0
    )
    with pytest.raises(BadInput, match="comes without a mask"):
        remote(media=media, prompts=[edit("paint it", source=s) for s in source])
    with pytest.raises(BadInput, match="says: .*background needs the source of each sample as references"):
        remote.rewards["r"](media=media, prompts=prompts)


# Judges of edits


def answer_marks(*marks: float) -> dict:
    return completion(json.dumps({"reasoning": "so", "score": marks}))


def test_editscore_asks_as_published_byte_for_byte(serve):
    """Turns, labels, order of the pictures and sampling are its authors'; their words can be given as `wording`."""
    server = serve(lambda body, n: answer_marks(20, 10))
    reward = judge(server, EditScore, passes=1, wording=("Edit: {prompt}", "Look."))
    prompt = edit("make it snow", source=torch.full((3, 8, 8), 0.8))
    assert build_reward_of(reward)(media=greys(0.2), prompts=[prompt]).item() == pytest.approx(4.0)
    bodies = sorted(server.bodies, key=lambda body: -len(pictures(body)))
    source, result = pictures(bodies[0])
    assert [round(level(uri), 1) for uri in (source, result)] == [0.8, 0.2]

    def request(*content):
        return {
            "model": "judge",
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": list(content)},
            ],
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 20,
            "max_tokens": 512,
            "seed": 42,
        }

    def text(words):
        return {"type": "text", "text": words}

    def image(uri):
        return {"type": "image_url", "image_url": {"url": uri}}

    expected = [
        request(text("<img1>: "), image(source), text("<img2>: "), image(result), text("Edit: make it snow")),
        request(text("<img1>: "), image(result), text("Look.")),
    ]
    assert [json.dumps(b, sort_keys=True) for b in bodies] == [json.dumps(b, sort_keys=True) for b in expected]


def build_reward_of(reward):
    from rewards.compose import WeightedReward

    return WeightedReward({reward: 1.0})


def test_an_endpoint_that_knows_no_top_k_is_not_sent_it(serve):
    server = serve(lambda body, n: answer_marks(25, 25))
    judge(server, EditScore, passes=1, top_k=0, top_p=1.0)(media=greys(0.2), prompts=["p"], references=greys(0.8))
    assert not {"top_k", "top_p"} & set(server.bodies[0])


@pytest.mark.parametrize(
    ("cls", "shown", "names"),
    [
        (UnifiedRewardEdit, [0.8, 0.2], ["success", "overediting"]),
        (UnifiedRewardEditQuality, [0.2], ["naturalness", "artefacts"]),
    ],
)
def test_unified_reward_edit_is_the_mean_of_two_marks_up_to_25(serve, cls, shown, names):
    server = serve(lambda body, n: answer_marks(25, 10))
    reward = judge(server, cls)
    prompt = edit("make it snow", source=torch.full((3, 8, 8), 0.8))
    assert build_reward_of(reward)(media=greys(0.2), prompts=[prompt]).item() == 17.5
    (body,) = server.bodies
    assert [round(level(uri), 1) for uri in pictures(body)] == shown
    assert [m["role"] for m in body["messages"]] == ["user"] and body["max_tokens"] == 4096
    assert [part["type"] for part in user_turn(body)] == ["image_url"] * len(shown) + ["text"]
    assert list(reward.last_dimensions) == names


@pytest.mark.parametrize("cls", [UnifiedRewardEditPairs, JudgePairs])
def test_edits_of_one_source_meet_in_both_orders_after_their_source(serve, cls):
    def answer(body, n):
        source, first, second = (level(uri) for uri in pictures(body))
        assert source == pytest.approx(0.4, abs=0.01) or source == pytest.approx(0.6, abs=0.01)
        better = 1 if first > second else 2
        return completion(f"Edited image {better} is better\nWinner: {better}")

    server = serve(answer)
    preset = {} if cls is UnifiedRewardEditPairs else {"preset": "pairs_edit"}
    sources = [torch.full((3, 8, 8), v) for v in (0.4, 0.4, 0.6, 0.6)]
    prompts = [edit("make it snow", source=s) for s in sources]
    scores = build_reward_of(judge(server, cls, **preset))(media=greys(0.1, 0.9, 0.3, 0.2), prompts=prompts)
    assert scores.tolist() == [0, 1, 1, 0] and len(server.bodies) == 4


# Files that are scored


@pytest.fixture
def edits(tmp_path):
    """Two results, their sources under the same names, and half masks."""
    for folder, levels in (("out", (0.2, 0.4)), ("in", (0.3, 0.8))):
        (tmp_path / folder).mkdir()
        for name, value in zip("ab", levels, strict=True):
            media_files.write_media(greys(value), tmp_path / folder / name)
    mask = torch.zeros(1, 3, 8, 8)
    mask[..., 4:] = 1
    media_files.write_media(Media(mask, "image"), tmp_path / "mask")
    return tmp_path


OWN = [-0.01, -0.16]  # of a from a, of b from b


def unchanged(edits, **how) -> list[float]:
    rows = scoring.score_files([edits / "out"], ["unchanged"], **how)
    assert not any(row["error"] for row in rows), rows
    return [row["unchanged"] for row in rows]


def test_files_meet_their_sources_by_name_by_order_or_all_the_same_one(edits):
    assert unchanged(edits, source=edits / "in") == pytest.approx(OWN, abs=0.004)
    (edits / "in" / "a.png").rename(edits / "in" / "x.png")  # after b: in their order
    crossed = [-(0.6**2), -(0.1**2)]
    assert unchanged(edits, source=edits / "in") == pytest.approx(crossed, abs=0.006)
    assert unchanged(edits, source=edits / "in" / "b.png") == pytest.approx([-(0.6**2), -(0.4**2)], abs=0.006)


def test_a_prompt_file_says_what_each_file_was_made_from(edits):
    rows = [
        {"prompt": "darker", "file_name": "out/b.png", "source": "in/b.png", "mask": "mask.png"},
        {"prompt": "darker", "file_name": "out/a.png", "source": "in/a.png", "mask": "mask.png"},
    ]
    path = edits / "edits.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    scores = scoring.score_files([edits / "out"], ["unchanged", "background"], prompts=str(path))
    assert [row["prompt"] for row in scores] == ["darker", "darker"]
    assert [row["background"] for row in scores] == pytest.approx(OWN, abs=0.004)
    path.write_text("\n".join(json.dumps({**row, "file_name": None}) for row in rows[::-1]))
    assert unchanged(edits, prompts=str(path)) == pytest.approx(OWN, abs=0.004), "without names, in order"


def test_a_source_that_cannot_be_read_costs_its_row(edits):
    (edits / "in" / "a.png").write_bytes(b"no picture")
    rows = [{"prompt": "p", "source": f"in/{name}.png"} for name in "ab"]
    (edits / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = scoring.score_files([edits / "out"], ["unchanged"], prompts=str(edits / "edits.jsonl"))
    assert first["unchanged"] is None and "edits.jsonl, line 1" in first["error"]
    assert second["unchanged"] == pytest.approx(OWN[1], abs=0.004) and not second["error"]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({}, "needs the source of .*a.png; give --source FILE, or --prompts FILE.jsonl with a key `source`"),
        ({"source": "in/a.png", "prompts": "edits.jsonl"}, "both say the sources"),
        ({"source": "nowhere.png"}, "nowhere.png: no such file"),
        ({"source": "three"}, "three holds 3 media for 2 files, and none is called like 'a.png'"),
        ({"prompts": "edits.jsonl", "prompt": "p"}, "both say the prompts"),
        ({"prompts": "three.jsonl"}, "3 rows for 2 files; say which belongs to which in a column `file_name`"),
        ({"prompts": "named.jsonl"}, "no row of .*named.jsonl has the file_name a.png"),
    ],
)
def test_what_does_not_say_the_sources_is_one_sentence(edits, how, says):
    (edits / "three").mkdir()
    for name in "xyz":
        media_files.write_media(greys(0.5), edits / "three" / name)
    row = {"prompt": "p", "source": str(edits / "in" / "a.png")}
    lines = {"edits": [row], "three": [{**row, "prompt": p} for p in "pqr"], "named": [{**row, "file_name": "z.png"}]}
    for name, part in lines.items():
        (edits / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    places = {key: value if key == "prompt" else edits / value for key, value in how.items()}
    places |= {"prompts": str(places["prompts"])} if "prompts" in places else {}
    with pytest.raises(BadInput, match=says):
        scoring.score_files([edits / "out"], ["unchanged"], **places)


def test_a_source_that_no_reward_compares_with_is_refused(edits):
    with pytest.raises(BadInput, match="none of these rewards compares with a source"):
        scoring.score_files([edits / "out"], ["brightness"], source=edits / "in")


def test_the_command_takes_sources_and_says_what_is_missing(edits, capsys):
    command = ["score", str(edits / "out"), "--reward", "unchanged"]
    assert cli.main([*command, "--source", str(edits / "in"), "--json"]) == 0
    assert [r["unchanged"] for r in json.loads(capsys.readouterr().out)] == pytest.approx(OWN, abs=0.004)
    assert cli.main(command) == 2
    assert "--source FILE" in capsys.readouterr().err


def test_a_runs_own_samples_need_no_sources_named(edits):
    """A file remembers the digests of what it was made from, and the run's folder keeps these."""
    prompt = edit("darker", source=torch.full((3, 8, 8), 0.6))
    run_inputs.store_inputs(edits / "run", [prompt])
    folder = edits / "run" / "media" / "base"
    folder.mkdir(parents=True)
    meta = {"prompt": "darker", **run_inputs.record_inputs(prompt)}
    path = media_files.write_media(greys(0.2), folder / "0000-0", meta=meta)
    (row,) = scoring.score_files([path], ["unchanged"])
    assert row["unchanged"] == pytest.approx(-(0.4**2), abs=0.005) and row["prompt"] == "darker"
    (same,) = workbench.score(str(path), "unchanged")
    assert same["unchanged"] == pytest.approx(row["unchanged"], abs=1e-6)


def test_python_scores_edits_by_sources_or_by_prompts_with_inputs(edits):
    media, sources = greys(0.2, 0.4), greys(0.3, 0.8)
    rows = workbench.score(media, "unchanged", sources=sources)
    assert [row["unchanged"] for row in rows] == pytest.approx(OWN, abs=0.004)
    prompts = [{"prompt": "p", "source": edits / "in" / f"{n}.png", "mask": edits / "mask.png"} for n in "ab"]
    rows = workbench.score(media, ["background"], prompts=prompts)
    assert [row["background"] for row in rows] == pytest.approx(OWN, abs=0.004)
    with pytest.raises(BadInput, match="reward unchanged needs the source of every sample; give sources="):
        workbench.score(media, "unchanged")
    with pytest.raises(BadInput, match="sources: 3 for 2 media"):
        workbench.score(media, "unchanged", sources=greys(0.1, 0.2, 0.3))
    with pytest.raises(BadInput, match="unknown key 'sorce'; did you mean 'source'"):
        workbench.score(media, "unchanged", prompts=[{"sorce": 1}] * 2)


# In a run


def plan_edits(folder, **change):
    """Two pictures and one text, on a pipeline that makes its samples from the text alone."""
    levels = {"dark.png": 0.1, "light.png": 0.9}
    for name, value in levels.items():
        media_files.write_media(greys(value, size=64), folder / name.removesuffix(".png"))
    lines = [json.dumps({"prompt": "a red circle", "source": name}) for name in levels]
    (folder / "edits.jsonl").write_text("\n".join(lines))
    block = {"pipeline": "starter-image", "prompts": str(folder / "edits.jsonl"), "name": "edits"}
    block |= {"contestants": {"base": "sample", "best_of_n": {"n": 2}}, "reward": "unchanged", "samples_per_prompt": 2}
    return plan_run(config.check_config(config.build_dataclass(config.RunConfig, block | change, "test")))


def test_a_run_scores_each_sample_by_its_own_source_and_pairs_against_the_base(tmp_path, serve):
    server = serve(lambda body, n: completion("Winner: 1"))
    identity = {"reward": "identity", "model": "starter:image/clip"}
    pairs = {"reward": "judge_pairs", "url": server.url, "model": "judge"}
    plan = plan_edits(tmp_path, watch={"identity": identity, "pairs": pairs})
    folder = store.RunFolder.open(tmp_path / "runs", "edits", dataclasses.asdict(plan.config), fresh=True)
    for _ in run.execute_run(plan, folder):
        pass
    samples = {e["contestant"]: e["samples"] for e in folder.events() if e.get("final")}
    assert set(samples) == {"base", "best_of_n"}
    for sample in itertools.chain(*samples.values()):
        x = media_files.read_media(folder.path / sample["file"]).data
        level = (0.1, 0.9)[sample["index"]]
        assert sample["scores"]["unchanged"] == pytest.approx(-(x - level).square().mean().item(), abs=0.005)
    means = {name: sum(s["scores"]["unchanged"] for s in rows) for name, rows in samples.items()}
    assert means["best_of_n"] >= means["base"]
    assert all(s["scores"]["pairs"] == 0.5 for rows in samples.values() for s in rows), "first or second, both orders"
    assert 4 <= len(server.bodies) <= 8, "two a pair, one where both are the same picture, none of the base alone"
    base = BaselineScores.read(folder.path)
    by_source = [base.for_prompt("unchanged", prompt).tolist() for prompt in dict.fromkeys(r[1] for r in plan.rows)]
    assert sum(by_source, []) == pytest.approx([s["scores"]["unchanged"] for s in samples["base"]])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompts": ["a red circle"]}, "reward unchanged compares with the source of an edit"),
        ({"reward": "background"}, "prompts: reward background compares with a mask, and no prompt comes with one"),
        ({"watch": ["first_frame"]}, "first_frame judges video"),
        ({"watch": {"d": {"reward": "directional_clip", "model": "starter:image/clip", "captions": "CAPTIONS"}}},
         "has no line for the prompt 'a red circle' with its source"),
        ({"watch": {"p": {"reward": "judge_pairs", "url": "URL", "model": "judge"}}, "contestants": {"base": "sample"}},
         "reward unchanged|watch: p compares contestants with the first one, and this run has no other"),
        ({"watch": {"l": {"reward": "leave_one_out", "of": {"vendi": {"model": "starter:image/clip"}}}}},
         "watch: l compares the samples of one prompt, which says nothing of how contestants differ"),
    ],
)  # fmt: skip
def test_a_run_whose_rewards_cannot_work_is_refused_before_weights_load(tmp_path, serve, change, says):
    (tmp_path / "captions.jsonl").write_text(json.dumps({"prompt": "another", "source_prompt": "a"}))
    words = json.dumps(change).replace("CAPTIONS", str(tmp_path / "captions.jsonl")).replace("URL", serve().url)
    with pytest.raises(BadInput, match=says):
        plan_edits(tmp_path, **json.loads(words))


def test_a_source_of_another_kind_is_refused_before_weights_load(tmp_path):
    media_files.write_media(CLIP, tmp_path / "clip")
    row = {"prompt": "a red circle", "source": "clip.apng"}
    (tmp_path / "clips.jsonl").write_text(json.dumps(row))
    with pytest.raises(BadInput, match="reward unchanged can't compare image with a source that is video"):
        plan_edits(tmp_path, prompts=str(tmp_path / "clips.jsonl"))


def test_a_judge_of_pairs_compares_each_sample_with_its_own_rival(serve):
    def answer(body, n):
        first, second = (level(uri) for uri in pictures(body))
        return completion("hm" if 0.25 < first < 0.35 else f"Winner: {1 if first > second else 2}")

    reward = judge(serve(answer), JudgePairs)
    media, rivals = greys(0.9, 0.1, 0.3, 0.5), greys(0.2, 0.6, 0.8, 0.5)
    media.data[3] = torch.nan
    scores = reward.score_against(media=media, rivals=rivals, prompts=["a"] * 4)
    assert scores[:2].tolist() == [1, 0] and scores[2:].isnan().all()
    assert set(reward.last_failures) == {2, 3} and reward.last_dimensions["first_place"][:2].tolist() == [0.5, 0.5]
